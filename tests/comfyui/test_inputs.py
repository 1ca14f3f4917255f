"""Whatever is connected to an input: it works, or the cause that is named is the cause."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import TinyVae, sample, tiny_concept, tiny_model

from perfusion_core.comfy import broken_numbers as broken
from perfusion_core.comfy.concept_entry import recommended
from perfusion_core.comfy.masks import mask_models, zero_shot_masks
from perfusion_core.comfy.models import ComfyMismatch
from perfusion_core.comfy.pictures import bring_to_size, look_like_backgrounds, read_pictures
from perfusion_core.comfy.prompts import add_concepts
from perfusion_core.comfy.scores import score_models
from perfusion_core.comfy.stack import KEY, apply_stack, tune
from perfusion_core.comfy.training_checks import refuse_known_word
from perfusion_core.limits import MAX_VALIDATION
from perfusion_core.method.batches import TrainingError

EXAMPLES = int(os.environ.get("PERFUSION_FUZZ", "150"))
NAN, INF = float("nan"), float("inf")


def pictures(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


# --- pictures and masks


@pytest.mark.parametrize("number", [NAN, INF, -INF])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_picture_without_numbers_is_named_and_not_the_vae(nth: int, number: float) -> None:
    images = pictures(3, 16, 16, 3)
    images[nth - 1, 3, 4, 1] = number
    for batches in ([images], [images[:1], images[1:]]):
        with pytest.raises(TrainingError, match=f"training picture {nth} holds NaN") as caught:
            read_pictures(batches, [], [], "teddy*")
        assert "--fp32-vae" not in str(caught.value)


def test_a_mask_without_numbers_is_named() -> None:
    masks = torch.ones(2, 16, 16)
    masks[1, 0, 0] = NAN
    with pytest.raises(TrainingError, match="mask 2 holds NaN"):
        read_pictures([pictures(2, 16, 16, 3)], [masks], [], "teddy*")


def test_a_grey_picture_is_learned_as_grey_and_transparency_is_left_out() -> None:
    grey = pictures(1, 16, 16, 1)
    (found,) = read_pictures([grey], [], [], "teddy*")
    assert torch.equal(found.pixels, grey[0].movedim(-1, 0).expand(3, -1, -1))
    four = pictures(1, 16, 16, 4)
    (found,) = read_pictures([four], [], [], "teddy*")
    assert torch.equal(found.pixels, four[0, ..., :3].movedim(-1, 0))


SHAPES = [(1, 16, 16, 2), (1, 16, 16, 0), (1, 0, 16, 3), (16, 16, 3), (1, 16, 16), (1, 3, 16, 16)]


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_no_picture_is_refused_with_its_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ComfyMismatch) as caught:
        read_pictures([torch.zeros(shape)], [], [], "teddy*")
    assert str(list(shape)) in str(caught.value)
    with pytest.raises(ComfyMismatch, match="shape"):
        zero_shot_masks("any", torch.zeros(shape), "teddy")


def test_no_picture_at_all_is_said() -> None:
    for images in ([], [None], [torch.zeros(0, 16, 16, 3)]):
        with pytest.raises(TrainingError, match="no training picture"):
            read_pictures(images, [], [], "teddy*")
    with pytest.raises(ComfyMismatch, match="no picture to look at"):
        zero_shot_masks("any", torch.zeros(0, 16, 16, 3), "teddy")
    with pytest.raises(ComfyMismatch, match="NaN"):
        zero_shot_masks("any", torch.full((1, 16, 16, 3), NAN), "teddy")


dimensions = st.lists(st.integers(0, 5), max_size=5)
numbers = st.sampled_from([0.0, 0.5, 1.0, NAN, INF, -1.0])


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(dimensions, dimensions, numbers, numbers, st.sampled_from([torch.float32, torch.float16]))
def test_tensors_of_any_shape_are_read_or_refused_in_words(
    image: list[int], mask: list[int], colour: float, weight: float, dtype: torch.dtype
) -> None:
    images = [torch.full(image, colour, dtype=dtype)]
    masks = [torch.full(mask, weight, dtype=dtype)]
    try:
        found = read_pictures(images, masks, [], "teddy*")
        bring_to_size(found, 64)
    except (TrainingError, ComfyMismatch):
        return
    assert all(bool(picture.pixels.isfinite().all()) for picture in found)


def cut_out(inverted: bool) -> torch.Tensor:
    mask = torch.zeros(1, 64, 64)
    mask[:, 12:52, 16:48] = 1
    return 1 - mask if inverted else mask


@pytest.mark.parametrize("inverted", [False, True])
def test_a_mask_of_the_background_is_noticed(inverted: bool) -> None:
    read = read_pictures([pictures(2, 64, 64, 3)], [cut_out(inverted)], [], "teddy*")
    assert look_like_backgrounds(read) is inverted
    assert not look_like_backgrounds(read_pictures([pictures(1, 8, 8, 3)], [], [], "teddy*"))
    everywhere = read_pictures([pictures(1, 64, 64, 3)], [torch.ones(1, 64, 64)], [], "teddy*")
    assert not look_like_backgrounds(everywhere)


@pytest.fixture
def trained(nodes: dict[str, Any], clip: Any) -> Callable[..., str]:
    """What the training node says after a step with some inputs."""

    def run(**changes: Any) -> str:
        inputs = {"model": tiny_model(), "clip": clip, "vae": TinyVae()}
        inputs |= {"images": pictures(1, 64, 64, 3), "placeholder": "teddy*", "superclass": "teddy"}
        inputs |= {"steps": 1, "batch_size": 1, "seed": 1, "preview_every": 0, **changes}
        node = nodes["PerfusionTrainConcept"].PREPARE_CLASS_CLONE({})
        with torch.inference_mode():
            output = node.EXECUTE_NORMALIZED(**{name: [value] for name, value in inputs.items()})
        return str(output.ui.as_dict())

    return run


def test_training_says_that_masks_are_of_the_background(trained: Callable[..., str]) -> None:
    assert "Invert Mask" in trained(masks=cut_out(True))
    assert "Invert Mask" not in trained(masks=cut_out(False))


def test_training_looks_at_so_many_prompts_and_no_more(trained: Callable[..., str]) -> None:
    asked = "\n".join(["a photo of {}"] * (MAX_VALIDATION + 1))
    with pytest.raises(ValueError, match=rf"{MAX_VALIDATION + 1} validation .* {MAX_VALIDATION} "):
        trained(validation=asked)


def test_training_on_a_loaders_clip_names_the_loader(
    trained: Callable[..., str], clip: Any, teddy: Any
) -> None:
    with pytest.raises(ValueError, match="already knows the concept"):
        trained(clip=add_concepts(clip, [teddy]))


def test_resuming_on_the_loaders_clip_names_the_loader(clip: Any, teddy: Any) -> None:
    knowing = add_concepts(clip, [teddy])
    with pytest.raises(ComfyMismatch, match=r"Concept\s+Loader\. Connect the checkpoint's own"):
        refuse_known_word(knowing, "Teddy*")
    refuse_known_word(knowing, "other*")
    refuse_known_word(clip, "teddy*")


def test_a_tune_below_a_bypassed_loader_says_what_to_do(model: Any) -> None:
    with pytest.raises(ComfyMismatch, match="bypassed, bypass this node as well"):
        tune(model, "", lambda given: given)


# --- folders of models


def no_right(path: Path) -> None:
    path.mkdir()
    path.chmod(0)


def written(config: bytes) -> Any:
    def make(path: Path) -> None:
        path.mkdir()
        (path / "config.json").write_bytes(config)

    return make


def pipe(path: Path) -> None:
    path.mkdir()
    os.mkfifo(path / "config.json")


BAD_FOLDERS: dict[str, Any] = {
    "config is a folder": lambda path: (path / "config.json").mkdir(parents=True),
    "config is a pipe": pipe,
    "config is empty": written(b""),
    "config is no JSON": written(b"{"),
    "config is a list": written(b"[]"),
    "config is deep": written(b"[" * 60_000),
    "config is long": written(b" " * 10**7),
    "config is binary": written(b"\xff" * 9),
    "a link in a circle": lambda path: path.symlink_to(path),
    "no right to look": no_right,
}
LISTS = [("clipseg", mask_models), ("clip_vision", score_models)]


@pytest.mark.parametrize("bad", BAD_FOLDERS)
@pytest.mark.parametrize(("kind", "listed"), LISTS)
def test_one_bad_model_folder_hides_no_other(
    bad: str, kind: str, listed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(tmp_path)], set()))
    for name in ("a", "z"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"model_type": "clip"}')
    BAD_FOLDERS[bad](tmp_path / "m")
    assert set(listed()) == {"a", "z"}


@pytest.mark.parametrize(("kind", "listed"), LISTS)
def test_a_model_folder_that_cannot_be_listed_is_no_error(
    kind: str, listed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(tmp_path)], set()))
    monkeypatch.setattr(Path, "iterdir", refused)
    assert listed() == {}


# --- numbers that a concept breaks in a run


def broken_model(model: Any, concepts: list[Any], path: str, which: list[int]) -> Any:
    """A model whose concepts hold NaN in one layer, past the checks of a file."""
    edited = apply_stack(model, [recommended(concept) for concept in concepts])
    (patch,) = edited.get_wrappers("apply_model", KEY)
    values = patch.tensors.differences.by_layer[path].clone()
    values[which] = NAN
    patch.tensors.differences.by_layer[path] = values
    return edited


@pytest.mark.parametrize("which", [[0], [1], [0, 1]])
def test_numbers_that_a_concept_breaks_are_told_once_with_its_name_and_the_layer(
    model: Any, clip: Any, teddy: Any, which: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(broken, "_tell", told.append)
    other = tiny_concept(model, clip, "pot*", "teapot", seed=9)
    path = list(teddy.values)[1]
    edited = broken_model(model, [teddy, other], path, which)
    knowing = add_concepts(clip, [teddy, other])
    assert not bool(sample(edited, knowing).isfinite().all())
    (said,) = told
    assert f"the values of the layer {path}" in said
    names = [recommended(concept).title for concept in (teddy, other)]
    assert [name in said for name in names] == [n in which for n in (0, 1)]


def test_a_picture_that_is_broken_without_a_concept_is_not_blamed_on_one(
    clip: Any, teddy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(broken, "_tell", told.append)
    model = tiny_model()
    with torch.no_grad():
        next(model.model.diffusion_model.out.parameters()).fill_(NAN)
    edited = apply_stack(model, [recommended(teddy)])
    knowing = add_concepts(clip, [teddy])
    assert not bool(sample(edited, knowing).isfinite().all())
    assert not told


def test_nothing_is_kept_of_a_run(model: Any, clip: Any, teddy: Any) -> None:
    edited = apply_stack(model, [recommended(teddy)])
    sample(edited, add_concepts(clip, [teddy]))
    (patch,) = edited.get_wrappers("apply_model", KEY)
    assert patch.seen is None
    assert not patch.watched
