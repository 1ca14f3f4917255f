"""The validation pictures of a training, as one picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..method.validation import ValidationLook
from .plots import labelled_grid, to_tensor

_WIDTH, _INK = 640, (64, 64, 64)  # of the note in its place


def contact_sheet(
    looks: Sequence[ValidationLook], prompts: Sequence[str], chosen: int | None
) -> Tensor:
    """The validation pictures of a training, a row a step, as one picture [1, H, W, 3].

    Args:
        prompts: of the columns.
        chosen: the step that was selected, which is marked; None for none.
    """
    if not looks:
        return _note("No validation pictures: set preview_every to have some.")
    rows = []
    for look in looks:
        mark = " *" if look.step == chosen else ""
        figures = (
            "" if look.score is None else f"\n{look.score.identity:.3f}, {look.score.text:.3f}"
        )
        rows.append(f"step {look.step}{mark}{figures}")
    title = "validation"
    if any(look.score is not None for look in looks):
        title += ": identity, text" + ("" if chosen is None else "; * selected")
    return labelled_grid(torch.cat([look.pictures for look in looks]), prompts, rows, title)


def _note(text: str) -> Tensor:
    image = Image.new("RGB", (_WIDTH, 64), "white")
    ImageDraw.Draw(image).text((_WIDTH / 2, 32), text, fill=_INK, font_size=18, anchor="mm")
    return to_tensor(image)
