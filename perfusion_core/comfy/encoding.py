"""Prompts through a CLIP that is loaded already, as one batch: for training, plots, covariance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from .protocols import Clip, Tokens
from .tokenizers import first_encoder, tokenizers_of, vectors_of


@dataclass(frozen=True)
class Encoding:
    """Text encodings, one row per chunk of a prompt.

    Attributes:
        context: [B, T, d].
        mask: [B, T], true for real tokens, the first and the last special one included.
        vectors: [B, T], true where a placeholder's vector stands; an `embedding:` is none.
        pooled: [B, p], or None when not asked for, or the encoder gives none.
    """

    context: Tensor
    mask: Tensor
    vectors: Tensor
    pooled: Tensor | None


def encode(clip: Clip, prompts: Sequence[str], pooled: bool = False) -> Encoding:
    """Encodes prompts with ComfyUI's CLIP that is loaded already; differentiable in words' vectors.

    All prompts go through the encoder as one batch: to ComfyUI they are the chunks of one long
    prompt, of which it hands on the first pooled vector. With `pooled` all are picked up.
    """
    tokenized = [clip.tokenize(prompt) for prompt in prompts]
    joined = {key: [c for tokens in tokenized for c in tokens[key]] for key in tokenized[0]}
    first, rows = first_encoder(clip, joined)
    pooling: AbstractContextManager[list[Tensor]] = _pooling(clip) if pooled else nullcontext([])
    with pooling as seen:
        context, first_pooled = _forward(clip, joined)
    stacked = None
    if pooled and first_pooled is not None:
        # Of SDXL's two encoders ComfyUI takes the one with the wider vector.
        width = first_pooled.shape[-1]
        stacked = next(p for p in seen if p.shape[-1] == width)[: len(rows)].to(first_pooled)
    # ComfyUI gives the chunks of a prompt side by side.
    context = rearrange(context, "1 (b t) d -> b t d", b=len(rows))
    length = context.shape[1]
    ends = [_end(row, first.end_token) for row in rows]
    positions = torch.arange(length)
    mask = positions[None, :] <= torch.tensor(ends)[:, None]
    found = vectors_of(first).find(token for row in rows for token, *_ in row[:length])
    marks = torch.tensor([one is not None for one in found]).reshape(len(rows), length)
    device = context.device
    return Encoding(context, mask.to(device), marks.to(device), stacked)


@contextmanager
def _pooling(clip: Clip) -> Iterator[list[Tensor]]:
    """Gathers what the encoders pool within this context, [B, p] each."""
    seen: list[Tensor] = []

    def note(_: Any, __: Any, output: Any) -> None:
        if output[1] is not None:
            seen.append(output[1])

    encoders = [getattr(clip.cond_stage_model, name) for name in tokenizers_of(clip)]
    handles = [encoder.register_forward_hook(note) for encoder in encoders]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _end(row: Sequence[tuple[Any, float]], end_token: int | None) -> int:
    """Where a chunk's text ends: its first end token, else its last token."""
    for i, (token, *_) in enumerate(row):
        if not torch.is_tensor(token) and token == end_token:
            return i
    return len(row) - 1


def _forward(clip: Clip, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
    """ComfyUI's own encoding, as in `CLIP.encode_from_tokens` but without loading the model."""
    encoder = clip.cond_stage_model
    encoder.reset_clip_options()
    if clip.layer_idx is not None:
        encoder.set_clip_options({"layer": clip.layer_idx})
    # Newer ComfyUI moves the tokens to where the encoder runs; older ones pass it over.
    encoder.set_clip_options({"execution_device": clip.patcher.load_device})
    output = encoder.encode_token_weights(tokens)
    return output[0], output[1]
