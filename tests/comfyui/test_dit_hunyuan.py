"""HunyuanDiT: two texts, each with places of its own, of which a concept has one in each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import nodes as comfy_nodes
import pytest
import torch
from dit_work import PROMPT, learned, sampled
from projections import Projected, error, tapped
from tiny_dits import HUNYUAN, SECOND, WIDTH, TinyDit, registered
from tiny_models import patched_modules
from torch import Tensor

from perfusion_core.comfy.attention_recorder import (
    AttentionScope,
    _turned,
    attention_maps,
    recorded,
)
from perfusion_core.comfy.concept_entry import ConceptEntry, edit_of
from perfusion_core.comfy.encoding import encode
from perfusion_core.comfy.gates_of_prompt import gates_of_prompt
from perfusion_core.comfy.models import ComfyMismatch
from perfusion_core.comfy.prompts import add_concepts
from perfusion_core.comfy.stack import apply_stack
from perfusion_core.concept.concept import Concept
from perfusion_core.method.settings import ConceptSettings, KeyLock, LayerWeights

ON = ConceptSettings(0.3, 0.15)
PARTS = (slice(0, WIDTH), slice(WIDTH, WIDTH + SECOND))
FIRST = 77  # places of BERT's text; mT5's are behind


@pytest.fixture(scope="module")
def dit() -> Iterator[TinyDit]:
    with registered(HUNYUAN.family):
        yield HUNYUAN


@pytest.fixture
def teddy(dit_model: Any, dit_clip: Any) -> Concept:
    return learned(dit_model, dit_clip, embedding_rate=0.05, ema=0.0, steps=4)


def encoded(clip: Any, prompt: str) -> tuple[Tensor, Tensor]:
    """Both texts of a prompt as ComfyUI encodes them, [77, 48] and [256, 32]; zeros for pads."""
    with torch.inference_mode():
        given = comfy_nodes.CLIPTextEncode().encode(clip, prompt)[0][0]
    first, beside = given[0][0], given[1]
    second = beside["conditioning_mt5xl"][0]
    return (
        (first * beside["attention_mask"][0, :, None]).double(),
        (second * beside["attention_mask_mt5xl"][0, :, None]).double(),
    )


@torch.no_grad()
def seen_by_layers(
    model: Any, first: Tensor, second: Tensor, like: tuple[Tensor, Tensor]
) -> Tensor:
    """What the layers see of texts in float64, the learned rows where `like` has pads."""
    network = model.model.diffusion_model
    into, _, out = network.mlp_t5
    hidden = second @ into.weight.double().T + into.bias.double()
    hidden = torch.nn.functional.silu(hidden)
    hidden = hidden @ out.weight.double().T + out.bias.double()
    seen = torch.cat([first, hidden])
    real = torch.cat([text.any(dim=-1) for text in like])
    return torch.where(real[:, None], seen, network.text_embedding_padding.double())


def edited(
    texts: tuple[Tensor, Tensor], concept: Concept, settings: ConceptSettings
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Both texts after the edit, and the gate of each of their rows, each text by itself."""
    found, gates = [], []
    for text, part in zip(texts, PARTS, strict=True):
        target = concept.target_input.double()[part]
        whitened = concept.whitened_target.double()[part]
        similarity = text @ whitened / (target @ whitened)
        gate = torch.sigmoid((similarity - settings.bias) / settings.temperature)
        gate = settings.strength * gate * text.any(dim=-1)
        superclass = concept.superclass_encoding.double()[part]
        found.append(text + gate[:, None] * (superclass - similarity[:, None] * target))
        gates.append(gate)
    return (found[0], found[1]), torch.cat(gates)


def projected(p: Projected, model: Any, context: Tensor) -> Tensor:
    """Keys or values of what the layers see."""
    bias = model.model.diffusion_model.get_submodule(p.path).kv_proj.bias.detach().double()
    both = context @ p.weight.T + bias
    return both.chunk(2, dim=-1)[p.kind == "v"]


