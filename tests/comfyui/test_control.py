"""Start, end and layer weights, through ComfyUI's real sampler."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.samplers
import torch
from comfy.sd import CLIP
from tiny_models import patched_modules, sample, tiny_concept

from perfusion_core.comfy.concept_entry import ConceptEntry
from perfusion_core.comfy.models import detect_family, layers_of
from perfusion_core.comfy.prompts import add_concepts
from perfusion_core.comfy.stack import apply_stack, layer_paths, tune
from perfusion_core.concept.concept import Concept
from perfusion_core.families import in_order
from perfusion_core.method.settings import ConceptSettings, LayerWeights

Model = Any
ON = ConceptSettings(0.5, 0.15)


def hooked(model: Model, clip: CLIP, concept: Concept, steps: int) -> list[list[str]]:
    """Which projections are edited at each step."""
    seen: list[list[str]] = []

    def note(x: Any, options: Any) -> Any:
        seen.append(patched_modules(model))
        return x

    watched = model.clone()
    watched.set_model_input_block_patch(lambda h, o: note(h, o) if o["block"][1] == 0 else h)
    sample(watched, add_concepts(clip, [concept]), steps=steps)
    return seen


def test_the_concept_acts_between_start_and_end(model: Model, clip: CLIP, teddy: Concept) -> None:
    knowing = add_concepts(clip, [teddy])
    on = apply_stack(model, [ConceptEntry(teddy, ON)])
    stock, full = sample(model, knowing, steps=8), sample(on, knowing, steps=8)
    for start, end in ((0.0, 0.5), (0.5, 1.0), (0.25, 0.75)):
        part = tune(on, "", lambda s, a=start, e=end: replace(s, start=a, end=e))
        seen = [bool(names) for names in hooked(part, clip, teddy, steps=8)]
        picture = sample(part, knowing, steps=8)
        assert not torch.equal(picture, stock)
        assert not torch.equal(picture, full)
        # ComfyUI's own conditions over the same range are at work in the same steps.
        sampling = model.model.model_sampling
        first, last = sampling.percent_to_sigma(start), sampling.percent_to_sigma(end)
        sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", 8)[:-1]
        assert seen == [bool(last <= s <= first) for s in sigmas]
        assert True in seen
        assert False in seen


def test_a_step_on_the_edge_of_the_range_is_within_as_in_comfyuis_conditions(
    model: Model, clip: CLIP, teddy: Concept
) -> None:
    sampling = model.model.model_sampling
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", 4)
    edge = 1 / 3
    assert sampling.percent_to_sigma(edge) == sigmas[1]
    on = apply_stack(model, [ConceptEntry(teddy, ON)])
    for start, end, expected in ((0.0, edge, [1, 1, 0, 0]), (edge, 1.0, [0, 1, 1, 1])):
        part = tune(on, "", lambda s, a=start, e=end: replace(s, start=a, end=e))
        assert [bool(names) for names in hooked(part, clip, teddy, steps=4)] == expected


def test_a_range_that_no_step_lies_in_is_the_stock_picture(
    model: Model, clip: CLIP, teddy: Concept
) -> None:
    knowing = add_concepts(clip, [teddy])
    on = apply_stack(model, [ConceptEntry(teddy, replace(ON, start=0.2, end=0.3))])
    assert torch.equal(sample(on, knowing, steps=3), sample(model, knowing, steps=3))


def test_concepts_take_turns(model: Model, clip: CLIP, teddy: Concept) -> None:
    pot = tiny_concept(model, clip, "pot*", "teapot", seed=7)
    knowing = add_concepts(clip, [teddy, pot])
    text = "a teddy* in a pot*"
    both = apply_stack(model, [ConceptEntry(teddy, ON), ConceptEntry(pot, ON)])
    first = tune(both, "teddy*", lambda s: replace(s, end=0.5))
    turns = tune(first, "pot*", lambda s: replace(s, start=0.51))
    alone = apply_stack(model, [ConceptEntry(teddy, replace(ON, end=0.5))])
    early = sample(tune(turns, "pot*", lambda s: replace(s, strength=0.0)), knowing, text, steps=6)
    assert torch.equal(early, sample(alone, knowing, text, steps=6))
    assert not torch.equal(early, sample(turns, knowing, text, steps=6))


def test_a_weight_of_0_leaves_its_layers_alone(model: Model, clip: CLIP, teddy: Concept) -> None:
    paths = layer_paths(model)
    assert paths == in_order(paths)
    groups = detect_family(model).groups(paths)
    entry = ConceptEntry(teddy, replace(ON, layers=LayerWeights(down=0.0, single={paths[-1]: 0.0})))
    (seen,) = hooked(apply_stack(model, [entry]), clip, teddy, steps=1)
    kept = [p for p in paths[:-1] if groups[p] != "down"]
    assert kept
    assert sorted(seen) == sorted(f"diffusion_model.{p}.to_{x}" for p in kept for x in "kv")
    nothing = replace(entry, settings=replace(ON, layers=LayerWeights(0.0, 0.0, 0.0)))
    knowing = add_concepts(clip, [teddy])
    assert torch.equal(sample(apply_stack(model, [nothing]), knowing), sample(model, knowing))


def test_a_weight_multiplies_the_strength_in_its_layers(
    model: Model, clip: CLIP, teddy: Concept
) -> None:
    knowing = add_concepts(clip, [teddy])
    weighted = replace(ON, strength=0.8, layers=LayerWeights(0.5, 0.5, 0.5))
    same = replace(ON, strength=0.4)
    pictures = [
        sample(apply_stack(model, [ConceptEntry(teddy, s)]), knowing) for s in (weighted, same)
    ]
    assert torch.equal(*pictures)
    # Beyond the strongest there is nothing more.
    beyond = replace(ON, strength=1.5, layers=LayerWeights(2.0, 2.0, 2.0))
    strongest = replace(ON, strength=2.0)
    pictures = [
        sample(apply_stack(model, [ConceptEntry(teddy, s)]), knowing) for s in (beyond, strongest)
    ]
    assert torch.equal(*pictures)
    ones = replace(ON, layers=LayerWeights(single=dict.fromkeys(layer_paths(model), 1.0)))
    plain = sample(apply_stack(model, [ConceptEntry(teddy, ON)]), knowing)
    assert torch.equal(sample(apply_stack(model, [ConceptEntry(teddy, ones)]), knowing), plain)


def test_layers_of_different_weights_each_get_their_own_edit(
    model: Model, clip: CLIP, teddy: Concept
) -> None:
    paths = layer_paths(model)
    middle = next(p for p in paths if p.startswith("middle"))
    keys: dict[str, torch.Tensor] = {}

    def run(settings: ConceptSettings) -> torch.Tensor:
        def note(q: Any, k: Any, v: Any, _: Any) -> Any:
            keys["now"] = k.clone()
            return torch.zeros_like(q)

        on = apply_stack(model, [ConceptEntry(teddy, settings)])
        on.set_model_attn2_replace(note, "middle", 0)
        sample(on, add_concepts(clip, [teddy]), steps=1)
        return keys["now"]

    half = run(replace(ON, strength=0.5))
    single = run(replace(ON, layers=LayerWeights(single={middle: 0.5})))
    group = run(replace(ON, layers=LayerWeights(middle=0.5)))
    assert torch.equal(single, half)
    assert torch.equal(group, half)
    assert layers_of(model, detect_family(model)).keys() == set(paths)
