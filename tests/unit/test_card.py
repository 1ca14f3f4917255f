"""What a concept says of itself: lines, and a card."""

from __future__ import annotations

import io
from collections.abc import Callable

import torch
from PIL import Image

from perfusion_core.concept.card import card, describe
from perfusion_core.concept.concept import Concept

MakeConcept = Callable[..., Concept]


def encoded(size: tuple[int, int], colour: str, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def test_the_lines_say_everything_and_nothing_that_is_not_known(make_concept: MakeConcept) -> None:
    concept = make_concept(licence="")
    lines = describe(concept).splitlines()
    for line in (
        "name: Berry",
        "placeholder: berry*",
        "superclass: teddy",
        "family: the emoji world of the demo (text width 192)",
        "recommended bias: 0.55",
        "recommended temperature: 0.125",
        "layers: 3",
        "training steps: 200",
        "training loss: 0.25",
        "author: Ada",
        f"hash: {concept.hash[:16]}",
        "layer 2: input_blocks.1.1.transformer_blocks.0.attn2",
    ):
        assert line in lines
    assert not [line for line in lines if line.startswith("licence")]


def test_the_card_shows_the_preview_and_changes_with_what_it_says(
    make_concept: MakeConcept,
) -> None:
    plain = card(make_concept(preview=encoded((40, 20), "red")))
    assert plain.shape[0] == 1
    assert plain.shape[3] == 3
    assert 0 <= plain.min() <= plain.max() <= 1
    red = (plain[0] == torch.tensor([1.0, 0.0, 0.0])).all(dim=-1)
    assert red.sum() == 144 * 72  # as wide as there is room, in its own shape
    other = card(make_concept(preview=encoded((40, 20), "red"), author="Bob"))
    assert not torch.equal(plain, other)


def test_a_card_without_a_usable_preview_is_a_card_all_the_same(make_concept: MakeConcept) -> None:
    none = card(make_concept(preview=None))
    broken = card(make_concept(preview=b"not a picture"))
    large = card(make_concept(preview=encoded((3000, 8), "red")))
    assert not torch.equal(none, broken)
    assert torch.equal(broken, large)
    # Of a format that no concept holds.
    assert torch.equal(broken, card(make_concept(preview=encoded((40, 20), "red", "PPM"))))
    assert not torch.equal(broken, card(make_concept(preview=encoded((40, 20), "red", "WEBP"))))


def test_notes_of_any_length_make_no_card_of_any_length(make_concept: MakeConcept) -> None:
    long = card(make_concept(training={"notes": "word " * 100_000}))
    assert long.shape[1] < 1500
