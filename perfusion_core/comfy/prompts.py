"""Concepts on ComfyUI's CLIP: the placeholder in a prompt becomes the learned vectors.

Everything around the placeholder is ComfyUI's own code, so weights, escapes, long prompts and
`embedding:` go on working beside it. The tokenizers are in `tokenizers.py`, the global key lock in
`key_lock.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ..concept.concept import Concept
from ..concept.placeholder import fold
from ..families import FAMILIES
from ..method.settings import KeyLock
from .encoding import Encoding, encode
from .key_lock import LOCKED_PROMPT, SUPERCLASS_PROMPT, with_key_lock
from .models import ComfyMismatch
from .protocols import Clip, Tokenizer
from .tokenizers import (
    encoder_widths,
    put_tokenizer,
    stock_tokenizer,
    tokenizers_of,
    with_placeholders,
    words_of,
)
from .vectors import Word, is_vector

__all__ = [
    "LOCKED_PROMPT",
    "SUPERCLASS_PROMPT",
    "Encoding",
    "Word",
    "add_concepts",
    "clash",
    "encode",
    "encoder_widths",
    "tokenizers_of",
    "with_words",
    "word_tokens",
]


def add_concepts(
    clip: Clip, concepts: Iterable[Concept], locks: Iterable[KeyLock] | None = None
) -> Clip:
    """A clone of ComfyUI's CLIP that knows the placeholders of `concepts` too.

    Args:
        locks: the key lock of each concept; None for local. With a global one among them the CLIP
            encodes each prompt's superclass twin as well and hands it on in the conditioning.

    Raises ComfyMismatch when the CLIP has other text encoders or a placeholder is taken.
    """
    concepts = tuple(concepts)
    locks = (KeyLock.LOCAL,) * len(concepts) if locks is None else tuple(locks)
    words: dict[str, list[Word]] = {}
    for concept, lock in zip(concepts, locks, strict=True):
        _check_encoders(concept, encoder_widths(clip))
        for name, tokenizer in tokenizers_of(clip).items():
            vectors = concept.embeddings.get(name)
            ids: tuple[int, ...] = ()
            if vectors is None or lock is KeyLock.GLOBAL:
                ids = tuple(word_tokens(tokenizer, concept.superclass))
            words.setdefault(name, []).append(
                Word(
                    concept.placeholder,
                    torch.empty(0, 0) if vectors is None else vectors.float(),
                    concept.hash,
                    concept.name,
                    superclass=ids if lock is KeyLock.GLOBAL else (),
                    ids=ids if vectors is None else (),
                )
            )
    return with_words(clip, words)


def word_tokens(tokenizer: Tokenizer, word: str) -> list[int]:
    """Token ids of a word or several, without start and end; of one of ComfyUI's `SDTokenizer`s.

    As ordinary words, even where a placeholder is written alike: what a concept is must not depend
    on the concepts before it in a chain. Raises ComfyMismatch for a word without tokens.
    """
    before = _text_tokens(tokenizer, _BEFORE)
    tokens = _text_tokens(tokenizer, f"{_BEFORE} {word}")
    # Some tokenizers write a word within a text otherwise than one that begins it.
    alike = tokens[: len(before)] == before
    tokens = tokens[len(before) :] if alike else _text_tokens(tokenizer, word)
    if any(is_vector(token) for token in tokens):
        raise ComfyMismatch(
            f'the superclass "{word}" is an embedding, whose vectors are no word: name what the '
            'concept is in an ordinary word, such as "teddy"'
        )
    if not tokens:
        raise ComfyMismatch(
            f'the superclass "{word}" has no token: name what the concept is in an ordinary word, '
            'such as "teddy"'
        )
    return tokens


# Any word that a superclass may follow.
_BEFORE = "a"


def _text_tokens(tokenizer: Tokenizer, text: str) -> list[Any]:
    """Tokens of a text, without start, end and pads, as ordinary words."""
    stock = stock_tokenizer(tokenizer)
    row = stock.tokenize_with_weights(text, True, disable_weights=True)[0]
    return [token for token, _, word_id in row if word_id]


def with_words(clip: Clip, words: Mapping[str, Sequence[Word]]) -> Clip:
    """A clone of ComfyUI's CLIP with more words, given by text encoder."""
    clone = clip.clone()
    clone.tokenizer = copy.copy(clip.tokenizer)
    merged = {
        encoder: _merged(words_of(tokenizer), words.get(encoder, ()))
        for encoder, tokenizer in tokenizers_of(clip).items()
    }
    for encoder, tokenizer in tokenizers_of(clip).items():
        knowing = with_placeholders(stock_tokenizer(tokenizer), merged[encoder])
        put_tokenizer(clone, encoder, knowing)
    every = [word for known in merged.values() for word in known]
    clone.cond_stage_model = with_key_lock(clip.cond_stage_model, every)
    return clone


def _merged(known: Sequence[Word], more: Sequence[Word]) -> tuple[Word, ...]:
    merged = {fold(word.text): word for word in known}
    for word in more:
        other = merged.setdefault(fold(word.text), word)
        if other.owner != word.owner:
            raise ComfyMismatch(clash(word.text, other.title, word.title))
        if word.superclass:
            merged[fold(word.text)] = word
    return tuple(merged.values())


def clash(placeholder: str, one: str, other: str) -> str:
    """What to say when two concepts answer to one placeholder."""
    return (
        f'Two concepts use the placeholder "{placeholder}": "{one}" and "{other}". Write another '
        'word for one of them into the "placeholder" field of its Perfusion Concept Loader (for '
        f'example "{placeholder}2") and use that in the prompt.'
    )


def _check_encoders(concept: Concept, found: Mapping[str, int]) -> None:
    family = FAMILIES[concept.family]
    if family.tokenizers == found:
        return
    raise ComfyMismatch(
        f'The concept "{concept.name}" was trained for {family.title}, whose text encoders are '
        f"{_listed(family.tokenizers)}; the connected CLIP has {_listed(found)}. Connect the CLIP "
        "of the model that the concept is applied to."
    )


def _listed(widths: Mapping[str, int]) -> str:
    return ", ".join(f"{name} (width {width})" for name, width in widths.items()) or "none it knows"
