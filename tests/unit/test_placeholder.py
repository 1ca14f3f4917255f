"""Where a placeholder stands in a text, and which words can be one."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfusion_core.concept.concept import ConceptError, check_readable_words, check_words
from perfusion_core.concept.placeholder import UNSPACED, Finder, fold, mentions, same_word

ROOT = Path(__file__).resolve().parents[2]
CASES = json.loads((ROOT / "tests/placeholder_cases.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: ascii(case["text"]))
def test_a_placeholder_is_found_as_a_word_of_its_own(case: dict[str, Any]) -> None:
    assert len(mentions(case["text"], case["word"])) == case["mentions"]


def test_the_page_knows_the_same_scripts() -> None:
    page = (ROOT / "js/lib/placeholder.js").read_text(encoding="utf-8")
    ranges = re.search(r"UNSPACED = (\[.*?\n\]);", page, re.DOTALL)
    assert ranges is not None
    assert [tuple(one) for one in ast.literal_eval(ranges[1])] == list(UNSPACED)


@pytest.mark.parametrize("script", UNSPACED)
def test_every_script_without_spaces_is_a_border(script: tuple[int, int]) -> None:
    letters = [chr(c) for c in range(script[0], script[1] + 1) if chr(c).isalpha()]
    assert letters
    for letter in {letters[0], letters[len(letters) // 2], letters[-1]}:
        assert len(mentions(f"{letter}teddo {letter}", "teddo")) == 1


WORDS = st.text(st.characters(categories=("Ll", "Lu", "Lo", "Nd")), min_size=1, max_size=6)
TEXTS = st.text(st.sampled_from("aab*ß é\u0301İı가각一 ()_2\u200bẹ́ς"), max_size=12)


@given(TEXTS, WORDS, TEXTS)
def test_a_word_between_spaces_is_found_however_it_is_written(
    before: str, word: str, after: str
) -> None:
    for form in ("NFC", "NFD"):
        for other in (word, word.upper(), word.lower()):
            text = f"{before} {unicodedata.normalize(form, other)} {after}"
            if same_word(word, other):
                assert mentions(text, word)


@given(TEXTS, TEXTS)
def test_what_is_found_reads_as_the_word(text: str, word: str) -> None:
    found = mentions(text, word)
    for mention in found:
        assert fold(text[mention.start : mention.end]) == fold(word)
    for one, other in pairwise(found):
        assert one.end <= other.start


@given(st.sampled_from("abzÅéдΩ_7"), st.sampled_from("abzÅéдΩ_7"))
def test_a_word_inside_a_longer_word_is_never_found(left: str, right: str) -> None:
    assert not mentions(f"{left}teddo", "teddo")
    assert not mentions(f"teddo{right}", "teddo")
    assert not mentions(f"a {left}teddo{right}, here", "teddo")


def test_the_longest_placeholder_is_meant_and_a_shorter_one_where_it_is_none() -> None:
    find = Finder(["teddy*", "teddy*two", "", "on"])
    found = [(m.start, m.number) for m in find("teddy*two teddy*twofold on")]
    assert found == [(0, 1), (10, 0), (24, 3)]


@pytest.mark.parametrize(
    "word",
    [
        *("teddy*", "V*", "<teddy>", "sks", "teddo", "cat", "熊", "熊猫", "테디", "café*", "🧸"),
        *("☀️", "photo*", "a*", "İris*", "R2D2", "ohwx", "teddy*2", "teddy_1", "หมี"),
    ],
)
def test_words_of_ones_own_may_be_chosen(word: str) -> None:
    check_words(word, "teddy")


@pytest.mark.parametrize(
    ("word", "cause"),
    [
        *((word, "ordinary word") for word in ("a", "A", "photo", "Photo", "of", "the", "and")),
        *((word, "ordinary word") for word in ("with", "red", "beach", "kitchen", "an", "style")),
        *((word, "begins a comment") for word in ("//teddy*", "teddy//", "/*teddy", "t/*")),
        *((word, "single sign or a number") for word in ("*", "x", "X", "7", "2024", "<>", "--")),
        *(
            (f"ted{blank}dy", "cannot be seen")
            for blank in "\0\u200b\u200d\u2060\ufeff\u3164\u2800"
        ),
        ("\u0301teddy", "begins with a mark"),
    ],
)
def test_words_that_cannot_work_are_refused_when_they_are_chosen(word: str, cause: str) -> None:
    with pytest.raises(ConceptError, match=cause) as caught:
        check_words(word, "teddy")
    assert re.search("such as|type it anew|as in", str(caught.value))


@pytest.mark.parametrize("word", ["a", "photo", "//teddy*", "*", "7"])
def test_a_file_that_has_such_a_word_is_still_read(word: str) -> None:
    check_readable_words(word, "teddy")
