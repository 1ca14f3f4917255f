"""How one concept is applied to a model: everything a user can turn after training."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from ..concept.safetensors_file import shortened
from ..limits import MAX_FIELD


class KeyLock(str, Enum):
    """Where the locked keys come from (arXiv 2305.01644, section 4.2 and Appendix B).

    LOCAL: the concept's word gets the keys of its superclass word.
    GLOBAL: the whole prompt gets the keys of the same prompt with the superclass word in the
        concept's place. Freer scenes, a little less like the pictures.
    """

    LOCAL = "local"
    GLOBAL = "global"


GROUPS = ("down", "middle", "up")
MAX_STRENGTH = 2.0

# What a slider can be set to: a wider choice than is useful, so that its effect can be seen.
SLIDER_RANGES = MappingProxyType(
    {"bias": (-1.0, 2.0), "temperature": (0.01, 1.0), "strength": (0.0, MAX_STRENGTH)}
)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name} is {value}; it must be between {low:g} and {high:g}")


@dataclass(frozen=True)
class LayerWeights:
    """What a concept's strength is multiplied by, layer by layer.

    Attributes:
        down, middle, up: for the layers on the way down, in the middle, and on the way up.
        single: path of a layer -> its own weight, in place of its group's.

    Weights are between 0 (the layer is as without the concept) and 2.
    """

    down: float = 1.0
    middle: float = 1.0
    up: float = 1.0
    single: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "single", MappingProxyType(dict(self.single)))
        named = {f'the layer weight "{group}"': getattr(self, group) for group in GROUPS}
        named |= {f"the weight of layer {path}": weight for path, weight in self.single.items()}
        for name, weight in named.items():
            _check_range(name, weight, 0.0, MAX_STRENGTH)

    def of(self, path: str, group: str) -> float:
        """The weight of the layer at `path`, which is in `group`."""
        weight: float = self.single.get(path, getattr(self, group))
        return weight

    def __hash__(self) -> int:
        return hash((self.down, self.middle, self.up, tuple(sorted(self.single.items()))))


@dataclass(frozen=True)
class ConceptSettings:
    """How one concept is applied: the sliders.

    Attributes:
        bias: similarity at which the gate is half open. Higher weakens the concept.
        temperature: softness of the gate, > 0.
        strength: 0 is the model without the concept, 1 the whole edit, up to 2 beyond it.
        start, end: the part of the sampling schedule in which the concept acts, as fractions of
            ComfyUI's percent (0 is all noise, 1 the finished picture).
        layers: weights of the strength, layer by layer.
        key_lock: where the locked keys come from.
    """

    bias: float = 0.6
    temperature: float = 0.15
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    layers: LayerWeights = LayerWeights()
    key_lock: KeyLock = KeyLock.LOCAL

    def __post_init__(self) -> None:
        for name in ("bias", "temperature"):
            value = getattr(self, name)
            if not math.isfinite(value):
                raise ValueError(f"the {name} is {value}; it must be a finite number")
        if self.temperature <= 0:
            raise ValueError(
                f"the temperature is {self.temperature}; it must be above 0 (0.15 is usual)"
            )
        _check_range("the strength", self.strength, 0.0, MAX_STRENGTH)
        _check_range("the start", self.start, 0.0, 1.0)
        _check_range("the end", self.end, 0.0, 1.0)
        if self.start > self.end:
            raise ValueError(
                f"the concept would start at {self.start:g} of the schedule and end before, at "
                f"{self.end:g}: set the start below the end"
            )


_ENTRY = re.compile(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?[:=]\s*([0-9.]+)\s*")


def parse_layer_weights(text: str, paths: Sequence[str]) -> dict[str, float]:
    """Weights of single layers as a user writes them: "1-4: 0.5, 9: 0".

    Args:
        text: layers by number, counted from 1 in the model's order, or ranges of them, each with
            its weight; separated by commas or lines.
        paths: the model's layers in order.

    Returns path -> weight. Raises ValueError that names the part that cannot be read.
    """
    if len(text) > MAX_FIELD:
        raise ValueError(
            f"the layer weights have {len(text)} letters; at most {MAX_FIELD} are read: write "
            'ranges, such as "1-4: 0.5"'
        )
    weights: dict[str, float] = {}
    for part in re.split(r"[,;\n]", text):
        if not part.strip():
            continue
        found, shown = _ENTRY.fullmatch(part), shortened(part.strip())
        try:
            weight = float(found[3]) if found else math.nan
        except ValueError:
            weight = math.nan
        if found is None or math.isnan(weight):
            raise ValueError(
                f'the layer weight "{shown}" cannot be read: write the layer\'s number and '
                'its weight, such as "9: 0.5", or a range, such as "1-4: 0"'
            )
        first, last = int(found[1]), int(found[2] or found[1])
        if not 1 <= first <= last <= len(paths):
            raise ValueError(
                f'the layer weight "{shown}" names a layer that the model does not have: '
                f"its layers are 1 to {len(paths)}, from {paths[0]} to {paths[-1]}"
            )
        _check_range(f'the weight in "{part.strip()}"', weight, 0.0, MAX_STRENGTH)
        weights |= {paths[number - 1]: weight for number in range(first, last + 1)}
    return weights
