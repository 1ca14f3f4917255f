"""Concepts on transformers while ComfyUI samples: the edit, its pads, locks, layers and maps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import nodes as comfy_nodes
import pytest
import torch
from dit_work import PROMPT, learned, sampled
from projections import Projected, error, tapped
from tiny_dits import ANIMA, COSMOS, TinyDit, registered
from tiny_models import patched_modules

from perfusion_core.comfy.attention_recorder import AttentionScope, attention_maps
from perfusion_core.comfy.concept_entry import ConceptEntry, edit_of
from perfusion_core.comfy.encoding import encode
from perfusion_core.comfy.gates_of_prompt import gates_of_prompt
from perfusion_core.comfy.models import ComfyMismatch
from perfusion_core.comfy.prompts import add_concepts
from perfusion_core.comfy.stack import apply_stack
from perfusion_core.concept.concept import Concept
from perfusion_core.method.settings import ConceptSettings, KeyLock, LayerWeights

ON = ConceptSettings(0.3, 0.15)


@pytest.fixture(scope="module", params=[COSMOS, ANIMA], ids=lambda dit: dit.family.id)
def dit(request: pytest.FixtureRequest) -> Iterator[TinyDit]:
    """Those whose layers are given the text itself; Wan's are in `test_dit_wan.py`."""
    if not request.param.here:
        pytest.skip(f"this ComfyUI has no {request.param.config}")
    with registered(request.param.family):
        yield request.param


@pytest.fixture
def teddy(dit_model: Any, dit_clip: Any) -> Concept:
    return learned(dit_model, dit_clip, embedding_rate=0.05, ema=0.0, steps=4)


def expected_output(p: Projected, concept: Concept, settings: ConceptSettings) -> torch.Tensor:
    """h = W e + g (o - s W i) in float64, and W e for a row of zeros."""
    context = p.context.double()
    target, whitened = concept.target_input.double(), concept.whitened_target.double()
    similarity = context @ whitened / (target @ whitened)
    gate = torch.sigmoid((similarity - settings.bias) / settings.temperature)
    gate = settings.strength * gate * context.any(dim=-1)
    superclass = concept.superclass_encoding.double()
    moved = context + gate[..., None] * (superclass - similarity[..., None] * target)
    output = moved @ p.weight.T
    if p.kind == "v":
        output = output + gate[..., None] * concept.values[p.path].double()
    return output


def test_keys_and_values_are_the_formula_and_pads_stay_zero(
    dit_model: Any, dit_clip: Any, teddy: Concept
) -> None:
    settings = replace(ON, strength=1.3)
    on = apply_stack(dit_model, [ConceptEntry(teddy, settings)])
    with tapped(on) as seen:
        sampled(on, add_concepts(dit_clip, [teddy]), steps=1)
    assert seen
    for p in seen:
        assert error(p.output, expected_output(p, teddy, settings)) < 3e-6, (p.path, p.kind)
        pads = ~p.context.any(dim=-1)
        assert bool(pads.any())
        assert not bool(p.output[pads].any())
    assert max(error(p.output, p.plain) for p in seen) > 0.05


def test_without_a_word_of_it_the_pads_change_nothing(
    dit_model: Any, dit_clip: Any, teddy: Concept
) -> None:
    # A bias that opens the gate of a row of zeros half way, were it a word.
    settings = ConceptSettings(bias=0.0, temperature=0.15)
    on = apply_stack(dit_model, [ConceptEntry(teddy, settings)])
    with torch.inference_mode():
        none = torch.zeros(1, 512, teddy.width)
        prepared = edit_of([ConceptEntry(teddy, settings)]).prepare(none)
    assert torch.equal(prepared.context, none)
    assert not bool(prepared.weights.any())
    assert patched_modules(on) == []


def keys(seen: Iterable[Projected]) -> list[Projected]:
    return [p for p in seen if p.kind == "k"]


def test_the_global_lock_takes_the_keys_of_the_superclass_prompt(
    dit_model: Any, dit_clip: Any, teddy: Concept
) -> None:
    entry = ConceptEntry(teddy, replace(ON, key_lock=KeyLock.GLOBAL))
    clip = add_concepts(dit_clip, [teddy], [KeyLock.GLOBAL])
    on = apply_stack(dit_model, [entry])
    with torch.inference_mode():
        texts = (PROMPT.replace("teddy*", "teddy"), "blurry")
        twins = [encode(dit_clip, [text], base=dit_model.model).context[0] for text in texts]
        own = encode(clip, [PROMPT], base=dit_model.model).context[0]
    assert not torch.allclose(own, twins[0], atol=1e-3)
    with tapped(on) as seen:
        sampled(on, clip, steps=1)
    found = 0
    for p in keys(seen):
        for context, output in zip(p.context, p.output, strict=True):
            is_own = torch.equal(context, own)
            found += is_own
            expected = twins[0 if is_own else 1].double() @ p.weight.T
            assert error(output, expected) < 3e-6
    assert found
    values = [p for p in seen if p.kind == "v"]
    assert max(error(p.output, p.plain) for p in values) > 0.05


