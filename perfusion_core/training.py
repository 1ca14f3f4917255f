"""Training a concept: the loop, free of any host.

What a model must offer is the protocol `Backbone`; the bridge implements it for the host's models,
the tests for a toy. What is learned are the placeholder's token embeddings and, per layer, the
value difference D (arXiv 2305.01644); the model's own weights never change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from .concept import Concept, check_words
from .covariance import Covariance
from .edit import GatedEdit
from .settings import ConceptSettings
from .templates import templates_for


class TrainingError(ValueError):
    """Training cannot begin or go on. The message says why and what to do."""


@dataclass(frozen=True)
class Encoded:
    """Prompts as the model's cross-attention sees them.

    Attributes:
        context: text encodings e [B, T, d].
        positions: bool [B, T], true at the last vector of the placeholder: once in every row.
        extra: whatever else the model wants with these encodings (a pooled vector); opaque here.
    """

    context: Tensor
    positions: Tensor
    extra: object = None


class Backbone(Protocol):
    """A text-to-image model as training needs it. Its weights need no gradients and get none."""

    @property
    def family(self) -> str:
        """Id of the model's `Family`."""

    @property
    def layers(self) -> Mapping[str, int]:
        """Path of every cross-attention layer -> out, the width of its values."""

    @property
    def device(self) -> torch.device:
        """Where what is learned should live: the model's own device."""

    def superclass_embeddings(self, word: str) -> Mapping[str, Tensor]:
        """Text encoder -> token embeddings [n, w] of a word (n tokens), in fp32."""

    def encode(
        self, prompts: Sequence[str], placeholder: str, embeddings: Mapping[str, Tensor]
    ) -> Encoded:
        """Encode prompts with one placeholder in each; differentiable in its `embeddings`."""

    def value_projection(self, layer: str, encoding: Tensor) -> Tensor:
        """W_V p [out] of one layer, without gradient, for an encoding p [d]."""

    def loss(
        self,
        latents: Tensor,
        noise: Tensor,
        times: Tensor,
        encoded: Encoded,
        edit: GatedEdit,
        differences: Mapping[str, Tensor],
    ) -> Tensor:
        """The denoising loss under the edit, per element.

        Args:
            latents: clean latents [B, C, H, W], as the VAE gives them.
            noise: standard normal [B, C, H, W].
            times: how far into the noise schedule [B], 0 (clean) to 1 (all noise), evenly spread
            over
                the training time steps.
            encoded: of the batch's prompts.
            edit: of one concept; `edit.prepare(encoded.context)` gives what the layers need.
            differences: layer path -> D [1, out].

        Returns the squared error [B, C, H, W] in fp32, of what the model predicts (noise, v or
        another). Differentiable in `encoded.context`, `encoded.extra` and `differences`. Inputs may
        be on the CPU.
        """


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes:
        steps: optimiser steps.
        batch_size: pictures a step.
        seed: of noise, times, and the order of pictures and templates.
        embedding_rate: Adam's rate for the placeholder's token embeddings, absolute as published.
        value_rate: Adam's rate for the values, relative to the root mean square of W_V p in each
        layer,
            so that it means the same in every model and layer.
        bias, temperature: of the gate while training.
        ema: how much of the target input i each step keeps.
    """

    steps: int = 200
    batch_size: int = 4
    seed: int = 0
    embedding_rate: float = 0.006
    value_rate: float = 0.03
    bias: float = 0.75
    temperature: float = 0.1
    ema: float = 0.99

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("embedding_rate", "value_rate"):
            rate = getattr(self, name)
            if not (math.isfinite(rate) and rate >= 0):
                raise TrainingError(f"{name} is {rate}; it must be a number of at least 0")
        if not 0 <= self.ema < 1:
            raise TrainingError(f"ema is {self.ema}; it must be at least 0 and below 1")
        _ = self.gate

    @property
    def gate(self) -> ConceptSettings:
        """The gate while training."""
        return ConceptSettings(self.bias, self.temperature)


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """What training gave.

    Attributes:
        concept: as it was after the last step.
        losses: the loss of every step that ran.
        finished: whether all steps ran; False after a cancel.
    """

    concept: Concept
    losses: list[float] = field(default_factory=list)
    finished: bool = True


OnStep = Callable[[int, int, float], None]
"""Called after each step with (steps done, steps in all, loss). May raise to stop at once."""


def train(
    backbone: Backbone,
    latents: Tensor,
    masks: Tensor | None,
    *,
    placeholder: str,
    superclass: str,
    covariance: Covariance,
    settings: TrainingSettings,
    on_step: OnStep | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> TrainingResult:
    """Learn a concept from pictures.

    The same seed on the same machine gives the same concept, bit for bit.

    Args:
        backbone: the model.
        latents: the pictures [N, C, H, W], as the VAE gives them.
        masks: where the concept is [N, h, w], at least 0, of any size; or None for everywhere.
        placeholder: the new word, such as "teddy*".
        superclass: the ordinary word for what it is, such as "teddy".
        covariance: of the model's text encodings.
        settings: how to train.
        on_step: told of every step.
        cancelled: asked before every step; when true, training ends there.

    Raises ConceptError for words that cannot name a concept, TrainingError for unusable pictures or
    masks and when the loss is no longer a number.
    """
    check_words(placeholder, superclass)
    # The caller may run in inference mode, whose tensors autograd refuses: the clones are ordinary.
    with torch.inference_mode(False), torch.enable_grad():
        _check_pictures(latents, masks)
        latents = latents.detach().clone()
        weights = None if masks is None else mask_weights(masks.detach().clone(), latents)
        learner = _Learner(backbone, placeholder, superclass, covariance, settings)
        losses: list[float] = []
        for batch in _batches(latents, weights, placeholder, superclass, settings):
            if len(losses) == settings.steps or (cancelled is not None and cancelled()):
                break
            losses.append(learner.step(batch))
            if on_step is not None:
                on_step(len(losses), settings.steps, losses[-1])
        recent = losses[-max(1, settings.steps // 10) :]
        notes = {
            **asdict(settings),
            "images": len(latents),
            "masked": masks is not None,
            "steps_done": len(losses),
            "loss": sum(recent) / len(recent) if recent else None,
        }
        return TrainingResult(learner.concept(notes), losses, len(losses) == settings.steps)


def mask_weights(masks: Tensor, latents: Tensor) -> Tensor:
    """Masks [N, h, w] as weights of the loss [N, 1, H, W] for latents [N, C, H, W].

    Each is averaged down to the latents' size and divided by its own largest value, so that 1 is
    where the concept surely is. Raises TrainingError for a mask that is nowhere above 0.
    """
    height, width = latents.shape[-2:]
    averaged = torch.nn.functional.adaptive_avg_pool2d(masks.float(), (height, width))
    peaks = averaged.amax(dim=(1, 2), keepdim=True)
    for number, peak in enumerate(peaks.flatten().tolist(), start=1):
        if not (math.isfinite(peak) and peak > 0):
            raise TrainingError(
                f"the mask of picture {number} is empty or not a number: draw where the concept "
                "is, or train without masks"
            )
    return (averaged / peaks)[:, None].to(latents.device)


@dataclass(frozen=True)
class _Batch:
    """The pictures, noise, times, weights and prompts of one step; see `Backbone.loss`."""

    latents: Tensor
    noise: Tensor
    times: Tensor
    weights: Tensor | None
    prompts: list[str]


class _Learner:
    """What is learned, and one step of learning it."""

    def __init__(
        self,
        backbone: Backbone,
        placeholder: str,
        superclass: str,
        covariance: Covariance,
        settings: TrainingSettings,
    ) -> None:
        self.backbone = backbone
        self.placeholder = placeholder
        self.superclass = superclass
        self.covariance = covariance
        self.settings = settings

        start = backbone.superclass_embeddings(superclass)
        prompts = [t.format(placeholder) for t in templates_for(superclass)]
        with torch.no_grad():
            # p: with the superclass's own vectors, the placeholder is the superclass word.
            self.superclass_encoding = _encoding(backbone.encode(prompts, placeholder, start))
            projected = {
                path: backbone.value_projection(path, self.superclass_encoding.float())
                for path in backbone.layers
            }
        # i starts at p and follows the placeholder's encoding.
        self.target_input = self.superclass_encoding
        self.scales = {path: v.float().square().mean().sqrt() for path, v in projected.items()}
        self.embeddings = {
            encoder: vectors.detach().to(backbone.device, torch.float32, copy=True).requires_grad_()
            for encoder, vectors in start.items()
        }
        # D = scale * delta: Adam's steps do not depend on the scale of the gradient, so only this
        # makes one rate fit layers of different scales. At 0, the value is W_V p.
        self.deltas = {
            path: torch.zeros(1, out, device=backbone.device, requires_grad=True)
            for path, out in backbone.layers.items()
        }
        self.optimizer = torch.optim.Adam(
            [
                {"params": list(self.embeddings.values()), "lr": settings.embedding_rate},
                {"params": list(self.deltas.values()), "lr": settings.value_rate},
            ]
        )

    def differences(self) -> dict[str, Tensor]:
        """Layer path -> D [1, out]."""
        return {path: self.scales[path] * delta for path, delta in self.deltas.items()}

    def step(self, batch: _Batch) -> float:
        """One optimiser step; returns the loss before it."""
        encoded = self.backbone.encode(batch.prompts, self.placeholder, self.embeddings)
        # Once a step and not within the forward, which checkpointing would run twice.
        keep = self.settings.ema
        self.target_input = keep * self.target_input + (1 - keep) * _encoding(encoded)
        errors = self.backbone.loss(
            batch.latents, batch.noise, batch.times, encoded, self._edit(), self.differences()
        )
        loss = (errors if batch.weights is None else errors * batch.weights.to(errors)).mean()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"training diverged: the loss became {value}. Lower value_rate (now "
                f"{self.settings.value_rate:g}) or embedding_rate (now "
                f"{self.settings.embedding_rate:g})."
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return value

    def concept(self, notes: Mapping[str, object]) -> Concept:
        """What was learned so far."""
        # Rounded as the concept stores it before whitening, so that u is C^-1 i of exactly that i.
        target_input = self.target_input.half()
        return Concept(
            name=self.placeholder.strip("*<>$_") or self.placeholder,
            family=self.backbone.family,
            placeholder=self.placeholder,
            superclass=self.superclass,
            embeddings=self.embeddings,
            target_input=target_input,
            whitened_target=self.covariance.whiten(target_input),
            superclass_encoding=self.superclass_encoding,
            values={path: difference[0] for path, difference in self.differences().items()},
            covariance_fingerprint=self.covariance.fingerprint,
            training=notes,
        )

    def _edit(self) -> GatedEdit:
        return GatedEdit(
            target_inputs=self.target_input[None],
            whitened=self.covariance.whiten(self.target_input)[None],
            superclasses=self.superclass_encoding[None],
            settings=[self.settings.gate],
            names=[self.placeholder],
        )


def _encoding(encoded: Encoded) -> Tensor:
    """The mean encoding [d] of the placeholder over a batch, in float64 on the CPU."""
    return encoded.context.detach()[encoded.positions].mean(dim=0).cpu().double()


def _batches(
    latents: Tensor,
    weights: Tensor | None,
    placeholder: str,
    superclass: str,
    settings: TrainingSettings,
) -> Iterator[_Batch]:
    """Batches without end; drawn on the CPU, so that a seed means the same everywhere."""
    generator = torch.Generator().manual_seed(settings.seed)
    size = settings.batch_size
    prompts = [t.format(placeholder) for t in templates_for(superclass)]
    pictures = _shuffled(len(latents), size, generator)
    templates = _shuffled(len(prompts), size, generator)
    while True:
        chosen = torch.tensor(next(pictures), device=latents.device)
        noise = torch.randn(size, *latents.shape[1:], generator=generator)
        # One time in each of `size` equal strata: as uniform as independent draws, with less
        # variance.
        times = (torch.arange(size) + torch.rand(size, generator=generator)) / size
        yield _Batch(
            latents[chosen],
            noise.to(latents),
            times.to(latents.device),
            None if weights is None else weights[chosen],
            [prompts[index] for index in next(templates)],
        )


def _shuffled(count: int, size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """`size` of range(count) at a time, without end: each comes up before any comes again."""
    pool: list[int] = []
    while True:
        while len(pool) < size:
            pool += torch.randperm(count, generator=generator).tolist()
        yield pool[:size]
        del pool[:size]


def _check_pictures(latents: Tensor, masks: Tensor | None) -> None:
    if latents.dim() != 4 or not len(latents):
        raise TrainingError(
            f"the latents have the shape {list(latents.shape)}; expected [pictures, channels, "
            "height, width] with at least one picture"
        )
    if not bool(latents.isfinite().all()):
        raise TrainingError(
            "the latents hold NaN or infinity: the VAE failed on a picture, most likely for want "
            "of precision. Run it in fp32 or bf16."
        )
    if masks is not None and (masks.dim() != 3 or len(masks) != len(latents)):
        raise TrainingError(
            f"the masks have the shape {list(masks.shape)} for {len(latents)} pictures; expected "
            "[pictures, height, width], one mask for each picture"
        )
