"""What a text-to-image model must offer to be trained on.

`comfy.backbone` implements it for ComfyUI's models, the tests for a toy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from .edit import GatedEdit


@dataclass(frozen=True)
class TrainingPrompts:
    """Prompts as the model's cross-attention sees them.

    Attributes:
        context: text encodings e [B, T, d].
        positions: bool [B, T], true at the last vector of the placeholder: once in every row, or
            once in each text where there are two.
        extra: whatever else the model wants with these encodings (a pooled vector); opaque here.
        beside: what else it wants of each prompt, by its own names: tensors [B, t, ...].
    """

    context: Tensor
    positions: Tensor
    extra: object = None
    beside: Mapping[str, Tensor] = field(default_factory=dict)


def joined(rows: Sequence[Tensor]) -> Tensor:
    """Tensors [B, t, ...] as one batch: with zeros behind the shorter ones, which are no words."""
    length = max(row.shape[1] for row in rows)
    return torch.cat([_longer(row, length) for row in rows])


def _longer(rows: Tensor, length: int) -> Tensor:
    missing = length - rows.shape[1]
    none = rows.new_zeros(len(rows), missing, *rows.shape[2:])
    return torch.cat([rows, none], dim=1) if missing else rows


class Backbone(Protocol):
    """A text-to-image model as training needs it. Its weights need no gradients and get none."""

    @property
    def family(self) -> str:
        """Id of the model's `ModelFamily`."""

    @property
    def layers(self) -> Mapping[str, int]:
        """Path of every cross-attention layer -> out, the width of its values."""

    @property
    def device(self) -> torch.device:
        """Where what is learned should live: the model's own device."""

    @property
    def underflows(self) -> bool:
        """Whether it computes in fp16: small gradients then become 0 unless the loss is scaled."""

    def superclass_embeddings(self, word: str) -> Mapping[str, Tensor]:
        """Text encoder -> token embeddings [n, w] of a word (n tokens), in fp32."""

    def encode(
        self,
        prompts: Sequence[str],
        placeholder: str,
        embeddings: Mapping[str, Tensor],
        superclass: str = "",
    ) -> TrainingPrompts:
        """Encode prompts with one placeholder in each; differentiable in its `embeddings`.

        Args:
            superclass: what the placeholder is where nothing of it can be learned; some models
                need it.
        """

    def check_prompts(
        self,
        prompts: Sequence[str],
        placeholder: str,
        embeddings: Mapping[str, Tensor],
        superclass: str = "",
    ) -> None:
        """Raises TrainingError unless `encode` can take each of these prompts."""

    def retire_encoder(self) -> None:
        """No prompt is encoded after this; what does it may leave the device's memory."""

    def value_projection(self, layer: str, encoding: Tensor) -> Tensor:
        """W_V p [out] of one layer, without gradient, for an encoding p [d]."""

    def key_projection(self, layer: str, encoding: Tensor) -> Tensor:
        """W_K p [out] in the same way; asked for only when keys are trained."""

    def loss(
        self,
        latents: Tensor,
        noise: Tensor,
        times: Tensor,
        encoded: TrainingPrompts,
        edit: GatedEdit,
        differences: Mapping[str, Tensor],
        key_differences: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The denoising loss under the edit, per element.

        Args:
            latents: clean latents [B, C, H, W] or [B, C, F, H, W], as the VAE gives them.
            noise: standard normal, of that shape.
            times: how far into the noise schedule [B], 0 (clean) to 1 (all noise), evenly
                spread over the training time steps.
            encoded: of the batch's prompts.
            edit: of one concept; `edit.prepare(encoded.context)` gives what the layers need.
            differences: layer path -> D [1, out].
            key_differences: layer path -> D^K [1, out]; None while keys are locked.

        Returns the squared error, of that shape, in fp32, of what the model predicts (noise, v or
        another). Differentiable in `encoded.context`, `encoded.extra` and the differences. Inputs
        may be on the CPU.
        """
