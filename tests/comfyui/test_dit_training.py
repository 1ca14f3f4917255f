"""Training on transformers: gradients, the modes of training, memory, and the node as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import comfy.model_management
import comfy.model_sampling
import pytest
import torch
from dit_work import PROMPT, latents, learned, sampled, shape_of
from tiny_dits import TinyDit
from tiny_models import patched_modules
from torch import Tensor

from perfusion_core.comfy.backbone import ComfyBackbone, training_backbone
from perfusion_core.comfy.concept_entry import recommended
from perfusion_core.comfy.differentiable import Differentiable
from perfusion_core.comfy.models import ComfyMismatch, detect_family, layers_of
from perfusion_core.comfy.prompts import add_concepts
from perfusion_core.comfy.stack import apply_stack
from perfusion_core.method.backbone import TrainingPrompts
from perfusion_core.method.batches import PictureGroup, batches
from perfusion_core.method.edit import GatedEdit
from perfusion_core.method.settings import ConceptSettings

TIMES = torch.tensor([0.3, 0.7])
EDIT = ConceptSettings(bias=0.2, temperature=0.3)


@contextmanager
def training(model: Any, clip: Any, **options: Any) -> Iterator[ComfyBackbone]:
    with (
        torch.inference_mode(),
        training_backbone(model, clip, shape_of(model, 2), "off", **options) as made,
    ):
        yield made


def edit_of_prompt(encoded: TrainingPrompts, model: Any) -> GatedEdit:
    """An edit that is open at the placeholder and somewhat elsewhere."""
    parts = detect_family(model).parts
    places = encoded.context.detach()[0, encoded.positions[0]].double()
    assert len(places) == len(parts)
    target = places.sum(dim=0, keepdim=True)
    superclass = target.roll(5, dims=1)
    return GatedEdit(target, target, superclass, [EDIT], parts=parts)


def differences(backbone: ComfyBackbone) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        path: (0.3 * torch.randn(1, out, generator=generator)).requires_grad_()
        for path, out in backbone.layers.items()
    }


def noise(model: Any) -> Tensor:
    return torch.randn(shape_of(model, 2), generator=torch.Generator().manual_seed(4))


class Reference:
    """The loss of a step in float64, written out: the network is ComfyUI's, the rest is not."""

    def __init__(self, model: Any) -> None:
        self.model, self.base = model, model.model
        self.family = detect_family(model)
        self.where = self.family.attention
        self.network = deepcopy(model.model.diffusion_model).double()
        self.network.dtype = torch.float64
        if hasattr(self.network, "patch_embedding"):  # Wan has it in fp32
            self.network.patch_embedding.float()

    def loss(
        self,
        context: Tensor,
        edit: GatedEdit,
        learned_values: dict[str, Tensor],
        beside: Mapping[str, Tensor],
    ) -> Tensor:
        sampling = self.base.model_sampling
        clean = self.base.process_latent_in(latents(self.model)).double()
        sigmas = torch.tensor(
            [sampling.percent_to_sigma(1 - t) for t in TIMES.tolist()], dtype=torch.float64
        ).view(-1, *(1,) * (clean.dim() - 1))
        drawn = noise(self.model).double()
        if isinstance(sampling, comfy.model_sampling.CONST):  # Anima
            noisy = sigmas * drawn + (1 - sigmas) * clean
            given, share, keeps = noisy, sigmas, torch.ones_like(sigmas)
        elif sampling_is(sampling, "V_PREDICTION"):  # HunyuanDiT
            noisy = sigmas * drawn + clean
            given = noisy / (sigmas**2 + 1).sqrt()
            share, keeps = sigmas / (sigmas**2 + 1).sqrt(), 1 / (sigmas**2 + 1)
        elif sampling_is(sampling, "EPS"):  # PixArt
            noisy = sigmas * drawn + clean
            share, keeps = sigmas, torch.ones_like(sigmas)
            given = noisy / (sigmas**2 + 1).sqrt()
        else:  # Cosmos-Predict2
            noisy = sigmas * drawn + clean
            share = sigmas / (sigmas + 1)
            given, keeps = noisy * (1 - share), 1 - share
        target, whitened = edit.target_inputs[0], edit.whitened[0]
        similarity = torch.zeros_like(context[..., 0])
        for part in torch.arange(len(target)).split(list(self.family.parts)):
            length = target[part] @ whitened[part]
            similarity = similarity + context[..., part] @ whitened[part] / length
        gate = torch.sigmoid((similarity - EDIT.bias) / EDIT.temperature)
        gate = (gate * context.any(dim=-1))[..., None]
        edited = context + gate * (edit.superclasses[0] - similarity[..., None] * target)
        handles = []
        for path, value in learned_values.items():
            values = getattr(self.network.get_submodule(path), self.where.value)

            def learned(_: Any, __: Any, out: Tensor, value: Tensor = value) -> Tensor:
                # Every layer is given the edited text; values get what was learned.
                more = (gate * value.double()).reshape(*out.shape[:-1], -1)
                if self.where.fused:
                    more = torch.cat([torch.zeros_like(more), more], dim=-1)
                return out + more

            handles.append(values.register_forward_hook(learned))
        times = sampling.timestep(sigmas.flatten().float()).double()
        with Differentiable(overwrites=True):
            if len(self.family.parts) == 1:
                predicted = self.network(given, times, edited, **beside)
            else:
                predicted = self.of_two_texts(given, times, context, edited, beside)
        for handle in handles:
            handle.remove()
        # x0 = keeps x - share f: the error of f.
        return (((keeps * noisy - share * predicted) - clean) / -share).square()

    def of_two_texts(
        self,
        given: Tensor,
        times: Tensor,
        context: Tensor,
        edited: Tensor,
        beside: Mapping[str, Tensor],
    ) -> Tensor:
        """HunyuanDiT's: its layers see the edited text, its pool of mT5's rows the other."""
        network, width = self.network, self.family.parts[0]
        masks = [beside[name] for name in ("attention_mask", "attention_mask_mt5xl")]
        count = masks[0].shape[1]
        real = torch.cat(masks, dim=1)[..., None] > 0
        second = network.mlp_t5(edited[:, count:, width:])
        seen = torch.cat([edited[:, :count, :width], second], dim=1)
        seen = torch.where(real, seen, network.text_embedding_padding)
        for block in network.blocks:
            block.attn2.kv_proj.register_forward_pre_hook(lambda *_: (seen,))
        raw = beside["conditioning_mt5xl"].double()
        found: Tensor = network(
            given,
            times,
            context[:, :count, :width].clone(),
            text_embedding_mask=masks[0],
            encoder_hidden_states_t5=torch.where(
                masks[1][..., None] > 0, context[:, count:, width:], raw
            ),
            text_embedding_mask_t5=masks[1],
        )
        return found[:, : given.shape[1]]


