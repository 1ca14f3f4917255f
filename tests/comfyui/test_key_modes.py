"""Concepts of trained keys, which are there to compare the paper's locked keys with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy.sd import CLIP
from projections import TOLERANCES, assert_edited, error, reference, tapped
from tiny_models import patched_modules, sample

from perfusion_core.comfy.backbone import training_backbone
from perfusion_core.comfy.concept_entry import ConceptEntry
from perfusion_core.comfy.models import ComfyMismatch
from perfusion_core.comfy.prompts import add_concepts
from perfusion_core.comfy.stack import apply_stack
from perfusion_core.concept.concept import Concept
from perfusion_core.concept.concept_file import load_concept, save_concept
from perfusion_core.method.batches import PictureGroup
from perfusion_core.method.covariance import Covariance
from perfusion_core.method.settings import ConceptSettings, KeyLock
from perfusion_core.method.training import train
from perfusion_core.method.training_settings import TrainingSettings

Model = Any
ON = ConceptSettings(0.5, 0.15)
PROMPT = "a teddy* in a pot*"


def with_keys(concept: Concept, seed: int = 4) -> Concept:
    generator = torch.Generator().manual_seed(seed)
    keys = {path: torch.randn(v.shape, generator=generator) for path, v in concept.values.items()}
    return replace(concept, keys=keys)


def learned(model: Model, clip: CLIP, **settings: Any) -> Concept:
    with torch.inference_mode(), training_backbone(model, clip, (2, 4, 8, 8)) as backbone:
        latents = 5 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
        return train(
            backbone,
            [PictureGroup(latents)],
            placeholder="teddy*",
            superclass="teddy",
            covariance=Covariance(torch.eye(192), 1000, "emoji"),
            settings=TrainingSettings(steps=3, batch_size=2, seed=1, **settings),
        ).concept


def test_keys_and_values_are_the_formulas_beside_a_concept_of_locked_keys(
    model: Model, clip: CLIP, teddy: Concept, pot: Concept
) -> None:
    stack = [ConceptEntry(with_keys(teddy), ON), ConceptEntry(pot, ConceptSettings(0.6, 0.1))]
    on = apply_stack(model, stack)
    with torch.inference_mode(), tapped(on) as seen:
        sample(on, add_concepts(clip, [e.concept for e in stack]), PROMPT)
    none = {path: torch.zeros_like(value) for path, value in pot.values.items()}
    of_keys = [
        replace(entry, concept=replace(entry.concept, values=dict(entry.concept.keys) or none))
        for entry in stack
    ]
    assert {p.kind for p in seen} == {"k", "v"}
    for p in seen:
        # A trained key is to W_K what a value is to W_V: o = W p + D.
        expected = reference(p.weight, p.context, of_keys if p.kind == "k" else stack, p.path)
        assert error(p.output, expected) < TOLERANCES[p.output.dtype], (p.path, p.kind)
    assert patched_modules(model) == []


def test_keys_of_0_are_locked_keys_bit_for_bit(model: Model, clip: CLIP, teddy: Concept) -> None:
    zero = replace(teddy, keys={path: torch.zeros_like(v) for path, v in teddy.values.items()})
    knowing = add_concepts(clip, [teddy])
    pictures = [
        sample(apply_stack(model, [ConceptEntry(c, ON)]), knowing)
        for c in (teddy, zero, with_keys(teddy))
    ]
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.allclose(pictures[0], pictures[2], atol=1e-2)


def test_training_learns_them_and_the_file_keeps_them(
    model: Model, clip: CLIP, tmp_path: Path
) -> None:
    locked, trained = (learned(model, clip, key_mode=mode) for mode in ("locked", "trained"))
    assert not locked.keys
    assert trained.keys.keys() == trained.values.keys()
    assert all(bool(key.any()) for key in trained.keys.values())
    assert trained.training["key_mode"] == "trained"
    save_concept(trained, tmp_path / "c.safetensors")
    loaded = load_concept(tmp_path / "c.safetensors")
    assert loaded.hash == trained.hash
    on = apply_stack(model, [ConceptEntry(loaded, ON)])
    with torch.inference_mode(), tapped(on) as seen:
        sample(on, add_concepts(clip, [loaded]))
    keys = ConceptEntry(replace(loaded, values=loaded.keys), ON)
    for p in seen:
        if p.kind == "k":
            assert error(p.output, reference(p.weight, p.context, [keys], p.path)) < 3e-6
    # After three steps a concept is still near its superclass.
    assert_edited([p for p in seen if p.kind == "v"], ConceptEntry(loaded, ON), least=1e-4)


def test_training_begins_at_the_locked_key(model: Model, clip: CLIP) -> None:
    locked, trained = (
        learned(model, clip, key_mode=mode, embedding_rate=0.0, value_rate=0.0)
        for mode in ("locked", "trained")
    )
    assert locked.training["loss"] == trained.training["loss"]
    assert not any(bool(key.any()) for key in trained.keys.values())


def test_the_global_lock_and_trained_keys_exclude_each_other(
    model: Model, teddy: Concept, pot: Concept
) -> None:
    lock = replace(ON, key_lock=KeyLock.GLOBAL)
    trained = ConceptEntry(with_keys(teddy), ON)
    with pytest.raises(ComfyMismatch, match=r'"teddy" \(teddy\*\) was trained with keys.*"pot"'):
        apply_stack(model, [trained, ConceptEntry(pot, lock)])
    off = replace(lock, strength=0.0)
    apply_stack(model, [trained, ConceptEntry(pot, off)])
