"""Passes of one model in several threads, as ComfyUI runs them with several GPUs (since 0.23)."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy.sd import CLIP
from tiny_models import patched_modules, sample, tiny_model

from perfusion_core.comfy import stack_patch
from perfusion_core.comfy.concept_entry import ConceptEntry
from perfusion_core.comfy.models import detect_family, layers_of, network_layers
from perfusion_core.comfy.prompts import add_concepts
from perfusion_core.comfy.stack import KEY, apply_stack
from perfusion_core.concept.concept import Concept
from perfusion_core.method.settings import ConceptSettings
from perfusion_core.method.slider_schedule import RecordedSliders, Sliders

Model = Any
GPUS = 4  # as many threads, each with its own copy of the model
STEPS = 12
ON = ConceptSettings(bias=0.3, temperature=0.2)


@pytest.fixture(autouse=True)
def _threads_take_turns_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_every_copy_of_a_model_gets_its_own_layers(
    model: Model, teddy: Concept, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = stack_patch.StackTensors((teddy,))
    copies = [tiny_model().model for _ in range(GPUS)]
    both = Barrier(GPUS)
    asked: list[Any] = []

    def slowly(network: Any, family: Any) -> Any:
        asked.append(network)
        return network_layers(network, family)

    monkeypatch.setattr(stack_patch, "network_layers", slowly)

    def passes(base: Any) -> bool:
        own = {id(part) for part in base.diffusion_model.modules()}
        right = True
        for _ in range(50):
            both.wait()
            right &= all(id(layer.key) in own for layer in tensors.layers_of(base).values())
        return right

    with ThreadPoolExecutor(GPUS) as pool:
        assert all(pool.map(passes, copies))
    assert len(asked) == GPUS  # looked up once each, not in every pass


def test_layers_are_forgotten_with_their_network(model: Model, teddy: Concept) -> None:
    tensors = stack_patch.StackTensors((teddy,))
    copy = tiny_model().model
    tensors.layers_of(model.model)
    tensors.layers_of(copy)
    assert len(tensors._layers) == 2
    del copy
    assert len(tensors._layers) == 1


class SlowToForget(dict[Any, Any]):
    """Gives other threads the time to come in between."""

    def clear(self) -> None:
        time.sleep(0.005)
        super().clear()


def test_sliders_that_move_hold_in_every_thread_of_a_step(model: Model, teddy: Concept) -> None:
    sigmas = torch.linspace(14, 1, STEPS)
    off_and_on = [Sliders(0.3, 0.2, float(step % 2)) for step in range(STEPS)]
    below = [float(s) - 0.1 for s in sigmas]
    schedule = RecordedSliders(tuple(zip(below[:-1], off_and_on[:-1], strict=True)), off_and_on[-1])
    generator = torch.Generator().manual_seed(3)
    noisy = torch.randn(1, 4, 8, 8, generator=generator)
    context = teddy.target_input.float().expand(1, 77, -1)

    def one_step(base: Any, carrying: Model, sigma: torch.Tensor) -> torch.Tensor:
        options = {"wrappers": carrying.wrappers, "sigmas": sigma[None]}
        with torch.inference_mode():
            output: torch.Tensor = base.apply_model(
                noisy, sigma[None], c_crossattn=context, transformer_options=options
            )
        return output

    def carry() -> Model:
        return apply_stack(model, [ConceptEntry(teddy, ON, schedule)])

    alone = carry()
    expected = [one_step(model.model, alone, sigma) for sigma in sigmas]
    assert not torch.allclose(expected[-1], one_step(model.model, model, sigmas[-1]), atol=1e-3)

    copies = [tiny_model().model for _ in range(GPUS)]
    both = Barrier(GPUS)
    shared = carry()
    (patch,) = shared.get_wrappers(WrappersMP.APPLY_MODEL, KEY)
    patch._by_strengths = SlowToForget()

    def passes(base: Any) -> list[torch.Tensor]:
        found = []
        for sigma in sigmas:
            both.wait()
            found.append(one_step(base, shared, sigma))
            both.wait()  # the sampler waits for all before it goes on
        return found

    with ThreadPoolExecutor(GPUS) as pool:
        for found in pool.map(passes, copies):
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert patched_modules(model) == []


def test_a_picture_of_several_gpus_is_that_of_one(model: Model, clip: CLIP, teddy: Concept) -> None:
    if not hasattr(model, "deepclone_multigpu"):
        pytest.skip("this ComfyUI runs a picture on one GPU (several: since 0.23)")
    knowing = add_concepts(clip, [teddy])
    carrying = apply_stack(model, [ConceptEntry(teddy, ON)])
    expected = sample(carrying, knowing, steps=3)
    # On the CPU under another name of it, as the node MultiGPU CFG Split does with GPUs.
    second = carrying.deepclone_multigpu(new_load_device=torch.device("cpu", 0))
    second.is_multigpu_base_clone = True
    carrying.set_additional_models("multigpu", [second])
    watched: list[Any] = []
    layers = layers_of(second, detect_family(second))
    handle = next(iter(layers.values())).value.register_forward_pre_hook(
        lambda module, _: watched.append(module)
    )
    try:
        picture = sample(carrying, knowing, steps=3)
    finally:
        handle.remove()
    assert watched  # it did take part
    # One prompt a pass in place of two: other sums, in numbers of some hundreds.
    assert torch.allclose(picture, expected, atol=1e-2)
    assert not torch.allclose(sample(model, knowing, steps=3), expected, atol=1)
    assert patched_modules(second) == patched_modules(model) == []
