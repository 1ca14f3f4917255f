"""Transformers whose text passes through a part of the network first: it is edited ahead of that.

Keys and values of every layer are compared with the formula in float64, whatever shape the text
has when it comes to the layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import nodes as comfy_nodes
import pytest
import torch
from dit_work import PROMPT, latents, learned, sampled, shape_of
from projections import Projected, error, tapped
from tiny_dits import LTX, PIXART, SIGMA, TinyDit, registered
from tiny_models import patched_modules
from torch import Tensor

from perfusion_core.comfy.attention_recorder import AttentionScope, attention_maps
from perfusion_core.comfy.backbone import training_backbone
from perfusion_core.comfy.concept_entry import ConceptEntry, edit_of
from perfusion_core.comfy.differentiable import Differentiable
from perfusion_core.comfy.encoding import encode
from perfusion_core.comfy.gates_of_prompt import gates_of_prompt
from perfusion_core.comfy.models import ComfyMismatch, detect_family
from perfusion_core.comfy.prompts import add_concepts
from perfusion_core.comfy.stack import apply_stack
from perfusion_core.concept.concept import Concept
from perfusion_core.method.edit import GatedEdit
from perfusion_core.method.settings import ConceptSettings, KeyLock, LayerWeights

ON = ConceptSettings(0.3, 0.15)


@pytest.fixture(scope="module", params=[PIXART, SIGMA, LTX], ids=lambda dit: dit.family.id)
def dit(request: pytest.FixtureRequest) -> Iterator[TinyDit]:
    with registered(request.param.family):
        yield request.param


@pytest.fixture
def teddy(dit_model: Any, dit_clip: Any) -> Concept:
    return learned(dit_model, dit_clip, embedding_rate=0.05, ema=0.0, steps=4)


def text_of(clip: Any, prompt: str) -> Tensor:
    """e [T, d] of one prompt."""
    with torch.inference_mode():
        return encode(clip, [prompt]).context[0].clone()


@torch.no_grad()
def before(dit: TinyDit, model: Any, text: Tensor) -> Tensor:
    """What the layers see of a text, in float64."""
    part = model.model.diffusion_model.get_submodule(dit.family.attention.before)
    seen: Tensor = deepcopy(part).double()(text.double())
    return seen


def calls_of(seen: list[Projected], dit: TinyDit, text: Tensor, known: Tensor) -> Iterator[Any]:
    """(path, "k" or "v", output [T, out]) of every time that a text came to a projection."""
    fused = dit.family.attention.fused
    for p in seen:
        if p.context.numel() % known.numel():
            continue
        rows = p.context.reshape(-1, *known.shape)
        outputs = p.output.reshape(len(rows), len(text), -1)
        for row, output in zip(rows, outputs, strict=True):
            if error(row, known) < 1e-6:  # it is called with the stock text
                part = output.chunk(2, dim=-1)[p.kind == "v"] if fused else output
                yield p.path, p.kind, part


def projected(dit: TinyDit, model: Any, path: str, kind: str, context: Tensor) -> Tensor:
    """W context + b of a layer's keys or values, in float64."""
    where = dit.family.attention
    layer = model.model.diffusion_model.get_submodule(path)
    module = getattr(layer, where.key if kind == "k" else where.value)
    output = context @ module.weight.detach().double().T + module.bias.detach().double()
    return output.chunk(2, dim=-1)[kind == "v"] if where.fused else output


def expected_output(
    dit: TinyDit,
    model: Any,
    call: tuple[str, str],
    text: Tensor,
    concept: Concept,
    settings: ConceptSettings,
) -> Tensor:
    """W MLP(e + g (p - s i)) + b, and g D for values, in float64."""
    path, kind = call
    text = text.double()
    target, whitened = concept.target_input.double(), concept.whitened_target.double()
    similarity = text @ whitened / (target @ whitened)
    gate = torch.sigmoid((similarity - settings.bias) / settings.temperature)
    gate = settings.strength * gate * text.any(dim=-1)
    superclass = concept.superclass_encoding.double()
    moved = text + gate[..., None] * (superclass - similarity[..., None] * target)
    output = projected(dit, model, path, kind, before(dit, model, moved))
    if kind == "v":
        output = output + gate[..., None] * concept.values[path].double()
    return output