def calls_of(seen: list[Projected], known: Tensor) -> Iterator[tuple[Projected, Tensor]]:
    for p in seen:
        for row, output in zip(p.context, p.output, strict=True):
            if error(row, known) < 1e-6:
                yield p, output.chunk(2, dim=-1)[p.kind == "v"]


def test_a_word_has_a_place_in_each_text(dit_clip: Any, teddy: Concept) -> None:
    with torch.inference_mode():
        found = encode(add_concepts(dit_clip, [teddy]), [PROMPT])
    first, second = found.vectors[0, :FIRST], found.vectors[0, FIRST:]
    assert (int(first.sum()), int(second.sum())) == (1, 1)
    assert found.context.shape == (1, FIRST + 256, WIDTH + SECOND)
    assert not bool(found.context[0, :FIRST, PARTS[1]].any())
    assert not bool(found.context[0, FIRST:, PARTS[0]].any())
    assert not bool(found.context[~found.mask].any())


@pytest.mark.parametrize("lock", [KeyLock.LOCAL, KeyLock.GLOBAL])
@pytest.mark.parametrize("strength", [1.0, 1.3])
def test_keys_and_values_of_both_texts_are_the_formula(
    strength: float, lock: KeyLock, dit_model: Any, dit_clip: Any, teddy: Concept
) -> None:
    settings = replace(ON, strength=strength, key_lock=lock)
    clip = add_concepts(dit_clip, [teddy], [lock])
    on = apply_stack(dit_model, [ConceptEntry(teddy, settings)])
    texts = encoded(clip, PROMPT)
    known = seen_by_layers(dit_model, *texts, texts)
    moved, gates = edited(texts, teddy, settings)
    values_of = seen_by_layers(dit_model, *moved, texts)
    twins = encoded(dit_clip, PROMPT.replace("*", ""))
    keys_of = values_of
    if lock is KeyLock.GLOBAL:
        share = min(strength, 1.0) if strength == 1.0 else strength
        locked = [torch.lerp(a, b, share) for a, b in zip(texts, twins, strict=True)]
        keys_of = seen_by_layers(dit_model, *locked, texts)
    with tapped(on) as seen:
        sampled(on, clip, steps=1)
    calls = list(calls_of(seen, known))
    assert {(p.path, p.kind) for p, _ in calls} == {
        (path, kind) for path in HUNYUAN.layers for kind in "kv"
    }
    for p, output in calls:
        expected = projected(p, dit_model, keys_of if p.kind == "k" else values_of)
        if p.kind == "v":
            expected = expected + gates[:, None] * teddy.values[p.path].double()
        assert error(output, expected) < 3e-6, (p.path, p.kind)
    assert any(error(output, projected(p, dit_model, known)) > 0.05 for p, output in calls)
    assert patched_modules(dit_model) == []


def test_learned_pads_stay_what_they_are(dit_model: Any, dit_clip: Any, teddy: Concept) -> None:
    on = apply_stack(dit_model, [ConceptEntry(teddy, replace(ON, bias=0.0))])
    clip = add_concepts(dit_clip, [teddy])
    texts = encoded(clip, PROMPT)
    pads = ~torch.cat([text.any(dim=-1) for text in texts])
    known = seen_by_layers(dit_model, *texts, texts)
    with tapped(on) as seen:
        sampled(on, clip, steps=1)
    calls = list(calls_of(seen, known))
    assert calls
    for p, output in calls:
        assert error(output[pads], projected(p, dit_model, known)[pads]) < 1e-6


def test_two_concepts_have_coordinates_of_their_own_in_each_text(
    dit_model: Any, dit_clip: Any, teddy: Concept
) -> None:
    other = learned(dit_model, dit_clip, embedding_rate=0.05, ema=0.0, steps=2, seed=3)
    edit = edit_of([ConceptEntry(teddy, ON), ConceptEntry(other, ON)])
    for concept, expected in ((teddy, [1.0, 0.0]), (other, [0.0, 1.0])):
        for part in PARTS:
            row = torch.zeros_like(concept.target_input)
            row[part] = concept.target_input[part]
            found = edit.similarity(row[None].float())[0]
            single = edit_of([ConceptEntry(concept, ON)]).similarity(row[None].float())[0]
            assert float(single[0]) == pytest.approx(1, abs=1e-4)
            # Those that are all but parallel share a word; these are not told apart by more.
            assert float(found.sum()) == pytest.approx(sum(expected), abs=0.2)


