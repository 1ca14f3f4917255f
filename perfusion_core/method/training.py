"""Training a concept: the loop, which knows no ComfyUI.

What a model must offer is the protocol `Backbone`; `comfy.backbone` implements it for ComfyUI's
models, the tests for a toy. What is learned are the placeholder's token embeddings and, per layer,
the value difference D (arXiv 2305.01644); the model's own weights never change. For comparison,
keys can be learned as values are (`key_mode`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from ..concept.concept import Concept, check_fits, check_words
from ..families import FAMILIES
from .batches import Batch, PictureGroup, TrainingError, batches, captions_of
from .covariance import Covariance
from .edit import GatedEdit
from .settings import ConceptSettings
from .templates import templates_for


@dataclass(frozen=True)
class TrainingPrompts:
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
        """Id of the model's `ModelFamily`."""

    @property
    def layers(self) -> Mapping[str, int]:
        """Path of every cross-attention layer -> out, the width of its values."""

    @property
    def device(self) -> torch.device:
        """Where what is learned should live: the model's own device."""

    @property
    def underflows(self) -> bool:
        """Whether it computes in fp16: small gradients then become 0 unless the loss is scaled."""

    def superclass_embeddings(self, word: str) -> Mapping[str, Tensor]:
        """Text encoder -> token embeddings [n, w] of a word (n tokens), in fp32."""

    def encode(
        self, prompts: Sequence[str], placeholder: str, embeddings: Mapping[str, Tensor]
    ) -> TrainingPrompts:
        """Encode prompts with one placeholder in each; differentiable in its `embeddings`."""

    def check_prompts(
        self, prompts: Sequence[str], placeholder: str, embeddings: Mapping[str, Tensor]
    ) -> None:
        """Raises TrainingError unless `encode` can take each of these prompts."""

    def value_projection(self, layer: str, encoding: Tensor) -> Tensor:
        """W_V p [out] of one layer, without gradient, for an encoding p [d]."""

    def key_projection(self, layer: str, encoding: Tensor) -> Tensor:
        """W_K p [out] in the same way; asked for only when keys are trained."""

    def loss(
        self,
        latents: Tensor,
        noise: Tensor,
        times: Tensor,
        encoded: TrainingPrompts,
        edit: GatedEdit,
        differences: Mapping[str, Tensor],
        key_differences: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The denoising loss under the edit, per element.

        Args:
            latents: clean latents [B, C, H, W], as the VAE gives them.
            noise: standard normal [B, C, H, W].
            times: how far into the noise schedule [B], 0 (clean) to 1 (all noise), evenly
                spread over the training time steps.
            encoded: of the batch's prompts.
            edit: of one concept; `edit.prepare(encoded.context)` gives what the layers need.
            differences: layer path -> D [1, out].
            key_differences: layer path -> D^K [1, out]; None while keys are locked.

        Returns the squared error [B, C, H, W] in fp32, of what the model predicts (noise, v or
        another). Differentiable in `encoded.context`, `encoded.extra` and the differences. Inputs
        may be on the CPU.
        """


# A prompt's chunk has room for 75 tokens, and for more of the picture than its concept.
MAX_VECTORS = 16

KEY_MODES = ("locked", "trained")


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes:
        steps: optimiser steps.
        batch_size: pictures a step.
        seed: of noise, times, and the order of pictures and templates.
        vectors: how many the placeholder takes in a prompt; 0 for as many as the superclass has
            tokens, which is what the global key lock aligns best.
        embedding_rate: Adam's rate for the placeholder's token embeddings, absolute as published.
        value_rate: Adam's rate for the values, relative to the root mean square of W_V p in
            each layer, so that it means the same in every model and layer.
        bias, temperature: of the gate while training.
        ema: how much of the target input i each step keeps.
        key_mode: "locked", as published: a layer's key is W_K p. "trained": each layer learns its
            own key, from W_K p on, at `value_rate`; what the paper compares with.
    """

    steps: int = 200
    batch_size: int = 4
    seed: int = 0
    vectors: int = 0
    embedding_rate: float = 0.006
    value_rate: float = 0.03
    bias: float = 0.75
    temperature: float = 0.1
    ema: float = 0.99
    key_mode: str = "locked"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.vectors <= MAX_VECTORS:
            raise TrainingError(
                f"vectors is {self.vectors}; it must be between 0 (as the superclass) and "
                f"{MAX_VECTORS}"
            )
        for name in ("embedding_rate", "value_rate"):
            rate = getattr(self, name)
            if not (math.isfinite(rate) and rate >= 0):
                raise TrainingError(f"{name} is {rate}; it must be a number of at least 0")
        if not 0 <= self.ema < 1:
            raise TrainingError(f"ema is {self.ema}; it must be at least 0 and below 1")
        if self.key_mode not in KEY_MODES:
            raise TrainingError(
                f'key_mode is "{self.key_mode}"; it must be one of {", ".join(KEY_MODES)}'
            )
        _ = self.gate

    @property
    def gate(self) -> ConceptSettings:
        """The gate while training."""
        return ConceptSettings(self.bias, self.temperature)


class Training:
    """One training, step by step: whoever runs it owns the loop, and the model between the steps.

    Iterating runs the steps that are left, one at a time, and gives the loss of each. The same seed
    on the same machine gives the same concept, bit for bit, whatever happens between the steps.

    Args:
        backbone: the model.
        groups: the pictures; more than one group when they differ in size.
        placeholder: the new word, such as "teddy*".
        superclass: the ordinary word for what it is, such as "teddy".
        covariance: of the model's text encodings.
        settings: how to train.
        start: a concept to go on from, of the same model family and superclass.

    Raises ConceptError for words that cannot name a concept, TrainingError for unusable pictures or
    masks and a `start` that does not fit; a step raises it when the loss is no longer a number.

    Attributes:
        losses: of the steps so far.
    """

    def __init__(
        self,
        backbone: Backbone,
        groups: Sequence[PictureGroup],
        *,
        placeholder: str,
        superclass: str,
        covariance: Covariance,
        settings: TrainingSettings,
        start: Concept | None = None,
    ) -> None:
        check_words(placeholder, superclass)
        if start is not None:
            _check_start(start, backbone, superclass, settings)
        self.settings = settings
        self.losses: list[float] = []
        self._groups = tuple(groups)
        self._before = _steps_done(start)
        # Going on, it sees other noise than it has seen, not the same once more.
        seed = (settings.seed + self._before) % 2**64
        with _for_autograd():
            drawn = batches(self._groups, placeholder, superclass, settings.batch_size, seed)
            # What is wrong with the pictures comes up before anything is encoded.
            self._batches = chain([next(drawn)], drawn)
            self._learner = _Learner(
                backbone, placeholder, superclass, covariance, settings, start, captions_of(groups)
            )

    @property
    def finished(self) -> bool:
        """Whether all steps have run."""
        return len(self.losses) == self.settings.steps

    def __iter__(self) -> Iterator[float]:
        while not self.finished:
            yield self.step()

    def step(self) -> float:
        """One more step; its loss."""
        with _for_autograd():
            self.losses.append(self._learner.step(next(self._batches)))
        return self.losses[-1]

    @property
    def concept(self) -> Concept:
        """What was learned so far: the concept as it is now."""
        recent = self.losses[-max(1, self.settings.steps // 10) :]
        with _for_autograd():
            return self._learner.concept(
                {
                    **asdict(self.settings),
                    "images": sum(map(len, self._groups)),
                    "masked": any(group.masks is not None for group in self._groups),
                    "steps_done": self._before + len(self.losses),
                    "loss": sum(recent) / len(recent) if recent else None,
                }
            )


def train(backbone: Backbone, groups: Sequence[PictureGroup], **given: Any) -> Training:
    """A `Training` of these, after all its steps."""
    training = Training(backbone, groups, **given)
    for _ in training:
        pass
    return training


@contextmanager
def _for_autograd() -> Iterator[None]:
    """The caller may run in inference mode, whose tensors autograd refuses."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _check_start(
    start: Concept, backbone: Backbone, superclass: str, settings: TrainingSettings
) -> None:
    """Raises TrainingError or ConceptError unless training can go on from `start`."""
    check_fits(start, FAMILIES[backbone.family], backbone.layers)
    if start.superclass != superclass:
        raise TrainingError(
            f'the concept to go on from, "{start.name}", has the superclass "{start.superclass}", '
            f'not "{superclass}": its values start from that word. Use its superclass.'
        )
    if settings.vectors not in (0, start.vectors):
        raise TrainingError(
            f'the concept to go on from, "{start.name}", has {start.vectors} vectors, but '
            f"{settings.vectors} are asked for: set vectors to 0"
        )
    if start.keys and settings.key_mode == "locked":
        raise TrainingError(
            f'the concept to go on from, "{start.name}", was trained with keys of its own, which '
            'would be lost: set key_mode to "trained"'
        )


def _steps_done(start: Concept | None) -> int:
    """Steps behind a concept to go on from; 0 where its file says nothing that can be read."""
    done = start.training.get("steps_done") if start is not None else None
    return done if isinstance(done, int) else 0


def aligned(vectors: Tensor, count: int) -> Tensor:
    """`count` rows of a superclass's embeddings [m, w], aligned at the end, where the noun is.

    Fewer: the first are dropped; more: the first is repeated. 0: as they are.
    """
    return (
        vectors if not count else vectors[[max(0, len(vectors) - count + n) for n in range(count)]]
    )


class _Learner:
    """What is learned, and one step of learning it."""

    def __init__(
        self,
        backbone: Backbone,
        placeholder: str,
        superclass: str,
        covariance: Covariance,
        settings: TrainingSettings,
        begin: Concept | None,
        captions: Sequence[str],
    ) -> None:
        self.backbone = backbone
        self.placeholder = placeholder
        self.superclass = superclass
        self.covariance = covariance
        self.settings = settings

        word = backbone.superclass_embeddings(superclass)
        start = {name: aligned(vectors, settings.vectors) for name, vectors in word.items()}
        prompts = [t.format(placeholder) for t in templates_for(superclass)]
        # What comes up late is refused now, before anything was learned that it would end.
        more = [caption.replace("{}", placeholder) for caption in captions]
        backbone.check_prompts([*prompts, *more], placeholder, start)
        with torch.no_grad():
            # p: with the superclass's own vectors, the placeholder is the superclass word.
            self.superclass_encoding = _encoding(backbone.encode(prompts, placeholder, word))
            # i starts there and follows the placeholder's encoding.
            self.target_input = self.superclass_encoding
            if begin is not None:
                start = dict(begin.embeddings)
                self.superclass_encoding = begin.superclass_encoding.double()
                self.target_input = begin.target_input.double()
        self.embeddings = {
            encoder: vectors.detach().to(backbone.device, torch.float32, copy=True).requires_grad_()
            for encoder, vectors in start.items()
        }
        self.values = self._differences(backbone.value_projection, begin.values if begin else {})
        self.keys: _Differences | None = None
        if settings.key_mode == "trained":
            self.keys = self._differences(backbone.key_projection, begin.keys if begin else {})
        learned = (self.values,) if self.keys is None else (self.values, self.keys)
        self.optimizer = torch.optim.Adam(
            [
                {"params": list(self.embeddings.values()), "lr": settings.embedding_rate},
                {"params": [p for d in learned for p in d.parameters], "lr": settings.value_rate},
            ]
        )
        # A step whose gradients are too large for the scale is left out, and the scale lowered.
        self.scaler = GradScaler(backbone.device.type, enabled=backbone.underflows)

    def _differences(
        self,
        projection: Callable[[str, Tensor], Tensor],
        begun: Mapping[str, Tensor],
    ) -> _Differences:
        """D of every layer: what was `begun`, else 0, where the layer gives W p."""
        encoding = self.superclass_encoding.float()
        with torch.no_grad():
            projected = {path: projection(path, encoding) for path in self.backbone.layers}
        return _Differences(projected, begun, self.backbone.device)

    def step(self, batch: Batch) -> float:
        """One optimiser step; returns the loss before it."""
        encoded = self.backbone.encode(batch.prompts, self.placeholder, self.embeddings)
        # Once a step and not within the forward, which checkpointing would run twice.
        keep = self.settings.ema
        self.target_input = keep * self.target_input + (1 - keep) * _encoding(encoded)
        errors = self.backbone.loss(
            batch.latents,
            batch.noise,
            batch.times,
            encoded,
            self._edit(),
            self.values.by_layer(),
            None if self.keys is None else self.keys.by_layer(),
        )
        loss = (errors if batch.weights is None else errors * batch.weights.to(errors)).mean()
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        value = float(loss.detach())  # here: it waits for the device, which has all its work by now
        if not math.isfinite(value):
            raise TrainingError(
                f"training diverged: the loss became {value}. Lower value_rate (now "
                f"{self.settings.value_rate:g}) or embedding_rate (now "
                f"{self.settings.embedding_rate:g})."
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() < 1:
            raise TrainingError(
                "training diverged: in fp16 the gradients overflow at every scale of the loss. "
                "Start ComfyUI with --fp32-unet to train in fp32."
            )
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
            values={path: d[0] for path, d in self.values.by_layer().items()},
            keys={} if self.keys is None else {p: d[0] for p, d in self.keys.by_layer().items()},
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


class _Differences:
    """D [1, out] of every layer, learned as D = scale * delta.

    Adam's steps do not depend on the scale of the gradient, so only this makes one rate fit layers
    of different scales.

    Args:
        projected: layer path -> W p [out], whose root mean square is the scale.
        begun: layer path -> D [out] to go on from; 0 where there is none.
    """

    def __init__(
        self, projected: Mapping[str, Tensor], begun: Mapping[str, Tensor], device: torch.device
    ) -> None:
        self._scales = {path: v.float().square().mean().sqrt() for path, v in projected.items()}
        self._deltas = {}
        for path, projection in projected.items():
            delta = torch.zeros(1, len(projection), device=device)
            if path in begun:
                delta += begun[path].to(delta) / self._scales[path]
            self._deltas[path] = delta.requires_grad_()

    @property
    def parameters(self) -> list[Tensor]:
        """What the optimiser changes."""
        return list(self._deltas.values())

    def by_layer(self) -> dict[str, Tensor]:
        """Layer path -> D [1, out], differentiable in the parameters."""
        return {path: self._scales[path] * delta for path, delta in self._deltas.items()}


def _encoding(encoded: TrainingPrompts) -> Tensor:
    """The mean encoding [d] of the placeholder over a batch, in float64 on the CPU."""
    return encoded.context.detach()[encoded.positions].mean(dim=0).cpu().double()
