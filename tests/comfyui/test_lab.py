"""The quality lab: rejected designs against formulas, rivals that train, and the command line."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import numpy as np
import pytest
import torch

from demo import model as small
from lab import __main__ as command
from lab import local_comfyui, methods, recipe, rejected, tuning
from lab.ablations import FULL, QUICK, ablations
from lab.figures import Point
from lab.groups import individual_of
from lab.judge import load_judge
from lab.local_comfyui import LocalComfyUI
from lab.marking import FolderMarking, Likeness, WorldMarking, readings
from lab.methods import Method, Perfusion
from lab.published import Published, PublishedEdit
from lab.rejected import Substituted, SwappedEdit, UngatedEdit
from lab.rivals import RIVALS as RIVAL_METHODS
from lab.rivals import DreamBooth, KeysAndValues, Lora, TextualInversion, weights
from lab.rivals.common import denoising_loss, load, trigger
from lab.rivals.textual_inversion import superclass_word
from lab.subjects import Subject, folder_subject, world_subject
from lab.train_judge import near_miss
from lab.world.pictures import BACKGROUNDS
from lab.world.render import Scene, Thing, render
from perfusion_core.comfy.backbone import training_backbone
from perfusion_core.concept.concept_file import load_concept
from perfusion_core.method.batches import batches
from perfusion_core.method.edit import GatedEdit, add_values
from perfusion_core.method.settings import ConceptSettings
from perfusion_core.method.training_settings import TrainingSettings
from tools.workflows import load_api

RIVALS, BATCHING = "lab.rivals", ("textual_inversion", "weights")
PROMPTS = ["a photo of a {} on a red background", "a cactus next to a {}"]


@pytest.fixture(scope="module")
def comfyui() -> Iterator[LocalComfyUI]:
    """The world's text encoder and autoencoder, with a narrow UNet of random weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small, "UNET_CONFIG", {**small.UNET_CONFIG, "model_channels": 32})
        patch.setattr(small, "load_unet", lambda *_: _narrow_unet())
        patch.setattr(local_comfyui, "STEPS", 2)
        for module in (methods, weights):
            patch.setattr(module, "BATCH", 2)
        for name in ("textual_inversion", "lora"):
            patch.setattr(f"lab.rivals.{name}.BATCH", 2)
        patch.setattr(weights, "PRIOR_PICTURES", 2)
        yield LocalComfyUI()
    comfy.model_management.unload_all_models()


