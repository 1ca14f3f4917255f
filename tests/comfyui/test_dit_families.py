"""Transformers of ComfyUI's own classes: trained, saved, loaded and sampled like a UNet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from dit_work import learned, sampled
from tiny_dits import TinyDit
from tiny_models import patched_modules

from perfusion_core.comfy.concept_entry import recommended
from perfusion_core.comfy.models import detect_family, layers_of
from perfusion_core.comfy.prompts import add_concepts
from perfusion_core.comfy.stack import apply_stack, tune
from perfusion_core.concept.concept_file import load_concept, save_concept
from perfusion_core.method.settings import ConceptSettings


def test_it_is_recognised_with_its_layers(dit: TinyDit, dit_model: Any) -> None:
    family = detect_family(dit_model)
    assert family is dit.family
    layers = layers_of(dit_model, family)
    assert list(layers) == dit.layers
    assert list(dict.fromkeys(family.groups(layers).values())) == ["down", "middle", "up"]
    assert {layer.out for layer in layers.values()} == {dit.hidden}


def test_it_is_trained_saved_loaded_and_sampled(
    dit: TinyDit, dit_model: Any, dit_clip: Any, tmp_path: Path
) -> None:
    concept = learned(dit_model, dit_clip)
    assert concept.family == dit.family.id
    assert all(float(value.abs().max()) > 0 for value in concept.values.values())
    save_concept(concept, tmp_path / "teddy.safetensors")
    loaded = load_concept(tmp_path / "teddy.safetensors")
    assert loaded.hash == concept.hash

    knowing = add_concepts(dit_clip, [loaded])
    on = apply_stack(dit_model, [recommended(loaded)])
    off = tune(on, "", lambda s: ConceptSettings(s.bias, s.temperature, strength=0.0))
    stock, with_it, without = (sampled(m, knowing) for m in (dit_model, on, off))
    assert bool(stock.isfinite().all())
    assert torch.equal(without, stock)
    assert not torch.allclose(with_it, stock, rtol=0, atol=1e-3)
    assert torch.equal(sampled(dit_model, knowing), stock)
    assert patched_modules(dit_model) == []


def test_checkpointing_learns_the_same(dit_model: Any, dit_clip: Any) -> None:
    assert learned(dit_model, dit_clip, "on").hash == learned(dit_model, dit_clip, "off").hash
