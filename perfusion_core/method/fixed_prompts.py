"""Prompts that are encoded once, for a training in which the placeholder's embedding stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .backbone import Backbone, TrainingPrompts, joined


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
                cpu = torch.device("cpu")
                self._encoded[prompt] = TrainingPrompts(
                    one.context.cpu(),
                    one.positions.cpu(),
                    _moved(one.extra, cpu),
                    {name: value.cpu() for name, value in one.beside.items()},
                )

    def of(self, prompts: Sequence[str]) -> TrainingPrompts:
        """As `Backbone.encode` gives them, on its device."""
        rows = [self._encoded[prompt] for prompt in prompts]
        extras = [row.extra for row in rows if torch.is_tensor(row.extra)]
        return TrainingPrompts(
            joined([row.context for row in rows]).to(self._device),
            joined([row.positions for row in rows]).to(self._device),
            _moved(torch.cat(extras), self._device) if extras else rows[0].extra,
            {
                name: joined([row.beside[name] for row in rows]).to(self._device)
                for name in rows[0].beside
            },
        )


def _moved(extra: object, device: torch.device) -> object:
    return extra.to(device) if isinstance(extra, Tensor) else extra
