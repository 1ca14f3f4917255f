"""Every token's similarity and gate, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw
from torch import Tensor

from ..limits import MAX_BARS, MAX_TABLED
from ..method.settings import ConceptSettings
from .plots import to_tensor

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
        """One line a token, its columns apart by tabs: similarity and gate of each concept.

        Of the first `MAX_TABLED` tokens; a last line says how many more there are.
        """
        heads = [f"{name} {what}" for name in self.names for what in ("similarity", "gate")]
        lines = ["\t".join(["token", *heads])]
        shown = slice(MAX_TABLED)
        for word, row, gates in zip(
            self.words[shown],
            self.similarities[shown].tolist(),
            self.gates[shown].tolist(),
            strict=True,
        ):
            pairs = [f"{v:.3f}" for pair in zip(row, gates, strict=True) for v in pair]
            lines.append("\t".join([word, *pairs]))
        if len(self.words) > MAX_TABLED:
            left_out = len(self.words) - MAX_TABLED
            lines.append(f"... and {left_out} more tokens; at most {MAX_TABLED} are listed")
        return "\n".join(lines)

    def _drawn(self) -> list[int]:
        """Which tokens the picture has room for, in order: those that open a gate the furthest."""
        room = max(1, MAX_BARS // len(self.names))
        if len(self.words) <= room:
            return list(range(len(self.words)))
        widest: list[int] = self.gates.nan_to_num().amax(dim=1).topk(room).indices.tolist()
        return sorted(widest)

    def picture(self) -> Tensor:
        """A picture [1, H, W, 3]: for each token a bar of its gate and a mark at its similarity.

        It has room for `MAX_BARS` bars; of a longer prompt it shows the tokens that open a gate the
        furthest, and says so.
        """
        count = len(self.names)
        drawn = self._drawn()
        row = _ROW * count + 6
        head = _PAD + 18 * (count + 1)
        size = (_LABEL + _BAR + _NUMBERS + 2 * _PAD, head + row * len(drawn) + _PAD + 16)
        image = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(image)
        left = _PAD + _LABEL

        def x_of(similarity: float) -> float:
            inside = min(max(similarity, _LOW), _HIGH)
            return left + _BAR * (inside - _LOW) / (_HIGH - _LOW)

        told = "bar: gate, 0 to 1; mark: similarity; line: bias"
        if len(drawn) < len(self.words):
            told += f"; the {len(drawn)} of {len(self.words)} tokens with the widest gates"
        draw.text((_PAD, _PAD), told, fill=_FAINT)
        for j, (name, given) in enumerate(zip(self.names, self.settings, strict=True)):
            told = f"{name}: bias {given.bias:g}, temperature {given.temperature:g}"
            draw.text((_PAD, _PAD + 18 * (j + 1)), told, fill=COLOURS[j % len(COLOURS)])
        for place, n in enumerate(drawn):
            top = head + place * row
            draw.text((left - 8, top + row / 2 - 3), self.words[n][:18], fill=_INK, anchor="rm")
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
        bottom = head + row * len(drawn) + 2
        for tick in (0.0, 0.5, 1.0):
            draw.text((x_of(tick), bottom), f"s {tick:g}", fill=_FAINT, anchor="ma")
        return to_tensor(image)
