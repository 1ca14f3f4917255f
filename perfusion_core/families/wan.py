"""Wan 2.1 and 2.2: transformers over the frames of a video, with the text in `cross_attn`.

Every row of UMT5's text passes through a small network (`text_embedding`) within the forward, which
all layers share. What is edited is the text before it. A picture is a video of one frame: so Wan
learns from pictures, and is sampled as video.

The 14B of Wan 2.2 is two networks of one shape, for much noise and for little, and nothing in
either says which it is. A concept of one fits both, with the keys and the superclass's values of
each; the learned differences are those of the one that it was trained on. Two that were trained on
one each with `embedding_rate` 0 share their word, so that either's CLIP serves both networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .base import CrossAttention, ModelFamily

ATTENTION = CrossAttention(
    "cross_attn",
    "k",
    "v",
    query="q",
    heads="num_heads",
    bias=True,
    key_norm="norm_k",
    query_norm="norm_q",
    before="text_embedding",
)

# Counted on blocks of the 14B model and of the 1.3B, at 640 pixels: 20,100 bytes each of the 14B's.
KEPT = 810_000
# On a network of so many blocks, whose values are so wide.
KEPT_OF = (40, 5120)


@dataclass(frozen=True, kw_only=True)
class WanFamily(ModelFamily):
    """Wan's network itself, none of those that ComfyUI derives of it.

    Attributes:
        channels: of the latents that it makes.
    """

    channels: int
    network: str = "WanModel"
    attention: CrossAttention = ATTENTION
    blocks: tuple[str, ...] = ("WanAttentionBlock",)
    frames: bool = True
    prompt: int = 512

    def is_of_class(self, network: Any) -> bool:
        """See `ModelFamily`; a derived class has further attention, or other conditions."""
        return type(network).__name__ == self.network

    def recognises(self, network: Any) -> bool:
        """See `ModelFamily`."""
        return super().recognises(network) and int(network.out_dim) == self.channels

    def recognises_file(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """See `ModelFamily`."""

        def found(end: str) -> set[tuple[int, ...]]:
            return {s for name, s in shapes.items() if f".{name}".endswith(f".{end}")}

        heads, texts = found("head.head.weight"), found("text_embedding.0.weight")
        others = any(self._is_of_another(name) for name in shapes)
        # Cells of a frame are patches of 2 x 2.
        return (
            not others
            and {shape[0] for shape in heads} == {4 * self.channels}
            and {shape[-1] for shape in texts} == {self.context_width}
        )

    def _is_of_another(self, name: str) -> bool:
        return any(part.startswith(_OTHERS) for part in name.split("."))

    def has_part(self, name: str) -> bool:
        """See `ModelFamily`."""
        return "blocks" in name.split(".")


# Parts that only networks derived of Wan's have, by how their names begin.
_OTHERS = (
    "vace_", "control_adapter", "casual_audio", "audio_proj", "face_adapter",
    "patch_embedding_mask", "patch_embedding_pose", "patch_embedding_global",
)  # fmt: skip

WAN21 = WanFamily(
    id="wan21",
    title="Wan 2.1 and 2.2 (14B, 1.3B)",
    encoders={"umt5xxl": 4096},
    channels=16,
    resolution=640,
    kept=KEPT,
    kept_of=KEPT_OF,
    kept_text=80,  # counted on UMT5: 78
)
WAN22 = WanFamily(
    id="wan22_5b",
    title="Wan 2.2 (5B)",
    encoders={"umt5xxl": 4096},
    channels=48,
    resolution=960,
    pixels=16,
    kept=KEPT,
    kept_of=KEPT_OF,
    kept_text=80,  # counted on UMT5: 78
)
