"""What concepts answer to in a prompt: every token's similarity and gate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..gates import TokenGates
from .models import HostMismatch
from .prompts import add_concepts, encode, tokenizers_of
from .stack import ConceptEntry, edit_of


def token_gates(clip: Any, text: str, entries: Sequence[ConceptEntry]) -> TokenGates:
    """Similarity and gate of every token of a prompt, for the concepts of a stack.

    Args:
        clip: a host's CLIP; it need not know the placeholders yet.

    Raises HostMismatch when there is no concept, or the CLIP is of another family.
    """
    from comfy import model_management

    if not entries:
        raise HostMismatch(
            "There is no concept to look at: connect a concept of a Perfusion Concept Loader, or a "
            "stack of Perfusion Combine Concepts."
        )
    knowing = add_concepts(clip, [entry.concept for entry in entries])
    model_management.load_models_gpu([knowing.patcher])
    return gates_with(knowing, text, entries)


def gates_with(knowing: Any, text: str, entries: Sequence[ConceptEntry]) -> TokenGates:
    """`token_gates` of a CLIP that knows the placeholders, with its weights where they are."""
    with torch.no_grad():
        encoding = encode(knowing, [text])
    edit = edit_of(entries)
    real = encoding.mask
    context = encoding.context[real].float()
    words = [w for row, kept in zip(_words(knowing, text), real.tolist(), strict=True)
             for w, keep in zip(row, kept, strict=False) if keep]  # fmt: skip
    return TokenGates(
        words,
        [entry.concept.placeholder for entry in entries],
        edit.similarity(context).cpu(),
        edit.gates(context).cpu(),
        [entry.settings for entry in entries],
    )


def _words(clip: Any, text: str) -> list[list[str]]:
    """Every token of a prompt as a user knows it, chunk by chunk, of the first text encoder."""
    tokenizer = next(iter(tokenizers_of(clip).values()))
    names: dict[int, str] = {
        id(row): word.text for word in tokenizer.tokenizer.words for row in word.rows
    }
    special: dict[Any, str] = {tokenizer.start_token: "<start>", tokenizer.end_token: "<end>"}
    chunks = next(iter(clip.tokenize(text).values()))

    def name(token: Any) -> str:
        if torch.is_tensor(token):
            return names.get(id(token), "(embedding)")
        return special.get(token) or str(tokenizer.inv_vocab[token]).removesuffix("</w>")

    return [[name(token) for token, *_ in chunk] for chunk in chunks]
