"""The demo's model among ComfyUI's own: loaded again, copied, in the dtype that it computes in."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import pytest
import torch
from tiny_models import sample

from demo import model as small
from perfusion_core.comfy.concept_entry import recommended
from perfusion_core.comfy.prompts import add_concepts
from perfusion_core.comfy.stack import apply_stack, stack_of
from perfusion_core.concept.concept import Concept


def weights(model: Any) -> dict[str, torch.Tensor]:
    return dict(model.state_dict())


def test_a_copy_with_weights_of_its_own_is_the_same_model() -> None:
    model, clip, vae = small.load()
    if not hasattr(model, "cached_patcher_init"):
        pytest.skip("this ComfyUI shares weights or copies them in memory (0.23 loads them again)")
    for patcher in (model, clip.patcher, vae.patcher):
        copy = patcher.clone(force_deepcopy=True)
        assert copy.model is not patcher.model
        again = weights(copy.model)
        for name, tensor in weights(patcher.model).items():
            assert again[name] is not tensor
            assert torch.equal(again[name], tensor), name
        # Asked without a word of how weights are held, as for another GPU.
        load, arguments = patcher.cached_patcher_init
        assert weights(load(*arguments).model).keys() == again.keys()


def test_a_comfyui_that_keeps_the_dtype_of_a_file_gets_the_dtype_of_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As where dynamic VRAM is on: linear layers are made without weights then.
    memory = pytest.importorskip(
        "comfy.memory_management", reason="this ComfyUI knows no dynamic VRAM (since 0.16)"
    )
    if not hasattr(memory, "aimdo_enabled"):
        pytest.skip("this ComfyUI knows no dynamic VRAM (since 0.16)")
    model, clip, _ = small.load()
    expected = sample_of(model, clip)
    monkeypatch.setattr(memory, "aimdo_enabled", True)
    model, clip, _ = small.load()
    assert {tensor.dtype for tensor in weights(model.model).values()} == {torch.float32}
    monkeypatch.setattr(memory, "aimdo_enabled", False)
    assert torch.equal(sample_of(model, clip), expected)
    comfy.model_management.unload_all_models()


def test_a_concept_goes_along_to_a_copy_with_weights_of_its_own(
    model: Any, clip: Any, teddy: Concept
) -> None:
    # What ComfyUI samples a prompt with hooks on, under dynamic VRAM, and runs on a further GPU.
    knowing = add_concepts(clip, [teddy])
    carrying = apply_stack(model, [recommended(teddy)])
    if not hasattr(carrying, "cached_patcher_init"):
        pytest.skip("this ComfyUI shares weights or copies them in memory (0.23 loads them again)")
    expected = sample(carrying, knowing)
    copy = carrying.clone(force_deepcopy=True)
    assert copy.model is not carrying.model
    assert stack_of(copy) == stack_of(carrying)
    assert torch.equal(sample(copy, knowing), expected)
    assert torch.equal(sample(carrying, knowing), expected)
    assert not torch.equal(sample(model, knowing), expected)


def sample_of(model: Any, clip: Any) -> torch.Tensor:
    return sample(model, clip, "a photo of a teddy", channels=small.LATENT_CHANNELS)
