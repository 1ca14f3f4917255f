"""The contact sheet shows the steps of a training, and which was selected."""

from __future__ import annotations

from collections.abc import Callable

import torch

from perfusion_core.concept.concept import Concept
from perfusion_core.draw.contact_sheet import contact_sheet
from perfusion_core.method.settings import ConceptSettings
from perfusion_core.method.validation import Score, ValidationLook


def test_a_contact_sheet_has_a_row_a_look_and_marks_the_selected(
    make_concept: Callable[..., Concept],
) -> None:
    def look(step: int, score: Score | None) -> ValidationLook:
        pictures = torch.full((2, 40, 64, 3), step / 10)
        return ValidationLook(step, make_concept(), ConceptSettings(), pictures, score)

    looks = [look(step, Score(0.5, 0.25)) for step in (1, 2, 3)]
    sheet = contact_sheet(looks, ["a", "b"], chosen=2)
    assert sheet.shape == (1, 56 + 3 * 42, 112 + 2 * 66, 3)
    for row, step in enumerate((1, 2, 3)):
        middle = sheet[0, 56 + 42 * row + 20, 112 + 32]
        assert torch.allclose(middle, torch.full((3,), step / 10), atol=1 / 255)
    plain = contact_sheet(looks, ["a", "b"], chosen=None)
    differs = (plain != sheet).any(dim=-1)[0]
    assert bool(differs[56 + 42 : 56 + 84, :112].any())
    assert not bool(differs[56 : 56 + 42].any())
    unscored = contact_sheet([look(1, None)], ["a", "b"], chosen=None)
    assert unscored.shape == (1, 56 + 42, 112 + 2 * 66, 3)


def test_a_contact_sheet_of_nothing_says_how_to_have_one() -> None:
    assert float(contact_sheet([], [], None).std()) > 0.05