def _narrow_unet() -> Any:
    config = small.EmojiWorld(small.UNET_CONFIG)
    config.set_inference_dtype(torch.float32, None)
    base = config.get_model({}, "", device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in base.diffusion_model.parameters():
            std = 0.5 / max(1, parameter[0].numel()) ** 0.5
            parameter.normal_(std=std, generator=generator)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(base, load_device=cpu, offload_device=cpu)


@pytest.fixture(scope="module")
def berry() -> Subject:
    return world_subject("berry")


@pytest.fixture(scope="module")
def royal() -> Subject:
    return world_subject("royal")


def painted(comfyui: LocalComfyUI, pair: tuple[Any, Any], prompts: list[str]) -> np.ndarray:
    return np.stack([np.asarray(p) for p in comfyui.draw(*pair, prompts, seed=3)])


def test_the_exact_mask_is_where_the_concept_was_drawn(berry: Subject) -> None:
    assert berry.masks is not None
    for picture, mask in zip(berry.pictures, berry.masks, strict=True):
        pixels = np.asarray(picture).astype(int)
        corner = pixels[0, 0]
        unlike = np.abs(pixels - corner).max(axis=-1) > 60
        assert 0.15 < mask.mean() < 0.6
        assert mask[unlike].mean() > 0.99  # all that is far from the background's colour is in it
        assert not mask[0].any()


class TestRejectedDesigns:
    """Against the formulas in float64, layer by layer."""

    d, out, T = 6, 4, 5

    @pytest.fixture
    def parts(self) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        mixing = random(self.d, self.d)
        return {
            "W": random(self.out, self.d),
            "e": random(2, self.T, self.d),
            "i": random(2, self.d),
            "p": random(2, self.d),
            "D": random(2, self.out),
            "C_inverse": mixing @ mixing.T + torch.eye(self.d, dtype=torch.float64),
        }

    def test_swapped_in_at_the_position(self, parts: dict[str, torch.Tensor]) -> None:
        W, e, p, D = (parts[name] for name in "WepD")
        positions = torch.zeros(2, self.T, 2)
        positions[0, 3, 0] = positions[1, 1, 1] = 1
        edit = SwappedEdit(p, e, positions)
        prepared = edit.prepare(e)
        values = add_values(prepared.context @ W.T, prepared.weights, D)
        expected = e @ W.T
        expected[0, 3] = W @ p[0] + D[0]
        expected[1, 1] = W @ p[1] + D[1]
        torch.testing.assert_close(values, expected)
        keys = prepared.keys @ W.T
        torch.testing.assert_close(keys[0, 3], W @ p[0])
        torch.testing.assert_close(keys[0, :3], e[0, :3] @ W.T)

    def test_known_contexts_are_found_in_any_order_and_others_stay(
        self, parts: dict[str, torch.Tensor]
    ) -> None:
        e, p = parts["e"], parts["p"]
        positions = torch.zeros(2, self.T, 2)
        positions[0, 3, 0] = positions[1, 1, 1] = 1
        edit = SwappedEdit(p, e, positions, strength=0.5)
        unknown = torch.ones(1, self.T, self.d, dtype=torch.float64)
        mixed = torch.cat([unknown, e[1:].float().double(), e[:1], e[1:]])
        weights = edit.prepare(mixed).weights
        assert weights.nonzero().tolist() == [[1, 1, 1], [2, 3, 0], [3, 1, 1]]
        assert weights.max() == 0.5
        assert torch.equal(edit.prepare(unknown).context, unknown)

    def test_the_ungated_edit(self, parts: dict[str, torch.Tensor]) -> None:
        """h = W e + s (o - W i) for one concept; at e = i it is o, wholly."""
        W, e = parts["W"], parts["e"]
        i, p, D = (parts[name][0] for name in "ipD")
        u = parts["C_inverse"] @ i
        edit = UngatedEdit(i[None], u[None], p[None], [ConceptSettings()])
        prepared = edit.prepare(e)
        values = add_values(prepared.context @ W.T, prepared.weights, D[None])
        s = (e @ u) / (i @ u)
        expected = e @ W.T + s[..., None] * (W @ p + D - W @ i)
        torch.testing.assert_close(values, expected)
        at = edit.prepare(i[None, None])
        torch.testing.assert_close((at.keys @ W.T)[0, 0], W @ p)

    def test_the_published_edit(self, parts: dict[str, torch.Tensor]) -> None:
        """h = W (e - I c) + sum_j g_j o_j, c = G^-1 b: what is subtracted has no gate."""
        W, e, i, p, D = (parts[name] for name in ("W", "e", "i", "p", "D"))
        u = i @ parts["C_inverse"]
        sliders = [ConceptSettings(0.5, 0.1, 0.7)] * len(i)
        prepared = PublishedEdit(i, u, p, sliders).prepare(e)
        values = add_values(prepared.context @ W.T, prepared.weights, D)
        c = e @ u.T @ torch.linalg.inv(u @ i.T).T
        gates = torch.sigmoid((c - 0.5) / 0.1)
        edited = (e - c @ i) @ W.T + gates @ (p @ W.T + D)
        torch.testing.assert_close(values, e @ W.T + 0.7 * (edited - e @ W.T))

    def test_swapped_while_it_trains(self, comfyui: LocalComfyUI, berry: Subject) -> None:
        """The loss under substitution is that of the network fed with substituted encodings."""
        groups = comfyui.groups(berry.pictures)
        batch = next(batches(groups, "teddy*", "teddy", 2, seed=0))
        with training_backbone(comfyui.model, comfyui.clip, (2, 5, 16, 16)) as backbone:
            words = dict(backbone.superclass_embeddings("teddy"))
            encoded = backbone.encode(batch.prompts, "teddy*", words)
            p = encoded.context[encoded.positions].mean(dim=0).double()
            edit = GatedEdit(p[None], p[None], p[None], [ConceptSettings()])
            nothing = {path: torch.zeros(1, out) for path, out in backbone.layers.items()}
            through = rejected.swapping(backbone)
            errors = through.loss(batch.latents, batch.noise, batch.times, encoded, edit, nothing)
            context = encoded.context.clone()
            context[encoded.positions] = p.float()
            plain = denoising_loss(comfyui.model.model, batch, context, backbone.device)
        torch.testing.assert_close(errors, plain, rtol=1e-3, atol=1e-4)


def test_the_rivals_loss_is_ours_without_an_edit(comfyui: LocalComfyUI, berry: Subject) -> None:
    groups = comfyui.groups(berry.pictures)
    batch = next(batches(groups, "teddy*", "teddy", 2, seed=0))
    with training_backbone(comfyui.model, comfyui.clip, (2, 5, 16, 16)) as backbone:
        encoded = backbone.encode(batch.prompts, "teddy*", backbone.superclass_embeddings("teddy"))
        one = torch.ones(1, small.TEXT_WIDTH)
        off = GatedEdit(one, one, one, [ConceptSettings(strength=0)])
        nothing = {path: torch.zeros(1, out) for path, out in backbone.layers.items()}
        ours = backbone.loss(batch.latents, batch.noise, batch.times, encoded, off, nothing)
        theirs = denoising_loss(comfyui.model.model, batch, encoded.context, backbone.device)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("method", "use"),
    [
        (TextualInversion(2), {"strength": 1.0}),
        (Lora(2), {"strength": 1.0}),
        (KeysAndValues(2), {"strength": 1.0}),
        (DreamBooth(2), {"strength": 1.0}),
        (Substituted(2), {"insert": "swap"}),
        (Substituted(2), {"insert": "ungated"}),
        (Perfusion(2, masked=True), {"bias": 0.3}),
        (Published(2), {"bias": 0.3}),
    ],
    ids=[
        "inversion",
        "lora",
        "keys-values",
        "dreambooth",
        "swap",
        "ungated",
        "perfusion",
        "published",
    ],
)
def test_a_method_trains_samples_and_leaves_the_model_alone(
    comfyui: LocalComfyUI, berry: Subject, royal: Subject, tmp_path: Path, method: Method, use: Any
) -> None:
    plain = [prompt.format("teddy") for prompt in PROMPTS]
    before = painted(comfyui, (comfyui.model, comfyui.clip), plain)
    learned = []
    for subject in (berry, royal):
        file = tmp_path / f"{subject.name}.safetensors"
        method.train(comfyui, subject, file)
        learned.append((subject, file))
    assert np.array_equal(painted(comfyui, (comfyui.model, comfyui.clip), plain), before)

    asked = [prompt.format(method.phrase(berry)) for prompt in PROMPTS]
    with torch.inference_mode():
        one = painted(comfyui, method.apply(comfyui, learned[:1], asked, **use), asked)
        # A setting of the knob that means the concept is hardly there makes another picture.
        weak = {**use, "bias": 3.0} if "bias" in use else {**use, "strength": 0.01}
        other = painted(comfyui, method.apply(comfyui, learned[:1], asked, **weak), asked)
        together = [f"a {method.phrase(berry)} next to a {method.phrase(royal)}"]
        both = painted(comfyui, method.apply(comfyui, learned, together, **use), together)
    assert not np.array_equal(one, other)
    assert both.shape == (1, 128, 128, 3)
    assert np.array_equal(painted(comfyui, (comfyui.model, comfyui.clip), plain), before)


