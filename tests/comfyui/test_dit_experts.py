"""Wan 2.2's 14B: one network for much noise, one for little, and a concept for both.

ComfyUI has the two as two MODELs of one class, and nothing in either says which it is. A concept
of one works on both; two that were trained with the embedding as it is share their word, so that
one CLIP serves both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import nodes as comfy_nodes
import pytest
import torch
from dit_work import PROMPT, learned
from projections import error, tapped
from tiny_dits import WAN, registered
from tiny_models import patched_modules
from torch import Tensor

from perfusion_core.comfy.concept_entry import ConceptEntry
from perfusion_core.comfy.encoding import encode
from perfusion_core.comfy.models import layers_of
from perfusion_core.comfy.prompts import add_concepts
from perfusion_core.comfy.stack import apply_stack
from perfusion_core.concept.concept import Concept
from perfusion_core.method.settings import ConceptSettings

ON = ConceptSettings(0.3, 0.15)
STEPS, SWITCH = 4, 2


@pytest.fixture(scope="module", autouse=True)
def known() -> Iterator[None]:
    with registered(WAN.family):
        yield


@pytest.fixture
def experts() -> tuple[Any, Any]:
    """For much noise, and for little."""
    return WAN.model(seed=0), WAN.model(seed=9)


@pytest.fixture(scope="module")
def clip() -> Any:
    return WAN.clip()


def sampled(high: Any, low: Any, clip: Any) -> Tensor:
    """As in the templates for the 14B: KSampler (Advanced) twice, with leftover noise between."""
    with torch.inference_mode():
        texts = [comfy_nodes.CLIPTextEncode().encode(clip, t)[0] for t in (PROMPT, "blurry")]
        latent: Any = {"samples": torch.zeros(WAN.shape(1, 3))}
        for model, start, end in ((high, 0, SWITCH), (low, SWITCH, STEPS)):
            first = start == 0
            (latent,) = comfy_nodes.KSamplerAdvanced().sample(
                model,
                "enable" if first else "disable",
                5,
                STEPS,
                4.0,
                "euler",
                "simple",
                *texts,
                latent,
                start,
                end,
                "enable" if first else "disable",
            )
        found: Tensor = latent["samples"]
        return found.clone()


def assert_the_formula(model: Any, seen: Any, text: Tensor, concept: Concept) -> None:
    """Keys and values of an expert: its own weights on the edited text, and what was learned."""
    target, whitened = concept.target_input.double(), concept.whitened_target.double()
    similarity = text @ whitened / (target @ whitened)
    gate = torch.sigmoid((similarity - ON.bias) / ON.temperature) * text.any(dim=-1)
    superclass = concept.superclass_encoding.double()
    edited = text + gate[:, None] * (superclass - similarity[:, None] * target)
    before = model.model.diffusion_model.text_embedding

    def through(rows: Tensor) -> Tensor:
        hidden = rows @ before[0].weight.double().T + before[0].bias.double()
        hidden = torch.nn.functional.gelu(hidden, approximate="tanh")
        return hidden @ before[2].weight.double().T + before[2].bias.double()

    layers, found = layers_of(model, WAN.family), 0
    for p in seen:
        layer = layers[p.path]
        bias = (layer.key if p.kind == "k" else layer.value).bias.double()
        expected = through(edited) @ p.weight.T + bias
        if p.kind == "v":
            expected = expected + gate[:, None] * concept.values[p.path].double()
        for row, output in zip(p.context, p.output, strict=True):
            if error(row, through(text)) < 1e-6:
                assert error(output, expected) < 3e-6, (p.path, p.kind)
                found += 1
    assert found


@torch.no_grad()
def test_a_concept_of_one_expert_works_on_both_with_the_keys_of_each(
    experts: tuple[Any, Any], clip: Any
) -> None:
    high, low = experts
    teddy = learned(low, clip, embedding_rate=0.05, ema=0.0, steps=4)
    knowing = add_concepts(clip, [teddy])
    entry = ConceptEntry(teddy, ON)
    on = [apply_stack(model, [entry]) for model in experts]
    off = [
        apply_stack(model, [ConceptEntry(teddy, ConceptSettings(strength=0.0))])
        for model in experts
    ]
    stock = sampled(high, low, knowing)
    assert bool(stock.isfinite().all())
    assert torch.equal(sampled(off[0], off[1], knowing), stock)
    with tapped(on[0]) as of_high, tapped(on[1]) as of_low:
        found = sampled(on[0], on[1], knowing)
    # Either of them alone is another picture: both have the concept.
    for pair in ((high, low), (on[0], low), (high, on[1])):
        assert not torch.allclose(sampled(*pair, knowing), found, rtol=0, atol=1e-3)
    text = encode(knowing, [PROMPT]).context[0].double()
    assert_the_formula(high, of_high, text, teddy)
    assert_the_formula(low, of_low, text, teddy)
    assert patched_modules(high) == patched_modules(low) == []


@torch.no_grad()
def test_two_that_keep_the_embedding_share_their_word_and_have_values_of_their_own(
    experts: tuple[Any, Any], clip: Any
) -> None:
    high, low = experts
    of_high, of_low = (learned(model, clip, embedding_rate=0.0, steps=4) for model in experts)
    for name, vectors in of_high.embeddings.items():
        assert torch.equal(vectors, of_low.embeddings[name])
    for name in ("target_input", "whitened_target", "superclass_encoding"):
        assert torch.equal(getattr(of_high, name), getattr(of_low, name))
    assert not any(torch.equal(v, of_low.values[path]) for path, v in of_high.values.items())
    on_high = apply_stack(high, [ConceptEntry(of_high, ON)])
    on_low = apply_stack(low, [ConceptEntry(of_low, ON)])
    knowing = add_concepts(clip, [of_high])  # that of either
    with tapped(on_high) as seen_high, tapped(on_low) as seen_low:
        found = sampled(on_high, on_low, knowing)
    text = encode(knowing, [PROMPT]).context[0].double()
    assert_the_formula(high, seen_high, text, of_high)
    assert_the_formula(low, seen_low, text, of_low)
    assert torch.equal(sampled(on_high, on_low, add_concepts(clip, [of_low])), found)
