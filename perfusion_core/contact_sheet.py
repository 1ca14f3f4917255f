"""The validation pictures of a training, as one picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .plots import labelled_grid, to_tensor
from .selection import ValidationLook

# As many as a person looks through. A validation at every step of a long training has thousands,
# and a picture of them all would take gigabytes.
MAX_ROWS = 32

_WIDTH, _INK = 640, (64, 64, 64)  # of the note in its place


def contact_sheet(
    looks: Sequence[ValidationLook], prompts: Sequence[str], chosen: int | None
) -> Tensor:
    """The validation pictures of a training, a row a step, as one picture [1, H, W, 3].

    Of more than MAX_ROWS steps that many are shown, evenly spread from the first to the last, and
    the selected one in place of its nearest.

    Args:
        prompts: of the columns.
        chosen: the step that was selected, which is marked; None for none.
    """
    if not looks:
        return _note("No validation pictures: set preview_every to have some.")
    rows = []
    shown = _spread(looks, chosen)
    for look in shown:
        mark = " *" if look.step == chosen else ""
        figures = (
            "" if look.score is None else f"\n{look.score.identity:.3f}, {look.score.text:.3f}"
        )
        rows.append(f"step {look.step}{mark}{figures}")
    title = "validation"
    if len(shown) < len(looks):
        title += f" ({len(shown)} of {len(looks)} steps)"
    if any(look.score is not None for look in shown):
        title += ": identity, text" + ("" if chosen is None else "; * selected")
    return labelled_grid(torch.cat([look.pictures for look in shown]), prompts, rows, title)


def _spread(looks: Sequence[ValidationLook], chosen: int | None) -> list[ValidationLook]:
    if len(looks) <= MAX_ROWS:
        return list(looks)
    last = len(looks) - 1
    shown = [looks[round(n * last / (MAX_ROWS - 1))] for n in range(MAX_ROWS)]
    selected = next((look for look in looks if look.step == chosen), None)
    if selected is not None:
        distances = [abs(look.step - selected.step) for look in shown]
        shown[distances.index(min(distances))] = selected
    return shown


def _note(text: str) -> Tensor:
    image = Image.new("RGB", (_WIDTH, 64), "white")
    ImageDraw.Draw(image).text((_WIDTH / 2, 32), text, fill=_INK, font_size=18, anchor="mm")
    return to_tensor(image)
