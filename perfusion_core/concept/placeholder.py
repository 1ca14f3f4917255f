"""Where a placeholder stands in a text: one rule for prompts, captions, plots and metadata.

`js/lib/placeholder.js` is the same rule for the page; `tests/placeholder_cases.json` holds both to
the same examples. The rule:

1. Letters are compared without regard to case, and composed letters equal decomposed ones, as CLIP
   reads them. Characters that nobody sees (zero-width ones, variation selectors) count for nothing.
2. A placeholder that begins or ends with a letter, a digit or "_" does not stand inside a longer
   word: "teddy" is not in "teddys", "teddy*" not in "myteddy*". Scripts that write words without
   spaces (Chinese, Japanese, Thai ...) and Korean, which joins its particles to a word, have no
   such border: "teddy*" is in "一只teddy*在沙滩上".
3. It never ends between a letter and the marks on it, and never stands in the name of an
   `embedding:`, which ComfyUI reads by itself.
4. Of several placeholders at one place the longest is meant.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

# First and last code points of scripts without spaces between words, and of Korean.
UNSPACED = (
    (0x0E00, 0x0FFF),  # Thai, Lao, Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1100, 0x11FF),  # Hangul Jamo
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19FF),  # Tai Le, New Tai Lue, Khmer symbols
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x1B00, 0x1B7F),  # Balinese
    (0x2E80, 0xA4CF),  # radicals, kana, bopomofo, Hangul Jamo, Han, Yi
    (0xA960, 0xA9FF),  # Hangul Jamo, Javanese, Myanmar
    (0xAA60, 0xAADF),  # Myanmar, Tai Viet
    (0xAC00, 0xD7FF),  # Hangul
    (0xF900, 0xFAFF),  # Han
    (0xFF66, 0xFFDC),  # half-width kana and Hangul
    (0x1AFF0, 0x1B2FF),  # kana, Nushu
    (0x20000, 0x3FFFF),  # Han
)
# What is drawn as nothing; zero-width joiners, byte order marks and the like (category Cf) as well.
UNSEEN = (
    (0x034F, 0x034F),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x2800, 0x2800),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFFA0, 0xFFA0),
    (0xE0100, 0xE01EF),
)
# Vowels and finals of a Korean syllable that is written in parts.
_SYLLABLE_PARTS = ((0x1160, 0x11FF), (0xD7B0, 0xD7FF))
_EMBEDDING = "embedding:"


@dataclass(frozen=True)
class Mention:
    """A placeholder in a text: text[start:end], and its number among those that were looked for."""

    start: int
    end: int
    number: int


class Finder:
    """Finds placeholders in texts, by the rule above.

    Args:
        words: the placeholders; empty ones are never found.
    """

    def __init__(self, words: Iterable[str]) -> None:
        folded = [(fold(word), number) for number, word in enumerate(words)]
        # The longest first; of two alike the first.
        self._words = sorted((one for one in folded if one[0]), key=lambda one: -len(one[0]))
        self._numbers = {word: number for word, number in reversed(self._words)}
        choices = "|".join(re.escape(word) for word, _ in self._words)
        self._pattern = re.compile(choices) if choices else None

    def __call__(self, text: str) -> list[Mention]:
        """Every mention in `text`, from left to right, none over another."""
        return list(self._mentions(text)) if self._pattern is not None else []

    def _mentions(self, text: str) -> Iterator[Mention]:
        assert self._pattern is not None
        read = _Read(text)
        at = 0
        while (match := self._pattern.search(read.folded, at)) is not None:
            start, end = match.span()
            if not read.is_own(start, end):  # a shorter one may be
                end = self._shorter(read, start, end - start)
            if end > start:
                number = self._numbers[read.folded[start:end]]
                yield Mention(read.source(start), read.end(end), number)
            at = max(end, start + 1)

    def _shorter(self, read: _Read, start: int, length: int) -> int:
        """Where the longest word below that length ends that stands there; `start` for none."""
        for word, _ in self._words:
            end = start + len(word)
            stands = len(word) < length and read.folded.startswith(word, start)
            if stands and read.is_own(start, end):
                return end
        return start


def mentions(text: str, word: str) -> list[Mention]:
    """Where one placeholder stands in a text."""
    return Finder([word])(text)


def not_mentioned(text: str, word: str) -> str:
    """Why a placeholder is not found in a text, or more than once: the end of a sentence on it."""
    count = len(mentions(text, word))
    if count:
        return f'has "{word}" {count} times'
    if fold(word) in fold(text):
        return f'has "{word}" only inside a longer word, not as a word of its own'
    return f'does not have the placeholder "{word}" as a word of its own'


def same_word(word: str, other: str) -> bool:
    """Whether two placeholders are one and the same in a prompt."""
    return fold(word) == fold(other)


def fold(text: str) -> str:
    """A text as it is compared: without case, decomposed, without what nobody sees."""
    return _Read(text).folded


class _Read:
    """A text as it is compared, and where each of its letters comes from."""

    def __init__(self, text: str) -> None:
        self.text = text
        if text.isascii():
            self.folded = text.lower()
            self._sources: Sequence[int] = range(len(text))
            return
        letters: list[tuple[str, int]] = []
        run: list[tuple[str, int]] = []  # marks on one letter, to be put into their usual order
        for index, character in enumerate(text):
            for letter in _folded(character):
                if unicodedata.combining(letter):
                    run.append((letter, index))
                    continue
                letters += _marks(letters, run)
                run.clear()
                letters.append((letter, index))
        letters += _marks(letters, run)
        self.folded = "".join(letter for letter, _ in letters)
        self._sources = [index for _, index in letters]

    def source(self, at: int) -> int:
        """Where in the text a letter comes from."""
        return self._sources[at]

    def end(self, at: int) -> int:
        """Where in the text the letters before one of them end, with what is unseen behind."""
        end = self._sources[at - 1] + 1
        while end < len(self.text) and not _folded(self.text[end]):
            end += 1
        return end

    def is_own(self, start: int, end: int) -> bool:
        """Whether the letters from `start` to `end` are no part of something longer."""
        sources, folded = self._sources, self.folded
        if start and sources[start] == sources[start - 1]:
            return False
        if end < len(folded):
            if sources[end] == sources[end - 1] or _is_part(folded[end]):
                return False
            if _joins(folded[end - 1], folded[end]):
                return False
        if start and _joins(folded[start - 1], folded[start]):
            return False
        return not folded.endswith(_EMBEDDING, 0, start)


def _marks(letters: list[tuple[str, int]], run: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """The marks on the last of `letters` in their usual order."""
    ordered = sorted(run, key=lambda one: unicodedata.combining(one[0]))
    # A dot on an i is no mark: so the capital of a Turkish i is one, too.
    if ordered and letters and letters[-1][0] == "i" and ordered[0][0] == "\u0307":
        del ordered[0]
    return ordered


@lru_cache(maxsize=4096)
def _folded(character: str) -> str:
    """One character as it is compared: none, one or several letters."""
    if _is_unseen(character):
        return ""
    # Both ways, because some letters have two small ones (σ, ς) and some no capital of their own.
    cases = "".join(one.upper().lower() for one in unicodedata.normalize("NFD", character))
    return unicodedata.normalize("NFD", cases)


def _is_unseen(character: str) -> bool:
    return unicodedata.category(character) == "Cf" or _within(ord(character), UNSEEN)


def _joins(letter: str, other: str) -> bool:
    """Whether two letters side by side belong to one word."""
    return all(_of_word(one) and not _within(ord(one), UNSPACED) for one in (letter, other))


def _of_word(letter: str) -> bool:
    return letter == "_" or unicodedata.category(letter)[0] in "LMN"


def _is_part(letter: str) -> bool:
    """Whether it belongs to the letter before it."""
    return unicodedata.category(letter)[0] == "M" or _within(ord(letter), _SYLLABLE_PARTS)


def _within(code: int, ranges: Sequence[tuple[int, int]]) -> bool:
    number = bisect_right(ranges, (code, 0x110000))
    return number > 0 and code <= ranges[number - 1][1]
