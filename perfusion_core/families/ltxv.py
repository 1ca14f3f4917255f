"""LTX-Video 0.9: a transformer over the frames of a video, with the text in `attn2`.

Every row of T5's text passes through a small network (`caption_projection`) within the forward,
which all layers share; what is edited is the text before it. A mask keeps pads out of attention. A
picture is a video of one frame: so it learns from pictures, and is sampled as video.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .base import CrossAttention, ModelFamily

ATTENTION = CrossAttention(
    "attn2",
    "to_k",
    "to_v",
    bias=True,
    key_norm="k_norm",
    query_norm="q_norm",
    before="caption_projection",
)

# Counted on a block of the 2B model, at 768 pixels: 32,200 bytes each.
KEPT = 900_000
# On a network of so many blocks, whose values are so wide.
KEPT_OF = (28, 2048)

# Parts that the networks with sound, or with a text that changes with the time, have beside.
_OTHERS = ("audio_", "prompt_adaln", "prompt_scale_shift", "video_embeddings")


@dataclass(frozen=True, kw_only=True)
class LtxvFamily(ModelFamily):
    """The network of LTX-Video 0.9; those of LTX-2 have their text elsewhere."""

    network: str = "LTXVModel"
    attention: CrossAttention = ATTENTION
    blocks: tuple[str, ...] = ("BasicTransformerBlock",)
    overwrites: bool = True
    frames: bool = True
    pixels: int = 32
    prompt: int = 128
    beside: tuple[str, ...] = ("attention_mask",)
    mask: str = "attention_mask"

    def recognises(self, network: Any) -> bool:
        """See `ModelFamily`; not where a layer changes the text with the time."""
        return super().recognises(network) and not getattr(network, "cross_attention_adaln", False)

    def text_widths(self, network: Any) -> set[int]:
        """See `ModelFamily`; some networks of the class have nothing before the layers."""
        before = getattr(network, self.attention.before, None)
        return super().text_widths(network) if hasattr(before, "linear_2") else set()

    def recognises_file(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """See `ModelFamily`."""
        parts = {part for name in shapes for part in name.split(".")}
        return (
            "patchify_proj" in parts
            and not any(part.startswith(_OTHERS) for part in parts)
            and self.widths_in_file(shapes, "caption_projection.linear_1.weight")
            == {self.context_width}
        )

    def has_part(self, name: str) -> bool:
        """See `ModelFamily`."""
        return "transformer_blocks" in name.split(".")


LTXV = LtxvFamily(
    id="ltxv",
    title="LTX-Video 0.9",
    encoders={"t5xxl": 4096},
    resolution=640,
    kept=KEPT,
    kept_of=KEPT_OF,
    kept_text=80,
)
