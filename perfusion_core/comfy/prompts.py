"""Concepts on ComfyUI's CLIP: the placeholder in a prompt becomes the learned vectors.

Everything around the placeholder is ComfyUI's own code, so weights, escapes, long prompts and
`embedding:` go on working beside it. The tokenizers are in `tokenizers.py`, the global key lock in
`key_lock.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence

from ..concept.concept import Concept
from ..concept.placeholder import fold
from ..families import FAMILIES
from ..method.settings import KeyLock
from .encoding import Encoding, encode
from .key_lock import LOCKED_PROMPT, SUPERCLASS_PROMPT, with_key_lock
from .models import ComfyMismatch
from .protocols import Clip, Tokenizer
from .tokenizers import encoder_widths, stock_tokenizer, tokenizers_of, with_placeholders, words_of
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
    tokenizers = tokenizers_of(clip)
    words: dict[str, list[Word]] = {}
    for concept, lock in zip(concepts, locks, strict=True):
        _check_encoders(concept, encoder_widths(clip))
        for encoder, vectors in concept.embeddings.items():
            superclass: Sequence[int] = ()
            if lock is KeyLock.GLOBAL:
                superclass = word_tokens(tokenizers[encoder], concept.superclass)
            words.setdefault(encoder, []).append(
                Word(
                    concept.placeholder,
                    vectors.float(),
                    concept.hash,
                    concept.name,
                    tuple(superclass),
                )
            )
    return with_words(clip, words)


def word_tokens(tokenizer: Tokenizer, word: str) -> list[int]:
    """Token ids of a word or several, without start and end; of one of ComfyUI's `SDTokenizer`s.

    As ordinary words, even where a placeholder is written alike: what a concept is must not depend
    on the concepts before it in a chain. Raises ComfyMismatch for a word without tokens.
    """
    stock = stock_tokenizer(tokenizer)
    row = stock.tokenize_with_weights(word, disable_weights=True)[0]
    tokens = [token for token, *_ in row]
    if any(is_vector(token) for token in tokens):
        raise ComfyMismatch(
            f'the superclass "{word}" is an embedding, whose vectors are no word: name what the '
            'concept is in an ordinary word, such as "teddy"'
        )
    if stock.start_token is not None:
        tokens = tokens[1:]
    if stock.end_token in tokens:
        tokens = tokens[: tokens.index(stock.end_token)]
    if not tokens:
        raise ComfyMismatch(
            f'the superclass "{word}" has no token: name what the concept is in an ordinary word, '
            'such as "teddy"'
        )
    return tokens


def with_words(clip: Clip, words: Mapping[str, Sequence[Word]]) -> Clip:
    """A clone of ComfyUI's CLIP with more words, given by text encoder."""
    clone = clip.clone()
    clone.tokenizer = copy.copy(clip.tokenizer)
    merged = {
        encoder: _merged(words_of(tokenizer), words.get(encoder, ()))
        for encoder, tokenizer in tokenizers_of(clip).items()
    }
    for encoder, tokenizer in tokenizers_of(clip).items():
        setattr(
            clone.tokenizer,
            encoder,
            with_placeholders(stock_tokenizer(tokenizer), merged[encoder]),
        )
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
    expected = {name: int(vectors.shape[-1]) for name, vectors in concept.embeddings.items()}
    if expected == found:
        return
    family = FAMILIES[concept.family].title
    raise ComfyMismatch(
        f'The concept "{concept.name}" was trained for {family}, whose text encoders are '
        f"{_listed(expected)}; the connected CLIP has {_listed(found)}. Connect the CLIP of the "
        "model that the concept is applied to."
    )


def _listed(widths: Mapping[str, int]) -> str:
    return ", ".join(f"{name} (width {width})" for name, width in widths.items()) or "none it knows"
