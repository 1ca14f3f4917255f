"""Prompts that are encoded once, for a training in which the placeholder's embedding stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .backbone import Backbone, TrainingPrompts


class FixedPrompts:
    """Every prompt that a training can come to, encoded; on the CPU, a prompt at a time.

    Args:
        prompts: with the placeholder in each.
        embeddings: text encoder -> the placeholder's vectors [n, w], which do not change.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompts: Sequence[str],
        placeholder: str,
        embeddings: Mapping[str, Tensor],
        superclass: str,
    ) -> None:
        self._encoded: dict[str, TrainingPrompts] = {}
        self._device = backbone.device
        with torch.no_grad():
            for prompt in dict.fromkeys(prompts):
                one = backbone.encode([prompt], placeholder, embeddings, superclass)
                self._encoded[prompt] = TrainingPrompts(
                    one.context.cpu(), one.positions.cpu(), _moved(one.extra, torch.device("cpu"))
                )

    def of(self, prompts: Sequence[str]) -> TrainingPrompts:
        """As `Backbone.encode` gives them, on its device."""
        rows = [self._encoded[prompt] for prompt in prompts]
        length = max(row.context.shape[1] for row in rows)
        # Rows of zeros are no words.
        context = [_longer(row.context, length) for row in rows]
        positions = [_longer(row.positions[..., None], length)[..., 0] for row in rows]
        extras = [row.extra for row in rows if torch.is_tensor(row.extra)]
        return TrainingPrompts(
            torch.cat(context).to(self._device),
            torch.cat(positions).to(self._device),
            _moved(torch.cat(extras), self._device) if extras else rows[0].extra,
        )


def _longer(rows: Tensor, length: int) -> Tensor:
    """[B, t, d] with zeros up to [B, length, d]."""
    return torch.nn.functional.pad(rows, (0, 0, 0, length - rows.shape[1]))


def _moved(extra: object, device: torch.device) -> object:
    return extra.to(device) if isinstance(extra, Tensor) else extra
