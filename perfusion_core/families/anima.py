"""Anima: Cosmos-Predict2's network behind an adapter that turns one text into another's words.

The text goes through Qwen3, and through the adapter once a prompt: it starts from the ids of T5's
tokens, looks at what Qwen3 gave, and gives a row for each of those ids, then zeros up to 512. The
layers see that fixed context, so that is what is edited. The placeholder is learned in Qwen3; among
T5's ids, which are whole numbers and nothing else, it is its superclass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .cosmos import ADAPTER, KEPT, KEPT_OF, CosmosFamily

# Rows of a context at least, as ComfyUI pads it.
ROWS = 512


@dataclass(frozen=True, kw_only=True)
class AnimaFamily(CosmosFamily):
    """Anima's network, which has the adapter in it."""

    def adapt(self, network: Any, encoding: Any, beside: Mapping[str, Any]) -> Any:
        """See `ModelFamily`; the weights of a prompt's words are on the adapter's rows."""
        ids, weights = beside.get("t5xxl_ids"), beside.get("t5xxl_weights")
        if ids is None:
            return encoding
        adapted = getattr(network, ADAPTER)(encoding, ids[None].to(encoding.device))
        if weights is not None:
            adapted = adapted * weights[None, :, None].to(adapted)
        rows, width = adapted.shape[1:]
        if rows >= ROWS:
            return adapted
        padded = adapted.new_zeros(len(adapted), ROWS, width)
        padded[:, :rows] = adapted
        return padded


ANIMA = AnimaFamily(
    id="anima",
    title="Anima",
    encoders={"qwen3_06b": 1024},
    ids={"t5xxl": 4096},
    rows="t5xxl",
    adapter=ADAPTER,
    resolution=1024,
    network="Anima",
    prompt=64,
    kept=KEPT,
    kept_of=KEPT_OF,
    kept_text=85,  # counted on Qwen3: 84
)