def test_a_trigger_is_near_the_superclass_and_of_its_own(
    comfyui: LocalComfyUI, berry: Subject, royal: Subject
) -> None:
    mint = replace(berry, name="mint")
    (one,), (same,), (other,), (teapot,) = (
        trigger(comfyui, subject).values() for subject in (berry, berry, mint, royal)
    )
    (word,) = superclass_word(comfyui, berry).values()
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    near = torch.nn.functional.cosine_similarity
    assert near(one, word).item() > 0.8 > near(teapot, word).item()


def test_a_fine_tuned_weight_is_used_as_it_was_learned(
    comfyui: LocalComfyUI, berry: Subject, tmp_path: Path
) -> None:
    """ComfyUI's patch of the learned change gives the weight that training had."""
    file = tmp_path / "berry.safetensors"
    method = KeysAndValues(1, rate=0.01)
    method.train(comfyui, berry, file)
    model, _ = method.apply(comfyui, [(berry, file)], [], strength=1.0)
    key = method.keys(comfyui.model)[0]
    before = weights.weight_of(comfyui.model, key).clone()
    comfy.model_management.load_models_gpu([model])
    patched = weights.weight_of(model, key).clone()
    comfy.model_management.load_models_gpu([comfyui.model])
    _, changes = load(file)
    assert changes.keys() == set(method.keys(comfyui.model))
    assert changes[key].abs().max() > 0
    torch.testing.assert_close(patched - before, changes[key].float(), rtol=1e-3, atol=1e-6)
    assert torch.equal(weights.weight_of(comfyui.model, key), before)


