"""The global key lock through ComfyUI: the CLIP carries what is needed, nobody wires a thing."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import nodes
import pytest
import torch
from comfy.sd import CLIP
from other_packs import Prompts, differ
from projections import assert_edited, assert_locked, tapped
from tiny_models import CPU, patched_modules, tiny_concept
from true_models import random_concept, true_clip, true_model

from perfusion_core.comfy.concept_entry import ConceptEntry
from perfusion_core.comfy.models import detect_family, layers_of
from perfusion_core.comfy.prompts import LOCKED_PROMPT, SUPERCLASS_PROMPT, add_concepts
from perfusion_core.comfy.stack import apply_stack, tune
from perfusion_core.concept.concept import Concept
from perfusion_core.method.settings import ConceptSettings, KeyLock

Model = Any
GLOBAL = ConceptSettings(0.5, 0.15, key_lock=KeyLock.GLOBAL)
LOCAL = ConceptSettings(0.5, 0.15)


class Run:
    """A run of ComfyUI's sampler in which the middle layer's keys and values are noted."""

    def __init__(
        self, model: Model, positive: Any, negative: Any, steps: int = 1, size: int = 1
    ) -> None:
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.rows: list[list[int]] = []

        def note(q: Any, k: Any, v: Any, options: Any) -> Any:
            self.keys.append(k.clone())
            self.values.append(v.clone())
            self.rows.append(options["cond_or_uncond"])
            return torch.zeros_like(q)

        watched = model.clone()
        watched.set_model_attn2_replace(note, "middle", 0)
        with torch.inference_mode():
            latents = {"samples": torch.zeros(size, 4, 8, 8)}
            out = nodes.KSampler().sample(
                watched, 5, steps, 4.0, "euler", "normal", positive, negative, latents
            )
            self.picture = out[0]["samples"].clone()


def encode(clip: CLIP, text: str) -> Any:
    with torch.inference_mode():
        return nodes.CLIPTextEncode().encode(clip, text)[0]


def key_weight(model: Model) -> torch.Tensor:
    layers = layers_of(model, detect_family(model))
    weight: torch.Tensor = next(
        layer.key.weight for path, layer in layers.items() if path.startswith("middle")
    )
    return weight.detach()


def knowing(clip: CLIP, *entries: ConceptEntry) -> Any:
    return add_concepts(clip, [e.concept for e in entries], [e.settings.key_lock for e in entries])


@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("long", [False, True])
def test_the_keys_are_those_of_the_superclass_prompt(
    model: Model, clip: CLIP, vectors: int, long: bool
) -> None:
    superclass = {1: "teddy", 3: "big teddy bear"}[vectors]
    entry = ConceptEntry(tiny_concept(model, clip, "toy*", superclass, vectors=vectors), GLOBAL)
    text = "a photo of a (toy*:1.3), on a beach" + " with a red ball" * (20 if long else 0)
    positive = encode(knowing(clip, entry), text)
    run = Run(apply_stack(model, [entry]), positive, encode(knowing(clip, entry), "blurry"))
    twin = encode(clip, text.replace("toy*", superclass))[0][0]
    assert positive[0][0].shape == twin.shape
    assert not torch.allclose(positive[0][0], twin, atol=1e-2)
    expected = twin @ key_weight(model).T
    row = run.rows[0].index(0)
    tokens = expected.shape[1]
    # ComfyUI repeats the shorter of two contexts to a common length.
    assert torch.allclose(run.keys[0][row, :tokens], expected[0], atol=1e-5)
    negative = encode(clip, "blurry")[0][0] @ key_weight(model).T
    other = run.keys[0][run.rows[0].index(1)]
    assert torch.allclose(other[:77], negative[0], atol=1e-5)


@pytest.mark.parametrize(
    ("vectors", "superclass", "stands_for"),
    [(2, "big teddy bear", "teddy bear"), (3, "teddy", "teddy teddy teddy")],
)
def test_vectors_are_aligned_with_a_superclass_of_more_or_fewer_tokens(
    vectors: int, superclass: str, stands_for: str, model: Model, clip: CLIP
) -> None:
    """At the end, where the noun is."""
    entry = ConceptEntry(tiny_concept(model, clip, "toy*", superclass, vectors=vectors), GLOBAL)
    clever = knowing(clip, entry)
    run = Run(
        apply_stack(model, [entry]), encode(clever, "a toy* on a beach"), encode(clever, "blurry")
    )
    expected = encode(clip, f"a {stands_for} on a beach")[0][0] @ key_weight(model).T
    assert torch.allclose(run.keys[0][run.rows[0].index(0)], expected[0], atol=1e-5)


def test_both_encoders_of_sdxl_take_part() -> None:
    model, clip = true_model("SDXL", CPU, channels=32), true_clip("SDXL")
    concept = random_concept(
        detect_family(model),
        {path: layer.out for path, layer in layers_of(model, detect_family(model)).items()},
    )
    entry = ConceptEntry(concept, GLOBAL)
    clever = knowing(clip, entry)
    text = "a photo of a (teddy*:1.2) on a beach"
    prompts = Prompts(clever, clip)
    positive, negative = prompts(text), prompts("blurry")
    with tapped(model) as seen:
        run = Run(apply_stack(model, [entry]), positive, negative)
    assert [sorted(rows) for rows in run.rows] == [[0, 1]] * len(run.rows)
    assert_locked(seen, prompts.texts)
    assert_edited([p for p in seen if p.kind == "v"], entry)
    own, twin = prompts.texts[0]
    halves = zip(own.split([768, 1280], -1), twin.split([768, 1280], -1), strict=True)
    assert all(differ(a, b) for a, b in halves)
    # The pooled vector is that of the prompt with the concept.
    plain = encode(add_concepts(clip, [concept]), text)[0][1]["pooled_output"]
    assert torch.equal(positive[0][1]["pooled_output"], plain)


def test_cond_and_uncond_still_run_in_one_batch(model: Model, clip: CLIP, teddy: Concept) -> None:
    entry = ConceptEntry(teddy, GLOBAL)
    clever, stock = knowing(clip, entry), clip
    prompt = encode(clever, "a teddy* on a beach")
    for negative in (encode(clever, ""), encode(stock, ""), encode(clever, "blurry " * 90)):
        run = Run(apply_stack(model, [entry]), prompt, negative, steps=3)
        assert [sorted(rows) for rows in run.rows] == [[0, 1]] * 3


def test_values_and_gates_are_those_of_the_local_lock(
    model: Model, clip: CLIP, teddy: Concept
) -> None:
    runs = []
    for settings in (GLOBAL, LOCAL):
        entry = ConceptEntry(teddy, settings)
        clever = knowing(clip, entry)
        prompts = encode(clever, "a teddy* on a beach"), encode(clever, "")
        runs.append(Run(apply_stack(model, [entry]), *prompts, size=2))
    assert torch.equal(runs[0].values[0], runs[1].values[0])
    assert not torch.allclose(runs[0].keys[0], runs[1].keys[0], atol=1e-2)


def test_several_concepts_one_locked_globally_and_one_locally(model: Model, clip: CLIP) -> None:
    pot = tiny_concept(model, clip, "pot*", "teapot", seed=7)
    entries = [ConceptEntry(tiny_concept(model, clip), GLOBAL), ConceptEntry(pot, LOCAL)]
    text = "a teddy* in a pot*"
    run = Run(apply_stack(model, entries), encode(knowing(clip, *entries), text), encode(clip, ""))
    # The local one's word stays in the superclass prompt, and is edited there.
    only_local = Run(
        apply_stack(model, entries[1:]),
        encode(knowing(clip, entries[1]), "a teddy in a pot*"),
        encode(clip, ""),
    )
    row, other = run.rows[0].index(0), only_local.rows[0].index(0)
    assert torch.allclose(run.keys[0][row], only_local.keys[0][other], atol=1e-5)

    both = [replace(entry, settings=GLOBAL) for entry in entries]
    run = Run(apply_stack(model, both), encode(knowing(clip, *both), text), encode(clip, ""))
    expected = encode(clip, "a teddy in a teapot")[0][0] @ key_weight(model).T
    assert torch.allclose(run.keys[0][run.rows[0].index(0)], expected[0], atol=1e-5)


def test_strength_0_is_the_stock_picture_and_strength_is_the_way_to_it(
    model: Model, clip: CLIP, teddy: Concept
) -> None:
    entry = ConceptEntry(teddy, GLOBAL)
    clever = knowing(clip, entry)
    prompts = encode(clever, "a teddy* on a beach"), encode(clever, "")
    on = apply_stack(model, [entry])
    stock = Run(model, *prompts)
    off = Run(tune(on, "", lambda s: replace(s, strength=0.0)), *prompts)
    assert torch.equal(off.picture, stock.picture)
    half = Run(tune(on, "", lambda s: replace(s, strength=0.5)), *prompts)
    full = Run(on, *prompts)
    middle = (stock.keys[0] + full.keys[0]) / 2
    assert torch.allclose(half.keys[0], middle, atol=1e-5)
    assert patched_modules(model) == []


def test_a_prompt_that_was_changed_on_the_way_is_locked_locally(
    model: Model, clip: CLIP, teddy: Concept
) -> None:
    """What ComfyUI's other nodes do to a conditioning never meets keys of another prompt."""
    entry, local = ConceptEntry(teddy, GLOBAL), ConceptEntry(teddy, LOCAL)
    clever = knowing(clip, entry)
    prompt, negative = encode(clever, "a teddy* on a beach"), encode(clever, "")
    with torch.inference_mode():
        zeroed = nodes.ConditioningZeroOut().zero_out(prompt)[0]
        mixed = nodes.ConditioningAverage().addWeighted(prompt, encode(clever, "a cat"), 0.5)[0]
        joined = nodes.ConditioningConcat().concat(prompt, encode(clever, "a cat"))[0]
    for changed in (zeroed, mixed):
        run = Run(apply_stack(model, [entry]), changed, negative)
        as_local = Run(apply_stack(model, [local]), changed, negative)
        row = run.rows[0].index(0)
        assert torch.equal(run.keys[0][row], as_local.keys[0][row])
    # Of two prompts in a row the first one's twin is known.
    run = Run(apply_stack(model, [entry]), joined, negative)
    as_local = Run(apply_stack(model, [local]), joined, negative)
    row = run.rows[0].index(0)
    twin = encode(clip, "a teddy on a beach")[0][0] @ key_weight(model).T
    assert torch.allclose(run.keys[0][row, :77], twin[0], atol=1e-5)
    assert torch.equal(run.keys[0][row, 77:], as_local.keys[0][row, 77:])


