"""Which of the host's models concepts fit, and where their cross-attention layers are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..families.families import FAMILIES, REFUSED, REFUSED_PARTS, Family


class HostMismatch(ValueError):
    """What was connected in the host does not go together; says what was found and what to do."""


@dataclass(frozen=True)
class Layer:
    """The key and value projections of one cross-attention layer.

    Attributes:
        key, value: the host's modules.
        text_width: d, what they take.
        out: width of what the value projection gives.
    """

    key: Any
    value: Any
    text_width: int
    out: int


def describe_families() -> str:
    """The supported families, for an error message."""
    return ", ".join(f"{f.title} (text width {f.context_width})" for f in FAMILIES.values())


def detect_family(model: Any) -> Family:
    """The family of a host's MODEL.

    Raises HostMismatch with the model's class and the reason when concepts do not fit it.
    """
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    base = getattr(model, "model", None)
    name = type(base).__name__
    for ancestor in type(base).__mro__:
        if ancestor.__name__ in REFUSED:
            raise HostMismatch(_refusal(name, REFUSED[ancestor.__name__].reason))
    network = getattr(base, "diffusion_model", None)
    if not isinstance(network, UNetModel):
        inner = "" if network is None else f" (a {type(network).__name__})"
        raise HostMismatch(_refusal(f"{name}{inner}", "this pack does not know its layers"))
    for part, refusal in REFUSED_PARTS.items():
        if hasattr(network, part):
            raise HostMismatch(_refusal(f"{name} with a {part}", refusal.reason))
    alike = {family.attention: family for family in FAMILIES.values()}
    found = [network_layers(network, family) for family in alike.values()]
    widths = {layer.text_width for layers in found for layer in layers.values()}
    by_width = {family.context_width: family for family in FAMILIES.values()}
    if len(widths) != 1 or not widths <= by_width.keys():
        shown = " and ".join(map(str, sorted(widths))) or "none at all"
        raise HostMismatch(_refusal(name, f"the text width of its cross-attention is {shown}"))
    return by_width[widths.pop()]


def _refusal(model: str, reason: str) -> str:
    return (
        f"Perfusion concepts do not fit this model: {model}. The reason: {reason}. "
        f"Connect a model of one of these families: {describe_families()}."
    )


def layers_of(model: Any, family: Family) -> dict[str, Layer]:
    """The cross-attention layers of a host's MODEL by path, e.g. "middle_block.1...attn2"."""
    return network_layers(model.model.diffusion_model, family)


def network_layers(network: Any, family: Family) -> dict[str, Layer]:
    """The cross-attention layers of a host's diffusion model by path, in the network's order."""
    where, layers = family.attention, {}
    for path, module in attention_modules(network, family).items():
        key, value = getattr(module, where.key), getattr(module, where.value)
        layers[path] = Layer(key, value, text_width=key.in_features, out=value.out_features)
    return layers


def attention_modules(network: Any, family: Family) -> dict[str, Any]:
    """The host's modules at those paths."""
    where = family.attention
    # torch.compile puts its own part into a path.
    named = ((path.replace("_orig_mod.", ""), part) for path, part in network.named_modules())
    return {path: part for path, part in named if where.is_layer(path) and hasattr(part, where.key)}


def compute_dtype(base: Any) -> torch.dtype:
    """What a host's model computes in, whatever its weights are kept in."""
    dtype: torch.dtype = base.manual_cast_dtype or base.get_dtype()
    return dtype
