"""Prompts through a CLIP that is loaded already, as one batch: for training, plots, covariance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ..families import ModelFamily
from ..method.backbone import joined
from .models import ComfyMismatch, compute_dtype
from .protocols import BaseModel, Clip, Tokenizer, Tokens
from .tokenizers import clip_family, row_tokens, texts_tokens, tokenizers_of, vectors_of

# Tokens that go through an encoder at a time: a hundred prompts of CLIP's length, sixteen of T5's.
AT_ONCE = 8192


@dataclass(frozen=True)
class Encoding:
    """Text encodings as the cross-attention layers see them, one row per chunk of a prompt.

    Attributes:
        context: [B, T, d].
        mask: [B, T], true for real tokens, the first and the last special one included.
        vectors: [B, T], true where a placeholder's vector stands; an `embedding:` is none.
        pooled: [B, p], or None when not asked for, or the encoder gives none.
        beside: what else it gave, by ComfyUI's names: tensors [B, t, ...].
    """

    context: Tensor
    mask: Tensor
    vectors: Tensor
    pooled: Tensor | None
    beside: Mapping[str, Tensor] = field(default_factory=dict)


def encode(
    clip: Clip, prompts: Sequence[str], pooled: bool = False, base: BaseModel | None = None
) -> Encoding:
    """Encodes prompts with ComfyUI's CLIP that is loaded already; differentiable in words' vectors.

    Prompts of one length go through the encoder as one batch: to ComfyUI they are the chunks of one
    long prompt, of which it hands on the first pooled vector. With `pooled` all are picked up.
    Others go one by one, and rows of zeros, which are no words, make them equally long.

    Args:
        base: the model, loaded; needed where its network has an adapter of the text.

    Raises ComfyMismatch when it is needed and not there.
    """
    family = clip_family(clip)
    adapts = family is not None and bool(family.adapter)
    if adapts and base is None:
        raise ComfyMismatch(
            f"In {family.title if family else 'it'} the text passes through a part of the model "
            "before its cross-attention sees it, so the CLIP alone does not tell what a word is "
            "there: connect the model as well."
        )
    tokenized = [clip.tokenize(prompt) for prompt in prompts]
    lengths = [{len(c) for tokens in tokenized for c in tokens[key]} for key in tokenized[0]]
    if family is not None and base is not None and adapts:
        rows = [_adapted(clip, tokens, family, base) for tokens in tokenized]
    else:
        alike = all(len(found) == 1 for found in lengths)
        at_once = max(1, AT_ONCE // max(map(max, lengths))) if alike else 1
        rows = [
            _together(clip, _joined(tokenized[first : first + at_once]), pooled)
            for first in range(0, len(tokenized), at_once)
        ]
    if len(rows) == 1:
        return rows[0]
    if family is not None and len(family.parts) > 1:
        _check_places(rows)
    pooled_rows = [row.pooled for row in rows if row.pooled is not None]
    return Encoding(
        joined([row.context for row in rows]),
        joined([row.mask for row in rows]),
        joined([row.vectors for row in rows]),
        torch.cat(pooled_rows) if pooled_rows else None,
        {name: joined([row.beside[name] for row in rows]) for name in rows[0].beside},
    )


def _joined(tokenized: Sequence[Tokens]) -> Tokens:
    """Prompts as the chunks of one."""
    return {key: [c for tokens in tokenized for c in tokens[key]] for key in tokenized[0]}


def _together(clip: Clip, tokens: Tokens, pooled: bool) -> Encoding:
    """The chunks of one tokenized prompt, a row each."""
    _, rows = row_tokens(clip, tokens)
    pooling: AbstractContextManager[list[Tensor]] = _pooling(clip) if pooled else nullcontext([])
    with pooling as seen:
        context, first_pooled, given = _forward(clip, tokens)
    stacked = None
    if pooled and first_pooled is not None:
        # Of SDXL's two encoders ComfyUI takes the one with the wider vector.
        width = first_pooled.shape[-1]
        stacked = next(p for p in seen if p.shape[-1] == width)[: len(rows)].to(first_pooled)
    # ComfyUI gives the chunks of a prompt side by side.
    context = rearrange(context, "1 (b t) d -> b t d", b=len(rows))
    beside = {
        name: rearrange(value, "1 (b t) ... -> b t ...", b=len(rows))
        for name, value in given.items()
        if torch.is_tensor(value) and value.dim() > 1 and value.shape[1] % len(rows) == 0
    }
    family = clip_family(clip)
    if family is not None:
        context = family.joined(context, beside)
    return Encoding(context, *_marks(clip, tokens, context), stacked, beside)


def _check_places(rows: Sequence[Encoding]) -> None:
    """Raises ComfyMismatch where the second of two texts does not begin at one place in all."""
    places = {tuple(value.shape[1] for value in row.beside.values()) for row in rows}
    if len(places) > 1:
        raise ComfyMismatch(
            "The prompts are too long for this model to be looked at together: its text encoders "
            "read 77 and 256 tokens, and one of the prompts has more. Shorten it."
        )


def _adapted(clip: Clip, tokens: Tokens, family: ModelFamily, base: BaseModel) -> Encoding:
    """One tokenized prompt through the encoder and the model's adapter."""
    encoding, _, beside = _forward(clip, tokens)
    context = adapt(encoding, beside, family, base, clip.patcher.load_device)
    return Encoding(context, *_marks(clip, tokens, context), None)