@pytest.mark.parametrize("negative", ["blurry", PROMPT])
def test_keys_and_values_are_the_formula_ahead_of_what_is_before(
    negative: str, dit: TinyDit, dit_model: Any, dit_clip: Any, teddy: Concept
) -> None:
    """Also where two prompts are of one length, and so in one batch."""
    settings = replace(ON, strength=1.3)
    on = apply_stack(dit_model, [ConceptEntry(teddy, settings)])
    knowing = add_concepts(dit_clip, [teddy])
    with tapped(on) as seen:
        sampled(on, knowing, steps=1, negative=negative)
    for prompt in {PROMPT, negative}:
        text = text_of(knowing, prompt)
        known = before(dit, dit_model, text)
        calls = list(calls_of(seen, dit, text, known))
        assert {(path, kind) for path, kind, _ in calls} == {
            (path, kind) for path in dit.layers for kind in "kv"
        }
        for path, kind, output in calls:
            call = (path, kind)
            expected = expected_output(dit, dit_model, call, text, teddy, settings)
            assert error(output, expected) < 3e-6, call
        if prompt == PROMPT:
            assert any(
                error(output, projected(dit, dit_model, path, kind, known)) > 0.05
                for path, kind, output in calls
            )
    assert patched_modules(dit_model) == []


def test_layers_of_different_strengths_each_get_their_text(
    dit: TinyDit, dit_model: Any, dit_clip: Any, teddy: Concept
) -> None:
    on = apply_stack(
        dit_model, [ConceptEntry(teddy, replace(ON, layers=LayerWeights(0.0, 0.5, 1.5)))]
    )
    knowing = add_concepts(dit_clip, [teddy])
    text = text_of(knowing, PROMPT)
    with tapped(on) as seen:
        sampled(on, knowing, steps=1, negative=PROMPT)
    for path, kind, output in calls_of(seen, dit, text, before(dit, dit_model, text)):
        strength = (0.0, 0.5, 1.5)[dit.layers.index(path)]
        settings = replace(ON, strength=strength)
        expected = expected_output(dit, dit_model, (path, kind), text, teddy, settings)
        assert error(output, expected) < 3e-6, (path, kind)


def test_the_global_lock_takes_the_keys_of_the_superclass_prompt(
    dit: TinyDit, dit_model: Any, dit_clip: Any, teddy: Concept
) -> None:
    clip = add_concepts(dit_clip, [teddy], [KeyLock.GLOBAL])
    on = apply_stack(dit_model, [ConceptEntry(teddy, replace(ON, key_lock=KeyLock.GLOBAL))])
    text = text_of(clip, PROMPT)
    twin = before(dit, dit_model, text_of(dit_clip, PROMPT.replace("*", "")))
    known = before(dit, dit_model, text)
    assert error(known, twin) > 1e-2
    with tapped(on) as seen:
        sampled(on, clip, steps=1)
    calls = list(calls_of(seen, dit, text, known))
    for path, kind, output in calls:
        if kind == "k":
            assert error(output, projected(dit, dit_model, path, kind, twin)) < 3e-6
        else:
            expected = expected_output(dit, dit_model, (path, kind), text, teddy, ON)
            assert error(output, expected) < 3e-6
    assert calls


def test_the_attention_map_knows_the_words_ahead_of_what_is_before(
    dit: TinyDit, dit_model: Any, dit_clip: Any, teddy: Concept
) -> None:
    """Where attention is even: every place gives the concept's words their share of the prompt."""
    knowing = add_concepts(dit_clip, [teddy])
    with torch.inference_mode():
        encoded = encode(knowing, [PROMPT])
    text = encoded.context[0].double()
    if dit.family.mask:  # attention does not look at pads
        text = text[encoded.mask[0]]
    # Told from the other words of the prompt, as a covariance of many prompts does it.
    target = encoded.context[encoded.vectors][0].double()
    spread = text.T @ text / len(text) + 1e-3 * torch.eye(text.shape[1], dtype=torch.float64)
    whitened = torch.linalg.solve(spread, target).float()
    known = replace(teddy, target_input=target.float(), whitened_target=whitened)
    entry = ConceptEntry(known, ON)
    on = apply_stack(dit_model, [entry])
    where, network = dit.family.attention, dit_model.model.diffusion_model
    for path in dit.layers:
        query = getattr(network.get_submodule(path), where.query)
        query.weight.data.zero_()
        query.bias.data.zero_()
    with torch.inference_mode():
        prompt = comfy_nodes.CLIPTextEncode().encode(knowing, PROMPT)[0]
        generator = torch.Generator().manual_seed(0)
        latent = {"samples": torch.randn(dit.shape(2), generator=generator)}
        maps = attention_maps(on, prompt, latent, AttentionScope(2))
    count = int((edit_of([entry]).similarity(text.float()) >= 0.5).sum())
    assert 0 < count < len(text) / 2
    assert len(maps.shares) == 2
    assert torch.allclose(maps.shares, torch.full_like(maps.shares, count / len(text)), atol=1e-5)
    assert patched_modules(dit_model) == []


