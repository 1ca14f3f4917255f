"""Concepts in regional, scheduled and hooked prompts, and beside a ControlNet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import nodes
import pytest
import torch
from comfy.sd import CLIP
from comfy_extras.nodes_hooks import (
    CreateHookKeyframe,
    CreateHookLora,
    PairConditioningSetProperties,
    SetClipHooks,
    SetHookKeyframes,
)
from other_packs import (
    TEXT,
    Prompts,
    differ,
    encode,
    knowing,
    ksample,
    lora_file,
    run_node,
    tiny_controlnet,
)
from projections import (
    assert_edited,
    assert_locked,
    assert_plain,
    batches,
    tapped,
    tapped_layers,
)
from tiny_models import patched_modules

from perfusion_core.comfy.concept_entry import ConceptEntry
from perfusion_core.comfy.models import detect_family, network_layers
from perfusion_core.comfy.stack import apply_stack
from perfusion_core.concept.concept import Concept
from perfusion_core.method.settings import ConceptSettings, KeyLock

Model = Any
Conditioning = Any
Pair = tuple[Conditioning, Conditioning]
# Writes the prompts of a graph: positive and negative.
Graph = Callable[[Prompts, str], Pair]

ON = ConceptSettings(0.5, 0.15)
GLOBAL = replace(ON, key_lock=KeyLock.GLOBAL)
STEPS = 4


@pytest.fixture
def lora(model: Model, clip: CLIP) -> str:
    return lora_file(model, clip)


def combined(*parts: Conditioning) -> Conditioning:
    whole = parts[0]
    for part in parts[1:]:
        (whole,) = run_node(nodes.ConditioningCombine, conditioning_1=whole, conditioning_2=part)
    return whole


def areas(prompts: Prompts, _: str) -> Pair:
    """The concept in the upper half, another thing in the lower, over a whole."""

    def area(text: str, y: int) -> Conditioning:
        return run_node(
            nodes.ConditioningSetArea,
            conditioning=prompts(text),
            width=64,
            height=32,
            x=0,
            y=y,
            strength=1.0,
        )[0]

    parts = area(TEXT, 0), area("a house", 32), prompts("a garden")
    return combined(*parts), prompts("blurry")


def masks(prompts: Prompts, _: str) -> Pair:
    """The concept on the left, another thing on the right."""

    def masked(text: str, left: float) -> Conditioning:
        mask = torch.full((1, 64, 64), 1 - left)
        mask[:, :, :32] = left
        return run_node(
            nodes.ConditioningSetMask,
            conditioning=prompts(text),
            mask=mask,
            set_cond_area="default",
            strength=1.0,
        )[0]

    return combined(masked(TEXT, 1.0), masked("a house", 0.0)), prompts("blurry")


def turns(prompts: Prompts, _: str) -> Pair:
    """First the concept, then another thing."""

    def between(text: str, start: float, end: float) -> Conditioning:
        return run_node(
            nodes.ConditioningSetTimestepRange, conditioning=prompts(text), start=start, end=end
        )[0]

    parts = between(TEXT, 0.0, 0.5), between("a house", 0.5, 1.0)
    return combined(*parts), prompts("blurry")


def controlled(prompts: Prompts, _: str) -> Pair:
    """With a ControlNet."""
    positive, negative = run_node(
        nodes.ControlNetApplyAdvanced,
        positive=prompts(TEXT),
        negative=prompts("blurry"),
        control_net=tiny_controlnet(),
        image=torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(4)),
        strength=0.6,
        start_percent=0.0,
        end_percent=1.0,
    )
    return positive, negative


def hook(lora: str, strength_clip: float = 0.0) -> Any:
    """A LoRA that sets in half way, as a hook for prompts."""
    (group,) = run_node(
        CreateHookLora, lora_name=lora, strength_model=0.5, strength_clip=strength_clip
    )
    frames = None
    for start, strength in ((0.0, 0.0), (0.5, 1.0)):
        (frames,) = run_node(
            CreateHookKeyframe, strength_mult=strength, start_percent=start, prev_hook_kf=frames
        )
    return run_node(SetHookKeyframes, hooks=group, hook_kf=frames)[0]


def hooked(prompts: Prompts, lora: str) -> Pair:
    """With a LoRA that sets in half way."""
    return with_hook(prompts(TEXT), prompts("blurry"), hook(lora))


def hooked_alone(prompts: Prompts, lora: str) -> Pair:
    """The same on the positive prompt alone, which keeps ComfyUI from one batch for both."""
    negative = prompts("blurry")
    return with_hook(prompts(TEXT), negative, hook(lora))[0], negative


def with_hook(positive: Conditioning, negative: Conditioning, hooks: Any) -> Pair:
    pair = run_node(
        PairConditioningSetProperties,
        positive_NEW=positive,
        negative_NEW=negative,
        strength=1.0,
        set_cond_area="default",
        hooks=hooks,
    )
    return pair[0], pair[1]


GRAPHS: dict[str, Graph] = {
    graph.__name__: graph for graph in (areas, masks, turns, controlled, hooked, hooked_alone)
}


@pytest.fixture(params=GRAPHS)
def graph(request: pytest.FixtureRequest) -> Graph:
    return GRAPHS[request.param]


def test_concepts_in_prompts_for_a_part_of_the_picture_or_of_the_time(
    graph: Graph, model: Model, clip: CLIP, teddy: Concept, lora: str
) -> None:
    entry = ConceptEntry(teddy, ON)
    off = replace(entry, settings=replace(ON, strength=0.0))
    prompts = Prompts(knowing(clip, entry), clip)
    pair = graph(prompts, lora)
    weights = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    stock = ksample(model, *pair, STEPS)
    assert torch.equal(ksample(apply_stack(model, [off]), *pair, STEPS), stock)
    on = apply_stack(model, [entry])
    with tapped(model) as seen:
        picture = ksample(on, *pair, STEPS)
    assert_edited(seen, entry)
    assert differ(picture, stock, ksample(on, prompts(TEXT), prompts("blurry"), STEPS))
    after = model.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())
    assert patched_modules(model) == []


def test_under_the_global_lock_all_prompts_are_known_and_batched_as_ever(
    graph: Graph, model: Model, clip: CLIP, teddy: Concept, lora: str
) -> None:
    entry = ConceptEntry(teddy, GLOBAL)
    prompts = Prompts(knowing(clip, entry), clip)
    pair = graph(prompts, lora)
    with tapped(model) as stock:
        ksample(model, *pair, STEPS)
    with tapped(model) as seen:
        ksample(apply_stack(model, [entry]), *pair, STEPS)
    assert batches(seen) == batches(stock)
    assert max(batches(seen)) > 1 or graph is hooked_alone
    assert_locked(seen, prompts.texts)
    assert_edited([p for p in seen if p.kind == "v"], entry)


def test_a_scheduled_lora_comes_in_under_the_concept(
    model: Model, clip: CLIP, teddy: Concept, lora: str
) -> None:
    entry = ConceptEntry(teddy, ON)
    pair = hooked(Prompts(knowing(clip, entry), clip), lora)
    with tapped(model) as seen:
        ksample(apply_stack(model, [entry]), *pair, STEPS)
    of_one = [p for p in seen if (p.path, p.kind) == (seen[0].path, "v")]
    stock = dict(model.model.named_parameters())[f"diffusion_model.{seen[0].path}.to_v.weight"]
    without = [torch.equal(p.weight, stock.double()) for p in of_one]
    assert without == sorted(without, reverse=True)
    assert 0 < sum(without) < STEPS


@pytest.mark.parametrize("lock", KeyLock)
def test_a_scheduled_lora_of_the_clip_takes_the_concept_along(
    lock: KeyLock, model: Model, clip: CLIP, teddy: Concept, lora: str
) -> None:
    """ComfyUI encodes a prompt once for each strength, and keeps less of what the CLIP says."""
    entry = ConceptEntry(teddy, replace(ON, key_lock=lock))
    off = replace(entry, settings=replace(entry.settings, strength=0.0))

    def scheduled(one: CLIP) -> CLIP:
        return run_node(
            SetClipHooks,
            clip=one,
            apply_to_conds=True,
            schedule_clip=True,
            hooks=hook(lora, strength_clip=0.5),
        )[0]

    clever = scheduled(knowing(clip, entry))
    positive, negative = encode(clever, TEXT), encode(clever, "blurry")
    assert len(positive) == len(negative) == 2
    stock = ksample(model, positive, negative, STEPS)
    assert torch.equal(ksample(apply_stack(model, [off]), positive, negative, STEPS), stock)
    with tapped(model) as seen:
        picture = ksample(apply_stack(model, [entry]), positive, negative, STEPS)
    assert differ(picture, stock)
    assert_edited([p for p in seen if p.kind == "v" or lock is KeyLock.LOCAL], entry)
    if lock is KeyLock.GLOBAL:
        plain = scheduled(clip)
        twins = encode(plain, TEXT.replace("*", "")), encode(plain, "blurry")
        pairs = zip(positive + negative, twins[0] + twins[1], strict=True)
        assert_locked(seen, [(own[0], twin[0]) for own, twin in pairs])
    assert patched_modules(model) == []


def test_a_controlnet_is_not_edited(model: Model, clip: CLIP, teddy: Concept) -> None:
    entry = ConceptEntry(teddy, ON)
    positive, negative = controlled(Prompts(knowing(clip, entry), clip), "")
    network = positive[0][1]["control"].control_model
    layers = network_layers(network, detect_family(model))
    assert layers
    calls = []
    for one in (model, apply_stack(model, [entry])):
        with tapped_layers(layers) as seen:
            ksample(one, positive, negative)
        assert_plain(seen)
        calls.append(seen)
    # At the first step it even sees the same picture.
    stock, on = calls
    assert len(stock) == len(on)
    for one, other in zip(stock[: 2 * len(layers)], on[: 2 * len(layers)], strict=True):
        assert torch.equal(one.output, other.output)
