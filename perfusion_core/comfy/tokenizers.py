"""ComfyUI's tokenizers with placeholders: copies that put learned vectors among the token ids.

Two objects of a CLIP's clone are copied, each into a subclass of its own class, so that whoever
asks for that class, its attributes or its methods finds them: the `SDTokenizer` of each text
encoder, which keeps the vectors of a word together at the end of a chunk, as ComfyUI keeps an
embedding; and the Hugging Face tokenizer within it (`inner_tokenizer.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from ..concept.placeholder import Finder
from ..families import FAMILIES, ModelFamily
from .inner_tokenizer import PlaceholderTokenizer
from .protocols import Clip, Tokenizer, Tokens
from .vectors import KnownVectors, Word, is_vector


def tokenizers_of(clip: Clip) -> dict[str, Tokenizer]:
    """ComfyUI's `SDTokenizer`s of a CLIP by their encoder, e.g. {"clip_l": ..., "clip_g": ...}."""
    return {name: getattr(clip.tokenizer, held) for name, held in _attributes(clip).items()}


def put_tokenizer(clip: Clip, name: str, tokenizer: Tokenizer) -> None:
    """Give a CLIP, whose `tokenizer` nobody else has, another tokenizer for an encoder."""
    setattr(clip.tokenizer, _attributes(clip)[name], tokenizer)


def _attributes(clip: Clip) -> dict[str, str]:
    """Encoder -> under which name the CLIP's tokenizer has the encoder's own.

    T5's is "clip_t5xxl" in some models, whose encoder is "t5xxl" all the same.
    """
    from comfy.sd1_clip import SDTokenizer

    held = [name for name, one in vars(clip.tokenizer).items() if isinstance(one, SDTokenizer)]
    encoder = getattr(clip, "cond_stage_model", None)
    short = {name: name.removeprefix("clip_") for name in held}
    return {short[name] if hasattr(encoder, short[name]) else name: name for name in held}


def encoder_widths(clip: Clip) -> dict[str, int]:
    """Encoder -> width of its token embeddings, of ComfyUI's CLIP; and other tokenizers' widths."""
    return {name: int(tokenizer.embedding_size) for name, tokenizer in tokenizers_of(clip).items()}


def clip_family(clip: Clip) -> ModelFamily | None:
    """The family whose tokenizers a CLIP has; None for one that no family knows."""
    found = encoder_widths(clip)
    return next((f for f in FAMILIES.values() if f.tokenizers == found), None)


def row_tokens(clip: Clip, tokens: Tokens) -> tuple[Tokenizer, list[list[Any]]]:
    """The `SDTokenizer` whose tokens the rows of the context follow, and its chunks of a prompt.

    Where several encoders are joined, their chunks are aligned, vector by vector, so the first
    tells for all.
    """
    tokenizers, family = tokenizers_of(clip), clip_family(clip)
    name = (family.rows if family else "") or next(iter(tokenizers))
    return tokenizers[name], tokens[name.removeprefix("clip_")]


def texts_tokens(clip: Clip, tokens: Tokens) -> list[tuple[Tokenizer, list[list[Any]]]]:
    """The same for each of the texts that have places of their own, one after the other."""
    tokenizers, family = tokenizers_of(clip), clip_family(clip)
    if family is None or len(family.parts) == 1:
        return [row_tokens(clip, tokens)]
    return [(tokenizers[name], tokens[name.removeprefix("clip_")]) for name in family.encoders]


def stock_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """The `SDTokenizer` that a copy of ours was made of; any other one itself."""
    return tokenizer.stock if isinstance(tokenizer, PlaceholderSDTokenizer) else tokenizer


def words_of(tokenizer: Tokenizer) -> tuple[Word, ...]:
    """The placeholders that an `SDTokenizer` knows."""
    return vectors_of(tokenizer).words


def vectors_of(tokenizer: Tokenizer) -> KnownVectors:
    """Finds the vectors of those placeholders among an `SDTokenizer`'s tokens."""
    return tokenizer.known if isinstance(tokenizer, PlaceholderSDTokenizer) else KnownVectors(())


def with_placeholders(tokenizer: Tokenizer, words: Sequence[Word]) -> Tokenizer:
    """A copy of a stock `SDTokenizer` that knows `words` and no others."""
    known = KnownVectors(words)
    inner = _copied(tokenizer.tokenizer, PlaceholderTokenizer)
    inner.inner, inner.known, inner.names = tokenizer.tokenizer, known, tokenizer.inv_vocab
    inner.find = Finder(word.text for word in words)
    adds_end = bool(getattr(tokenizer, "tokenizer_adds_end_token", True))
    inner.text_part = slice(tokenizer.tokens_start, -1 if adds_end else None)
    copy = _copied(tokenizer, PlaceholderSDTokenizer)
    copy.stock, copy.known, copy.tokenizer = tokenizer, known, inner
    knowing: Tokenizer = copy
    return knowing


