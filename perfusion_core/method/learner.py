"""What is learned of a concept, and one step of learning it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from ..concept.concept import Concept
from ..families import FAMILIES
from .backbone import Backbone, TrainingPrompts
from .batches import Batch, TrainingError
from .covariance import Covariance
from .edit import GatedEdit
from .fixed_prompts import FixedPrompts
from .templates import templates_for
from .training_settings import TrainingSettings
from .training_state import kept, optimizer_tensors, restore_parameters


def aligned(vectors: Tensor, count: int) -> Tensor:
    """`count` rows of a superclass's embeddings [m, w], aligned at the end, where the noun is.

    Fewer: the first are dropped; more: the first is repeated. 0: as they are.
    """
    return (
        vectors if not count else vectors[[max(0, len(vectors) - count + n) for n in range(count)]]
    )


class Learner:
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
        backbone.check_prompts([*prompts, *more], placeholder, start, superclass)
        with torch.no_grad():
            # p: with the superclass's own vectors, the placeholder is the superclass word.
            encoded = backbone.encode(prompts, placeholder, word, superclass)
            self.superclass_encoding = _encoding(encoded)
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
        self._fixed: FixedPrompts | None = None
        if not settings.embedding_rate:
            every = [*prompts, *more]
            self._fixed = FixedPrompts(backbone, every, placeholder, self.embeddings, superclass)
            backbone.retire_encoder()
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
        encoded = self._encoded(batch.prompts)
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

    def state(self) -> tuple[dict[str, Tensor], dict[str, float]]:
        """What the steps so far have made: tensors by name, and the numbers of the loss's scale."""
        named = self._parameters()
        tensors = {name: kept(parameter) for name, parameter in named.items()}
        tensors |= optimizer_tensors(self.optimizer, named)
        tensors["target_input"] = kept(self.target_input)
        return tensors, dict(self.scaler.state_dict())

    def restore(self, tensors: Mapping[str, Tensor], scaler: Mapping[str, float]) -> None:
        """Be as when `state` was asked. Raises TrainingError for the state of another training."""
        restore_parameters(self.optimizer, self._parameters(), tensors)
        self.target_input = tensors["target_input"].to(self.target_input, copy=True)
        if scaler and self.scaler.is_enabled():
            self.scaler.load_state_dict(dict(scaler))

    def _parameters(self) -> dict[str, Tensor]:
        """What the optimiser changes, by name."""
        named = {f"embedding.{encoder}": v for encoder, v in self.embeddings.items()}
        named |= {f"value.{path}": v for path, v in self.values.named().items()}
        if self.keys is not None:
            named |= {f"key.{path}": v for path, v in self.keys.named().items()}
        return named

    def _encoded(self, prompts: Sequence[str]) -> TrainingPrompts:
        if self._fixed is not None:
            return self._fixed.of(prompts)
        return self.backbone.encode(prompts, self.placeholder, self.embeddings, self.superclass)

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
        family = FAMILIES.get(self.backbone.family)
        return GatedEdit(
            target_inputs=self.target_input[None],
            whitened=self.covariance.whiten(self.target_input)[None],
            superclasses=self.superclass_encoding[None],
            settings=[self.settings.gate],
            names=[self.placeholder],
            parts=None if family is None else family.parts,
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

    def named(self) -> dict[str, Tensor]:
        """The same by layer path."""
        return dict(self._deltas)

    def by_layer(self) -> dict[str, Tensor]:
        """Layer path -> D [1, out], differentiable in the parameters."""
        return {path: self._scales[path] * delta for path, delta in self._deltas.items()}


def _encoding(encoded: TrainingPrompts) -> Tensor:
    """The mean encoding [d] of the placeholder over a batch, in float64 on the CPU.

    Where two texts lie side by side, a prompt has it twice, each time in one part of the row.
    """
    found = encoded.context.detach()[encoded.positions]
    return found.mean(dim=0).cpu().double() * (len(found) / len(encoded.context))
