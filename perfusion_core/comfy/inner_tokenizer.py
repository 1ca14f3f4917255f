"""Hugging Face's tokenizer with placeholders, which answers whoever calls it, as other packs do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..concept.placeholder import Finder
from .vectors import KnownVectors, is_vector

# What tells a tokenizer how to lay out its answer; the rest of its options is for every piece.
_LAYOUT = ("truncation", "padding", "max_length", "return_tensors", "return_attention_mask")

# What a space is in tokens of sentencepiece (T5), and in bytes written as letters (Qwen).
SPACES = "\u2581\u0120"


class PlaceholderTokenizer:
    """Mixed into the class of the inner tokenizer, which is Hugging Face's or looks like one.

    A placeholder's vectors stand among the ids as tensors [w]. An answer in which there is no room
    for them, because it was asked for as one tensor or as pairs of texts, is the stock tokenizer's:
    the placeholder is then read as ordinary letters.

    Attributes:
        inner: the stock tokenizer.
        known: the vectors of the placeholders.
        find: finds them in a text.
        names: token id -> its letters.
        text_part: what is left of a text's ids without the special ones.
    """

    inner: Any
    known: KnownVectors
    find: Finder
    names: Mapping[Any, str]
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
            found = list(self.inner(text[start:end], **pieces)["input_ids"])[part]
            # A space ahead of a placeholder is the placeholder's, as it is other words'; one that
            # is not in the text was put there because the text was cut.
            if start and found and not text[start].isspace() and self._is_space(found[0]):
                del found[0]
            while end < len(text) and found and self._is_space(found[-1]):
                del found[-1]
            return found

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

    def _is_space(self, token: Any) -> bool:
        """Whether an id is a space and nothing else: sentencepiece and byte-level tokenizers make
        one of what is left over where a text is cut."""
        name = self.names.get(token) if isinstance(token, int) else None
        return isinstance(name, str) and name != "" and not name.strip(SPACES)

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
