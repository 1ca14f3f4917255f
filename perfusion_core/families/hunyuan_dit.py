"""HunyuanDiT: a transformer over the cells of the latents, with two texts in `attn2`.

One is BERT's, the other mT5's behind a small network (`mlp_t5`); they lie one after the other, with
learned rows for pads. A row of what is edited is as wide as both, [BERT's, mT5's], and zero in the
part that it is not of. So a concept has a target in each text, and a word of it in a prompt two
places; its learned values are one for both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .base import CrossAttention, ModelFamily

ATTENTION = CrossAttention(
    "attn2",
    "kv_proj",
    "kv_proj",
    query="q_proj",
    heads="num_heads",
    bias=True,
    key_norm="k_norm",
    query_norm="q_norm",
    turned="freqs_cis_img",
    before="mlp_t5",
)

# Counted on its 40 blocks, at 512 pixels: 6,300 bytes in the first half, 7,000 in the second.
KEPT = 266_000
# On a network of so many blocks, whose values are so wide.
KEPT_OF = (40, 1408)

# What ComfyUI's encoder gives beside BERT's encoding.
_MASK, _SECOND, _SECOND_MASK = "attention_mask", "conditioning_mt5xl", "attention_mask_mt5xl"


@dataclass(frozen=True, kw_only=True)
class HunyuanDitFamily(ModelFamily):
    """HunyuanDiT's network."""

    network: str = "HunYuanDiT"
    attention: CrossAttention = ATTENTION
    blocks: tuple[str, ...] = ("HunYuanDiTBlock",)
    context: str = "text_states"
    patch: int = 2
    prompt: int = 256
    beside: tuple[str, ...] = (_MASK, _SECOND, _SECOND_MASK)

    @property
    def parts(self) -> tuple[int, ...]:
        """See `ModelFamily`."""
        return tuple(self.encoders.values())

    def text_widths(self, network: Any) -> set[int]:
        """See `ModelFamily`; that of both texts."""
        return {int(network.text_states_dim) + int(network.text_states_dim_t5)}

    def joined(self, encoding: Any, beside: Mapping[str, Any]) -> Any:
        """See `ModelFamily`; zeros for pads."""
        first = encoding * beside[_MASK][..., None].to(encoding)
        second = beside[_SECOND].to(encoding) * beside[_SECOND_MASK][..., None].to(encoding)
        count, (left, right) = first.shape[1], self.parts
        text = first.new_zeros(len(first), count + second.shape[1], left + right)
        text[:, :count, :left] = first
        text[:, count:, left:] = second
        return text

    def given(self, text: Any, beside: Mapping[str, Any]) -> dict[str, Any]:
        """See `ModelFamily`; a pool of all of mT5's rows, pads too, is another input."""
        count, left = beside[_MASK].shape[1], self.parts[0]
        pads = 1 - beside[_SECOND_MASK][..., None].to(text)
        second = text[:, count:, left:] + pads * beside[_SECOND].to(text)
        return {**beside, "cross_attn": text[:, :count, :left], _SECOND: second}

    def text_of(self, network: Any, context: Any, came: Any, gave: Any) -> Any:
        """See `ModelFamily`; rows that are the learned ones are pads."""
        left, right = self.parts
        if gave.dim() != 2 or context.dim() != 3:
            return None
        count = len(gave) // len(context)
        if not 0 < count < context.shape[1]:
            return None
        first, second = context[:, :-count], came.reshape(len(context), count, right)
        learned = network.text_embedding_padding.to(context)
        text = context.new_zeros(*context.shape[:2], left + right)
        text[:, :-count, :left] = _words(first, first, learned[: network.text_len])
        text[:, -count:, left:] = _words(second, context[:, -count:], learned[network.text_len :])
        return text

    def context_of(
        self, network: Any, edited: Any, rows: Any, through: Callable[[Any], Any], context: Any
    ) -> Any:
        """See `ModelFamily`."""
        left = self.parts[0]
        of_first = (rows[..., :left] != 0).any(dim=-1, keepdim=True)
        second = through(edited[..., left:].flatten(end_dim=-2))
        made = edited[..., :left].where(of_first, second.reshape(*edited.shape[:-1], left))
        if context is None:
            return made
        return made.where((rows != 0).any(dim=-1, keepdim=True), context)

    def recognises_file(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """See `ModelFamily`."""
        found = (
            self.widths_in_file(shapes, "blocks.0.attn2.kv_proj.weight"),
            self.widths_in_file(shapes, "mlp_t5.0.weight"),
        )
        return found == tuple({width} for width in self.parts)

    def has_part(self, name: str) -> bool:
        """See `ModelFamily`."""
        return "blocks" in name.split(".")


def _words(text: Any, seen: Any, learned: Any) -> Any:
    """`text` [B, t, w] with zeros where what is `seen` of it is the learned pad of that place.

    Places are counted from the end, as the network does it.
    """
    count = min(len(learned), text.shape[1])
    pads = (seen[:, -count:] == learned[-count:]).all(dim=-1, keepdim=True)
    return _cat(text[:, :-count], text[:, -count:].masked_fill(pads, 0)) if count else text


def _cat(first: Any, second: Any) -> Any:
    """Two parts of a text; plain methods of tensors: this room imports no torch."""
    both = second.new_zeros(len(second), first.shape[1] + second.shape[1], second.shape[2])
    both[:, : first.shape[1]] = first
    both[:, first.shape[1] :] = second
    return both


HUNYUAN_DIT = HunyuanDitFamily(
    id="hunyuan_dit",
    title="HunyuanDiT",
    encoders={"hydit_clip": 1024, "mt5xl": 2048},
    resolution=1024,
    kept=KEPT,
    kept_of=KEPT_OF,
    kept_text=80,
)