@pytest.mark.parametrize("spoilt", ["concat", "average"])
def test_a_global_lock_that_cannot_be_followed_is_said_and_local(
    spoilt: str, dit: TinyDit, dit_model: Any, dit_clip: Any, teddy: Concept, caplog: Any
) -> None:
    entry = ConceptEntry(teddy, replace(ON, key_lock=KeyLock.GLOBAL))
    clip = add_concepts(dit_clip, [teddy], [KeyLock.GLOBAL])
    on = apply_stack(dit_model, [entry])
    with torch.inference_mode():
        one, two, negative = (
            comfy_nodes.CLIPTextEncode().encode(clip, text)[0]
            for text in (PROMPT, "a red house on a hill in the rain", "blurry")
        )
        if spoilt == "concat":
            mixed = comfy_nodes.ConditioningConcat().concat(one, two)[0]
        else:
            mixed = comfy_nodes.ConditioningAverage().addWeighted(one, two, 0.5)[0]
        empty = {"samples": torch.zeros(1, 16, 1, 8, 8)}
        found = comfy_nodes.KSampler().sample(
            on, 5, 1, 4.0, "euler", "normal", mixed, negative, empty
        )[0]["samples"]
    assert bool(found.isfinite().all())
    followed = "locked locally" not in caplog.text
    # Where the text goes through an adapter, what was mixed before it has no twin behind it.
    assert followed == (not dit.family.adapter or spoilt == "average")


def test_the_layers_of_a_third_can_be_left_alone(
    dit_model: Any, dit_clip: Any, teddy: Concept
) -> None:
    clip = add_concepts(dit_clip, [teddy])
    for third, number in (("down", 0), ("middle", 1), ("up", 2)):
        settings = replace(ON, layers=LayerWeights(**{third: 0.0}))
        on = apply_stack(dit_model, [ConceptEntry(teddy, settings)])
        with tapped(on) as seen:
            sampled(on, clip, steps=1)
        for p in seen:
            plain = error(p.output, p.plain) < 1e-6
            assert plain == (p.path == f"blocks.{number}.cross_attn")


def test_a_lora_on_the_projections_is_edited_along(
    dit_model: Any, dit_clip: Any, teddy: Concept
) -> None:
    path = "diffusion_model.blocks.1.cross_attn.v_proj.weight"
    weight = dict(dit_model.model.named_parameters())[path]
    other = dit_model.clone()
    other.add_patches({path: ("diff", (0.5 * torch.randn_like(weight),))}, 1.0)
    on = apply_stack(other, [ConceptEntry(teddy, ON)])
    before = weight.detach().clone()
    with tapped(on) as seen:
        sampled(on, add_concepts(dit_clip, [teddy]), steps=1)
    for p in seen:
        assert error(p.output, expected_output(p, teddy, ON)) < 3e-6
    patched = [p.weight for p in seen if (p.path, p.kind) == ("blocks.1.cross_attn", "v")]
    assert all(error(one, before.double()) > 0.1 for one in patched)


def test_frames_of_a_video_are_sampled_with_it(
    dit_model: Any, dit_clip: Any, teddy: Concept
) -> None:
    clip = add_concepts(dit_clip, [teddy])
    on = apply_stack(dit_model, [ConceptEntry(teddy, ON)])
    stock, with_it = (sampled(m, clip, frames=3, steps=1) for m in (dit_model, on))
    assert stock.shape == (1, 16, 3, 8, 8)
    apart = (with_it - stock).abs().amax(dim=(0, 1, 3, 4))
    assert bool((apart > 1e-3).all())


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("group", ["", "down", "middle", "up"])
def test_the_attention_map_is_of_the_placeholders_rows(
    group: str, frames: int, dit_model: Any, dit_clip: Any, teddy: Concept
) -> None:
    clip = add_concepts(dit_clip, [teddy])
    on = apply_stack(dit_model, [ConceptEntry(teddy, ON)])
    for block in dit_model.model.diffusion_model.blocks:  # attention is even then
        block.cross_attn.k_norm.weight.data.zero_()
    with torch.inference_mode():
        prompt = comfy_nodes.CLIPTextEncode().encode(clip, PROMPT)[0]
        latent = {"samples": torch.randn(1, 16, frames, 8, 8)}
        maps = attention_maps(on, prompt, latent, AttentionScope(2, group=group))
        context = encode(clip, [PROMPT], base=dit_model.model).context
    count = int((edit_of([ConceptEntry(teddy, ON)]).similarity(context) >= 0.5).sum())
    assert count > 0
    assert len(maps.shares) == frames
    assert torch.allclose(maps.shares, torch.full_like(maps.shares, count / 512), atol=1e-5)
    assert patched_modules(dit_model) == []


def test_the_inspector_shows_the_gates_of_the_rows_that_the_layers_see(
    dit: TinyDit, dit_model: Any, dit_clip: Any, teddy: Concept
) -> None:
    entry = ConceptEntry(teddy, ON)
    if dit.family.adapter:
        with pytest.raises(ComfyMismatch, match="connect the model as well"):
            gates_of_prompt(dit_clip, PROMPT, [entry])
    with torch.inference_mode():
        gates = gates_of_prompt(dit_clip, PROMPT, [entry], model=dit_model)
        context = encode(add_concepts(dit_clip, [teddy]), [PROMPT], base=dit_model.model)
    similarity = edit_of([entry]).similarity(context.context[context.mask])
    assert torch.allclose(gates.similarities, similarity, atol=1e-5)
    assert "teddy*" in gates.words
    assert len(gates.words) == int(context.mask.sum()) < 30
