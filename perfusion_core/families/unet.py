"""Stable Diffusion 1.x, 2.x and XL: UNets whose blocks have the text in `attn2`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from .base import CrossAttention, ModelFamily

# The parts of a UNet by the first part of a layer's path.
GROUPS = MappingProxyType({"input_blocks": "down", "middle_block": "middle", "output_blocks": "up"})

# The parts of a UNet in ComfyUI's names and in those of diffusers; other networks have none.
_PARTS = frozenset({*GROUPS, "down_blocks", "mid_block", "up_blocks"})


ATTN2 = CrossAttention("attn2", "to_k", "to_v")


@dataclass(frozen=True, kw_only=True)
class UNetFamily(ModelFamily):
    """UNets of one width of text.

    Attributes:
        vector: width of what enters beside the text (SDXL: pooled text and sizes); None where it
            does not tell this family from another.
    """

    network: str = "UNetModel"
    attention: CrossAttention = ATTN2
    blocks: tuple[str, ...] = ("BasicTransformerBlock", "ResBlock")
    vector: int | None = None

    def recognises(self, network: Any) -> bool:
        """See `ModelFamily`."""
        return super().recognises(network) and self.vector in (None, _vector(network))

    def has_part(self, name: str) -> bool:
        """See `ModelFamily`."""
        return not _PARTS.isdisjoint(name.split("."))

    def may_have(self, path: str) -> bool:
        """See `ModelFamily`."""
        return super().may_have(path) and path.partition(".")[0] in GROUPS

    @property
    def group_names(self) -> tuple[str, str, str]:
        """See `ModelFamily`."""
        return "down", "middle", "up"

    def groups(self, paths: Iterable[str]) -> dict[str, str]:
        """See `ModelFamily`; on the way down, in the middle, on the way up."""
        return {path: GROUPS.get(path.partition(".")[0], "") for path in paths}


def _vector(network: Any) -> int:
    """Width of what enters a UNet beside text and time; 0 for nothing."""
    weight = dict(network.named_parameters()).get("label_emb.0.0.weight")
    return 0 if weight is None else int(weight.shape[1])


# `kept` was counted on the true networks of SD 1.5 (512 px: 89,900) and SDXL (1024 px: 156,500).
SD1 = UNetFamily(
    id="sd1",
    title="Stable Diffusion 1.x",
    encoders={"clip_l": 768},
    resolution=512,
    kept=90_000,
)
SD2 = UNetFamily(
    id="sd2",
    title="Stable Diffusion 2.x",
    encoders={"clip_h": 1024},
    resolution=768,
    kept=90_000,
)
SDXL = UNetFamily(
    id="sdxl",
    title="Stable Diffusion XL",
    encoders={"clip_l": 768, "clip_g": 1280},
    resolution=1024,
    kept=157_000,
    vector=2816,
)
