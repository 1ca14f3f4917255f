"""A concept and another pack on one model: both are at work, in either order, and to the digit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import nodes
import pytest
import torch
from comfy.sd import CLIP
from comfy_extras.nodes_freelunch import FreeU, FreeU_V2
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_model_merging import ModelMergeSimple
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_sag import SelfAttentionGuidance
from comfy_extras.nodes_tomesd import TomePatchModel
from other_packs import (
    TEXT,
    Prompts,
    add_image_prompt,
    add_regions,
    differ,
    encode,
    knowing,
    ksample,
    lora_file,
    lora_weights,
    run_node,
)
from projections import assert_edited, assert_locked, batches, tapped
from tiny_models import patched_modules, sample, tiny_model

from perfusion_core.comfy.concept_entry import ConceptEntry
from perfusion_core.comfy.forward_patch import HOOK
from perfusion_core.comfy.stack import apply_stack
from perfusion_core.concept.concept import Concept
from perfusion_core.method.settings import ConceptSettings, KeyLock

Model = Any


@dataclass(frozen=True)
class Supplies:
    """What other packs' nodes take beside the MODEL."""

    clip: CLIP
    model: Model


# Puts another pack's node on a model.
Neighbour = Callable[[Model, Supplies], Model]

ON = ConceptSettings(0.5, 0.15)
OFF = replace(ON, strength=0.0)
GLOBAL = replace(ON, key_lock=KeyLock.GLOBAL)
LORA_STRENGTH = 0.5

BYPASS = "comfy_extras.nodes_lora_debug"


def add_lora(model: Model, supplies: Supplies) -> Model:
    name = lora_file(model, supplies.clip)
    return run_node(
        nodes.LoraLoaderModelOnly, model=model, lora_name=name, strength_model=LORA_STRENGTH
    )[0]


def add_bypass_lora(model: Model, supplies: Supplies) -> Model:
    from comfy_extras.nodes_lora_debug import LoraLoaderBypassModelOnly as Loader

    name = lora_file(model, supplies.clip)
    return run_node(Loader, model=model, lora_name=name, strength_model=LORA_STRENGTH)[0]


def merged(model: Model, supplies: Supplies) -> Model:
    return run_node(ModelMergeSimple, model1=model, model2=supplies.model, ratio=0.4)[0]


def patched_by(node: Any, **inputs: Any) -> Neighbour:
    """A neighbour of one node that takes a MODEL and gives one."""
    return lambda model, _: run_node(node, model=model, **inputs)[0]


NEIGHBOURS: dict[str, Neighbour] = {
    "lora": add_lora,
    "bypass_lora": add_bypass_lora,
    "image_prompt": lambda model, _: add_image_prompt(model),
    "free_u": patched_by(FreeU, b1=1.3, b2=1.4, s1=0.9, s2=0.2),
    "free_u_v2": patched_by(FreeU_V2, b1=1.3, b2=1.4, s1=0.9, s2=0.2),
    "perturbed_attention": patched_by(PerturbedAttentionGuidance, scale=3.0),
    "self_attention": patched_by(SelfAttentionGuidance, scale=0.8, blur_sigma=2.0),
    "hypertile": patched_by(HyperTile, tile_size=32, swap_size=1, max_depth=0, scale_depth=False),
    "tome": patched_by(TomePatchModel, ratio=0.5),
    "merged": merged,
}


CHAIN = [
    "merged",
    "lora",
    "free_u_v2",
    "image_prompt",
    "hypertile",
    "self_attention",
    "perturbed_attention",
]


@pytest.fixture(scope="module")
def supplies(clip: CLIP) -> Supplies:
    return Supplies(clip, tiny_model(seed=9))


@pytest.fixture(params=sorted(NEIGHBOURS))
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    if chosen == "bypass_lora" and find_spec(BYPASS) is None:
        pytest.skip("this ComfyUI has no LoRA loader that leaves the weights alone")
    return chosen


@pytest.fixture
def neighbour(name: str, supplies: Supplies) -> Callable[[Model], Model]:
    return lambda model: NEIGHBOURS[name](model, supplies)


