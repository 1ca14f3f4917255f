"""Which words can name a concept: what is refused when one is chosen, and why."""

from __future__ import annotations

import re
import unicodedata
from functools import cache

from ..families.captions import ordinary_words
from ..method.templates import templates_for, validation_prompts
from .placeholder import UNSEEN, fold

MAX_LETTERS = 100  # of a word

# A placeholder is one word of a prompt. Whitespace ends a word; the rest has a meaning in ComfyUI's
# prompt syntax: weights, escapes, `embedding:name`, lists and alternatives.
_ONE_WORD = re.compile(r"[^\s():,\\\[\]{}|]+")

# Words of every other prompt that are in none of our texts.
_STOP_WORDS = (
    "am are as at be been being by but can do does down for from had has have he her him his "
    "how i if into is it its me more most my no not of off on one or our out over she so some "
    "such than that their them then there these they this those through to two under up us "
    "very was we were what when where which who will with without you your break embedding "
)


def unreadable(placeholder: str, superclass: str) -> str:
    """Why no prompt can hold the two words, in a file or anywhere; "" when one can."""
    for what, word in (("placeholder", placeholder), ("superclass", superclass)):
        if len(word) > MAX_LETTERS:
            return (
                f'the {what} "{word[:20]}..." has {len(word)} letters; at most {MAX_LETTERS} fit: '
                'use a short word, such as "teddy"'
            )
        if not word.isprintable():
            return (
                f"the {what} {word!a} holds a letter that cannot be seen (a line break, a "
                "zero-width or a control character): type it anew"
            )
    if not _ONE_WORD.fullmatch(placeholder):
        return (
            f'the placeholder "{placeholder}" cannot be used in a prompt: it must be one word '
            'without spaces, commas, colons, brackets or backslashes, such as "teddy*"'
        )
    if not superclass.strip():
        return (
            'the superclass is empty: name what the concept is in an ordinary word, such as "teddy"'
        )
    return ""


def unwise(placeholder: str) -> str:
    """Why a placeholder that can be read would not work all the same; "" when it would.

    For words that are being chosen: concept files that have such a word keep loading.
    """
    word = fold(placeholder)
    if not word or any(_is_blank(letter) for letter in placeholder):
        return (
            f"the placeholder {placeholder!a} holds a letter that cannot be seen (a blank that "
            "counts as a letter): type it anew"
        )
    if unicodedata.category(word[0])[0] == "M":
        return (
            f'the placeholder "{placeholder}" begins with a mark that belongs to the letter before '
            'it: begin with a letter, as in "teddy*"'
        )
    if "//" in placeholder or "/*" in placeholder:
        return (
            f'the placeholder "{placeholder}" holds // or /*, which begins a comment in a prompt: '
            "ComfyUI's page removes it before the text encoder sees it. Use a word without it, "
            'such as "teddy*"'
        )
    if word in _ordinary():
        return (
            f'the placeholder "{placeholder}" is an ordinary word, which prompts and training '
            "captions use for itself: every one of them would become the concept. Make it a word "
            f'that means nothing else, such as "{placeholder}*"'
        )
    if word.isascii() and (len(word) == 1 or word.isdigit() or not re.search(r"[a-z0-9]", word)):
        return (
            f'the placeholder "{placeholder}" is a single sign or a number, which prompts use for '
            'itself. Use a word that means nothing else, such as "teddy*"'
        )
    return ""


def _is_blank(letter: str) -> bool:
    # A variation selector belongs to many an emoji, and counts for nothing wherever it stands.
    if unicodedata.name(letter, "").startswith("VARIATION SELECTOR"):
        return False
    return any(first <= ord(letter) <= last for first, last in UNSEEN)


@cache
def _ordinary() -> frozenset[str]:
    """The words around the placeholder in our own texts, and those of every other prompt."""
    texts = [*templates_for("x"), *templates_for("apple")]
    texts += [
        *validation_prompts("x"),
        *validation_prompts("apple"),
        *ordinary_words(),
        *_STOP_WORDS,
    ]
    return frozenset(fold(word) for text in texts for word in re.findall(r"\w+", text))
