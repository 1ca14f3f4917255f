"""The model families that concepts fit, as one table: an entry each, never a branch in code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Family:
    """Models whose text reaches cross-attention in the same way, so that a concept fits them all.

    Attributes:
        id: what a concept file says. Stable: never renamed once released.
        title: what a user reads.
        encoders: text encoder -> width of its token embeddings, in the order in which their
            encodings are joined into the context. The keys are the host's names of the encoders.
        attention: last part of a cross-attention layer's path.
        key, value: names of the projections within such a layer.
    """

    id: str
    title: str
    encoders: Mapping[str, int]
    attention: str = "attn2"
    key: str = "to_k"
    value: str = "to_v"

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoders", MappingProxyType(dict(self.encoders)))

    @property
    def context_width(self) -> int:
        """d: the width of the text encodings that reach the cross-attention layers."""
        return sum(self.encoders.values())


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.id: family
        for family in (
            Family("sd1", "Stable Diffusion 1.x", {"clip_l": 768}),
            Family("sd2", "Stable Diffusion 2.x", {"clip_h": 1024}),
            Family("sdxl", "Stable Diffusion XL", {"clip_l": 768, "clip_g": 1280}),
            Family("emoji", "the emoji world of the demo", {"clip_l": 192}),
        )
    }
)