def test_prompts_of_another_clip_are_locked_locally_with_a_warning(
    model: Model, clip: CLIP, teddy: Concept, caplog: pytest.LogCaptureFixture
) -> None:
    local = encode(add_concepts(clip, [teddy]), "a teddy* on a beach")
    assert LOCKED_PROMPT not in local[0][1]
    with caplog.at_level(logging.WARNING):
        run = Run(apply_stack(model, [ConceptEntry(teddy, GLOBAL)]), local, local, steps=2)
    assert [r.message for r in caplog.records if "key lock" in r.message] == [
        "Perfusion: a concept's key lock is set to global, but no prompt of this run was encoded "
        "with the CLIP of its Perfusion Concept Loader; keys are locked locally. Connect that CLIP "
        "to your prompts."
    ]
    as_local = Run(apply_stack(model, [ConceptEntry(teddy, LOCAL)]), local, local, steps=2)
    assert torch.equal(run.picture, as_local.picture)


def test_the_clip_goes_on_working_as_comfyuis_clip(clip: CLIP, teddy: Concept) -> None:
    clever = add_concepts(clip, [teddy], [KeyLock.GLOBAL])
    plain = add_concepts(clip, [teddy])
    for text in ("a teddy* on a beach", "nothing of the kind"):
        for this, that in ((clever, plain), (clever.clone(), plain)):
            assert torch.equal(encode(this, text)[0][0], encode(that, text)[0][0])
    skipped = nodes.CLIPSetLastLayer().set_last_layer(clever, -2)[0]
    expected = nodes.CLIPSetLastLayer().set_last_layer(clip, -2)[0]
    twin = encode(skipped, "a teddy*")[0][1][SUPERCLASS_PROMPT]
    assert torch.equal(twin, encode(expected, "a teddy")[0][0])
    assert clever.cond_stage_model.state_dict().keys() == clip.cond_stage_model.state_dict().keys()
    assert LOCKED_PROMPT not in encode(clip, "a teddy")[0][1]