@pytest.fixture
def added(name: str, model: Model, clip: CLIP) -> dict[str, torch.Tensor]:
    """What a LoRA in bypass mode adds to a weight behind ComfyUI's back."""
    if name != "bypass_lora":
        return {}
    lora = lora_weights(model, clip)
    ups = [key for key in lora if key.endswith("lora_up.weight") and ".attn2." in key]
    found = {}
    for key in ups:
        path, _, kind = key.removeprefix("diffusion_model.").partition(".to_")
        difference = lora[key].double() @ lora[key.replace("_up", "_down")].double()
        found[f"{path}.{kind[0]}"] = LORA_STRENGTH * difference
    return found


def test_at_strength_0_the_picture_is_that_without_the_concept(
    neighbour: Callable[[Model], Model], model: Model, clip: CLIP, teddy: Concept
) -> None:
    entry = ConceptEntry(teddy, OFF)
    clever = knowing(clip, entry)
    expected = sample(neighbour(model), clever)
    assert torch.equal(sample(neighbour(apply_stack(model, [entry])), clever), expected)
    assert torch.equal(sample(apply_stack(neighbour(model), [entry]), clever), expected)


def test_both_are_at_work_and_the_order_does_not_matter(
    neighbour: Callable[[Model], Model], model: Model, clip: CLIP, teddy: Concept
) -> None:
    entry = ConceptEntry(teddy, ON)
    clever = knowing(clip, entry)
    on = apply_stack(model, [entry])
    both = sample(neighbour(on), clever)
    assert differ(both, sample(on, clever), sample(neighbour(model), clever), sample(model, clever))
    assert torch.equal(sample(apply_stack(neighbour(model), [entry]), clever), both)


def test_keys_and_values_are_those_of_the_paper(
    neighbour: Callable[[Model], Model],
    added: dict[str, torch.Tensor],
    model: Model,
    clip: CLIP,
    teddy: Concept,
) -> None:
    entry = ConceptEntry(teddy, ON)
    with tapped(model) as seen:
        sample(neighbour(apply_stack(model, [entry])), knowing(clip, entry))
    assert_edited(seen, entry, added=added)


def test_the_global_lock_locks_all_keys_in_the_batches_of_the_stock_model(
    neighbour: Callable[[Model], Model],
    added: dict[str, torch.Tensor],
    model: Model,
    clip: CLIP,
    teddy: Concept,
) -> None:
    entry = ConceptEntry(teddy, GLOBAL)
    prompts = Prompts(knowing(clip, entry), clip)
    positive, negative = prompts(TEXT), prompts("blurry")
    with tapped(model) as stock:
        ksample(neighbour(model), positive, negative)
    with tapped(model) as seen:
        ksample(neighbour(apply_stack(model, [entry])), positive, negative)
    assert batches(seen) == batches(stock)
    assert max(batches(seen)) == 2
    assert_locked(seen, prompts.texts, added=added)
    assert_edited([p for p in seen if p.kind == "v"], entry, added=added)


def test_nothing_of_ours_is_left(
    name: str, neighbour: Callable[[Model], Model], model: Model, clip: CLIP, teddy: Concept
) -> None:
    entry = ConceptEntry(teddy, ON)
    clever = knowing(clip, entry)
    sample(neighbour(apply_stack(model, [entry])), clever)
    assert not any(HOOK in vars(part) for part in model.model.modules())
    # ComfyUI itself leaves a LoRA in bypass mode on until it loads another clone.
    other = tiny_model()
    if name == "bypass_lora":
        sample(neighbour(other), clever)
    assert patched_modules(model) == patched_modules(other)


def test_a_chain_of_nodes_gives_one_picture_wherever_the_concept_is_added(
    model: Model, clip: CLIP, supplies: Supplies, teddy: Concept
) -> None:
    entry = ConceptEntry(teddy, ON)
    clever = knowing(clip, entry)

    def picture(place: int | None) -> torch.Tensor:
        chained = model
        for number, name in enumerate([*CHAIN, ""]):
            if number == place:
                chained = apply_stack(chained, [entry])
            chained = NEIGHBOURS[name](chained, supplies) if name else chained
        return sample(chained, clever)

    first, *others = (picture(place) for place in (0, 2, 5, len(CHAIN)))
    assert all(torch.equal(other, first) for other in others)
    assert differ(first, picture(None))
    assert patched_modules(model) == []


