"""Concepts on a host's CLIP: the placeholder in a prompt becomes the learned vectors.

The tokenizer of the CLIP's clone is a copy whose inner (Hugging Face) tokenizer puts the vectors
among the token ids; the host takes tensors for tokens. Everything around it is the host's own code,
so weights, escapes, long prompts and `embedding:` go on working beside a placeholder.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..concept import Concept
from ..edit import LockedPrompt
from ..families import FAMILIES
from ..settings import KeyLock
from .models import HostMismatch

# Where a conditioning, and then a pass's options, hold what the global key lock needs.
LOCKED_PROMPT = "perfusion_locked_prompt"


@dataclass(frozen=True)
class Word:
    """A placeholder and what it stands for in one text encoder.

    Attributes:
        text: as it is written in a prompt; matched without regard to case, never inside a word.
        vectors: [n, w].
        owner: the concept's hash, to tell apart two concepts of one placeholder.
        title: the concept's name.
        superclass: token ids of the superclass word, for the global key lock; empty for none.
    """

    text: str
    vectors: Tensor
    owner: str = ""
    title: str = ""
    superclass: tuple[int, ...] = ()

    @cached_property
    def rows(self) -> tuple[Tensor, ...]:
        """The vectors one by one: the very tensors that stand among a prompt's tokens."""
        return tuple(self.vectors)

    def stand_in(self, row: int) -> int:
        """The superclass's token for one of `rows`, aligned from the end, where the noun is.

        A superclass of fewer tokens than vectors repeats its first; one of more loses its first.
        """
        return self.superclass[max(0, len(self.superclass) - len(self.rows) + row)]


class PlaceholderTokenizer:
    """Stands in for the inner tokenizer of one of the host's `SDTokenizer`s."""

    def __init__(
        self, inner: Any, words: Sequence[Word], tokens_start: int, adds_end: bool
    ) -> None:
        self.inner = inner
        self.words = tuple(words)
        self._text = slice(tokens_start, -1 if adds_end else None)
        self._longest_first = sorted(words, key=lambda word: len(word.text), reverse=True)
        self._pattern = _pattern(word.text for word in self._longest_first)

    def __call__(self, text: str, *args: Any, **kwargs: Any) -> Any:
        found = list(self._pattern.finditer(text)) if self.words else []
        if not found:
            return self.inner(text, *args, **kwargs)

        def between(start: int, end: int) -> list[Any]:
            if not text[start:end].strip():
                return []
            return list(self.inner(text[start:end], *args, **kwargs)["input_ids"])[self._text]

        empty = list(self.inner("", *args, **kwargs)["input_ids"])
        ids: list[Any] = empty[: self._text.start]
        at = 0
        for match in found:
            # By its group and not by its text, whose letters may be of another case.
            ids += between(at, match.start())
            ids += self._longest_first[(match.lastindex or 1) - 1].rows
            at = match.end()
        ids += between(at, len(text))
        if self._text.stop is not None:
            ids.append(empty[-1])
        return {"input_ids": ids}

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not there yet, while a copy is being made
            raise AttributeError(name)
        return getattr(self.inner, name)


def _pattern(texts: Iterable[str]) -> re.Pattern[str]:
    """A group for each of `texts`, in their order, that matches it as a word of its own."""
    choices = []
    for text in texts:
        before = r"(?<!\w)" if re.match(r"\w", text) else ""
        after = r"(?!\w)" if re.search(r"\w\Z", text) else ""
        choices.append(f"({before}{re.escape(text)}{after})")
    return re.compile("|".join(choices), re.IGNORECASE)


def tokenizers_of(clip: Any) -> dict[str, Any]:
    """The host's `SDTokenizer`s of a CLIP by their encoder, e.g. {"clip_l": ..., "clip_g": ...}."""
    from comfy.sd1_clip import SDTokenizer

    return {k: v for k, v in vars(clip.tokenizer).items() if isinstance(v, SDTokenizer)}


def encoder_widths(clip: Any) -> dict[str, int]:
    """Encoder -> width of its token embeddings, of a host's CLIP."""
    return {name: int(tokenizer.embedding_size) for name, tokenizer in tokenizers_of(clip).items()}


