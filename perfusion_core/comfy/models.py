"""Which of ComfyUI's models concepts fit, and where their cross-attention layers are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..families import FAMILIES, REFUSED, REFUSED_PARTS, ModelFamily
from .protocols import BaseModel, Model, Projection


class ComfyMismatch(ValueError):
    """What was connected in ComfyUI does not go together; says what was found and what to do."""


@dataclass(frozen=True)
class Before:
    """The part of a network that every row of the text passes through before the layers.

    Attributes:
        module: ComfyUI's.
        network: that it is of.
        family: which knows how the layers' context is made of what it gives.
    """

    module: Any
    network: Any
    family: ModelFamily

    def text_of(self, context: Tensor, came: Tensor, gave: Tensor) -> Tensor | None:
        """See `ModelFamily.text_of`."""
        text: Tensor | None = self.family.text_of(self.network, context, came, gave)
        return text

    def context_of(
        self, edited: Tensor, rows: Tensor, through: Any = None, context: Tensor | None = None
    ) -> Tensor:
        """See `ModelFamily.context_of`; through the module itself unless told."""
        through = through or self.module
        seen: Tensor = self.family.context_of(self.network, edited, rows, through, context)
        return seen


@dataclass(frozen=True)
class Layer:
    """The key and value projections of one cross-attention layer.

    Attributes:
        key, value: ComfyUI's modules; the very same where one projection gives both, keys first.
        text_width: d, what they take, or what is `before` them.
        out: width of the values.
        before: what every row of the text passes through first; None for nothing.
    """

    key: Projection
    value: Projection
    text_width: int
    out: int
    before: Before | None = None

    @property
    def fused(self) -> bool:
        """Whether one projection gives both keys and values."""
        return self.key is self.value

    def project(self, kind: str, context: Tensor) -> Tensor:
        """W_K e or W_V e of `context` [..., d], without the projection's bias; e is what the layer
        sees of it.

        Args:
            kind: "key" or "value".
        """
        module = self.key if kind == "key" else self.value
        seen = self.seen(context)
        projected: Tensor = module(seen)
        if getattr(module, "bias", None) is not None:
            projected = projected - module(torch.zeros_like(seen))
        return self.part(kind, projected)

    def seen(self, context: Tensor) -> Tensor:
        """What the projections are given of `context` [..., d]."""
        return context if self.before is None else self.before.context_of(context, context)

    def part(self, kind: str, projected: Tensor) -> Tensor:
        """The keys or the values [..., out] in what their projection gave.

        Args:
            kind: "key" or "value".
            projected: [..., out], or [..., 2 out] of a fused projection.
        """
        return projected.chunk(2, dim=-1)[kind == "value"] if self.fused else projected


def describe_families() -> str:
    """The supported families, for an error message."""
    return ", ".join(f"{f.title} (text width {f.context_width})" for f in FAMILIES.values())


def detect_family(model: Model) -> ModelFamily:
    """The family of a MODEL of ComfyUI's.

    Raises ComfyMismatch with the model's class and the reason when concepts do not fit it.
    """
    base = getattr(model, "model", None)
    name = type(base).__name__
    for ancestor in type(base).__mro__:
        if ancestor.__name__ in REFUSED:
            raise ComfyMismatch(_refusal(name, REFUSED[ancestor.__name__].reason))
    network = getattr(base, "diffusion_model", None)
    alike = [family for family in FAMILIES.values() if family.is_of_class(network)]
    if not alike:
        inner = "" if network is None else f" (a {type(network).__name__})"
        raise ComfyMismatch(_refusal(f"{name}{inner}", "this pack does not know its layers"))
    for part, refusal in REFUSED_PARTS.items():
        if hasattr(network, part):
            raise ComfyMismatch(_refusal(f"{name} with a {part}", refusal.reason))
    for family in alike:
        if family.recognises(network):
            return family
    widths = {width for family in alike for width in family.text_widths(network)}
    for family in alike:
        if widths == {family.context_width}:
            raise ComfyMismatch(
                _refusal(
                    name,
                    f"its text has the width of {family.title}'s ({family.context_width}), but "
                    "what else goes into its network is not as there",
                )
            )
    shown = " and ".join(map(str, sorted(widths))) or "none at all"
    raise ComfyMismatch(_refusal(name, f"the text width of its cross-attention is {shown}"))


def _refusal(model: str, reason: str) -> str:
    return (
        f"Perfusion concepts do not fit this model: {model}. The reason: {reason}. "
        f"Connect a model of one of these families: {describe_families()}."
    )


def layers_of(model: Model, family: ModelFamily) -> dict[str, Layer]:
    """The cross-attention layers of a MODEL by path, e.g. "middle_block.1...attn2"."""
    return network_layers(model.model.diffusion_model, family)


def network_layers(network: nn.Module, family: ModelFamily) -> dict[str, Layer]:
    """The cross-attention layers of a diffusion model by path, in the network's order."""
    where, layers = family.attention, {}
    before = None
    if where.before:
        before = Before(network.get_submodule(where.before), network, family)
    width = min(family.text_widths(network)) if where.before else 0
    for path, module in family.layer_modules(network).items():
        key, value = getattr(module, where.key), getattr(module, where.value)
        out = value.out_features // 2 if where.fused else value.out_features
        layers[path] = Layer(key, value, width or key.in_features, out, before)
    return layers


def compute_dtype(base: BaseModel) -> torch.dtype:
    """What a model computes in, whatever its weights are kept in."""
    dtype: torch.dtype = base.manual_cast_dtype or base.get_dtype()
    return dtype