def test_an_image_prompt_gets_the_edited_keys_and_values_of_the_text(
    model: Model, clip: CLIP, teddy: Concept
) -> None:
    entry = ConceptEntry(teddy, ON)
    got: list[tuple[str, torch.Tensor, torch.Tensor]] = []
    with tapped(model) as seen:
        sample(add_image_prompt(apply_stack(model, [entry]), got), knowing(clip, entry))
    assert_edited(seen, entry)
    keys, values = ([p for p in seen if p.kind == kind] for kind in "kv")
    assert [path for path, _, _ in got] == [p.path for p in keys]
    assert all(torch.equal(k, p.output) for (_, k, _), p in zip(got, keys, strict=True))
    assert all(torch.equal(v, p.output) for (_, _, v), p in zip(got, values, strict=True))


def test_a_block_that_is_given_another_prompt_gets_the_edit_of_that_prompt(
    model: Model, clip: CLIP, teddy: Concept
) -> None:
    """As packs do that write one prompt for the middle of the network and one for the rest."""
    entry = ConceptEntry(teddy, ON)
    prompts = Prompts(knowing(clip, entry), clip)
    pair, other = (prompts("a house"), prompts("blurry")), prompts(TEXT)[0][0]

    def inject(model: Model) -> Model:
        def patch(n: Any, context: Any, value: Any, options: Any) -> Any:
            if options["block"][0] != "middle":
                return n, context, value
            return n, other.expand_as(context), other.expand_as(context)

        clone = model.clone()
        clone.set_model_attn2_patch(patch)
        return clone

    on = apply_stack(model, [entry])
    with tapped(model) as seen:
        picture = ksample(inject(on), *pair)
    assert_edited([p for p in seen if p.path.startswith("middle")], entry)
    assert_edited(seen, entry)
    assert differ(picture, ksample(inject(model), *pair), ksample(on, *pair))
    assert torch.equal(ksample(apply_stack(inject(model), [entry]), *pair), picture)


@pytest.mark.parametrize("lock", KeyLock)
def test_each_region_of_attention_couple_gets_the_edit_of_its_own_prompt(
    lock: KeyLock, model: Model, clip: CLIP, teddy: Concept
) -> None:
    entry = ConceptEntry(teddy, replace(ON, key_lock=lock))
    off = ConceptEntry(teddy, replace(OFF, key_lock=lock))
    clever = knowing(clip, entry)
    prompts = Prompts(clever, clip)
    positive, negative = prompts(TEXT), prompts("blurry")
    regions = (positive, encode(clever, "a house"))
    stock = ksample(add_regions(model, *regions), positive, negative)
    on = apply_stack(model, [entry])
    with tapped(model) as seen:
        both = ksample(add_regions(on, *regions), positive, negative)
    assert differ(both, stock, ksample(on, positive, negative))
    before = apply_stack(add_regions(model, *regions), [entry])
    assert torch.equal(ksample(before, positive, negative), both)
    without = add_regions(apply_stack(model, [off]), *regions)
    assert torch.equal(ksample(without, positive, negative), stock)
    assert patched_modules(model) == []

    assert batches(seen) == [3, 3]
    assert_edited([p for p in seen if p.kind == "v" or lock is KeyLock.LOCAL], entry)
    if lock is KeyLock.GLOBAL:
        # The sampler knows one of the regions' prompts; of the other it never sees a twin.
        house = regions[1][0][0]
        for p in seen:
            rows = [i for i, own in enumerate(p.context) if not torch.equal(own, house[0])]
            assert len(rows) == 2
            known = replace(p, context=p.context[rows], output=p.output[rows])
            if p.kind == "k":
                assert_locked([known], prompts.texts)