def add_concepts(
    clip: Any, concepts: Iterable[Concept], locks: Iterable[KeyLock] | None = None
) -> Any:
    """A clone of the host's CLIP that knows the placeholders of `concepts` too.

    Args:
        locks: the key lock of each concept; None for local. With a global one among them the CLIP
            encodes each prompt's superclass twin as well and hands it on in the conditioning.

    Raises HostMismatch when the CLIP has other text encoders or a placeholder is taken.
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


def word_tokens(tokenizer: Any, word: str) -> list[int]:
    """Token ids of a word or several, without start and end; of one of the host's `SDTokenizer`s.

    Raises HostMismatch for a word without tokens.
    """
    row = tokenizer.tokenize_with_weights(word, disable_weights=True)[0]
    tokens = [token for token, *_ in row]
    if tokenizer.start_token is not None:
        tokens = tokens[1:]
    if tokenizer.end_token in tokens:
        tokens = tokens[: tokens.index(tokenizer.end_token)]
    if not tokens:
        raise HostMismatch(
            f'the superclass "{word}" has no token: name what the concept is in an ordinary word, '
            'such as "teddy"'
        )
    return tokens


def with_words(clip: Any, words: Mapping[str, Sequence[Word]]) -> Any:
    """A clone of the host's CLIP with more words, given by text encoder."""
    clone = clip.clone()
    clone.tokenizer = copy.copy(clip.tokenizer)
    for encoder, tokenizer in tokenizers_of(clip).items():
        new = copy.copy(tokenizer)
        inner, known = tokenizer.tokenizer, ()
        if isinstance(inner, PlaceholderTokenizer):
            inner, known = inner.inner, inner.words
        merged = _merged(known, words.get(encoder, ()))
        adds_end = bool(getattr(tokenizer, "tokenizer_adds_end_token", True))
        new.tokenizer = PlaceholderTokenizer(inner, merged, tokenizer.tokens_start, adds_end)
        setattr(clone.tokenizer, encoder, new)
    clone.cond_stage_model = _locking_encoder(clone)
    return clone


def _locking_encoder(clip: Any) -> Any:
    """The CLIP's encoder, with the global key lock when any of its words asks for it."""
    encoder = clip.cond_stage_model
    if isinstance(encoder, LockingEncoder):
        encoder = encoder.inner
    words = [w for tokenizer in tokenizers_of(clip).values() for w in tokenizer.tokenizer.words]
    return LockingEncoder(encoder, words) if any(w.superclass for w in words) else encoder


class LockingEncoder:
    """Stands in for a CLIP's encoder: prompts come back with their superclass twin beside them.

    The host puts what an encoder returns in third place into the conditioning.
    """

    def __init__(self, inner: Any, words: Iterable[Word]) -> None:
        self.inner = inner
        self._words = tuple(words)  # keeps the rows alive, which are known by their identity
        self._stand_ins = {
            id(row): word.stand_in(n)
            for word in self._words
            if word.superclass
            for n, row in enumerate(word.rows)
        }

    def encode_token_weights(self, tokens: Any) -> Any:
        """As the host's; with a `LockedPrompt` among what goes into the conditioning."""
        output = self.inner.encode_token_weights(tokens)
        twin, replaced = self._twin(tokens)
        own = output[0].detach()  # another tensor: the one that carries the prompt is not in it
        # A prompt without such a word is its own twin: its keys stay as they are.
        superclass = self.inner.encode_token_weights(twin)[0] if replaced else own
        prompt = LockedPrompt(own, superclass)
        more = {**(output[2] if len(output) > 2 else {}), LOCKED_PROMPT: prompt}
        # Under a scheduled hook on the CLIP the host passes on the encoding and drops the rest.
        setattr(output[0], LOCKED_PROMPT, prompt)
        return output[0], output[1], more

    def _twin(self, tokens: Any) -> tuple[dict[str, Any], int]:
        """The tokens with superclass words for concepts, and how many were replaced."""
        replaced = 0

        def stand_in(entry: Any) -> Any:
            nonlocal replaced
            if id(entry[0]) not in self._stand_ins:
                return entry
            replaced += 1
            return (self._stand_ins[id(entry[0])], *entry[1:])

        twin = {
            key: [[stand_in(entry) for entry in chunk] for chunk in chunks]
            for key, chunks in tokens.items()
        }
        return twin, replaced

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not there yet, while a copy is being made
            raise AttributeError(name)
        return getattr(self.inner, name)