def test_the_lab_trains_as_the_demos_graph_says(
    monkeypatch: pytest.MonkeyPatch, berry: Subject
) -> None:
    monkeypatch.setattr(methods, "BATCH", recipe.BATCH)  # which the small comfyui has lowered
    settings = Perfusion().settings()
    (node,) = (
        node["inputs"]
        for node in load_api("train_concept").values()
        if node["class_type"] == "PerfusionTrainConcept"
    )
    for name in ("steps", "batch_size", "seed", "embedding_rate", "value_rate"):
        assert getattr(settings, name) == node[name]
    assert list(berry.captions) == node["captions"].splitlines()
    for caption, background in zip(berry.captions, BACKGROUNDS, strict=True):
        assert f"on a {background} background" in caption
    assert Substituted().key["training"] == Perfusion().key["training"]


def test_every_method_sees_the_same_captions(
    monkeypatch: pytest.MonkeyPatch, comfyui: LocalComfyUI, berry: Subject, tmp_path: Path
) -> None:
    seen: list[str] = []

    def spied(groups: Any, word: str, *args: Any) -> Iterator[Any]:
        for batch in batches(groups, word, *args):
            seen.extend(prompt.replace(word, "{}") for prompt in batch.prompts)
            yield batch

    for module in ("perfusion_core.method.training", *(f"{RIVALS}.{n}" for n in BATCHING)):
        monkeypatch.setattr(f"{module}.batches", spied)
    for method in (Perfusion(3), Substituted(3), TextualInversion(3), KeysAndValues(3)):
        seen.clear()
        method.train(comfyui, berry, tmp_path / "berry.safetensors")
        assert set(seen) == set(berry.captions)

    taught: list[Any] = []
    monkeypatch.setattr(f"{RIVALS}.lora.encoded", lambda clip, text: taught.append(text))
    monkeypatch.setattr(f"{RIVALS}.lora.train_lora", lambda *_, **__: {})
    Lora(1).train(comfyui, berry, tmp_path / "berry.safetensors")
    assert taught == [caption.format("teddy* teddy") for caption in berry.captions]


def test_one_picture_alone(comfyui: LocalComfyUI, berry: Subject, tmp_path: Path) -> None:
    file = tmp_path / "berry.safetensors"
    Perfusion(1, pictures=1).train(comfyui, berry, file)
    assert load_concept(file).training["images"] == 1


@pytest.mark.parametrize("scale", [QUICK, FULL], ids=["quick", "full"])
def test_every_claim_compares_as_many_points_on_both_sides(scale: Any) -> None:
    found = ablations(scale, steps=1)
    known = {variant.name for ablation in found for variant in ablation.variants}
    for ablation in found:
        assert ablation.claims
        for claim in ablation.claims:
            assert len(claim.better) == len(claim.worse) > 0
            assert {*claim.better, *claim.worse} <= known
            assert not {*claim.better} & {*claim.worse}
    names = {ablation.name for ablation in found}
    assert names - {a.name for a in ablations(scale, steps=1, masks=False)} == {"mask"}
    without = {a.name for a in ablations(scale, steps=1, couples=False)}
    assert names - without == {"edit of two"}


def test_every_way_of_training_is_one_that_training_knows() -> None:
    for ablation in ablations(FULL, steps=1):
        for variant in ablation.variants:
            if isinstance(variant.method, Perfusion):
                assert isinstance(variant.method.settings(), TrainingSettings)


