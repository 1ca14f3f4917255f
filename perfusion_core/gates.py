"""Every token's similarity and gate, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw
from torch import Tensor

from .plots import to_tensor
from .settings import ConceptSettings

# One colour a concept, told apart by most eyes (Okabe and Ito); then from the beginning.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A6A00", "#555555")
_INK, _FAINT, _TRACK = "#202020", "#909090", "#ECECEC"
_LABEL, _BAR, _NUMBERS, _ROW, _PAD = 120, 320, 130, 13, 10
_LOW, _HIGH = -0.25, 1.25  # the similarities that the picture has room for


@dataclass(frozen=True)
class TokenGates:
    """What concepts answer to in a prompt.

    Attributes:
        words: the prompt's T tokens.
        names: the J concepts' placeholders.
        similarities: s [T, J]; 1 at the concept's own target input.
        gates: g [T, J], 0 to 1.
        settings: of each concept.
    """

    words: Sequence[str]
    names: Sequence[str]
    similarities: Tensor
    gates: Tensor
    settings: Sequence[ConceptSettings]

    def table(self) -> str:
        """One line a token, its columns apart by tabs: similarity and gate of each concept."""
        heads = [f"{name} {what}" for name in self.names for what in ("similarity", "gate")]
        lines = ["\t".join(["token", *heads])]
        for word, row, gates in zip(
            self.words, self.similarities.tolist(), self.gates.tolist(), strict=True
        ):
            pairs = [f"{v:.3f}" for pair in zip(row, gates, strict=True) for v in pair]
            lines.append("\t".join([word, *pairs]))
        return "\n".join(lines)

    def picture(self) -> Tensor:
        """A picture [1, H, W, 3]: for each token a bar of its gate and a mark at its similarity."""
        count = len(self.names)
        row = _ROW * count + 6
        head = _PAD + 18 * (count + 1)
        size = (_LABEL + _BAR + _NUMBERS + 2 * _PAD, head + row * len(self.words) + _PAD + 16)
        image = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(image)
        left = _PAD + _LABEL

        def x_of(similarity: float) -> float:
            inside = min(max(similarity, _LOW), _HIGH)
            return left + _BAR * (inside - _LOW) / (_HIGH - _LOW)

        draw.text((_PAD, _PAD), "bar: gate, 0 to 1; mark: similarity; line: bias", fill=_FAINT)
        for j, (name, given) in enumerate(zip(self.names, self.settings, strict=True)):
            told = f"{name}: bias {given.bias:g}, temperature {given.temperature:g}"
            draw.text((_PAD, _PAD + 18 * (j + 1)), told, fill=COLOURS[j % len(COLOURS)])
        for n, word in enumerate(self.words):
            top = head + n * row
            draw.text((left - 8, top + row / 2 - 3), word[:18], fill=_INK, anchor="rm")
            for j in range(count):
                colour = COLOURS[j % len(COLOURS)]
                y, gate = top + j * _ROW, float(self.gates[n, j])
                similarity = float(self.similarities[n, j])
                draw.rectangle([left, y, left + _BAR, y + _ROW - 3], fill=_TRACK)
                draw.rectangle([left, y, left + _BAR * gate, y + _ROW - 3], fill=colour)
                bias = x_of(self.settings[j].bias)
                draw.line([(bias, y), (bias, y + _ROW - 3)], fill=_FAINT)
                mark = x_of(similarity)
                draw.line([(mark, y - 1), (mark, y + _ROW - 2)], fill=_INK, width=2)
                told = f"s {similarity:+.2f}  g {gate:.2f}"
                draw.text((left + _BAR + 8, y + _ROW / 2 - 1), told, fill=_INK, anchor="lm")
        bottom = head + row * len(self.words) + 2
        for tick in (0.0, 0.5, 1.0):
            draw.text((x_of(tick), bottom), f"s {tick:g}", fill=_FAINT, anchor="ma")
        return to_tensor(image)
