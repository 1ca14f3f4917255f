"""The training loop on a toy model of plain torch, small enough to train in a second."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from perfusion_core.concept.concept import Concept, ConceptError
from perfusion_core.concept.concept_file import load_concept, save_concept
from perfusion_core.families import FAMILIES
from perfusion_core.method.backbone import TrainingPrompts
from perfusion_core.method.batches import PictureGroup, TrainingError, batches, mask_weights
from perfusion_core.method.covariance import Covariance, estimate
from perfusion_core.method.edit import GatedEdit, add_values
from perfusion_core.method.templates import templates_for
from perfusion_core.method.training import Training
from perfusion_core.method.training_settings import KEY_MODES, TrainingSettings

WIDTH = FAMILIES["emoji"].context_width
CHANNELS, SIZE = 4, 6
LAYERS = {"input_blocks.0.attn2": 16, "output_blocks.0.attn2": 24}


class Toy:
    """A causal text encoder, and two cross-attention layers that predict the clean picture."""

    family = "emoji"
    device = torch.device("cpu")
    underflows = False

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def weights(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator) / math.sqrt(shape[-1])

        self.layers = dict(LAYERS)
        self.generator = torch.Generator().manual_seed(1)
        self.words: dict[str, Tensor] = {}
        self.mixer = weights(WIDTH, WIDTH)
        self.queries = {path: weights(out, CHANNELS) for path, out in LAYERS.items()}
        self.keys = {path: weights(out, WIDTH) for path, out in LAYERS.items()}
        self.values = {path: weights(out, WIDTH) for path, out in LAYERS.items()}
        self.outputs = {path: weights(CHANNELS, out) for path, out in LAYERS.items()}
        self.encodings: list[Tensor] = []  # of the placeholder, of every call

    def word(self, word: str) -> Tensor:
        generator = torch.Generator().manual_seed(sum(n * ord(c) for n, c in enumerate(word, 1)))
        return torch.randn(WIDTH, generator=generator) * 0.1

    def superclass_embeddings(self, word: str) -> Mapping[str, Tensor]:
        return {"clip_l": torch.stack([self.word(part) for part in word.split()])}

    def encode(
        self,
        prompts: Sequence[str],
        placeholder: str,
        embeddings: Mapping[str, Tensor],
        superclass: str = "",
    ) -> TrainingPrompts:
        vectors = embeddings["clip_l"]
        length = 10 + len(vectors)
        rows, positions = [], torch.zeros(len(prompts), length, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            before, after = prompt.split(placeholder)
            parts = [self.word("<start>"), *map(self.word, before.split()), *vectors]
            positions[row, len(parts) - 1] = True
            parts += list(map(self.word, after.split()))
            parts += [self.word("<end>")] * (length - len(parts))
            rows.append(torch.stack(parts))
        embedded = torch.stack(rows)
        past = embedded.cumsum(dim=1) / torch.arange(1, length + 1)[:, None]
        mixed = (embedded + 0.3 * past) @ self.mixer.T
        context = torch.nn.functional.layer_norm(mixed, (WIDTH,))
        self.encodings.append(context.detach()[positions])
        return TrainingPrompts(context, positions, extra="pooled")

    def check_prompts(self, *_: object) -> None:
        pass

    def retire_encoder(self) -> None:
        pass

    def encode_captions(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        longest = max(len(c.split()) for c in captions)
        context, mask = [], torch.zeros(len(captions), longest + 1, dtype=torch.bool)
        for row, caption in enumerate(captions):
            words = [self.word(w) for w in ["<start>", *caption.split()]]
            mask[row, : len(words)] = True
            words += [self.word("<end>")] * (longest + 1 - len(words))
            embedded = torch.stack(words)
            past = embedded.cumsum(dim=0) / torch.arange(1, len(words) + 1)[:, None]
            mixed = (embedded + 0.3 * past) @ self.mixer.T
            context.append(torch.nn.functional.layer_norm(mixed, (WIDTH,)))
        return torch.stack(context), mask

    def value_projection(self, layer: str, encoding: Tensor) -> Tensor:
        return self.values[layer] @ encoding

    def key_projection(self, layer: str, encoding: Tensor) -> Tensor:
        return self.keys[layer] @ encoding

    def loss(
        self,
        latents: Tensor,
        noise: Tensor,
        times: Tensor,
        encoded: TrainingPrompts,
        edit: GatedEdit,
        differences: Mapping[str, Tensor],
        key_differences: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        assert encoded.extra == "pooled"
        prepared = edit.prepare(encoded.context)
        level = times[:, None, None, None]
        pixels = ((1 - level) * latents + level * noise).flatten(2).mT
        predicted = torch.zeros_like(pixels)
        for path, out in self.layers.items():
            keys = prepared.context @ self.keys[path].T
            if key_differences is not None:
                keys = add_values(keys, prepared.weights, key_differences[path])
            values = prepared.context @ self.values[path].T
            values = add_values(values, prepared.weights, differences[path])
            scores = pixels @ self.queries[path].T @ keys.mT / math.sqrt(out)
            predicted = predicted + scores.softmax(dim=-1) @ values @ self.outputs[path].T
        return (predicted.mT.reshape(latents.shape) - latents).square()


@pytest.fixture(scope="module")
def covariance() -> Covariance:
    things = ("teddy", "cat", "car", "hat", "frog")
    captions = [
        f"a {kind} of a {thing} on a {colour} ground"
        for kind in ("photo", "picture")
        for thing in things
        for colour in ("red", "blue")
    ]
    return estimate(Toy().encode_captions, captions, "emoji")


@pytest.fixture
def latents() -> Tensor:
    """Five pictures of one colour that no word of the toy stands for, a little different each."""
    generator = torch.Generator().manual_seed(3)
    colour = torch.tensor([1.5, -1.0, 0.5, 2.0])[:, None, None]
    return colour + 0.1 * torch.randn(5, CHANNELS, SIZE, SIZE, generator=generator)


Learn = Callable[..., Training]


@pytest.fixture
def begin(covariance: Covariance, latents: Tensor) -> Learn:
    """Ready to train the toy for a few steps; keywords are settings, or of `Training`."""

    def ready(toy: Toy | None = None, **given: object) -> Training:
        arguments = {
            key: given.pop(key) for key in ("placeholder", "superclass", "start") if key in given
        }
        single = {"latents": latents, "masks": None, "captions": ()}
        single = {key: given.pop(key, value) for key, value in single.items()}
        groups = given.pop("groups", None) or [PictureGroup(**single)]  # type: ignore[arg-type]
        settings = TrainingSettings(**{"steps": 4, **given})  # type: ignore[arg-type]
        words = {"placeholder": "berry*", "superclass": "teddy"}
        return Training(
            toy or Toy(), groups, covariance=covariance, settings=settings,
            **{**words, **arguments},
        )  # type: ignore[arg-type]  # fmt: skip

    return ready


@pytest.fixture
def learn(begin: Learn) -> Learn:
    """The same, after all steps."""

    def run(toy: Toy | None = None, **given: object) -> Training:
        training = begin(toy, **given)
        for _ in training:
            pass
        return training

    return run


def superclass_encoding(toy: Toy) -> Tensor:
    """p as the first call of `encode` saw it."""
    return toy.encodings[0].mean(dim=0).double()


# --- it learns


def test_the_loss_falls_and_the_concept_is_told_from_other_words(learn: Learn) -> None:
    toy = Toy()
    result = learn(toy, steps=150, batch_size=4, value_rate=0.1)
    assert result.finished
    assert len(result.losses) == 150
    first, last = sum(result.losses[:10]) / 10, sum(result.losses[-10:]) / 10
    assert last < 0.3 * first
    concept = result.concept
    assert concept.training["loss"] == pytest.approx(sum(result.losses[-15:]) / 15)

    edit = GatedEdit(concept.target_input[None], concept.whitened_target[None],
                     concept.superclass_encoding[None], [concept.settings])  # fmt: skip
    embeddings = {key: t.float() for key, t in concept.embeddings.items()}
    encoded = toy.encode(["a photo of a berry* on a blue ground"], "berry*", embeddings)
    gates = edit.gates(encoded.context)[..., 0]
    at_end = torch.arange(gates.shape[1]) > 8
    assert float(gates[encoded.positions]) > 0.5
    assert float(gates[~encoded.positions & ~at_end].max()) < 0.2


def test_nothing_is_learned_at_rates_of_0(learn: Learn) -> None:
    toy = Toy()
    concept = learn(toy, embedding_rate=0, value_rate=0).concept
    assert torch.equal(concept.embeddings["clip_l"], toy.word("teddy")[None].half())
    assert not any(value.any() for value in concept.values.values())


def test_embeddings_and_values_have_their_own_rates(learn: Learn) -> None:
    toy = Toy()
    values_alone = learn(toy, embedding_rate=0).concept
    assert torch.equal(values_alone.embeddings["clip_l"], toy.word("teddy")[None].half())
    assert all(value.all() for value in values_alone.values.values())
    embedding_alone = learn(toy, value_rate=0).concept
    assert (embedding_alone.embeddings["clip_l"] != toy.word("teddy").half()).any()
    assert not any(value.any() for value in embedding_alone.values.values())
    # Adam's first step is the rate itself.
    change = learn(steps=1, embedding_rate=0.01).concept.embeddings["clip_l"] - toy.word("teddy")
    torch.testing.assert_close(change.abs(), torch.full_like(change, 0.01), rtol=0, atol=3e-4)


def test_the_rate_of_values_is_relative_to_each_layer_s_scale(learn: Learn) -> None:
    toy = Toy()
    toy.values["output_blocks.0.attn2"] *= 100
    concept = learn(toy, steps=1, value_rate=0.05).concept
    p = superclass_encoding(toy).float()
    for path, value in concept.values.items():
        scale = (toy.values[path] @ p).square().mean().sqrt()
        steps = value.float().abs() / scale
        torch.testing.assert_close(steps, torch.full_like(steps, 0.05), rtol=1e-2, atol=0)


def test_the_model_s_own_weights_stay_as_they_are(learn: Learn) -> None:
    toy, untouched = Toy(), Toy()
    learn(toy)
    for name in ("queries", "keys", "values", "outputs"):
        for path, weight in getattr(toy, name).items():
            assert torch.equal(weight, getattr(untouched, name)[path])
            assert weight.grad is None


# --- what the concept says


def test_a_superclass_of_several_tokens_gives_as_many_vectors(learn: Learn) -> None:
    toy = Toy()
    concept = learn(toy, superclass="teddy bear").concept
    assert concept.vectors == 2
    assert concept.superclass == "teddy bear"
    expected = superclass_encoding(toy).half()  # at the last of the two
    assert torch.equal(concept.superclass_encoding, expected)


@pytest.mark.parametrize("ema", [0.0, 0.9, 0.99])
def test_the_target_input_is_an_exponential_average_updated_once_a_step(
    learn: Learn, ema: float
) -> None:
    toy = Toy()
    concept = learn(toy, steps=5, ema=ema).concept
    assert len(toy.encodings) == 1 + 5
    expected = superclass_encoding(toy)
    for encodings in toy.encodings[1:]:
        expected = ema * expected + (1 - ema) * encodings.mean(dim=0).double()
    assert torch.equal(concept.target_input, expected.half())


def test_the_whitened_target_is_that_of_the_stored_target(
    learn: Learn, covariance: Covariance
) -> None:
    concept = learn().concept
    expected = covariance.whiten(concept.target_input).float()
    assert torch.equal(concept.whitened_target, expected)
    assert concept.covariance_fingerprint == covariance.fingerprint


def test_what_the_concept_remembers_of_its_training(learn: Learn) -> None:
    concept = learn(seed=7, batch_size=3).concept
    for key, value in {"seed": 7, "batch_size": 3, "steps": 4, "bias": 0.75, "temperature": 0.1,
                       "images": 5, "masked": False, "steps_done": 4}.items():  # fmt: skip
        assert concept.training[key] == value
    assert (concept.name, concept.placeholder, concept.family) == ("berry", "berry*", "emoji")
    assert (concept.bias, concept.temperature) == (0.6, 0.15)


def test_a_trained_concept_survives_its_file(learn: Learn, tmp_path: Path) -> None:
    concept = learn().concept
    save_concept(concept, tmp_path / "c.safetensors")
    loaded = load_concept(tmp_path / "c.safetensors")
    assert loaded.hash == concept.hash
    assert loaded.training == concept.training


# --- determinism


def test_the_same_seed_gives_the_same_concept(learn: Learn) -> None:
    torch.manual_seed(1)
    one = learn(seed=5)
    torch.manual_seed(2)
    other = learn(seed=5)
    assert one.concept.hash == other.concept.hash
    assert one.losses == other.losses
    assert learn(seed=6).concept.hash != one.concept.hash


@pytest.mark.parametrize("key_mode", KEY_MODES)
@pytest.mark.parametrize("stop", [1, 3, 6])
def test_a_training_goes_on_from_its_state_to_the_same_concept(
    begin: Learn, learn: Learn, stop: int, key_mode: str
) -> None:
    given = {"steps": 6, "seed": 5, "batch_size": 3, "key_mode": key_mode}
    whole, first, second = learn(**given), begin(**given), begin(**given)
    for _ in range(stop):
        first.step()
    state = first.state
    for _ in first:  # what goes on changes no state that was taken
        pass
    second.restore(state)
    for _ in second:
        pass
    assert second.losses == whole.losses == first.losses
    assert second.concept.hash == whole.concept.hash
    assert second.concept.training == whole.concept.training


def test_the_state_of_another_training_is_refused(begin: Learn) -> None:
    state = begin(steps=3).state
    with pytest.raises(TrainingError, match="of another training"):
        begin(superclass="teddy bear").restore(state)
    late = begin(steps=3)
    for _ in late:
        pass
    with pytest.raises(TrainingError, match="of step 3, and there are 2 steps"):
        begin(steps=2).restore(late.state)
    with pytest.raises(TrainingError, match="has begun"):
        late.restore(state)


def test_the_global_random_state_is_left_alone(learn: Learn) -> None:
    before = torch.get_rng_state()
    learn()
    assert torch.equal(torch.get_rng_state(), before)


def test_it_trains_when_called_in_inference_mode(learn: Learn, latents: Tensor) -> None:
    expected = learn(masks=torch.ones(5, 12, 12)).concept.hash
    with torch.inference_mode():
        toy = Toy()
    # Its weights are ordinary, as a model's are while training; latents and masks may be others.
    toy = Toy()
    with torch.inference_mode():
        result = learn(toy, latents=latents * 1, masks=torch.ones(5, 12, 12))
    assert result.concept.hash == expected


def test_every_picture_is_seen_before_any_is_seen_again(learn: Learn) -> None:
    class Watching(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []
            self.times: list[Tensor] = []

        def loss(self, latents: Tensor, noise: Tensor, times: Tensor, *rest: object) -> Tensor:
            self.seen.append(latents)
            self.times.append(times)
            return super().loss(latents, noise, times, *rest)  # type: ignore[arg-type]

    toy = Watching()
    learn(toy, steps=5, batch_size=3)
    order = [float(picture.sum()) for picture in torch.cat(toy.seen)]
    assert all(len(set(order[start : start + 5])) == 5 for start in (0, 5, 10))
    for times in toy.times:  # one in each third of the schedule
        assert (times * 3).long().tolist() == [0, 1, 2]


# --- masks


def test_a_mask_of_ones_is_no_mask(learn: Learn) -> None:
    with_mask, without = learn(masks=torch.ones(5, 48, 48)), learn()
    assert with_mask.losses == without.losses
    assert with_mask.concept.hash == without.concept.hash
    assert with_mask.concept.training["masked"]


def test_a_mask_is_relative_to_its_own_maximum(learn: Learn) -> None:
    masks = torch.rand(5, 12, 12)
    dimmed = masks * torch.tensor([1.0, 0.5, 0.25, 0.125, 0.0625])[:, None, None]
    assert learn(masks=masks).concept.hash == learn(masks=dimmed).concept.hash


def test_what_a_mask_leaves_out_has_no_part(learn: Learn, latents: Tensor) -> None:
    masks = torch.zeros(5, 2 * SIZE, 2 * SIZE)
    masks[:, :, :SIZE] = 1
    other = latents.clone()
    other[..., SIZE // 2 :] += 3
    assert learn(masks=masks).concept.hash == learn(masks=masks, latents=other).concept.hash
    assert learn().concept.hash != learn(latents=other).concept.hash


def test_masks_of_any_size_are_averaged_to_the_latents(latents: Tensor) -> None:
    masks = torch.zeros(5, 3 * SIZE, 2 * SIZE)
    masks[:, 0, 0] = 1.0
    masks[:, 3:6, 2:4] = 1.0
    weights = mask_weights(masks, latents)
    assert weights.shape == (5, 1, SIZE, SIZE)
    assert float(weights[0, 0, 1, 1]) == 1
    assert float(weights[0, 0, 0, 0]) == pytest.approx(1 / 6)


# --- several sizes, captions, vectors, and going on


def test_groups_of_different_sizes_are_drawn_alike(learn: Learn, latents: Tensor) -> None:
    class Watching(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.shapes: list[tuple[int, ...]] = []

        def loss(self, latents: Tensor, *rest: object) -> Tensor:
            self.shapes.append(tuple(latents.shape[1:]))
            return super().loss(latents, *rest)  # type: ignore[arg-type]

    wide = torch.cat([latents, latents], dim=-1)[:2]
    toy = Watching()
    groups = [PictureGroup(latents[:4], torch.ones(4, 9, 9)), PictureGroup(wide)]
    result = learn(toy, groups=groups, steps=12, batch_size=2)
    assert toy.shapes.count((CHANNELS, SIZE, SIZE)) == 8
    assert toy.shapes.count((CHANNELS, SIZE, 2 * SIZE)) == 4
    assert result.concept.training["images"] == 6
    assert result.concept.training["masked"]


def test_captions_belong_to_their_pictures(learn: Learn, latents: Tensor) -> None:
    class Watching(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.pairs: list[tuple[str, float]] = []
            self.prompts: list[str] = []

        def encode(self, prompts: Sequence[str], *rest: object) -> TrainingPrompts:
            self.prompts = list(prompts)
            return super().encode(prompts, *rest)  # type: ignore[arg-type]

        def loss(self, latents: Tensor, *rest: object) -> Tensor:
            self.pairs += zip(self.prompts, latents.sum((1, 2, 3)).tolist(), strict=True)
            return super().loss(latents, *rest)  # type: ignore[arg-type]

    toy = Watching()
    captions = [f"a {{}} number {n}" for n in range(5)]
    learn(toy, captions=captions, steps=5, batch_size=2)
    expected = dict(zip(latents.sum((1, 2, 3)).tolist(), captions, strict=True))
    assert len(toy.pairs) == 10
    for prompt, picture in toy.pairs:
        assert prompt == expected[picture].replace("{}", "berry*")


def test_a_picture_without_a_caption_among_others_gets_a_template() -> None:
    latents = torch.arange(3.0)[:, None, None, None].expand(3, 4, 8, 8)
    captions = ["a {} on red", "", "a {} on blue"]
    templates = [template.format("berry*") for template in templates_for("teddy")]
    drawn = batches([PictureGroup(latents, captions=captions)], "berry*", "teddy", 3, seed=1)
    for batch in islice(drawn, 4):
        found = dict(zip(batch.latents[:, 0, 0, 0].tolist(), batch.prompts, strict=True))
        assert (found[0.0], found[2.0]) == ("a berry* on red", "a berry* on blue")
        assert found[1.0] in templates


def test_a_step_has_one_template_and_each_comes_up_before_any_comes_again(learn: Learn) -> None:
    """So that the text encoder runs on one prompt a step, not on as many as there are pictures."""

    class Listening(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.heard: list[set[str]] = []

        def encode(self, prompts: Sequence[str], *rest: object) -> TrainingPrompts:
            self.heard.append(set(prompts))
            return super().encode(prompts, *rest)  # type: ignore[arg-type]

    toy = Listening()
    templates = {template.format("berry*") for template in templates_for("teddy")}
    learn(toy, steps=len(templates), batch_size=4)
    steps = toy.heard[1:]  # the first encoding is of the superclass, in all templates
    assert toy.heard[0] == templates
    assert all(len(prompts) == 1 for prompts in steps)
    assert set().union(*steps) == templates


def test_with_a_fixed_embedding_each_prompt_is_encoded_once_and_values_learn(learn: Learn) -> None:
    class Retiring(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.heard: list[str] = []
            self.retired = False

        def encode(self, prompts: Sequence[str], *rest: object) -> TrainingPrompts:
            assert not self.retired
            self.heard += prompts
            return super().encode(prompts, *rest)  # type: ignore[arg-type]

        def retire_encoder(self) -> None:
            self.retired = True

    toy = Retiring()
    result = learn(toy, steps=20, embedding_rate=0.0)
    templates = [template.format("berry*") for template in templates_for("teddy")]
    assert toy.retired
    assert sorted(toy.heard) == sorted(templates * 2)  # the superclass, and the placeholder
    start = toy.superclass_embeddings("teddy")["clip_l"].half()
    assert torch.equal(result.concept.embeddings["clip_l"], start)
    assert all(bool(value.any()) for value in result.concept.values.values())


@pytest.mark.parametrize(("superclass", "vectors"), [("teddy", 3), ("big teddy bear", 2)])
def test_the_placeholder_takes_as_many_vectors_as_asked(
    learn: Learn, superclass: str, vectors: int
) -> None:
    own = Toy().superclass_embeddings(superclass)["clip_l"]
    concept = learn(superclass=superclass, vectors=vectors, embedding_rate=0.0).concept
    assert concept.vectors == vectors
    rows = [max(0, len(own) - vectors + n) for n in range(vectors)]
    assert torch.equal(concept.embeddings["clip_l"], own[rows].half())


def test_going_on_starts_where_the_concept_is(learn: Learn) -> None:
    first = learn(steps=30)
    on = learn(steps=30, start=first.concept, seed=1)
    assert on.concept.training["steps_done"] == 60
    assert sum(on.losses[:5]) < sum(first.losses[:5])
    still = learn(steps=3, start=first.concept, embedding_rate=0.0, value_rate=0.0).concept
    assert torch.equal(still.embeddings["clip_l"], first.concept.embeddings["clip_l"])
    for path, value in first.concept.values.items():
        assert torch.allclose(still.values[path].float(), value.float(), atol=1e-3)


def test_going_on_with_the_same_seed_sees_noise_that_it_has_not_seen(learn: Learn) -> None:
    class Watched(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.noise: list[Tensor] = []

        def loss(self, latents: Tensor, noise: Tensor, *given: Any) -> Tensor:
            self.noise.append(noise)
            return super().loss(latents, noise, *given)

    toys = [Watched() for _ in range(3)]
    first = learn(toys[0], steps=2, seed=2**64 - 1).concept
    for toy in toys[1:]:
        learn(toy, steps=2, seed=2**64 - 1, start=first)
    begun, on, again = (torch.cat(toy.noise).flatten(1) for toy in toys)
    assert torch.equal(on, again)
    assert not bool((begun[:, None] == on).all(dim=2).any())


def test_going_on_needs_the_same_superclass_and_vectors(learn: Learn) -> None:
    first = learn(steps=1).concept
    with pytest.raises(TrainingError, match='has the superclass "teddy", not "cat"'):
        learn(start=first, superclass="cat")
    with pytest.raises(TrainingError, match="has 1 vectors, but 2 are asked for"):
        learn(start=first, vectors=2)


# --- key modes


def test_trained_keys_start_at_the_locked_ones_at_a_rate_relative_to_them(learn: Learn) -> None:
    toy = Toy()
    toy.keys["output_blocks.0.attn2"] *= 100
    locked, trained = (learn(toy, steps=1, value_rate=0.05, key_mode=m) for m in KEY_MODES)
    assert locked.losses == trained.losses
    assert not locked.concept.keys
    assert locked.concept.hash != trained.concept.hash
    p = superclass_encoding(toy).float()
    for path, key in trained.concept.keys.items():
        scale = (toy.keys[path] @ p).square().mean().sqrt()
        steps = key.float().abs() / scale
        torch.testing.assert_close(steps, torch.full_like(steps, 0.05), rtol=1e-2, atol=0)


def test_going_on_keeps_trained_keys(learn: Learn) -> None:
    first = learn(steps=30, key_mode="trained").concept
    still = learn(steps=1, start=first, embedding_rate=0.0, value_rate=0.0, key_mode="trained")
    for path, key in first.keys.items():
        assert torch.allclose(still.concept.keys[path].float(), key.float(), atol=1e-3)
    with pytest.raises(TrainingError, match='keys of its own.*set key_mode to "trained"'):
        learn(start=first)
    begun = learn(steps=1, start=learn(steps=1).concept, key_mode="trained").concept
    assert begun.keys.keys() == begun.values.keys()


# --- step by step


def test_a_snapshot_after_a_step_is_what_so_many_steps_give(begin: Learn, learn: Learn) -> None:
    training = begin(steps=3)
    snapshots = []
    for loss in training:
        assert training.losses[-1] == loss
        snapshots.append(training.concept)
    assert training.finished
    assert [c.training["steps_done"] for c in snapshots] == [1, 2, 3]
    for done, snapshot in enumerate(snapshots, start=1):
        assert snapshot.hash == learn(steps=done).concept.hash


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_training_that_stops_has_done_no_more_steps(
    begin: Learn, learn: Learn, after: int
) -> None:
    toy = Toy()
    training = begin(toy, steps=1000)
    for _ in range(after):
        training.step()
    assert len(toy.encodings) == 1 + after
    assert not training.finished
    concept = training.concept
    assert concept.training["steps_done"] == after
    assert not after or concept.hash == learn(steps=after).concept.hash


def test_what_happens_between_steps_changes_nothing(begin: Learn, learn: Learn) -> None:
    training = begin(steps=4)
    with torch.inference_mode():  # as ComfyUI runs its nodes
        for _ in training:
            torch.manual_seed(1)
            _ = training.concept
    assert training.concept.hash == learn(steps=4).concept.hash


# --- what bad input gets


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"latents": torch.zeros(0, 4, 6, 6)}, r"\[0, 4, 6, 6\].*at least one picture"),
        ({"latents": torch.zeros(4, 6, 6)}, "at least one picture"),
        ({"latents": torch.full((1, 4, 6, 6), torch.nan)}, "VAE"),
        ({"masks": torch.ones(4, 6, 6)}, r"\[4, 6, 6\] for 5 pictures"),
        ({"masks": torch.ones(5, 1, 6, 6)}, "masks have the shape"),
        ({"masks": torch.eye(5)[:, :, None].expand(5, 5, 5) * 0}, "mask of picture 1 is empty"),
        ({"captions": ["a {}"]}, "1 captions for 5 pictures"),
        ({"vectors": 17}, "vectors is 17; it must be between 0"),
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"embedding_rate": math.nan}, "embedding_rate is nan"),
        ({"value_rate": -1.0}, "value_rate is -1.0"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"key_mode": "free"}, 'key_mode is "free"; it must be one of locked, trained'),
    ],
)
def test_unusable_input_is_refused(learn: Learn, given: dict[str, object], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        learn(**given)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"superclass": ""}, "superclass is empty"),
        ({"placeholder": "my berry"}, "placeholder"),
    ],
)
def test_unusable_words_are_refused_before_anything_runs(
    learn: Learn, words: dict[str, str], message: str
) -> None:
    toy = Toy()
    with pytest.raises(ConceptError, match=message):
        learn(toy, **words)
    assert not toy.encodings


def test_a_gate_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature is 0"):
        TrainingSettings(temperature=0.0)


def test_scaling_the_loss_changes_nothing_where_no_gradient_is_lost(learn: Learn) -> None:
    toy = Toy()
    toy.underflows = True
    assert learn(toy, steps=6).concept.hash == learn(steps=6).concept.hash


class Overflowing(Toy):
    """Its loss is a number, its gradient never."""

    underflows = True

    def loss(self, *args: Any, **kwargs: Any) -> Tensor:
        differences: Mapping[str, Tensor] = args[5]
        infinite = sum((0 * d).abs().sum().sqrt() for d in differences.values())
        return super().loss(*args, **kwargs) + infinite


def test_gradients_that_overflow_at_every_scale_are_an_error(learn: Learn) -> None:
    with pytest.raises(TrainingError, match=r"overflow at every scale.*--fp32-unet"):
        learn(Overflowing(), steps=40)


def test_divergence_says_what_to_lower(learn: Learn) -> None:
    class Diverging(Toy):
        def loss(self, *arguments: object) -> Tensor:
            return super().loss(*arguments) * torch.inf  # type: ignore[arg-type]

    with pytest.raises(TrainingError, match=r"diverged.*value_rate \(now 0.03\)"):
        learn(Diverging())


def test_one_picture_is_enough(learn: Learn, latents: Tensor) -> None:
    result = learn(latents=latents[:1], batch_size=3)
    assert result.finished
    assert isinstance(replace(result.concept, name="Berry"), Concept)
    assert all(math.isfinite(a) and a != b for a, b in pairwise(result.losses))
