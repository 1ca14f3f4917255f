"""The contact sheet: rows of pictures with a title, and what each was asked to show."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw

CELL, GAP, TITLE, CAPTION = 128, 8, 20, 40


@dataclass
class Row:
    """Pictures under one title, each with a caption of its own if given."""

    title: str
    pictures: Sequence[Image.Image]
    captions: Sequence[str] = field(default_factory=list)


def contact_sheet(rows: Sequence[Row]) -> Image.Image:
    """All rows below each other on white."""
    heights = [TITLE + CELL + (CAPTION if row.captions else 0) + GAP for row in rows]
    width = max(len(row.pictures) for row in rows) * (CELL + GAP) + GAP
    sheet = Image.new("RGB", (width, sum(heights) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    y = GAP
    for row, height in zip(rows, heights, strict=True):
        draw.text((GAP, y), row.title, fill="black", font_size=14)
        for n, picture in enumerate(row.pictures):
            x = GAP + n * (CELL + GAP)
            sheet.paste(picture.convert("RGB").resize((CELL, CELL)), (x, y + TITLE))
            if row.captions:
                text = textwrap.fill(row.captions[n].removeprefix("a photo of "), 24)
                draw.text((x, y + TITLE + CELL + 2), text, fill="dimgray", font_size=9, spacing=1)
        y += height
    return sheet