def reading(*chances: Sequence[float]) -> tuple[np.ndarray, ...]:
    return tuple(np.array(part) for part in chances)


def test_the_likeness_is_the_chance_of_the_same_look_on_the_scale_of_the_pictures() -> None:
    own = reading([0.9, 0.1], [0.8, 0.2], [1.0, 0.0])
    plain = reading([0.1, 0.9], [0.5, 0.5], [0.5, 0.5])
    likeness = Likeness.between([plain] * 3, [own, own])
    assert likeness.ceiling == pytest.approx(0.82 * 0.68)
    assert likeness.floor == pytest.approx(0.18 * 0.5 * 0.5)
    assert likeness([own]) == pytest.approx(1)
    assert likeness([plain]) == pytest.approx(0)
    assert likeness([plain, own]) == pytest.approx(1)  # the thing that is most like it counts
    assert likeness([]) == 0
    half = reading([0.5, 0.5], [0.8, 0.2], [1.0, 0.0])
    expected = (0.5 * 0.68 - likeness.floor) / (likeness.ceiling - likeness.floor)
    assert likeness([half]) == pytest.approx(expected)
    with pytest.raises(ValueError, match="another superclass word"):
        Likeness.between([own], [own, own])
    with pytest.raises(ValueError, match="sees none of the things"):
        Likeness.between([plain], [])


def test_the_marks_of_a_folder_tell_the_concept_from_its_plain_superclass(berry: Subject) -> None:
    judge = load_judge()
    drawn = world_subject("mint").pictures  # as the plain superclass: other teddies
    marking = FolderMarking(judge, lambda prompts: drawn)
    asked = marking.prompts(berry, "teddy*")[: len(berry.pictures)]
    own = marking.marks(berry, berry.pictures, asked)[:, 1]
    other = marking.marks(berry, drawn, asked[: len(drawn)])[:, 1]
    assert own.min() > 0.9
    assert other.max() < 0.1


@pytest.mark.parametrize("name", ["berry", "frog-1", "hat-2"])
def test_the_likeness_of_a_folder_says_what_the_judge_says_whatever_is_beside_it(name: str) -> None:
    """Drawn on other backgrounds, at other sizes, beside other things; and nearly the same look."""
    concept, rng = individual_of(name), random.Random(name)
    subject, judge = world_subject(name), load_judge()
    plain = [
        render(Scene((Thing(concept.object),), "alone", background), rng)
        for background in ("green", "red", "gray")
    ]
    likeness = FolderMarking(judge, lambda prompts: plain).of(subject)
    things = [Thing(concept.object, look) for look in (concept.look, near_miss(concept.look, rng))]
    companion = Thing("apple" if concept.object == "hat" else "hat")
    for own, thing in zip((True, False), things, strict=True):
        for relation, around in (("alone", ()), ("wearing", (companion,))):
            picture = render(Scene((thing, *around), relation, "orange"), rng)
            (verdict,) = judge.look_at([picture])
            assert (name in verdict.concepts) == own
            found = likeness(readings(verdict, concept.object))
            assert found > 0.8 if own else found < 0.2


def test_an_unknown_superclass_is_not_looked_for(berry: Subject) -> None:
    marking = FolderMarking(load_judge(), lambda prompts: [])
    dragon = replace(berry, superclass="dragon")
    assert all("dragon" not in q.objects for q in marking.prompts(dragon, "dragon*"))
    assert all("teddy" in q.objects for q in marking.prompts(berry, "teddy*"))
    assert all("dragon*" in q.text for q in marking.prompts(dragon, "dragon*"))
    world = WorldMarking(load_judge()).prompts(berry, "teddy*")
    assert all("teddy" in q.objects for q in world)


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no picture"):
        folder_subject(tmp_path, "teddy")
    with pytest.raises(ValueError, match="no folder"):
        folder_subject(tmp_path / "nowhere", "teddy")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="cannot be read.*broken.png.*Take it out"):
        folder_subject(tmp_path, "teddy")


