"""Gradient checkpointing on ComfyUI's own UNets: the same concept from less memory."""

from __future__ import annotations

from collections import Counter
from typing import Any

import comfy.model_management
import pytest
import torch
from comfy.sd import CLIP
from tiny_models import CPU, patched_modules, tiny_clip, tiny_concept
from true_models import learned_concept, true_clip, true_model

from perfusion_core.comfy import backbone as backbone_module
from perfusion_core.comfy import training_memory
from perfusion_core.comfy.backbone import ComfyBackbone, training_backbone
from perfusion_core.comfy.models import detect_family, layers_of
from perfusion_core.concept.concept import Concept
from perfusion_core.method.batches import TrainingError
from perfusion_core.method.edit import GatedEdit

Model = Any
SHAPE = (2, 4, 8, 8)


@pytest.mark.parametrize("key_mode", ["locked", "trained"])
def test_the_concept_is_the_same_bit_for_bit(model: Model, clip: CLIP, key_mode: str) -> None:
    settings = {"steps": 3, "batch_size": 2, "key_mode": key_mode}
    on, off = (learned_concept(model, clip, mode, **settings) for mode in ("on", "off"))
    assert on.hash == off.hash
    assert patched_modules(model) == []


def test_sdxl_whose_blocks_see_the_pooled_vector_too_learns_the_same() -> None:
    model, clip = true_model("SDXL", CPU, channels=32), true_clip("SDXL")
    on, off = (learned_concept(model, clip, mode) for mode in ("on", "off"))
    assert on.hash == off.hash


def test_an_encoder_of_16_bits_stays_so_and_gives_the_same(model: Model) -> None:
    clip = tiny_clip(seed=3)
    clip.cond_stage_model.half()
    on, off = (learned_concept(model, clip, mode, steps=2) for mode in ("on", "off"))
    assert on.hash == off.hash
    layer = clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers[0].mlp.fc1
    seen = {}
    for mode in ("on", "off"):
        with training_backbone(model, clip, SHAPE, mode):
            seen[mode] = layer.weight.dtype
    assert seen == {"on": torch.float16, "off": torch.float32}
    assert layer.weight.dtype == torch.float16
    assert patched_modules(model) == []
    assert not [part for part in clip.cond_stage_model.modules() if "forward" in vars(part)]