def sampling_is(sampling: Any, name: str) -> bool:
    return any(ancestor.__name__ == name for ancestor in type(sampling).__mro__)


def test_the_loss_and_its_gradients_are_those_of_float64(dit_model: Any, dit_clip: Any) -> None:
    with training(dit_model, dit_clip) as backbone:
        reference = Reference(dit_model)  # before the model has seen a text with a gradient
        word = backbone.superclass_embeddings("teddy")
        encoded = backbone.encode([PROMPT, PROMPT], "teddy*", word, "teddy")
        edit = edit_of_prompt(encoded, dit_model)
        context = encoded.context.detach().requires_grad_()
        learned_values = differences(backbone)
        found = backbone.loss(
            latents(dit_model),
            noise(dit_model),
            TIMES,
            TrainingPrompts(context, encoded.positions, None, encoded.beside),
            edit,
            learned_values,
        )
        found.mean().backward()
        assert found.shape == shape_of(dit_model, 2)

        exact = context.detach().double().requires_grad_()
        values = {p: v.detach().double().requires_grad_() for p, v in learned_values.items()}
        expected = reference.loss(exact, edit, values, encoded.beside)
        expected.mean().backward()
    assert torch.allclose(found.double(), expected, rtol=2e-4, atol=2e-5)
    assert context.grad is not None
    assert exact.grad is not None
    # Of two texts a row has one; its zeros in the other's part are no numbers of the text.
    whole = len(detect_family(dit_model).parts) == 1
    own = torch.ones_like(exact) if whole else (exact.detach() != 0).double()
    pairs = [(context.grad * own, exact.grad * own)]
    pairs += [(learned_values[p].grad, values[p].grad) for p in values]
    for ours, theirs in pairs:
        assert ours is not None
        assert theirs is not None
        assert float(theirs.norm()) > 0
        assert float((ours.double() - theirs).norm() / theirs.norm()) < 2e-5


@pytest.mark.parametrize("number", [0, 1])
def test_the_gradient_reaches_the_embedding_through_encoder_adapter_and_layers(
    number: int, dit: TinyDit, dit_model: Any, dit_clip: Any
) -> None:
    """Against a difference of two losses along a direction, for each encoder."""
    if number >= len(dit.family.encoders):
        pytest.skip("it has one encoder")
    name = list(dit.family.encoders)[number]
    with training(dit_model, dit_clip) as backbone:
        word = backbone.superclass_embeddings("teddy")
        start = word[name]
        learned_values = {p: v.detach() for p, v in differences(backbone).items()}
        with torch.no_grad():
            encoded = backbone.encode([PROMPT] * 2, "teddy*", word, "teddy")
            edit = edit_of_prompt(encoded, dit_model)

        def loss(vectors: Tensor) -> Tensor:
            encoded = backbone.encode([PROMPT] * 2, "teddy*", {**word, name: vectors}, "teddy")
            return (
                backbone.loss(
                    latents(dit_model), noise(dit_model), TIMES, encoded, edit, learned_values
                )
                .double()
                .mean()
            )

        vectors = start.clone().requires_grad_()
        loss(vectors).backward()
        gradient = vectors.grad
        assert gradient is not None
        direction = gradient / gradient.norm()
        step = 0.02
        with torch.no_grad():
            rise = (loss(start + step * direction) - loss(start - step * direction)) / (2 * step)
    assert float(gradient.norm()) > 1e-4
    assert float(rise) == pytest.approx(float(gradient.norm()), rel=0.05)