class Bench:
    """In a lab's place: a method is as good as its rate, and its word's part of it, are near to
    some, and of no use far off."""

    def __init__(self, rate: float, part: float) -> None:
        self.rate, self.part = rate, part

    def expect(self, variants: Any, groups: int) -> None:
        pass

    def point(self, variant: Any) -> Point:
        own = tuning.rates_of(variant.method)
        away = abs(np.log2(own["rate"] / self.rate))
        if "word_rate" in own:
            away += abs(np.log2(own["word_rate"] / own["rate"] / self.part))
        return Point(variant.name, np.full((1, 8, 2), max(0, 1 - away / 3)))


@pytest.mark.parametrize("method", [Lora(rate=0.1), Perfusion()], ids=["lora", "perfusion"])
@pytest.mark.parametrize("power", [-4, -3, 0, 2, 4, 6])
def test_rates_are_tried_until_the_best_is_not_at_an_end(method: Method, power: int) -> None:
    own = tuning.rates_of(method)
    part = own.get("word_rate", 0) / own["rate"]
    bench = Bench(own["rate"] * 2.0**power, part)
    found = tuning.tune(bench, method, "bias", [0.5])  # type: ignore[arg-type]
    assert found["rate"] == pytest.approx(own["rate"] * 2.0 ** min(power, tuning.FURTHEST))
    assert found["at_an_end"] == (abs(power) >= tuning.FURTHEST)
    rates = [tried["rates"]["rate"] for tried in found["tried"]]
    assert rates == sorted(rates)


@pytest.mark.parametrize("method", [KeysAndValues(), Perfusion()], ids=["weights", "perfusion"])
@pytest.mark.parametrize(("power", "of_word"), [(0, 0), (1, -2), (-1, 2), (2, 1)])
def test_the_rate_of_a_word_is_tried_apart_from_that_of_what_is_learned_beside_it(
    method: Method, power: int, of_word: int
) -> None:
    own = tuning.rates_of(method)
    rate, part = own["rate"] * 2.0**power, own["word_rate"] / own["rate"] * 2.0**of_word
    found = tuning.tune(Bench(rate, part), method, "bias", [0.5])  # type: ignore[arg-type]
    assert found["rate"] == pytest.approx(rate)
    assert found["word_rate"] == pytest.approx(rate * part)
    assert not found["at_an_end"]


def lab(monkeypatch: pytest.MonkeyPatch, comfyui: LocalComfyUI, *options: str) -> None:
    """Runs the command in this process, on a small comfyui."""
    monkeypatch.setattr(sys, "argv", ["lab", *options])
    monkeypatch.setattr(command, "open_comfyui", lambda: None)
    monkeypatch.setattr("lab.local_comfyui.LocalComfyUI", lambda: comfyui)
    command.main()


