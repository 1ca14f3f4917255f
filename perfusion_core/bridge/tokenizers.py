"""ComfyUI's tokenizers with placeholders: copies that put learned vectors among the token ids.

Two objects of a CLIP's clone are copied, each into a subclass of its own class, so that whoever
asks for that class, its attributes or its methods finds them: the `SDTokenizer` of each text
encoder, and the Hugging Face tokenizer within it. The inner one answers whoever calls it, as other
packs do; the outer one keeps the vectors of a word together at the end of a chunk, as ComfyUI keeps
an embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from ..placeholder import Finder
from .vectors import KnownVectors, Word, is_vector

# What tells a tokenizer how to lay out its answer; the rest of its options is for every piece.
_LAYOUT = ("truncation", "padding", "max_length", "return_tensors", "return_attention_mask")


def tokenizers_of(clip: Any) -> dict[str, Any]:
    """ComfyUI's `SDTokenizer`s of a CLIP by their encoder, e.g. {"clip_l": ..., "clip_g": ...}."""
    from comfy.sd1_clip import SDTokenizer

    return {k: v for k, v in vars(clip.tokenizer).items() if isinstance(v, SDTokenizer)}


def encoder_widths(clip: Any) -> dict[str, int]:
    """Encoder -> width of its token embeddings, of ComfyUI's CLIP."""
    return {name: int(tokenizer.embedding_size) for name, tokenizer in tokenizers_of(clip).items()}


def stock_tokenizer(tokenizer: Any) -> Any:
    """The `SDTokenizer` that a copy of ours was made of; any other one itself."""
    return tokenizer.stock if isinstance(tokenizer, PlaceholderSDTokenizer) else tokenizer


def words_of(tokenizer: Any) -> tuple[Word, ...]:
    """The placeholders that an `SDTokenizer` knows."""
    return vectors_of(tokenizer).words


def vectors_of(tokenizer: Any) -> KnownVectors:
    """Finds the vectors of those placeholders among an `SDTokenizer`'s tokens."""
    return tokenizer.known if isinstance(tokenizer, PlaceholderSDTokenizer) else KnownVectors(())


def with_placeholders(tokenizer: Any, words: Sequence[Word]) -> Any:
    """A copy of a stock `SDTokenizer` that knows `words` and no others."""
    known = KnownVectors(words)
    inner = _copied(tokenizer.tokenizer, PlaceholderTokenizer)
    inner.inner, inner.known = tokenizer.tokenizer, known
    inner.find = Finder(word.text for word in words)
    adds_end = bool(getattr(tokenizer, "tokenizer_adds_end_token", True))
    inner.text_part = slice(tokenizer.tokens_start, -1 if adds_end else None)
    copy = _copied(tokenizer, PlaceholderSDTokenizer)
    copy.stock, copy.known, copy.tokenizer = tokenizer, known, inner
    return copy


def _copied(original: Any, mixin: type) -> Any:
    """A shallow copy of an object that is of its own class and of `mixin`."""
    cls: Any = type(original)
    copy: Any = object.__new__(_subclass(mixin, cls))
    copy.__dict__.update(original.__dict__)
    return copy


@lru_cache(maxsize=64)
def _subclass(mixin: Any, cls: Any) -> type:
    return type(cls.__name__, (mixin, cls), {"__module__": cls.__module__})