def test_the_embedding_and_values_move_and_the_model_does_not(
    dit: TinyDit, dit_model: Any, dit_clip: Any
) -> None:
    before = {n: p.clone() for n, p in dit_model.model.named_parameters()}
    concept = learned(dit_model, dit_clip, embedding_rate=0.01)
    with training(dit_model, dit_clip) as backbone:
        start = backbone.superclass_embeddings("teddy")
    for name in dit.family.encoders:
        assert not torch.equal(concept.embeddings[name], start[name].half())
    assert set(concept.embeddings) == set(dit.family.encoders)
    assert all(torch.equal(p, before[n]) for n, p in dit_model.model.named_parameters())
    assert patched_modules(dit_model) == []


def test_with_a_fixed_embedding_the_encoder_leaves_the_device_before_the_first_step(
    dit: TinyDit, dit_model: Any, dit_clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[set[Any]] = []
    load = comfy.model_management.load_models_gpu

    def noted(models: Any, *args: Any, **kwargs: Any) -> Any:
        loaded.append({type(patcher.model).__name__ for patcher in models})
        return load(models, *args, **kwargs)

    calls: list[None] = []
    encoder = getattr(dit_clip.cond_stage_model, next(iter(dit.family.encoders)))
    handle = encoder.register_forward_hook(lambda *_: calls.append(None))
    monkeypatch.setattr(comfy.model_management, "load_models_gpu", noted)
    try:
        concept = learned(dit_model, dit_clip, embedding_rate=0.0, steps=6)
        few = len(calls)
        learned(dit_model, dit_clip, embedding_rate=0.0, steps=12)
    finally:
        handle.remove()
    assert len(calls) == 2 * few  # no more for more steps
    text, picture = type(dit_clip.cond_stage_model).__name__, type(dit_model.model).__name__
    assert loaded[0] == ({text, picture} if dit.family.adapter else {text})
    assert loaded[1] == {picture}
    assert all(bool(value.any()) for value in concept.values.values())
    knowing = add_concepts(dit_clip, [concept])
    on = apply_stack(dit_model, [recommended(concept)])
    assert not torch.allclose(sampled(on, knowing), sampled(dit_model, knowing), atol=1e-3)


def test_trained_keys_learn_behind_their_norm(dit_model: Any, dit_clip: Any) -> None:
    concept = learned(dit_model, dit_clip, key_mode="trained")
    assert all(bool(key.any()) for key in concept.keys.values())


def test_masks_weigh_the_loss_of_frames(dit_model: Any, dit_clip: Any) -> None:
    clean = latents(dit_model)
    side = clean.shape[-1]
    masks = torch.zeros(2, 4 * side, 4 * side)
    masks[:, side:-side, side:-side] = 1
    batch = next(batches([PictureGroup(clean, masks)], "teddy*", "teddy", 2, seed=0))
    assert batch.weights is not None
    assert batch.weights.shape == (2, *(1,) * (clean.dim() - 3), side, side)
    assert batch.weights[0].flatten(0, -3)[0, side // 2, side // 2] == 1
    assert batch.weights[0].flatten(0, -3)[0, 0, 0] == 0


def test_latents_without_frames_are_refused(dit: TinyDit, dit_model: Any, dit_clip: Any) -> None:
    expected = r"\[pictures, channels, frames, height, width\]"
    if not dit.family.frames:
        pytest.skip("it makes pictures alone")
    without = training_backbone(dit_model, dit_clip, (1, 16, 8, 8))
    with pytest.raises(ComfyMismatch, match=expected), without:
        pass


def test_the_memory_that_a_step_keeps_is_what_the_family_says(
    dit: TinyDit, dit_model: Any, dit_clip: Any
) -> None:
    family = detect_family(dit_model)
    layers = layers_of(dit_model, family)
    widths = sum(layer.out for layer in layers.values())
    true = {
        "tiny_wan21": 40 * 5120, "tiny_hunyuan_dit": 40 * 1408, "tiny_pixart_alpha": widths
    }.get(family.id, 28 * 2048)  # fmt: skip
    found = family.kept_by(dit_model.model.diffusion_model)
    assert found == pytest.approx(family.kept * widths / true)