def test_gates_are_a_matter_of_the_clip_alone(dit_clip: Any, teddy: Concept) -> None:
    with torch.inference_mode():
        gates = gates_of_prompt(dit_clip, PROMPT, [ConceptEntry(teddy, ON)])
    assert "teddy*" in gates.words
    text = text_of(add_concepts(dit_clip, [teddy]), PROMPT)
    expected = edit_of([ConceptEntry(teddy, ON)]).similarity(text[: len(gates.words)])
    assert torch.allclose(gates.similarities, expected, atol=1e-5)


def test_prompts_of_any_length_learn_together_as_each_alone(
    dit: TinyDit, dit_model: Any, dit_clip: Any
) -> None:
    """No prompt sees the zeros behind it that make it as long as another."""
    prompts = ["a teddy*", PROMPT, "a teddy*", "two of them: teddy*, on a hill"]
    shape = shape_of(dit_model, 4)
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(shape, generator=generator)
    clean = torch.cat([latents(dit_model)] * 2)
    times = torch.tensor([0.2, 0.4, 0.6, 0.8])
    with (
        torch.inference_mode(),
        training_backbone(dit_model, dit_clip, shape, "off") as backbone,
    ):
        word = backbone.superclass_embeddings("teddy")

        def gradient(chosen: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
            encoded = backbone.encode([prompts[n] for n in chosen], "teddy*", word, "teddy")
            target = encoded.context.detach()[encoded.positions][:1].double()
            edit = GatedEdit(target, target, target.roll(5, dims=1), [ConceptSettings(0.2, 0.3)])
            start = torch.Generator().manual_seed(1)
            values = {
                path: (0.3 * torch.randn(1, out, generator=start)).requires_grad_()
                for path, out in backbone.layers.items()
            }
            loss = backbone.loss(clean[chosen], noise[chosen], times[chosen], encoded, edit, values)
            loss.sum().backward()
            return loss.detach(), {path: value.grad for path, value in values.items()}

        # The edit is that of the first prompt, which all have to share.
        together, gradients = gradient([0, 1, 2, 3])
        first, alone = gradient([0, 2])
        assert torch.allclose(together[[0, 2]], first, rtol=1e-4, atol=1e-5)
        pair, others = gradient([0, 1])
        assert torch.allclose(together[[0, 1]], pair, rtol=1e-4, atol=1e-5)
        last, more = gradient([0, 3])
        assert torch.allclose(together[[0, 3]], last, rtol=1e-4, atol=1e-5)
        _, once = gradient([0])
        for path, value in gradients.items():
            summed = alone[path] + others[path] + more[path] - 2 * once[path]
            assert float((value - summed).norm() / summed.norm()) < 1e-4


@pytest.mark.parametrize("other", ["cross_attention_adaln", "caption_proj_before_connector"])
def test_networks_of_ltx_2_are_refused(other: str) -> None:
    """Of the same class; their text changes with the time, or comes as it is to the layers."""
    with registered(LTX.family):
        model = LTX.model(**{other: True})
        if not hasattr(model.model.diffusion_model, other):
            pytest.skip("this ComfyUI has no such networks")
        with pytest.raises(ComfyMismatch, match="do not fit this model: LTXV"):
            detect_family(model)


def test_norms_of_comfy_kitchen_have_a_gradient() -> None:
    kitchen = pytest.importorskip("comfy_kitchen")
    if not hasattr(kitchen, "rms_adaln"):
        pytest.skip("this comfy-kitchen has no such norm")
    generator = torch.Generator().manual_seed(0)
    x, scale, shift = (torch.randn(2, 5, 16, generator=generator) for _ in range(3))
    stock = kitchen.rms_adaln(x, scale, shift)
    x.requires_grad_()
    with Differentiable():
        found = kitchen.rms_adaln(x, scale, shift)
    assert torch.allclose(found, stock, atol=1e-6)
    found.sum().backward()
    assert x.grad is not None