@pytest.mark.slow
def test_the_command_writes_its_results_and_goes_on_after_a_stop(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    comfyui: LocalComfyUI,
    tmp_path: Path,
) -> None:
    pytest.importorskip("matplotlib")
    common = ["--steps", "1", "--samples", "8", "--concepts", "berry", "royal"]
    common += ["--only", "bias", "rivals", "--cache", str(tmp_path / "cache")]
    stopped = Lora.train

    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Lora, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        lab(monkeypatch, comfyui, *common, "--out", str(tmp_path / "first"))
    done = capsys.readouterr().out
    assert done.count("train Perfusion") == 2
    assert (tmp_path / "first" / "lab.json").is_file()  # what was found before the stop

    monkeypatch.setattr(Lora, "train", stopped)
    docs = tmp_path / "docs"
    monkeypatch.setattr("lab.publish.DOCS", docs)
    lab(monkeypatch, comfyui, *common, "--publish", "--out", str(tmp_path / "out"))
    done = capsys.readouterr().out
    assert "train Perfusion" not in done
    assert "train textual inversion" not in done
    assert done.count("train LoRA") == 2

    found = json.loads((tmp_path / "out" / "lab.json").read_text())
    assert [a["name"] for a in found["ablations"]] == ["bias"]
    for claim in found["ablations"][0]["claims"]:
        assert claim["verdict"] in ("holds", "fails") or "no difference above" in claim["verdict"]
        assert claim["interval"][0] <= claim["difference"] <= claim["interval"][1]
        # These figures are means, and each subject has as many pictures.
        assert sum(claim["by_subject"]) / 2 == pytest.approx(claim["difference"], abs=1e-3)
    methods_found = {m["name"]: m for m in found["methods"]}
    assert set(methods_found) == {
        "Perfusion", "textual inversion", "LoRA", "Custom Diffusion", "DreamBooth",
        "described in words",
    }  # fmt: skip
    words = methods_found.pop("described in words")
    assert len(words["points"]) == 1
    for method in methods_found.values():
        assert 0 <= method["hypervolume"] <= 1
        assert 0 <= method["both_identities"] <= 1
        assert method["both_pictures"] == found["pictures_a_point"] / 2 == 8
        assert sum(method["together"]["couples"]["fates"].values()) == pytest.approx(1, abs=1e-3)
        assert len(method["points"]) == 3
        assert method["train_seconds"] > 0
    sizes = {name: method["file_bytes"] for name, method in methods_found.items()}
    assert sizes["textual inversion"] < sizes["Perfusion"] < sizes["Custom Diffusion"]
    assert sizes["Custom Diffusion"] < sizes["DreamBooth"]
    for name in ("lab.md", "lab_bias.png", "lab_rivals.png", "lab_sheet.jpg"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    assert (docs / "lab.json").read_text() == (tmp_path / "out" / "lab.json").read_text()
    assert {path.name for path in docs.iterdir()} == {
        "lab.json", "results.md", "lab_bias.png", "lab_rivals.png", "lab_sheet.jpg"
    }  # fmt: skip
    table = (docs / "results.md").read_text()
    assert (tmp_path / "out" / "lab.md").read_text() in table
    assert "| Perfusion |" in table
    assert "a bias of 0.8 weakens the concept more than 0.4" in table

    lab(monkeypatch, comfyui, *common, "--out", str(tmp_path / "again"))
    assert " to do," not in capsys.readouterr().out  # nothing was done again
    larger = ["--samples", "16", "--only", "bias"]
    lab(monkeypatch, comfyui, *common, *larger, "--out", str(tmp_path / "larger"))
    larger_run = json.loads((tmp_path / "larger" / "lab.json").read_text())
    assert larger_run["pictures_a_point"] == 32
    assert larger_run["seconds_of_work"] > 0
    assert "train" not in capsys.readouterr().out.replace("training", "")
    again = json.loads((tmp_path / "again" / "lab.json").read_text())
    assert again["ablations"] == found["ablations"]
    assert again["methods"] == found["methods"]


def test_a_folder_of_pictures_is_measured_by_likeness(
    monkeypatch: pytest.MonkeyPatch, comfyui: LocalComfyUI, berry: Subject, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "mine"
    folder.mkdir()
    for n, picture in enumerate(berry.pictures):
        wide = picture.resize((200, 150))
        wide.paste(picture.resize((150, 150)), (25, 0))
        wide.save(folder / f"{n}.png")  # not square: the middle is taken
    lab(
        monkeypatch, comfyui, "--concept", str(folder), "--superclass", "toy bear", "--steps", "1",
        "--samples", "8", "--only", "bias", "rivals", "--out", str(tmp_path), "--cache",
        str(tmp_path / "c"),
    )  # fmt: skip
    found = json.loads((tmp_path / "lab.json").read_text())
    assert found["subjects"] == ["mine (toy bear)"]
    assert found["identity"].startswith("likeness")
    assert [m["name"] for m in found["methods"]][1:] == [m.title for m in RIVAL_METHODS]
    assert "both_identities" not in found["methods"][0]
    points = found["ablations"][0]["series"]["Perfusion"]
    assert [point["samples"] for point in points] == [8] * 3
    assert all(0 <= point["identity"] <= 1 for point in points)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--concept", "pictures"], "SUPERCLASS"),
        (["--samples", "9"], "multiple"),
        (["--tune", "--publish"], "rates.json"),
        (["--concept", "a", "--superclass", "cat", "--concepts", "berry"], "folder"),
    ],
)
def test_what_the_command_refuses(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    comfyui: LocalComfyUI,
    options: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit):
        lab(monkeypatch, comfyui, *options)
    assert message in capsys.readouterr().err
