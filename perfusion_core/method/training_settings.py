"""How to train: the settings of a training, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .batches import TrainingError
from .settings import ConceptSettings

# A prompt's chunk has room for 75 tokens, and for more of the picture than its concept.
MAX_VECTORS = 16

KEY_MODES = ("locked", "trained")


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes:
        steps: optimiser steps.
        batch_size: pictures a step.
        seed: of noise, times, and the order of pictures and templates.
        vectors: how many the placeholder takes in a prompt; 0 for as many as the superclass has
            tokens, which is what the global key lock aligns best.
        embedding_rate: Adam's rate for the placeholder's token embeddings, absolute as published.
            0: they stay the superclass's, so that each prompt is encoded once, and values alone
            are learned.
        value_rate: Adam's rate for the values, relative to the root mean square of W_V p in
            each layer, so that it means the same in every model and layer.
        bias, temperature: of the gate while training.
        ema: how much of the target input i each step keeps.
        key_mode: "locked", as published: a layer's key is W_K p. "trained": each layer learns its
            own key, from W_K p on, at `value_rate`; what the paper compares with.
    """

    steps: int = 200
    batch_size: int = 4
    seed: int = 0
    vectors: int = 0
    embedding_rate: float = 0.006
    value_rate: float = 0.03
    bias: float = 0.75
    temperature: float = 0.1
    ema: float = 0.99
    key_mode: str = "locked"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.vectors <= MAX_VECTORS:
            raise TrainingError(
                f"vectors is {self.vectors}; it must be between 0 (as the superclass) and "
                f"{MAX_VECTORS}"
            )
        for name in ("embedding_rate", "value_rate"):
            rate = getattr(self, name)
            if not (math.isfinite(rate) and rate >= 0):
                raise TrainingError(f"{name} is {rate}; it must be a number of at least 0")
        if not 0 <= self.ema < 1:
            raise TrainingError(f"ema is {self.ema}; it must be at least 0 and below 1")
        if self.key_mode not in KEY_MODES:
            raise TrainingError(
                f'key_mode is "{self.key_mode}"; it must be one of {", ".join(KEY_MODES)}'
            )
        _ = self.gate

    @property
    def gate(self) -> ConceptSettings:
        """The gate while training."""
        return ConceptSettings(self.bias, self.temperature)