def kept_bytes(backbone: ComfyBackbone, concept: Concept, latents: torch.Tensor) -> int:
    """What autograd keeps of one forward pass until backward, weights aside."""
    weights = {p.untyped_storage().data_ptr() for p in backbone._base.parameters()}
    kept: dict[int, int] = {}

    def keep(saved: torch.Tensor) -> torch.Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return saved

    vectors = {name: v.float().requires_grad_() for name, v in concept.embeddings.items()}
    encoded = backbone.encode(["a teddy*"], "teddy*", vectors)
    edit = GatedEdit(
        concept.target_input[None].float(),
        concept.whitened_target[None],
        concept.superclass_encoding[None].float(),
        [concept.settings],
    )
    values = {path: value[None].float() for path, value in concept.values.items()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        loss = backbone.loss(latents, latents, torch.tensor([0.5]), encoded, edit, values)
    loss.mean().backward()
    return sum(kept.values())


def test_it_keeps_a_fraction_of_the_memory(clip: CLIP, model: Model) -> None:
    thin = true_model("SD15", CPU, channels=32)
    wide = true_clip("SD15")
    concept = tiny_concept(thin, wide)
    latents = torch.randn(1, 4, 32, 32)
    kept = {}
    for mode in ("on", "off"):
        with training_backbone(thin, wide, latents.shape, mode) as backbone:
            kept[mode] = kept_bytes(backbone, concept, latents)
    assert kept["on"] < kept["off"] / 4


def test_the_estimate_for_auto_counts_the_text_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[int, int] = {}
    guarded = backbone_module._guarded

    def counted(saved: torch.Tensor) -> torch.Tensor:
        copy: torch.Tensor = guarded(saved)
        kept[copy.untyped_storage().data_ptr()] = copy.untyped_storage().nbytes()
        return copy

    monkeypatch.setattr(backbone_module, "_guarded", counted)
    clip = true_clip("SD15")
    prompts = ["a teddy*", "a photo of a teddy*"]
    shape = (len(prompts), 4, 8, 8)
    with training_backbone(true_model("SD15", CPU, channels=32), clip, shape) as backbone:
        vectors = backbone.superclass_embeddings("teddy")
        encoded = backbone.encode(
            prompts, "teddy*", {name: v.requires_grad_() for name, v in vectors.items()}
        )
        for weight in clip.cond_stage_model.parameters():
            kept.pop(weight.untyped_storage().data_ptr(), None)
        family, base = detect_family(backbone._model), backbone._base
        with_text = training_memory.kept_bytes(base, clip, family, shape)
        estimate = with_text - training_memory.kept_bytes(base, None, family, shape)
    del encoded
    assert 0.9 * estimate < sum(kept.values()) <= estimate


def test_nothing_of_ours_runs_twice_and_comfyuis_layers_once_more(
    model: Model, clip: CLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()
    prepare = GatedEdit.prepare

    def counted(self: GatedEdit, *args: Any, **kwargs: Any) -> Any:
        calls["prepare"] += 1
        return prepare(self, *args, **kwargs)

    monkeypatch.setattr(GatedEdit, "prepare", counted)
    layers = layers_of(model, detect_family(model)).values()
    handles = [
        layer.value.register_forward_hook(lambda *_: calls.update(values=1)) for layer in layers
    ]
    try:
        for mode, passes in (("off", 1), ("on", 2)):
            calls.clear()
            learned_concept(model, clip, mode, steps=2, batch_size=2)
            assert calls["prepare"] == 2  # steps
            # W_V p of each layer comes first.
            assert calls["values"] == len(layers) * (1 + 2 * passes)
    finally:
        for handle in handles:
            handle.remove()


def test_a_block_that_runs_again_sees_comfyuis_options_as_they_were(
    model: Model, clip: CLIP
) -> None:
    seen: list[tuple[Any, ...]] = []

    def patch(q: Any, k: Any, v: Any, options: Any) -> tuple[Any, Any, Any]:
        seen.append((*options["block"], options["block_index"], q.shape[1]))
        return q, k, v

    patched = model.clone()
    patched.set_model_attn2_patch(patch)
    learned_concept(patched, clip, "on", batch_size=2)
    assert len(set(seen)) == 7
    assert sorted(seen[:7]) == sorted(seen[7:])


@pytest.mark.parametrize(("free", "expected"), [(1e18, False), (1e3, True)])
def test_auto_is_on_where_the_memory_would_not_do(
    model: Model, clip: CLIP, free: float, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_, **__: free)
    for mode, on in (("auto", expected), ("on", True), ("off", False)):
        with training_backbone(model, clip, SHAPE, mode) as backbone:
            assert backbone.checkpointing == on
    with (
        pytest.raises(TrainingError, match='checkpointing is "yes"; it must be one of auto'),
        training_backbone(model, clip, SHAPE, "yes"),
    ):
        pass


def test_nothing_is_left_when_a_block_fails_while_it_runs_again(model: Model, clip: CLIP) -> None:
    calls: list[int] = []

    def fail_late(q: Any, k: Any, v: Any, _: Any) -> tuple[Any, Any, Any]:
        calls.append(1)
        if len(calls) == 10:
            raise RuntimeError("another pack's fault")
        return q, k, v

    patched = model.clone()
    patched.set_model_attn2_patch(fail_late)
    with pytest.raises(RuntimeError, match="another pack's fault"):
        learned_concept(patched, clip, "on", batch_size=2)
    assert patched_modules(model) == []
