"""Zero-shot masks with a small CLIPSeg of random weights, through `transformers`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy
import comfy.model_management
import folder_paths
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    CLIPTokenizer,
    ViTImageProcessor,
)

Node = Any


@pytest.fixture(scope="module")
def node(nodes: dict[str, Node]) -> Node:
    return nodes["PerfusionZeroShotMask"]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: Node) -> Iterator[Path]:
    """An empty folder for CLIPSeg models, that does not exist yet."""
    folder = tmp_path / "clipseg"
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "clipseg", ([str(folder)], set()))
    yield folder
    comfy.model_management.interrupt_current_processing(False)


def small_clipseg(folder: Path) -> None:
    """The real class and the real tokenizer, tiny and with random weights, as it would be got."""
    torch.manual_seed(0)
    layers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
    config = CLIPSegConfig(
        text_config={**layers, "num_attention_heads": 2},
        vision_config={**layers, "num_attention_heads": 2, "image_size": 64, "patch_size": 16},
        projection_dim=32,
        extract_layers=[0, 1, 2],
        reduce_dim=16,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
    )
    CLIPSegForImageSegmentation(config).save_pretrained(folder, safe_serialization=True)
    tokenizer = CLIPTokenizer.from_pretrained(Path(comfy.__path__[0]) / "sd1_tokenizer")
    images = ViTImageProcessor(size={"height": 64, "width": 64})
    CLIPSegProcessor(images, tokenizer).save_pretrained(folder)


def run(node: Node, image: torch.Tensor, word: str = "teddy", model: str = "tiny") -> torch.Tensor:
    with torch.inference_mode():
        result = node.PREPARE_CLASS_CLONE({}).EXECUTE_NORMALIZED(
            image=image, word=word, model=model
        )
    masks: torch.Tensor = result.args[0]
    return masks


def test_masks_are_soft_of_the_pictures_size_and_1_at_their_maximum(
    node: Node, models: Path
) -> None:
    small_clipseg(models / "tiny")
    image = torch.rand(2, 48, 80, 3)
    masks = run(node, image)
    assert masks.shape == (2, 48, 80)
    assert torch.equal(masks.amax(dim=(1, 2)), torch.ones(2))
    assert float(masks.min()) >= 0
    assert masks.std() > 0
    assert torch.equal(run(node, image), masks)
    assert not torch.allclose(run(node, image, word="a red car"), masks)
    alone = run(node, image[:1])
    assert torch.allclose(alone[0], masks[0], atol=1e-5)


def test_new_models_are_in_the_list(node: Node, models: Path) -> None:
    def options() -> list[str]:
        return list(node.INPUT_TYPES()["required"]["model"][1]["options"])

    assert options() == ["(no model in models/clipseg)"]
    small_clipseg(models / "tiny")
    (models / "notes").mkdir()
    assert options() == ["tiny"]


def test_what_is_missing_is_said_with_the_remedy(node: Node, models: Path) -> None:
    image = torch.rand(1, 16, 16, 3)
    with pytest.raises(ValueError, match=r'no CLIPSeg model "\(no model.*clipseg-rd64-refined'):
        run(node, image, model="(no model in models/clipseg)")
    small_clipseg(models / "tiny")
    with pytest.raises(ValueError, match="word is empty"):
        run(node, image, word=" ")
    weights = models / "tiny" / "model.safetensors"
    shutil.move(weights, models / "tiny" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be read as a CLIPSeg model"):
        run(node, image)


def test_a_clipseg_model_without_its_decoder_is_refused(node: Node, models: Path) -> None:
    """`transformers` would put random weights in its place, and say so in its log alone."""
    small_clipseg(models / "tiny")
    file = models / "tiny" / "model.safetensors"
    kept = {k: v for k, v in load_file(file).items() if not k.startswith("decoder")}
    save_file(kept, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"not a whole CLIPSeg model: \d+ of its weights are miss"):
        run(node, torch.rand(1, 32, 32, 3))


def test_cancel_stops_after_the_picture(
    node: Node, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_clipseg(models / "tiny")
    done: list[int] = []

    def hook(value: int, *_: Any, **__: Any) -> None:
        done.append(value)
        comfy.model_management.interrupt_current_processing(True)

    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", hook)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(node, torch.rand(5, 16, 16, 3))
    assert done == [1]
