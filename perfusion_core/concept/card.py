"""What a concept says of itself, in lines and as a card to look at."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from ..draw.gate_table import COLOURS
from ..draw.plots import to_tensor
from ..families import FAMILIES, in_order
from ..limits import MAX_PREVIEW_SIDE
from .concept import Concept

_WIDTH, _PAD, _PREVIEW, _LABEL = 600, 16, 144, 180
_LINE, _SIZE, _CHARACTERS = 18, 13, 52
_MAX_LINES = 40  # of one entry: a file's notes may be of any length
_INK, _FAINT, _EMPTY = "#202020", "#707070", "#ECECEC"


def describe(concept: Concept) -> str:
    """A concept in lines of "entry: value"; what is not known is left out."""
    entries = {
        **_summary(concept),
        **{f"training {key}": value for key, value in _training(concept).items()},
        "author": concept.author,
        "licence": concept.licence,
        "covariance": concept.covariance_fingerprint[:16],
        "hash": concept.hash[:16],
    }
    layers = in_order(concept.layers)
    entries |= {f"layer {n}": path for n, path in enumerate(layers, start=1)}
    return "\n".join(f"{key}: {value}" for key, value in entries.items() if value != "")


def card(concept: Concept) -> Tensor:
    """A concept as a card [1, H, W, 3]: its preview, what it is, how to use it, how it was made.

    Layers are named by their group and numbers, as Perfusion Tune takes them.
    """
    family = FAMILIES[concept.family]
    layers = in_order(concept.layers)
    groups = family.groups(layers)
    called = dict(zip(("down", "middle", "up"), family.group_names, strict=True))
    numbers: dict[str, list[int]] = {}
    for number, path in enumerate(layers, start=1):
        numbers.setdefault(called.get(groups[path], ""), []).append(number)
    summary = _summary(concept)
    for entry in ("name", "placeholder", "superclass"):
        del summary[entry]
    rows = [
        *summary.items(),
        *((f"layers {name}", _ranges(found)) for name, found in numbers.items()),
        ("training", ", ".join(f"{key} {value}" for key, value in _training(concept).items())),
        ("author", concept.author),
        ("licence", concept.licence),
        ("covariance", concept.covariance_fingerprint[:32]),
        ("hash", concept.hash[:32]),
    ]
    lines = [
        (name if n == 0 else "", line)
        for name, value in rows
        if value
        for n, line in enumerate(textwrap.wrap(value, _CHARACTERS, max_lines=_MAX_LINES))
    ]
    top = 2 * _PAD + _PREVIEW
    image = Image.new("RGB", (_WIDTH, top + _LINE * len(lines) + _PAD), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle([(0, 0), (_WIDTH, 5)], fill=COLOURS[0])
    _paste_preview(image, draw, concept.preview)
    left = 2 * _PAD + _PREVIEW
    draw.text((left, _PAD + 12), concept.name[:28], fill=_INK, font_size=24)
    draw.text((left, _PAD + 52), f"write  {concept.placeholder}", fill=COLOURS[0], font_size=18)
    draw.text((left, _PAD + 82), f"for a  {concept.superclass}", fill=_INK, font_size=18)
    for n, (name, line) in enumerate(lines):
        y = top + _LINE * n
        draw.text((_PAD, y), name, fill=_FAINT, font_size=_SIZE)
        draw.text((_PAD + _LABEL, y), line, fill=_INK, font_size=_SIZE)
    return to_tensor(image)


def _summary(concept: Concept) -> dict[str, str]:
    numbers = sum(tensor.numel() for tensor in concept.tensors().values())
    return {
        "name": concept.name,
        "placeholder": concept.placeholder,
        "superclass": concept.superclass,
        "family": f"{FAMILIES[concept.family].title} (text width {concept.width})",
        "recommended bias": f"{concept.bias:g}",
        "recommended temperature": f"{concept.temperature:g}",
        "vectors": str(concept.vectors),
        "layers": str(len(concept.values)),
        "numbers": str(numbers),
    }


def _training(concept: Concept) -> dict[str, str]:
    return {
        key: f"{value:.4g}" if isinstance(value, float) else str(value)
        for key, value in concept.training.items()
    }


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in short: 1-6, 8."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)


def _paste_preview(card: Image.Image, draw: ImageDraw.ImageDraw, preview: bytes | None) -> None:
    left, top, right, bottom = _PAD, _PAD, _PAD + _PREVIEW, _PAD + _PREVIEW
    draw.rectangle([(left, top), (right, bottom)], fill=_EMPTY)
    picture = None if preview is None else _decoded(preview)
    if picture is None:
        told = "no preview" if preview is None else "broken preview"
        centre = ((left + right) / 2, (top + bottom) / 2)
        draw.text(centre, told, fill=_FAINT, anchor="mm", font_size=_SIZE)
        return
    shown = ImageOps.contain(picture, (_PREVIEW, _PREVIEW))
    card.paste(shown, (left + (_PREVIEW - shown.width) // 2, top + (_PREVIEW - shown.height) // 2))


def preview_kind(preview: bytes) -> str | None:
    """The media type of a picture that may be shown, or None; only its header is read."""
    picture = _opened(preview)
    return None if picture is None else f"image/{str(picture.format).lower()}"


def _decoded(preview: bytes) -> Image.Image | None:
    """The picture; None for what is none, or is far too large: it may be anybody's file."""
    picture = _opened(preview)
    try:
        return None if picture is None else picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _opened(preview: bytes) -> Image.Image | None:
    """A picture that is not decoded yet, if it is of a kind and size that a concept may hold.

    Of Pillow's formats only three: for some it starts other programs.
    """
    try:
        picture = Image.open(io.BytesIO(preview), formats=("PNG", "JPEG", "WEBP"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return picture if max(picture.size) <= MAX_PREVIEW_SIDE else None
