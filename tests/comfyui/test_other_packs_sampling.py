"""Concepts under other guiders, samplers and schedules, and in a part of the picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import nodes
import pytest
import torch
from comfy.sd import CLIP
from comfy_extras.nodes_align_your_steps import AlignYourStepsScheduler
from comfy_extras.nodes_custom_sampler import (
    BasicGuider,
    CFGGuider,
    DualCFGGuider,
    KSamplerSelect,
    RandomNoise,
    SamplerCustom,
    SamplerCustomAdvanced,
)
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
from other_packs import TEXT, Prompts, differ, knowing, ksample, run_node
from projections import assert_edited, assert_locked, batches, tapped
from tiny_models import patched_modules

from perfusion_core.comfy.concept_entry import ConceptEntry
from perfusion_core.comfy.stack import apply_stack
from perfusion_core.concept.concept import Concept
from perfusion_core.method.settings import ConceptSettings, KeyLock

Model = Any
# Makes a picture of a model.
Run = Callable[[Model, Prompts], torch.Tensor]

ON = ConceptSettings(0.5, 0.15)
GLOBAL = replace(ON, key_lock=KeyLock.GLOBAL)
STEPS = 4


def sigmas() -> torch.Tensor:
    found: torch.Tensor
    (found,) = run_node(AlignYourStepsScheduler, model_type="SD1", steps=3, denoise=1.0)
    return found


def run_guider(guider: Any, sampler: str) -> torch.Tensor:
    (noise,) = run_node(RandomNoise, noise_seed=5)
    out = run_node(
        SamplerCustomAdvanced,
        noise=noise,
        guider=guider,
        sampler=run_node(KSamplerSelect, sampler_name=sampler)[0],
        sigmas=sigmas(),
        latent_image={"samples": torch.zeros(1, 4, 8, 8)},
    )
    picture: torch.Tensor = out[0]["samples"]
    return picture.clone()


def by_cfg(model: Model, prompts: Prompts, sampler: str = "euler") -> torch.Tensor:
    pair = {"positive": prompts(TEXT), "negative": prompts("blurry")}
    return run_guider(run_node(CFGGuider, model=model, cfg=4.0, **pair)[0], sampler)


def by_two_cfgs(model: Model, prompts: Prompts, style: str = "regular") -> torch.Tensor:
    conds = {"cond1": prompts(TEXT), "cond2": prompts("a house"), "negative": prompts("blurry")}
    scales = {"cfg_conds": 3.0, "cfg_cond2_negative": 4.0}
    (guider,) = run_node(DualCFGGuider, model=model, style=style, **conds, **scales)
    return run_guider(guider, "euler")


def by_two_nested_cfgs(model: Model, prompts: Prompts) -> torch.Tensor:
    return by_two_cfgs(model, prompts, "nested")


def without_guidance(model: Model, prompts: Prompts) -> torch.Tensor:
    (guider,) = run_node(BasicGuider, model=model, conditioning=prompts(TEXT))
    return run_guider(guider, "euler")


def by_custom_sampler(model: Model, prompts: Prompts) -> torch.Tensor:
    out = run_node(
        SamplerCustom,
        model=model,
        add_noise=True,
        noise_seed=5,
        cfg=4.0,
        positive=prompts(TEXT),
        negative=prompts("blurry"),
        sampler=run_node(KSamplerSelect, sampler_name="euler")[0],
        sigmas=sigmas(),
        latent_image={"samples": torch.zeros(1, 4, 8, 8)},
    )
    picture: torch.Tensor = out[0]["samples"]
    return picture.clone()


def by_sampler(name: str) -> Run:
    return lambda model, prompts: by_cfg(model, prompts, name)


# How a picture is made, and how many prompts are in one batch.
RUNS: dict[str, tuple[Run, int]] = {
    "cfg": (by_cfg, 2),
    "two_cfgs": (by_two_cfgs, 3),
    "two_nested_cfgs": (by_two_nested_cfgs, 3),
    "no_guidance": (without_guidance, 1),
    "custom_sampler": (by_custom_sampler, 2),
    **{name: (by_sampler(name), 2) for name in ("heun", "dpmpp_2m", "euler_ancestral", "uni_pc")},
}


@pytest.mark.parametrize(("run", "size"), RUNS.values(), ids=list(RUNS))
def test_guiders_and_samplers_on_the_steps_of_align_your_steps(
    run: Run,
    size: int,
    model: Model,
    clip: CLIP,
    teddy: Concept,
) -> None:
    entry, locked = ConceptEntry(teddy, ON), ConceptEntry(teddy, GLOBAL)
    off = replace(locked, settings=replace(GLOBAL, strength=0.0))
    prompts = Prompts(knowing(clip, locked), clip)
    stock = run(model, prompts)
    assert torch.equal(run(apply_stack(model, [off]), prompts), stock)
    with tapped(model) as local:
        picture = run(apply_stack(model, [entry]), prompts)
    with tapped(model) as seen:
        other = run(apply_stack(model, [locked]), prompts)
    assert differ(picture, stock, other)
    assert_edited(local, entry)
    assert_locked(seen, prompts.texts)
    assert set(batches(seen)) == set(batches(local)) == {size}
    assert patched_modules(model) == []


def test_differential_diffusion_paints_where_its_mask_says(
    model: Model, clip: CLIP, teddy: Concept
) -> None:
    entry = ConceptEntry(teddy, ON)
    off = replace(entry, settings=replace(ON, strength=0.0))
    prompts = Prompts(knowing(clip, entry), clip)
    pair = prompts(TEXT), prompts("blurry")
    before = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(6))
    mask = torch.linspace(-1.0, 1.0, 8).clamp(min=0).repeat_interleave(8).expand(1, 64, 64)
    (latent,) = run_node(nodes.SetLatentNoiseMask, samples={"samples": before}, mask=mask)

    def differential(one: Model) -> Model:
        return run_node(DifferentialDiffusion, model=one, strength=1.0)[0]

    def paint(one: Model) -> torch.Tensor:
        # A schedule whose last step is not the noise's end, where ComfyUI's mask is open to all.
        return ksample(one, *pair, STEPS, latent, scheduler="sgm_uniform")

    stock = paint(differential(model))
    on = apply_stack(model, [entry])
    with tapped(model) as seen:
        picture = paint(differential(on))
    assert_edited(seen, entry)
    assert batches(seen) == [2] * STEPS
    after = apply_stack(differential(model), [entry])
    assert torch.equal(paint(after), picture)
    without = differential(apply_stack(model, [off]))
    assert torch.equal(paint(without), stock)
    assert differ(picture, stock, paint(on))
    # Left of the middle nothing is painted at all, right of it the concept is.
    assert torch.allclose(picture[..., :4], before[..., :4], atol=1e-5)
    assert differ(picture[..., 4:], stock[..., 4:])
    assert patched_modules(model) == []
