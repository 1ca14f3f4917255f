"""Cosmos-Predict2: a transformer over frames, whose blocks have the text in `cross_attn`.

Its text is T5's, as long as 512 tokens at least, with zeros for pads. Its latents have an axis of
frames; a picture is one frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .base import CrossAttention, ModelFamily

# Anima's adapter has layers of that name as well, whose keys are not of the text.
ADAPTER = "llm_adapter"

ATTENTION = CrossAttention(
    "cross_attn",
    "k_proj",
    "v_proj",
    query="q_proj",
    heads="n_heads",
    key_norm="k_norm",
    query_norm="q_norm",
    outside=ADAPTER,
)

# Counted on the blocks of the 2B model, at 1024 pixels: 8,470 bytes each.
KEPT = 240_000
# On a network of so many blocks, whose values are so wide.
KEPT_OF = (28, 2048)


@dataclass(frozen=True, kw_only=True)
class CosmosFamily(ModelFamily):
    """Cosmos-Predict2's network, with or without an adapter before it."""

    attention: CrossAttention = ATTENTION
    blocks: tuple[str, ...] = ("Block",)
    context: str = "crossattn_emb"
    frames: bool = True

    def recognises(self, network: Any) -> bool:
        """See `ModelFamily`."""
        return super().recognises(network) and self._is_ours(hasattr(network, ADAPTER))

    def recognises_file(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """See `ModelFamily`."""
        adapts = any(ADAPTER in name.split(".") for name in shapes)
        return super().recognises_file(shapes) and self._is_ours(adapts)

    def _is_ours(self, adapts: bool) -> bool:
        return adapts == bool(self.adapter)

    def has_part(self, name: str) -> bool:
        """See `ModelFamily`."""
        parts = name.split(".")
        return "blocks" in parts and ADAPTER not in parts


COSMOS2 = CosmosFamily(
    id="cosmos2",
    title="Cosmos-Predict2",
    encoders={"t5xxl": 1024},
    resolution=1024,
    network="MiniTrainDIT",
    prompt=512,
    kept=KEPT,
    kept_of=KEPT_OF,
    kept_text=770,  # counted on its T5, whose inner layers are 64 times as wide as an encoding: 769
)