class PlaceholderTokenizer:
    """Mixed into the class of the inner tokenizer, which is Hugging Face's or looks like one.

    A placeholder's vectors stand among the ids as tensors [w]. An answer in which there is no room
    for them, because it was asked for as one tensor or as pairs of texts, is the stock tokenizer's:
    the placeholder is then read as ordinary letters.

    Attributes:
        inner: the stock tokenizer.
        known: the vectors of the placeholders.
        find: finds them in a text.
        text_part: what is left of a text's ids without the special ones.
    """

    inner: Any
    known: KnownVectors
    find: Finder
    text_part: slice

    def __call__(self, text: Any = None, *args: Any, **options: Any) -> Any:
        several = isinstance(text, (list, tuple))
        texts = text if several else [text]
        plain = args or options.get("return_tensors") or options.get("is_split_into_words")
        plain = plain or options.get("text_pair") is not None
        if plain or not any(isinstance(one, str) and self.find(one) for one in texts):
            return self.inner(text, *args, **options)
        rows = [self._ids(one, options) for one in texts]
        masks = self._padded(rows, options)
        empty = self.inner("")
        answer = {"input_ids": rows if several else rows[0]}
        if "attention_mask" in empty and options.get("return_attention_mask") is not False:
            answer["attention_mask"] = masks if several else masks[0]
        return type(empty)(answer)

    def encode(self, text: Any, *args: Any, **options: Any) -> Any:
        """As the stock tokenizer's; with vectors among the ids."""
        if args or not hasattr(self.inner, "encode"):
            return self.inner.encode(text, *args, **options)
        return self(text, **options)["input_ids"]

    def encode_plus(self, text: Any, *args: Any, **options: Any) -> Any:
        """As the stock tokenizer's older name for a call."""
        return self(text, *args, **options)

    def batch_encode_plus(self, texts: Any, *args: Any, **options: Any) -> Any:
        """As the stock tokenizer's older name for a call with several texts."""
        return self(texts, *args, **options)

    def convert_ids_to_tokens(self, ids: Any, *args: Any, **options: Any) -> Any:
        """As the stock tokenizer's; a vector's token is its placeholder."""
        if is_vector(ids):
            return self._names([ids])[0]
        if not _has_vectors(ids):
            return self.inner.convert_ids_to_tokens(ids, *args, **options)
        names = iter(self._names(ids))
        return [
            next(names)
            if is_vector(token)
            else self.inner.convert_ids_to_tokens([token], *args, **options)[0]
            for token in ids
        ]

    def decode(self, ids: Any, *args: Any, **options: Any) -> Any:
        """As the stock tokenizer's; the vectors of a placeholder become its text."""
        if is_vector(ids):
            return self._names([ids])[0]
        if isinstance(ids, (list, tuple)) and any(isinstance(row, (list, tuple)) for row in ids):
            return [self.decode(row, *args, **options) for row in ids]
        if not _has_vectors(ids):
            return self.inner.decode(ids, *args, **options)
        parts: list[str] = []
        run: list[Any] = []
        for token, found in zip(ids, self.known.find(ids), strict=True):
            if not is_vector(token):
                run.append(token)
                continue
            if run:
                parts.append(self.inner.decode(run, *args, **options))
                run = []
            if found is None or found[1] == 0:  # one text for all vectors of a word
                parts.append("(embedding)" if found is None else found[0].text)
        if run:
            parts.append(self.inner.decode(run, *args, **options))
        return " ".join(parts)

    def batch_decode(self, rows: Any, *args: Any, **options: Any) -> Any:
        """As the stock tokenizer's, row by row."""
        return [self.decode(row, *args, **options) for row in rows]

    def _names(self, tokens: Iterable[Any]) -> list[str]:
        """What the vectors among some tokens are called."""
        found = self.known.find(v for v in tokens if is_vector(v))
        return ["(embedding)" if one is None else one[0].text for one in found]

    def _ids(self, text: str, options: Mapping[str, Any]) -> list[Any]:
        """Ids of a text, a placeholder's vectors among them, cut as `options` want it."""
        pieces = {name: one for name, one in options.items() if name not in _LAYOUT}
        bare = pieces.get("add_special_tokens") is False
        part = slice(None) if bare else self.text_part

        def between(start: int, end: int) -> list[Any]:
            if not text[start:end].strip():
                return []
            return list(self.inner(text[start:end], **pieces)["input_ids"])[part]

        ids: list[Any] = []
        at = 0
        for mention in self.find(text):
            ids += between(at, mention.start)
            ids += self.known.words[mention.number].rows
            at = mention.end
        ids += between(at, len(text))
        empty = list(self.inner("", **pieces)["input_ids"])
        before = empty[: part.start]
        after = empty[len(before) :] if not bare else []
        return [*before, *self._cut(ids, len(before) + len(after), options), *after]

    def _cut(self, ids: list[Any], special: int, options: Mapping[str, Any]) -> list[Any]:
        if options.get("truncation", False) in (False, None, "do_not_truncate"):
            return ids
        return ids[: max(0, self._length(options, len(ids)) - special)]

    def _length(self, options: Mapping[str, Any], usual: int) -> int:
        asked: Any = options.get("max_length") or getattr(self.inner, "model_max_length", usual)
        return int(asked)

    def _padded(self, rows: list[list[Any]], options: Mapping[str, Any]) -> list[list[int]]:
        """Pads `rows` as `options` want it; their attention masks."""
        masks = [[1] * len(row) for row in rows]
        padding = options.get("padding", False)
        if padding in (False, None, "do_not_pad"):
            return masks
        length = max(map(len, rows))
        if padding == "max_length":
            length = self._length(options, length)
        for row, mask in zip(rows, masks, strict=True):
            missing = max(0, length - len(row))
            row += [self.inner.pad_token_id] * missing
            mask += [0] * missing
        return masks


def _has_vectors(ids: Any) -> bool:
    return isinstance(ids, (list, tuple)) and any(is_vector(token) for token in ids)


class PlaceholderSDTokenizer:
    """Mixed into the class of ComfyUI's `SDTokenizer`.

    Attributes:
        stock: the tokenizer that it is a copy of.
        known: the vectors of the placeholders.
    """

    stock: Any
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
