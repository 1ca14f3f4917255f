"""A placeholder's vectors among the tokens of a prompt, and how they are known again.

ComfyUI takes tensors [w] for tokens, so that is what they are; nothing hangs on them. A vector is
known by its numbers: they survive whatever copies, moves or saves the tokens, and two vectors of
the same numbers mean the same to the text encoder.

Where ComfyUI makes whole numbers of a tokenizer's tokens and nothing else (T5's in Anima), a
placeholder is the ids of its superclass, each an `int` that carries a mark.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

Found = tuple["Word", int]  # a word, and which of its rows


@dataclass(frozen=True, eq=False)
class Word:
    """A placeholder and what it stands for in one text encoder.

    Attributes:
        text: as it is written in a prompt; found by the rule of `perfusion_core.placeholder`.
        vectors: [n, w].
        owner: the concept's hash, to tell apart two concepts of one placeholder.
        title: the concept's name.
        superclass: token ids of the superclass word, for the global key lock; empty for none.
        ids: token ids that it is, where a tokenizer gives ids alone; then it has no vectors.
    """

    text: str
    vectors: Tensor
    owner: str = ""
    title: str = ""
    superclass: tuple[int, ...] = ()
    ids: tuple[int, ...] = ()

    @cached_property
    def rows(self) -> tuple[Tensor | MarkedId, ...]:
        """The vectors, or the marked ids, one by one, as they stand among a prompt's tokens."""
        if self.ids:
            return tuple(MarkedId(token, self, row) for row, token in enumerate(self.ids))
        return tuple(self.vectors)

    def stand_in(self, row: int) -> int:
        """The superclass's token for one of `rows`, aligned from the end, where the noun is.

        A superclass of fewer tokens than vectors repeats its first; one of more loses its first.
        """
        return self.superclass[max(0, len(self.superclass) - len(self.rows) + row)]


class MarkedId(int):
    """A token id that stands for one of the rows of a word; to ComfyUI it is that number.

    Attributes:
        word, row: which.
    """

    word: Word
    row: int

    def __new__(cls, token: int, word: Word, row: int) -> MarkedId:
        marked = super().__new__(cls, token)
        marked.word, marked.row = word, row
        return marked

    def __deepcopy__(self, memo: object) -> MarkedId:
        return self  # so that a copy of a prompt's tokens has the same word

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)  # what is saved is the id


def is_vector(token: Any) -> bool:
    """Whether a token is a vector [w], of a placeholder or of an `embedding:`, and no id."""
    return torch.is_tensor(token) and token.dim() == 1 and token.is_floating_point()


class KnownVectors:
    """Finds the vectors of words among tokens, by their numbers in float32."""

    def __init__(self, words: Iterable[Word]) -> None:
        self.words = tuple(words)

    @cached_property
    def _by_numbers(self) -> dict[bytes, list[Found]]:
        places: dict[bytes, list[Found]] = {}
        for word in self.words:
            for number, row in enumerate(word.vectors):
                places.setdefault(_numbers(row), []).append((word, number))
        return places

    def find(self, tokens: Iterable[Any]) -> list[Found | None]:
        """For each token the word and row whose vector it is; None for ids and for embeddings.

        Tokens that may be several rows (a word of equal vectors) are read as the word from its
        first row on, across ids between them: the end of a chunk may lie within a word.
        """
        listed = list(tokens)
        candidates = [
            self._by_numbers.get(_numbers(token), []) if self.words and is_vector(token) else None
            for token in listed
        ]
        found: list[Found | None] = []
        before: Found | None = None
        for token, options in zip(listed, candidates, strict=True):
            if options is None:  # an id
                found.append(self._marked(token))
                continue
            chosen = _next_row(before, options) or next(iter(options), None)
            found.append(chosen)
            before = chosen
        return found

    def _marked(self, token: Any) -> Found | None:
        known = isinstance(token, MarkedId) and token.word in self.words
        return (token.word, token.row) if known else None


def _next_row(before: Found | None, options: Sequence[Found]) -> Found | None:
    """The row that follows on `before`, if it is among `options`."""
    if before is None:
        return None
    word, number = before
    return next((one for one in options if one[0] is word and one[1] == number + 1), None)


def _numbers(vector: Tensor) -> bytes:
    numbers: bytes = vector.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
    return numbers
