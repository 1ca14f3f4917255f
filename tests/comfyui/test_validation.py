"""Previews, selection and the contact sheet of the training node, called as ComfyUI calls it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import comfy
import comfy.model_management
import folder_paths
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import TinyVae, patched_modules, tiny_clip, tiny_model
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

Node = Any
IMAGES = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def node(nodes: dict[str, Node]) -> Node:
    return nodes["PerfusionTrainConcept"]


@pytest.fixture(scope="module")
def model() -> Any:
    with torch.inference_mode():
        return tiny_model()


@pytest.fixture(scope="module")
def clip() -> Any:
    with torch.inference_mode():
        return tiny_clip(length=32)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: Node) -> Iterator[Path]:
    """An empty folder for CLIP models, that does not exist yet."""
    folder = tmp_path / "clip_vision"
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "clip_vision", ([str(folder)], set()))
    yield folder
    comfy.model_management.interrupt_current_processing(False)


@pytest.fixture
def few_steps(core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Painting in few steps: what is looked at here is not the pictures."""
    monkeypatch.setattr(core("comfy.painter"), "STEPS", 2)


def small_clip(folder: Path, seed: int = 0) -> None:
    """The real class and the real tokenizer, tiny and with random weights, as it would be got."""
    torch.manual_seed(seed)
    layers = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    vision = {**layers, "image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=layers, vision_config=vision, projection_dim=16)
    CLIPModel(config).save_pretrained(folder, safe_serialization=True)
    tokenizer = CLIPTokenizer.from_pretrained(Path(comfy.__path__[0]) / "sd1_tokenizer")
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)


def train(node: Node, model: Any, clip: Any, **changes: Any) -> Any:
    inputs = {
        "model": model,
        "clip": clip,
        "vae": TinyVae(),
        "images": IMAGES,
        "placeholder": "teddy*",
        "superclass": "teddy",
        "steps": 4,
        "batch_size": 2,
        "seed": 1,
        **changes,
    }
    listed = {name: [value] for name, value in inputs.items()}
    with torch.inference_mode():
        return node.PREPARE_CLASS_CLONE({}).EXECUTE_NORMALIZED(**listed)


def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, Any]]:
    """What ComfyUI's progress bar is told from now on."""
    seen: list[tuple[int, int, Any]] = []

    def hook(value: int, total: int, preview: Any = None, **_: Any) -> None:
        seen.append((value, total, preview))

    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", hook)
    # ComfyUI passes on from 0.12.1 only some of the steps, by the clock; here all count.
    for limit in ("PROGRESS_THROTTLE_MIN_INTERVAL", "PROGRESS_THROTTLE_MIN_PERCENT"):
        monkeypatch.setattr(f"comfy.utils.{limit}", 0, raising=False)
    return seen


