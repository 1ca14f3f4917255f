"""The paper's ablations: what is varied, and which direction the paper reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from perfusion_core.settings import KeyLock

Figures = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Variant:
    """One way of training and using a concept.

    Attributes:
        training: changes of `TrainingSettings`.
        use: changes of `ConceptSettings`.
        pictures: how many training pictures; 0 for all.
        masked: whether the loss is weighted by where the concept is.
    """

    training: Mapping[str, Any] = field(default_factory=dict)
    use: Mapping[str, Any] = field(default_factory=dict)
    pictures: int = 0
    masked: bool = False


@dataclass(frozen=True)
class Ablation:
    """Variants to compare, and what the paper says of them.

    Attributes:
        claim: the paper's direction in words.
        holds: whether the measured figures (variant -> `Point.as_dict`) agree.
    """

    name: str
    variants: Mapping[str, Variant]
    claim: str
    holds: Callable[[Figures], bool]


def _front(figure: Mapping[str, Any]) -> float:
    return float(figure["identity"]) * float(figure["text_alignment"])


def _values(figures: Figures, key: str) -> list[float]:
    return [float(figure[key]) for figure in figures.values()]


def _falls(values: Sequence[float]) -> bool:
    return values[-1] < values[0]


BIASES = (0.2, 0.4, 0.6, 0.75, 0.9)

ABLATIONS = (
    Ablation(
        "bias",
        {f"bias {b:g}": Variant(use={"bias": b}) for b in BIASES},
        "a higher bias weakens the concept and follows the text more",
        lambda f: _falls(_values(f, "identity")) and not _falls(_values(f, "text_alignment")),
    ),
    Ablation(
        "temperature",
        {f"temperature {t:g}": Variant(use={"temperature": t}) for t in (0.05, 0.1, 0.15, 0.3)},
        "an inference temperature above that of training (0.15 against 0.1) is better",
        lambda f: _front(f["temperature 0.15"]) >= _front(f["temperature 0.1"]),
    ),
    Ablation(
        "training bias",
        {f"training bias {b:g}": Variant(training={"bias": b}) for b in (0.25, 0.5, 0.75)},
        "a higher training bias gives a better front",
        lambda f: _front(f["training bias 0.75"]) >= _front(f["training bias 0.25"]),
    ),
    Ablation(
        "mask",
        {"no mask": Variant(), "mask": Variant(masked=True)},
        "a mask helps text alignment",
        lambda f: f["mask"]["text_alignment"] >= f["no mask"]["text_alignment"],
    ),
    Ablation(
        "pictures",
        {"one picture": Variant(pictures=1), "all pictures": Variant()},
        "one training picture overfits slightly",
        lambda f: _front(f["all pictures"]) >= _front(f["one picture"]),
    ),
    Ablation(
        "key lock",
        {
            "local, bias 0.6": Variant(use={"bias": 0.6}),
            "global, bias 0.5": Variant(use={"bias": 0.5, "key_lock": KeyLock.GLOBAL}),
        },
        "the global lock follows the text more than the local one",
        lambda f: f["global, bias 0.5"]["text_alignment"] >= f["local, bias 0.6"]["text_alignment"],
    ),
)
