"""What concepts answer to in a prompt: every token's similarity and gate."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..draw.token_gates import TokenGates
from ..limits import MAX_PROMPT
from .encoding import encode
from .models import HostMismatch
from .prompts import add_concepts
from .stack import ConceptEntry, edit_of
from .tokenizers import tokenizers_of, vectors_of

AT_ONCE = 8  # chunks of a prompt, of 77 tokens each


def token_gates(clip: Any, text: str, entries: Sequence[ConceptEntry]) -> TokenGates:
    """Similarity and gate of every token of a prompt, for the concepts of a stack.

    Args:
        clip: a host's CLIP; it need not know the placeholders yet.

    Raises HostMismatch when there is no concept, the CLIP is of another family, or the prompt has
    more than `MAX_PROMPT` letters.
    """
    from comfy import model_management

    if not entries:
        raise HostMismatch(
            "There is no concept to look at: connect a concept of a Perfusion Concept Loader, or a "
            "stack of Perfusion Combine Concepts."
        )
    if len(text) > MAX_PROMPT:
        raise HostMismatch(
            f"The prompt has {len(text)} letters; at most {MAX_PROMPT} are looked at. Look at a "
            "part of it."
        )
    knowing = add_concepts(clip, [entry.concept for entry in entries])
    model_management.load_models_gpu([knowing.patcher])
    return gates_with(knowing, text, entries)


def gates_with(knowing: Any, text: str, entries: Sequence[ConceptEntry]) -> TokenGates:
    """`token_gates` of a CLIP that knows the placeholders, with its weights where they are."""
    edit = edit_of(entries)
    words: list[str] = []
    similarities: list[Tensor] = []
    gates: list[Tensor] = []
    for part in _blocks(knowing, text):
        with torch.no_grad():
            encoding = encode(part, [text])
        context = encoding.context[encoding.mask].float()
        words += [
            word
            for row, kept in zip(_words(part, text), encoding.mask.tolist(), strict=True)
            for word, keep in zip(row, kept, strict=False)
            if keep
        ]
        similarities.append(edit.similarity(context).cpu())
        gates.append(edit.gates(context).cpu())
    return TokenGates(
        words,
        [entry.concept.placeholder for entry in entries],
        torch.cat(similarities),
        torch.cat(gates),
        [entry.settings for entry in entries],
    )


def _blocks(clip: Any, text: str) -> Iterator[Any]:
    """Stand-ins for a host's CLIP to which a prompt is some of its chunks.

    So a prompt of thousands of words takes no more memory than one of some hundred: chunks know
    nothing of each other.
    """
    tokens = clip.tokenize(text)
    chunks = len(next(iter(tokens.values())))
    for first in range(0, chunks, AT_ONCE):
        part = copy.copy(clip)
        block = {key: rows[first : first + AT_ONCE] for key, rows in tokens.items()}
        part.tokenize = lambda _, block=block: block
        yield part


def _words(clip: Any, text: str) -> list[list[str]]:
    """Every token of a prompt as a user knows it, chunk by chunk, of the first text encoder."""
    tokenizer = next(iter(tokenizers_of(clip).values()))
    special: dict[Any, str] = {tokenizer.start_token: "<start>", tokenizer.end_token: "<end>"}
    chunks = next(iter(clip.tokenize(text).values()))
    found = iter(vectors_of(tokenizer).find(token for chunk in chunks for token, *_ in chunk))

    def name(token: Any) -> str:
        placeholder = next(found)
        if placeholder is not None:
            return placeholder[0].text
        if torch.is_tensor(token):
            return "(embedding)"
        return special.get(token) or str(tokenizer.inv_vocab[token]).removesuffix("</w>")

    return [[name(token) for token, *_ in chunk] for chunk in chunks]
