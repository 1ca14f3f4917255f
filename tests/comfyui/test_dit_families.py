"""Transformers of ComfyUI's own classes: trained, saved, loaded and sampled like a UNet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from dit_work import learned, sampled
from tiny_dits import ANIMA, BLOCKS, COSMOS, HIDDEN, TinyDit, registered
from tiny_models import patched_modules

from perfusion_core.comfy.concept_entry import recommended
from perfusion_core.comfy.models import detect_family, layers_of
from perfusion_core.comfy.prompts import add_concepts
from perfusion_core.comfy.stack import apply_stack, tune
from perfusion_core.concept.concept_file import load_concept, save_concept
from perfusion_core.method.settings import ConceptSettings


@pytest.fixture(scope="module", params=[COSMOS, ANIMA], ids=lambda dit: dit.family.id)
def dit(request: pytest.FixtureRequest) -> Iterator[TinyDit]:
    if not request.param.here:
        pytest.skip(f"this ComfyUI has no {request.param.config}")
    with registered(request.param.family):
        yield request.param


@pytest.fixture
def model(dit: TinyDit) -> Any:
    return dit.model()


@pytest.fixture(scope="module")
def clip(dit: TinyDit) -> Any:
    return dit.clip()


def test_it_is_recognised_with_its_layers(dit: TinyDit, model: Any) -> None:
    family = detect_family(model)
    assert family is dit.family
    layers = layers_of(model, family)
    assert list(layers) == [f"blocks.{n}.cross_attn" for n in range(BLOCKS)]
    assert list(family.groups(layers).values()) == ["down", "middle", "up"]
    assert {layer.out for layer in layers.values()} == {HIDDEN}


def test_it_is_trained_saved_loaded_and_sampled(
    dit: TinyDit, model: Any, clip: Any, tmp_path: Path
) -> None:
    concept = learned(model, clip)
    assert concept.family == dit.family.id
    assert all(float(value.abs().max()) > 0 for value in concept.values.values())
    save_concept(concept, tmp_path / "teddy.safetensors")
    loaded = load_concept(tmp_path / "teddy.safetensors")
    assert loaded.hash == concept.hash

    knowing = add_concepts(clip, [loaded])
    on = apply_stack(model, [recommended(loaded)])
    off = tune(on, "", lambda s: ConceptSettings(s.bias, s.temperature, strength=0.0))
    stock, with_it, without = (sampled(m, knowing) for m in (model, on, off))
    assert bool(stock.isfinite().all())
    assert torch.equal(without, stock)
    assert not torch.allclose(with_it, stock, rtol=0, atol=1e-3)
    assert torch.equal(sampled(model, knowing), stock)
    assert patched_modules(model) == []


def test_checkpointing_learns_the_same(model: Any, clip: Any) -> None:
    assert learned(model, clip, "on").hash == learned(model, clip, "off").hash