def test_layers_of_a_third_can_be_left_alone(dit_model: Any, dit_clip: Any, teddy: Concept) -> None:
    on = apply_stack(
        dit_model, [ConceptEntry(teddy, replace(ON, layers=LayerWeights(0.0, 1.0, 1.0)))]
    )
    clip = add_concepts(dit_clip, [teddy])
    texts = encoded(clip, PROMPT)
    known = seen_by_layers(dit_model, *texts, texts)
    with tapped(on) as seen:
        sampled(on, clip, steps=1)
    for p, output in calls_of(seen, known):
        plain = error(output, projected(p, dit_model, known)) < 1e-6
        assert plain == (p.path in HUNYUAN.layers[:2])


def test_the_inspector_shows_the_words_of_both_texts(dit_clip: Any, teddy: Concept) -> None:
    with torch.inference_mode():
        gates = gates_of_prompt(dit_clip, PROMPT, [ConceptEntry(teddy, ON)])
        found = encode(add_concepts(dit_clip, [teddy]), [PROMPT])
    assert gates.words.count("teddy*") == 2
    assert len(gates.words) == int(found.mask.sum())


def test_the_attention_map_is_of_both_places(dit_model: Any, dit_clip: Any, teddy: Concept) -> None:
    clip = add_concepts(dit_clip, [teddy])
    on = apply_stack(dit_model, [ConceptEntry(teddy, ON)])
    for path in HUNYUAN.layers:  # attention is even then
        norm = dit_model.model.diffusion_model.get_submodule(path).q_norm
        norm.weight.data.zero_()
        norm.bias.data.zero_()
    with torch.inference_mode():
        prompt = comfy_nodes.CLIPTextEncode().encode(clip, PROMPT)[0]
        maps = attention_maps(on, prompt, {"samples": torch.randn(1, 4, 8, 8)}, AttentionScope(2))
        text = encode(clip, [PROMPT]).context[0]
    count = int((edit_of([ConceptEntry(teddy, ON)]).similarity(text) >= 0.5).sum())
    assert count > 1
    assert torch.allclose(maps.shares, torch.full_like(maps.shares, count / 333), atol=1e-5)


def test_the_map_sees_queries_as_they_are_turned(dit_model: Any, dit_clip: Any) -> None:
    """What it records is what ComfyUI's own attention is given."""
    from comfy.ldm.hydit import attn_layers

    network, where = dit_model.model.diffusion_model, HUNYUAN.family.attention
    modules = HUNYUAN.family.layer_modules(network)
    recordings: list[Tensor] = []
    attended: list[Tensor] = []
    original = attn_layers.optimized_attention

    def attention(q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> Any:
        if k.shape[2] == 333:
            attended.append(q.transpose(1, 2).flatten(2))
        return original(q, k, *args, **kwargs)

    attn_layers.optimized_attention = attention
    try:
        with recorded(modules, where, lambda q, *_: recordings.append(q)):
            sampled(dit_model, dit_clip, steps=1)
    finally:
        attn_layers.optimized_attention = original
    assert len(attended) == len(recordings) > 0
    for found, expected in zip(recordings, attended, strict=True):
        assert torch.allclose(found, expected, atol=1e-5)
    still = torch.randn(1, 4, 2, 8)
    assert torch.equal(_turned(still, torch.ones(4, 8), torch.zeros(4, 8)), still)


def test_prompts_that_are_too_long_to_be_a_batch_say_so(dit_clip: Any) -> None:
    long = "a photo of " + "a very " * 90 + "old house"
    with torch.inference_mode():
        assert encode(dit_clip, [long]).context.shape[1] > 333
        with pytest.raises(ComfyMismatch, match="Shorten it"):
            encode(dit_clip, ["a house", long])
