"""Keys and values against float64, for every shape of prompt and stack that ComfyUI can bring."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from comfy.sd import CLIP
from projections import assert_edited, batches, error, tapped
from tiny_models import tiny_clip, tiny_concept, tiny_model, whitened

from perfusion_core.comfy.concept_entry import ConceptEntry
from perfusion_core.comfy.prompts import add_concepts
from perfusion_core.comfy.stack import apply_stack
from perfusion_core.concept.concept import Concept
from perfusion_core.method.settings import ConceptSettings

Model = Any
PROMPTS = {
    "short": "a teddy* in a pot*",
    "weighted": "a (teddy*:1.4) in a (pot*:0.6), (blue:1.2)",
    "repeated": "teddy*, teddy*, teddy* and a pot*",
    "two chunks": "a red ball " * 30 + "teddy* in a pot*",
    "four chunks": "a teddy* " + "on a green hill " * 70 + "in a pot*",
}


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


@pytest.fixture(scope="module")
def clip() -> CLIP:
    return tiny_clip()


@pytest.fixture(scope="module")
def stack(model: Model, clip: CLIP) -> list[ConceptEntry]:
    pot = tiny_concept(model, clip, "pot*", "teapot", seed=7)
    return [
        ConceptEntry(tiny_concept(model, clip), ConceptSettings(0.5, 0.15)),
        ConceptEntry(pot, ConceptSettings(0.6, 0.1)),
    ]


def run(
    model: Model, clip: CLIP, stack: list[ConceptEntry], positive: str, negative: str, size: int = 1
) -> list[Any]:
    """Every projection of one step of ComfyUI's sampler."""
    import nodes

    knowing = add_concepts(clip, [entry.concept for entry in stack])
    on = apply_stack(model, stack)
    with torch.inference_mode(), tapped(on) as seen:
        given = [nodes.CLIPTextEncode().encode(knowing, text)[0] for text in (positive, negative)]
        latents = {"samples": torch.zeros(size, 4, 8, 8)}
        nodes.KSampler().sample(on, 5, 1, 4.0, "euler", "normal", *given, latents)
    return list(seen)


@pytest.mark.parametrize("negative", ["blurry", "a red ball " * 60])
@pytest.mark.parametrize("kind", PROMPTS)
def test_prompts_of_any_length_repeated_to_a_common_one(
    kind: str, negative: str, model: Model, clip: CLIP, stack: list[ConceptEntry]
) -> None:
    seen = run(model, clip, stack, PROMPTS[kind], negative)
    assert_edited(seen, *stack)
    tokens = {p.context.shape[1] for p in seen}
    assert all(count % 77 == 0 for count in tokens)


@pytest.mark.parametrize("size", [1, 3])
def test_cond_and_uncond_together_and_apart(
    size: int, model: Model, clip: CLIP, stack: list[ConceptEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = run(model, clip, stack, PROMPTS["short"], "blurry", size)
    assert batches(together) == [2 * size]

    def needed(shape: Any, **_: Any) -> float:
        return 1e30 if shape[0] > size else 0.0

    monkeypatch.setattr(model.model, "memory_required", needed)
    apart = run(model, clip, stack, PROMPTS["short"], "blurry", size)
    assert batches(apart) == [size, size]
    for seen in (together, apart):
        assert_edited(seen, *stack)


@pytest.mark.parametrize("correlation", [0.9, 0.99])
def test_concepts_that_are_nearly_parallel(
    correlation: float, model: Model, clip: CLIP, stack: list[ConceptEntry]
) -> None:
    one, two = stack[0].concept, stack[1].concept

    a, b = one.target_input.float(), two.target_input.float()
    mixed = correlation * a + (1 - correlation**2) ** 0.5 * b * a.norm() / b.norm()
    near = replace(two, target_input=mixed, whitened_target=whitened(mixed))
    entries = [stack[0], replace(stack[1], concept=near)]
    assert_edited(run(model, clip, entries, PROMPTS["short"], "blurry"), *entries)


def test_one_concept_twice_is_projected_out_once_and_shares_its_word(
    model: Model, clip: CLIP, stack: list[ConceptEntry]
) -> None:
    first = stack[0]
    again: Concept = replace(first.concept, placeholder="bear*", name="again")
    seen = run(model, clip, [first, replace(first, concept=again)], PROMPTS["short"], "blurry")
    own = first.concept
    target, whitened = own.target_input.double(), own.whitened_target.double()
    for p in seen:
        # Each has half of the similarity, and gives way to its own target output.
        half = p.context.double() @ whitened / (target @ whitened) / 2
        gate = torch.sigmoid((half - first.settings.bias) / first.settings.temperature)
        output = p.weight @ own.superclass_encoding.double()
        if p.kind == "v":
            output = output + own.values[p.path].double()
        change = gate[..., None] * (output - half[..., None] * (p.weight @ target))
        assert error(p.output, p.plain + 2 * change) < 1e-4


@pytest.mark.parametrize("count", [8, 16])
def test_many_concepts(count: int, model: Model, clip: CLIP) -> None:
    entries = [
        ConceptEntry(
            tiny_concept(model, clip, f"thing{n}*", "teddy", seed=30 + n),
            ConceptSettings(0.4 + 0.02 * n, 0.1 + 0.01 * n),
        )
        for n in range(count)
    ]
    words = " ".join(entry.concept.placeholder for entry in entries)
    assert_edited(run(model, clip, entries, words, "blurry"), *entries)
