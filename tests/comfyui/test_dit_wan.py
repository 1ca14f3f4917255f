"""Wan: the text is edited ahead of the network that stands before the layers, video by video."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import comfy.model_patcher
import comfy.supported_models
import nodes as comfy_nodes
import pytest
import torch
from dit_work import PROMPT, learned, sampled
from projections import Projected, error, tapped
from tiny_dits import WAN, WAN_5B, registered
from tiny_models import CPU, patched_modules
from torch import Tensor

from perfusion_core.comfy.attention_recorder import AttentionScope, attention_maps
from perfusion_core.comfy.concept_entry import ConceptEntry, edit_of
from perfusion_core.comfy.encoding import encode
from perfusion_core.comfy.gates_of_prompt import gates_of_prompt
from perfusion_core.comfy.models import detect_family, layers_of
from perfusion_core.comfy.prompts import add_concepts
from perfusion_core.comfy.stack import apply_stack
from perfusion_core.concept.concept import Concept
from perfusion_core.method.settings import ConceptSettings, KeyLock, LayerWeights

ON = ConceptSettings(0.3, 0.15)


@pytest.fixture(scope="module", autouse=True)
def known() -> Iterator[None]:
    with registered(WAN.family):
        yield


@pytest.fixture
def wan() -> Any:
    return WAN.model()


@pytest.fixture(scope="module")
def wan_clip() -> Any:
    return WAN.clip()


@pytest.fixture
def teddy(wan: Any, wan_clip: Any) -> Concept:
    return learned(wan, wan_clip, embedding_rate=0.05, ema=0.0, steps=4)


@torch.no_grad()
def before(model: Any, text: Tensor) -> Tensor:
    """The network before the layers, in float64, written out."""
    first, _, second = model.model.diffusion_model.text_embedding
    hidden = text.double() @ first.weight.double().T + first.bias.double()
    hidden = torch.nn.functional.gelu(hidden, approximate="tanh")
    return hidden @ second.weight.double().T + second.bias.double()


def bias_of(model: Any, p: Projected) -> Tensor:
    layer = model.model.diffusion_model.get_submodule(p.path)
    module = layer.k if p.kind == "k" else layer.v
    return module.bias.detach().double()


def expected_output(
    model: Any, p: Projected, text: Tensor, concept: Concept, settings: ConceptSettings
) -> Tensor:
    """W MLP(e + g (p - s i)) + b, and g D for values, in float64."""
    text = text.double()
    target, whitened = concept.target_input.double(), concept.whitened_target.double()
    similarity = text @ whitened / (target @ whitened)
    gate = torch.sigmoid((similarity - settings.bias) / settings.temperature)
    gate = settings.strength * gate * text.any(dim=-1)
    superclass = concept.superclass_encoding.double()
    moved = text + gate[..., None] * (superclass - similarity[..., None] * target)
    output = before(model, moved) @ p.weight.T + bias_of(model, p)
    if p.kind == "v":
        output = output + gate[..., None] * concept.values[p.path].double()
    return output


def texts(model: Any, clip: Any, prompts: list[str]) -> Tensor:
    with torch.inference_mode():
        return encode(clip, prompts, base=model.model).context


@pytest.mark.parametrize("model_type", ["t2v", "i2v"])
def test_keys_and_values_are_the_formula_ahead_of_what_is_before(
    model_type: str, wan_clip: Any, teddy: Concept
) -> None:
    wan = WAN.model(model_type=model_type, in_dim=36 if model_type == "i2v" else 16)
    settings = replace(ON, strength=1.3)
    on = apply_stack(wan, [ConceptEntry(teddy, settings)])
    knowing = add_concepts(wan_clip, [teddy])
    rows = texts(wan, knowing, [PROMPT, "blurry"])
    with tapped(on) as seen:
        sampled(on, knowing, steps=1)
    assert seen
    known = before(wan, rows)
    for p in seen:
        for context, output in zip(p.context, p.output, strict=True):
            number = min(range(2), key=lambda n: error(context, known[n]))
            assert error(context, known[number]) < 1e-6  # it is called with the stock text
            expected = expected_output(wan, p, rows[number], teddy, settings)
            assert error(output, expected) < 3e-6, (p.path, p.kind)
    assert patched_modules(wan) == []


def test_pads_give_what_they_give_without_a_concept(
    wan: Any, wan_clip: Any, teddy: Concept
) -> None:
    """Of a zero the network before the layers makes one constant vector; it stays that."""
    on = apply_stack(wan, [ConceptEntry(teddy, replace(ON, bias=0.0))])
    knowing = add_concepts(wan_clip, [teddy])
    pads = ~texts(wan, knowing, [PROMPT])[0].any(dim=-1)
    assert bool(pads.any())
    with tapped(on) as seen:
        sampled(on, knowing, steps=1, negative=PROMPT)
    for p in seen:
        constant = before(wan, torch.zeros(1, p.context.shape[1], 48))[0, 0] @ p.weight.T
        expected = (constant + bias_of(wan, p)).expand(int(pads.sum()), -1)
        for row in p.output:
            assert error(row[pads], expected) < 1e-6


def test_layers_of_different_strengths_each_get_their_text(
    wan: Any, wan_clip: Any, teddy: Concept
) -> None:
    settings = replace(ON, layers=LayerWeights(0.0, 0.5, 1.5))
    on = apply_stack(wan, [ConceptEntry(teddy, settings)])
    knowing = add_concepts(wan_clip, [teddy])
    rows = texts(wan, knowing, [PROMPT, PROMPT])
    with tapped(on) as seen:
        sampled(on, knowing, steps=1, negative=PROMPT)
    for p in seen:
        strength = (0.0, 0.5, 1.5)[int(p.path.split(".")[1])]
        expected = expected_output(wan, p, rows[:1], teddy, replace(ON, strength=strength))
        for row in p.output:
            assert error(row, expected[0]) < 3e-6


def test_the_global_lock_takes_the_keys_of_the_superclass_prompt(
    wan: Any, wan_clip: Any, teddy: Concept
) -> None:
    clip = add_concepts(wan_clip, [teddy], [KeyLock.GLOBAL])
    on = apply_stack(wan, [ConceptEntry(teddy, replace(ON, key_lock=KeyLock.GLOBAL))])
    twin = before(wan, texts(wan, wan_clip, [PROMPT.replace("*", "")]))
    own = before(wan, texts(wan, clip, [PROMPT]))
    assert error(own, twin) > 1e-2
    with tapped(on) as seen:
        sampled(on, clip, steps=1)
    found = 0
    for p in seen:
        for context, output in zip(p.context, p.output, strict=True):
            if p.kind == "k" and error(context, own[0]) < 1e-6:
                assert error(output, twin[0] @ p.weight.T + bias_of(wan, p)) < 3e-6
                found += 1
    assert found


def test_a_concept_of_pictures_is_in_every_frame_of_a_video(
    wan: Any, wan_clip: Any, teddy: Concept
) -> None:
    knowing = add_concepts(wan_clip, [teddy])
    on = apply_stack(wan, [ConceptEntry(teddy, ON)])
    stock, with_it = (sampled(m, knowing, frames=9, steps=1) for m in (wan, on))
    assert stock.shape == (1, 16, 9, 8, 8)
    apart = (with_it - stock).abs().amax(dim=(0, 1, 3, 4))
    assert bool((apart > 1e-3).all())


@pytest.mark.parametrize("frames", [1, 3])
def test_the_attention_map_knows_the_words_ahead_of_what_is_before(
    frames: int, wan: Any, wan_clip: Any, teddy: Concept
) -> None:
    knowing = add_concepts(wan_clip, [teddy])
    entry = ConceptEntry(teddy, ON)
    on = apply_stack(wan, [entry])
    for block in wan.model.diffusion_model.blocks:  # attention is even then
        block.cross_attn.norm_k.weight.data.zero_()
    with torch.inference_mode():
        prompt = comfy_nodes.CLIPTextEncode().encode(knowing, PROMPT)[0]
        latent = {"samples": torch.randn(1, 16, frames, 8, 8)}
        maps = attention_maps(on, prompt, latent, AttentionScope(2))
    count = int((edit_of([entry]).similarity(texts(wan, knowing, [PROMPT])) >= 0.5).sum())
    assert count > 0
    assert len(maps.shares) == frames
    assert torch.allclose(maps.shares, torch.full_like(maps.shares, count / 512), atol=1e-5)
    assert patched_modules(wan) == []


def test_gates_are_a_matter_of_the_clip_alone(wan: Any, wan_clip: Any, teddy: Concept) -> None:
    with torch.inference_mode():
        gates = gates_of_prompt(wan_clip, PROMPT, [ConceptEntry(teddy, ON)])
    assert "teddy*" in gates.words
    rows = texts(wan, add_concepts(wan_clip, [teddy]), [PROMPT])[0]
    expected = edit_of([ConceptEntry(teddy, ON)]).similarity(rows[: len(gates.words)])
    assert torch.allclose(gates.similarities, expected, atol=1e-5)


def test_trained_keys_learn_behind_their_norm_and_bias(wan: Any, wan_clip: Any) -> None:
    concept = learned(wan, wan_clip, key_mode="trained")
    layers = layers_of(wan, detect_family(wan))
    assert all(bool(concept.keys[path].any()) for path in layers)


@pytest.mark.parametrize("name", ["WAN21_Vace", "WAN21_Camera"])
def test_networks_derived_of_wans_are_refused(name: str) -> None:
    more = {"vace_layers": 1, "vace_in_dim": 4} if name == "WAN21_Vace" else {}
    unet = {**WAN.network, **more, "in_dim": 32, "dtype": torch.float32}
    unet["model_type"] = {"WAN21_Vace": "vace", "WAN21_Camera": "camera"}[name]
    base = getattr(comfy.supported_models, name)(unet).get_model({}, "", device=CPU)
    with pytest.raises(ValueError, match="derived of Wan's"):
        detect_family(comfy.model_patcher.ModelPatcher(base, load_device=CPU, offload_device=CPU))


def test_the_5b_model_learns_and_is_sampled(wan_clip: Any) -> None:
    with registered(WAN_5B.family):
        model = WAN_5B.model()
        assert detect_family(model) is WAN_5B.family
        concept = learned(model, wan_clip)
        knowing = add_concepts(wan_clip, [concept])
        on = apply_stack(model, [ConceptEntry(concept, ON)])
        stock, with_it = (sampled(m, knowing, frames=2) for m in (model, on))
    assert stock.shape == (1, 48, 2, 8, 8)
    assert not torch.allclose(with_it, stock, rtol=0, atol=1e-3)


def test_the_pictures_rows_beside_the_text_are_left_alone(wan_clip: Any, teddy: Concept) -> None:
    """An image-to-video model reads a picture through CLIP Vision, ahead of the text."""
    wan = WAN.model(model_type="i2v", in_dim=36)
    on = apply_stack(wan, [ConceptEntry(teddy, ON)])
    knowing = add_concepts(wan_clip, [teddy])
    rows = texts(wan, knowing, [PROMPT])
    seen_picture = SimpleNamespace(penultimate_hidden_states=torch.randn(1, 257, 1280))
    with torch.inference_mode(), tapped(on) as seen:
        given = comfy_nodes.CLIPTextEncode().encode(knowing, PROMPT)[0]
        given = [[text, {**beside, "clip_vision_output": seen_picture}] for text, beside in given]
        empty = {"samples": torch.zeros(1, 16, 1, 8, 8)}
        comfy_nodes.KSampler().sample(on, 5, 1, 1.0, "euler", "normal", given, given, empty)
    assert seen
    for p in seen:
        assert p.context.shape[1] == rows.shape[1]
        expected = expected_output(wan, p, rows[:1], teddy, ON)
        assert all(error(row, expected[0]) < 3e-6 for row in p.output)