def adapt(
    encoding: Tensor,
    beside: Mapping[str, Any],
    family: ModelFamily,
    base: BaseModel,
    device: torch.device,
) -> Tensor:
    """What a model's layers see of an encoding [1, t, d], as ComfyUI makes it for sampling.

    Args:
        beside: what the text encoder gave with it.
        device: where the model is.
    """
    moved = encoding.to(device, compute_dtype(base))
    adapted: Tensor = family.adapt(base.diffusion_model, moved, beside)
    return adapted


def _marks(clip: Clip, tokens: Tokens, context: Tensor) -> tuple[Tensor, Tensor]:
    """The mask and the vectors of an `Encoding` of chunks [B, T, d]."""
    texts = texts_tokens(clip, tokens)
    # Of several texts each has as many places as tokens; one may have more.
    lengths = [len(rows[0]) for _, rows in texts] if len(texts) > 1 else [context.shape[1]]
    found = [_marks_of(*text, length) for text, length in zip(texts, lengths, strict=True)]
    masks, marks = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    return masks.to(context.device), marks.to(context.device)


def _marks_of(
    tokenizer: Tokenizer, rows: Sequence[Sequence[Any]], length: int
) -> tuple[Tensor, Tensor]:
    """The same [B, length] of one text's tokens."""
    ends = [_end(row, tokenizer.end_token) for row in rows]
    mask = torch.arange(length)[None, :] <= torch.tensor(ends)[:, None]
    known = vectors_of(tokenizer)
    found = [[one is not None for one in known.find(token for token, *_ in row)] for row in rows]
    marks = torch.zeros(len(rows), length, dtype=torch.bool)
    for n, row in enumerate(found):
        marks[n, : len(row)] = torch.tensor(row[:length])
    return mask, marks


@contextmanager
def _pooling(clip: Clip) -> Iterator[list[Tensor]]:
    """Gathers what the encoders pool within this context, [B, p] each."""
    seen: list[Tensor] = []

    def note(_: Any, __: Any, output: Any) -> None:
        if output[1] is not None:
            seen.append(output[1])

    parts = (getattr(clip.cond_stage_model, name, None) for name in tokenizers_of(clip))
    encoders = [part for part in parts if part is not None]
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


def _forward(clip: Clip, tokens: Tokens) -> tuple[Tensor, Tensor | None, Mapping[str, Any]]:
    """ComfyUI's own encoding, as in `CLIP.encode_from_tokens` but without loading the model."""
    encoder = clip.cond_stage_model
    encoder.reset_clip_options()
    if clip.layer_idx is not None:
        encoder.set_clip_options({"layer": clip.layer_idx})
    # Newer ComfyUI moves the tokens to where the encoder runs; older ones pass it over.
    encoder.set_clip_options({"execution_device": clip.patcher.load_device})
    output = encoder.encode_token_weights(tokens)
    return output[0], output[1], output[2] if len(output) > 2 else {}