def _merged(known: Sequence[Word], more: Sequence[Word]) -> tuple[Word, ...]:
    merged = {word.text.casefold(): word for word in known}
    for word in more:
        other = merged.setdefault(word.text.casefold(), word)
        if other.owner != word.owner:
            raise HostMismatch(clash(word.text, other.title, word.title))
        if word.superclass:
            merged[word.text.casefold()] = word
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
    raise HostMismatch(
        f'The concept "{concept.name}" was trained for {family}, whose text encoders are '
        f"{_listed(expected)}; the connected CLIP has {_listed(found)}. Connect the CLIP of the "
        "model that the concept is applied to."
    )


def _listed(widths: Mapping[str, int]) -> str:
    return ", ".join(f"{name} (width {width})" for name, width in widths.items()) or "none it knows"


@dataclass(frozen=True)
class Encoding:
    """Text encodings, one row per chunk of a prompt.

    Attributes:
        context: [B, T, d].
        mask: [B, T], true for real tokens, the first and the last special one included.
        vectors: [B, T], true where a placeholder's vector stands.
        pooled: [B, p], or None when not asked for, or the encoder gives none.
    """

    context: Tensor
    mask: Tensor
    vectors: Tensor
    pooled: Tensor | None


def encode(clip: Any, prompts: Sequence[str], pooled: bool = False) -> Encoding:
    """Encodes prompts with a host's CLIP that is loaded already; differentiable in words' vectors.

    All prompts go through the encoder as one batch: to the host they are the chunks of one long
    prompt, of which it hands on the first pooled vector. With `pooled` all are picked up.
    """
    tokenized = [clip.tokenize(prompt) for prompt in prompts]
    joined = {key: [c for tokens in tokenized for c in tokens[key]] for key in tokenized[0]}
    rows = next(iter(joined.values()))
    pooling: AbstractContextManager[list[Tensor]] = _pooling(clip) if pooled else nullcontext([])
    with pooling as seen:
        context, first_pooled = _forward(clip, joined)
    stacked = None
    if pooled and first_pooled is not None:
        # Of SDXL's two encoders the host takes the one with the wider vector.
        width = first_pooled.shape[-1]
        stacked = next(p for p in seen if p.shape[-1] == width)[: len(rows)].to(first_pooled)
    first = next(iter(tokenizers_of(clip).values()))
    context = context.reshape(len(rows), -1, context.shape[-1])
    # The chunks of one encoder tell for all: they are aligned, vector by vector.
    length = context.shape[1]
    ends = [_end(row, first.end_token) for row in rows]
    positions = torch.arange(length)
    mask = positions[None, :] <= torch.tensor(ends)[:, None]
    marks = torch.tensor([[torch.is_tensor(token) for token, _ in row[:length]] for row in rows])
    device = context.device
    return Encoding(context, mask.to(device), marks.to(device), stacked)


@contextmanager
def _pooling(clip: Any) -> Iterator[list[Tensor]]:
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
    for i, (token, _) in enumerate(row):
        if not torch.is_tensor(token) and token == end_token:
            return i
    return len(row) - 1


def _forward(clip: Any, tokens: Any) -> tuple[Tensor, Tensor | None]:
    """The host's own encoding, as in `CLIP.encode_from_tokens` but without loading the model."""
    encoder = clip.cond_stage_model
    encoder.reset_clip_options()
    if clip.layer_idx is not None:
        encoder.set_clip_options({"layer": clip.layer_idx})
    # Newer hosts move the tokens to where the encoder runs; older ones pass this over.
    encoder.set_clip_options({"execution_device": clip.patcher.load_device})
    output = encoder.encode_token_weights(tokens)
    return output[0], output[1]