def test_previews_come_while_training_and_do_not_change_what_is_learned(
    node: Node, model: Any, clip: Any, few_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train(node, model, clip, preview_every=0)
    seen = told(monkeypatch)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    result = train(node, model, clip, preview_every=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert result.args[0].concept.hash == plain.args[0].concept.hash
    assert patched_modules(model) == []
    shown = [(value, total, p) for value, total, p in seen if p is not None]
    assert [(value, total) for value, total, _ in shown] == [(2, 4), (4, 4)]
    for _, _, (kind, image, size) in shown:
        assert kind == "JPEG"
        assert isinstance(image, Image.Image)
        assert image.size == (64, 64)
        assert size == 512
    # Two rows of one picture, where the sheet of no previews is a line of text.
    assert result.args[2].shape[1] > 2 * 64
    assert plain.args[2].shape[1] == 64


def test_a_run_of_another_model_in_between_does_no_harm(
    node: Node, model: Any, clip: Any, few_steps: None
) -> None:
    class Greedy(TinyVae):
        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            # What ComfyUI does when a VAE does not fit beside what is loaded.
            comfy.model_management.unload_all_models()
            return super().decode(latents)

    plain = train(node, model, clip, preview_every=0).args[0].concept
    seen = train(node, model, clip, preview_every=1, vae=Greedy()).args[0].concept
    assert seen.hash == plain.hash


def test_the_validation_prompt_is_what_the_user_wrote(
    node: Node, model: Any, clip: Any, few_steps: None, core: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    encoded = core("comfy.painter")._encoded

    def noted(clip: Any, text: str) -> Any:
        asked.append(text)
        return encoded(clip, text)

    monkeypatch.setattr(core("comfy.painter"), "_encoded", noted)
    train(node, model, clip, preview_every=4, validation="a {} on ice\n\na teddy* on fire")
    assert asked == ["", "a teddy* on ice"]
    with pytest.raises(ValueError, match='validation prompt "a sea" must name the concept once'):
        train(node, model, clip, validation="a sea")


def test_selection_gives_the_best_step_with_its_settings_and_scores(
    node: Node, model: Any, clip: Any, few_steps: None, models: Path
) -> None:
    small_clip(models / "tiny")
    given = {"preview_every": 2, "select": True, "steps": 5}
    result, again = (train(node, model, clip, **given) for _ in range(2))
    concept = result.args[0].concept
    notes = concept.training
    assert [row[0] for row in notes["validation"]] == [2, 4, 5]
    totals = {step: max(0, identity) * max(0, text) for step, identity, text in notes["validation"]}
    assert notes["steps_done"] == notes["selected_step"]
    # What is noted is rounded.
    assert totals[notes["selected_step"]] == pytest.approx(max(totals.values()), abs=1e-3)
    assert notes["selected_step"] == 5 or max(totals.values()) > 0
    assert len(notes["validation_bias"]) == 5
    assert result.args[0].settings == concept.settings
    assert concept.preview is not None
    json.dumps(dict(notes))
    text = result.ui.as_dict()["text"][0]
    assert f"selected by tiny: step {notes['selected_step']}, bias" in text
    assert again.args[0].concept.hash == concept.hash
    assert again.args[0].concept.training == notes
    assert patched_modules(model) == []
    # Three rows of four pictures.
    assert result.args[2].shape[1] > 3 * 64
    assert result.args[2].shape[2] > 4 * 64


def test_the_scores_tell_pictures_and_texts_apart(models: Path, core: Any) -> None:
    small_clip(models / "tiny")
    one, other = torch.rand(2, 48, 40, 3, generator=torch.Generator().manual_seed(1))
    scorer = core("comfy.scores").ClipScorer([one.movedim(-1, 0)])
    assert scorer.name == "tiny"
    same = scorer.score(one[None], ["a teddy on a beach"])
    assert same.identity == pytest.approx(1.0, abs=1e-5)
    assert scorer.score(other[None], ["a teddy on a beach"]).identity < same.identity
    assert scorer.score(one[None], ["a red car"]).text != same.text
    both = scorer.score(torch.stack([one, other]), ["a red car", "a cat"])
    singles = [scorer.score(p[None], [t]) for p, t in ((one, "a red car"), (other, "a cat"))]
    assert both.text == pytest.approx(sum(s.text for s in singles) / 2, abs=1e-5)
    assert both.identity == pytest.approx(sum(s.identity for s in singles) / 2, abs=1e-5)


def test_a_scorer_of_its_own_finds_the_step_it_prefers(
    model: Any, clip: Any, few_steps: None, core: Any
) -> None:
    training, selection = core("method.training"), core("method.validation")
    training_backbone = core("comfy.backbone").training_backbone

    class Scorer:
        name = "counting"
        asked = 0

        def score(self, pictures: torch.Tensor, prompts: Any) -> Any:
            self.asked += 1
            return selection.Score(1.0 if self.asked == 2 else 0.5, 1.0)

    latents = torch.rand(2, 4, 8, 8)
    with torch.inference_mode(), training_backbone(model, clip, (2, 4, 8, 8)) as backbone:
        paint = core("comfy.painter").BackbonePainter(backbone, TinyVae(), (4, 8, 8), seed=0)
        validation = selection.Validation(["a {} on a beach"], paint, Scorer())
        begun = training.Training(
            backbone,
            [core("method.batches").PictureGroup(latents)],
            placeholder="teddy*",
            superclass="teddy",
            covariance=core("method.covariance").Covariance(torch.eye(192), 1000, "emoji"),
            settings=core("method.training_settings").TrainingSettings(steps=4, batch_size=2),
        )
        snapshots = [
            validation.look(step, begun.concept).concept.hash for step, _ in enumerate(begun, 1)
        ]
        concept = validation.tuned()
    assert len(set(snapshots)) == 4
    assert concept.hash == snapshots[1]
    assert concept.training["selected_step"] == 2
    assert concept.training["selected_by"] == "counting"


def options(node: Node) -> list[str]:
    """The list of scorers, as a refreshed page gets it."""
    return list(node.INPUT_TYPES()["optional"]["scorer"][1]["options"])


def test_of_several_clip_models_the_user_chooses_and_is_told_which_it_was(
    node: Node, model: Any, clip: Any, few_steps: None, models: Path
) -> None:
    assert options(node) == ["auto"]
    for seed, name in enumerate(("b", "a")):
        small_clip(models / name, seed)
    (models / "vision only").mkdir()
    (models / "vision only" / "config.json").write_text('{"model_type": "clip_vision_model"}')
    assert options(node) == ["auto", "a", "b"]
    given = {"preview_every": 2, "select": True, "steps": 2}
    runs = {name: train(node, model, clip, scorer=name, **given) for name in ("auto", "a", "b")}
    notes = {name: run.args[0].concept.training for name, run in runs.items()}
    assert {name: by["selected_by"] for name, by in notes.items()} == {
        "auto": "a", "a": "a", "b": "b"
    }  # fmt: skip
    assert notes["auto"]["validation"] == notes["a"]["validation"] != notes["b"]["validation"]
    assert "selected by b: step 2" in runs["b"].ui.as_dict()["text"][0]
    with pytest.raises(ValueError, match=r'no CLIP model "c" in models/.* \(found: a, b\)'):
        train(node, model, clip, scorer="c", **given)


def test_a_clip_model_without_its_text_part_is_refused(
    node: Node, model: Any, clip: Any, models: Path
) -> None:
    """`transformers` would put random weights in their place, and say so in its log alone."""
    small_clip(models / "tiny")
    file = models / "tiny" / "model.safetensors"
    kept = {k: v for k, v in load_file(file).items() if not k.startswith("text_")}
    save_file(kept, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"not a whole CLIP model.*missing, such as \"text_"):
        train(node, model, clip, select=True)


def test_hundreds_of_training_pictures_are_scored_a_few_at_a_time(
    models: Path, core: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_clip(models / "tiny")
    pictures = list(torch.rand(19, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    counts: list[int] = []
    forward = CLIPModel.forward

    def counted(self: Any, *args: Any, pixel_values: torch.Tensor, **kwargs: Any) -> Any:
        counts.append(len(pixel_values))
        return forward(self, *args, pixel_values=pixel_values, **kwargs)

    monkeypatch.setattr(CLIPModel, "forward", counted)
    many = core("comfy.scores").ClipScorer(pictures)
    assert counts == [8, 8, 3]
    one = pictures[4].movedim(0, -1)[None]
    alone = [
        core("comfy.scores").ClipScorer([p]).score(one, ["a teddy"]).identity for p in pictures
    ]
    assert many.score(one, ["a teddy"]).identity == pytest.approx(sum(alone) / 19, abs=1e-5)


def test_what_is_missing_for_a_selection_is_said_before_anything_runs(
    node: Node, model: Any, clip: Any, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = told(monkeypatch)
    with pytest.raises(ValueError, match=r"no CLIP model in models/clip_vision.*select off"):
        train(node, model, clip, select=True)
    with pytest.raises(ValueError, match="select is on, but preview_every is 0"):
        train(node, model, clip, select=True, preview_every=0)
    small_clip(models / "tiny")
    (models / "tiny" / "model.safetensors").rename(models / "tiny" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be read as a CLIP model"):
        train(node, model, clip, select=True)
    assert seen == []


def cancel_when(monkeypatch: pytest.MonkeyPatch, when: Callable[[int, Any], bool]) -> None:
    def hook(value: int, _total: int, preview: Any = None, **_: Any) -> None:
        if when(value, preview):
            comfy.model_management.interrupt_current_processing(True)

    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", hook)
    # ComfyUI passes on from 0.12.1 only some of the steps, by the clock; here all count.
    for limit in ("PROGRESS_THROTTLE_MIN_INTERVAL", "PROGRESS_THROTTLE_MIN_PERCENT"):
        monkeypatch.setattr(f"comfy.utils.{limit}", 0, raising=False)


def test_cancel_with_keep_gives_the_best_so_far(
    node: Node, model: Any, clip: Any, few_steps: None, models: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    small_clip(models / "tiny")
    given = {"preview_every": 2, "select": True, "steps": 50, "on_cancel": "keep"}
    cancel_when(monkeypatch, lambda value, preview: value == 5)
    result = train(node, model, clip, **given)
    notes = result.args[0].concept.training
    assert [row[0] for row in notes["validation"]] == [2, 4]
    assert notes["selected_step"] in (2, 4)
    assert "validation_bias" not in notes
    text = result.ui.as_dict()["text"][0]
    assert "5 steps, then cancelled" in text
    assert f"selected by tiny: step {notes['selected_step']}" in text
    comfy.model_management.throw_exception_if_processing_interrupted()
    assert patched_modules(model) == []


@pytest.mark.parametrize("keep", [True, False])
def test_cancel_while_painting_stops_there(
    keep: bool, node: Node, model: Any, clip: Any, few_steps: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    class Slow(TinyVae):
        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            comfy.model_management.interrupt_current_processing(True)
            comfy.model_management.throw_exception_if_processing_interrupted()
            return super().decode(latents)

    given = {"preview_every": 2, "steps": 50, "vae": Slow()}
    if not keep:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            train(node, model, clip, **given)
    else:
        result = train(node, model, clip, on_cancel="keep", **given)
        assert result.args[0].concept.training["steps_done"] == 2
    comfy.model_management.throw_exception_if_processing_interrupted()
    assert patched_modules(model) == []
    assert not any(p.requires_grad and p.grad is not None for p in model.model.parameters())


def test_out_of_memory_while_painting_leaves_the_model_as_it_was(
    node: Node, model: Any, clip: Any, few_steps: None
) -> None:
    class Full(TinyVae):
        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            raise comfy.model_management.OOM_EXCEPTION("no memory")

    before = {name: p for name, p in model.model.named_parameters()}
    train(node, model, clip, preview_every=1, vae=Full())
    assert all(p is before[name] for name, p in model.model.named_parameters())
    assert patched_modules(model) == []