def _copied(original: Any, mixin: type) -> Any:
    """A shallow copy of an object that is of its own class and of `mixin`."""
    cls: Any = type(original)
    copy: Any = object.__new__(_subclass(mixin, cls))
    copy.__dict__.update(original.__dict__)
    return copy


@lru_cache(maxsize=64)
def _subclass(mixin: Any, cls: Any) -> type:
    return type(cls.__name__, (mixin, cls), {"__module__": cls.__module__})


class PlaceholderSDTokenizer:
    """Mixed into the class of ComfyUI's `SDTokenizer`.

    Attributes:
        stock: the tokenizer that it is a copy of.
        known: the vectors of the placeholders.
    """

    stock: Tokenizer
    known: KnownVectors

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, *args: Any, **options: Any
    ) -> list[list[Any]]:
        """As ComfyUI's, chunks of (token, weight) or (token, weight, word id).

        A placeholder of fewer vectors than ComfyUI's `max_word_length` that would be cut at the end
        of a chunk goes into the next one whole.
        """
        chunks: list[list[Any]] = super().tokenize_with_weights(  # type: ignore[misc]
            text, True, *args, **options
        )
        if self._cuts(chunks):
            chunks = self._packed(list(self._groups(chunks)))
        if return_word_ids:
            return chunks
        return [[entry[:2] for entry in chunk] for chunk in chunks]

    def untokenize(self, pairs: Any) -> Any:
        """As ComfyUI's; a vector's token is its placeholder."""
        this: Any = self
        return [(one, this.tokenizer.convert_ids_to_tokens([one[0]])[0]) for one in pairs]

    def _cuts(self, chunks: list[list[Any]]) -> bool:
        """Whether a word's vectors lie in two chunks that ComfyUI would keep in one."""
        this: Any = self
        if len(chunks) < 2 or not any(1 < len(w.rows) < this.max_word_length for w in self.words):
            return False
        if this.start_token is None or this.end_token is None or not this.pad_to_max_length:
            return False  # no encoder that we know of; its chunks have no fixed length
        ends = [[entry for entry in chunk if entry[2]][-1:] for chunk in chunks[:-1]]
        begins = [[entry for entry in chunk if entry[2]][:1] for chunk in chunks[1:]]
        return any(is_vector(a[0]) and is_vector(b[0]) and a[2] == b[2]
                   for last, first in zip(ends, begins, strict=True)
                   for a in last for b in first)  # fmt: skip

    @property
    def words(self) -> tuple[Word, ...]:
        return self.known.words

    def _groups(self, chunks: list[list[Any]]) -> Iterator[tuple[list[Any], bool]]:
        """What belongs together, as entries, and whether it may be cut all the same."""
        this: Any = self
        entries = [entry for chunk in chunks for entry in chunk if entry[2]]  # 0: no text's
        found = self.known.find(entry[0] for entry in entries)
        sizes: dict[int, int] = {}
        for *_, word_id in entries:
            sizes[word_id] = sizes.get(word_id, 0) + 1
        group: list[Any] = []
        before: tuple[int, Word | None] = (0, None)

        def may_cut() -> bool:
            size: int = len(group) if before[1] is not None else sizes[before[0]]
            return size >= int(this.max_word_length)

        for entry, vector in zip(entries, found, strict=True):
            # A text that ComfyUI keeps together stays together, placeholders in it and all.
            if sizes[entry[2]] < this.max_word_length:
                vector = None
            now = (entry[2], None if vector is None else vector[0])
            if group and (now != before or (vector is not None and vector[1] == 0)):
                yield group, may_cut()
                group = []
            group.append(entry)
            before = now
        if group:
            yield group, may_cut()

    def _packed(self, groups: Iterable[tuple[list[Any], bool]]) -> list[list[Any]]:
        """Chunks of ComfyUI's length, in which only groups that may be cut are."""
        this: Any = self
        room = this.max_length - 2
        texts: list[list[Any]] = [[]]
        for group, may_cut in groups:
            rest = group
            while len(texts[-1]) + len(rest) > room:
                free = room - len(texts[-1]) if may_cut else 0
                texts[-1] += rest[:free]
                rest = rest[free:]
                texts.append([])
            texts[-1] += rest
        chunks = []
        for text in texts:
            chunk = [(this.start_token, 1.0, 0), *text, (this.end_token, 1.0, 0)]
            this.pad_tokens(chunk, this.max_length - len(chunk))
            chunks.append(chunk)
        return chunks
