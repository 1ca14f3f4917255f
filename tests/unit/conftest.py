"""What the unit tests share: one thread, and concepts to work with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from perfusion_core.concept.concept import Concept
from perfusion_core.families import FAMILIES


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """These tensors are small: more threads cost more than they give."""
    torch.set_num_threads(1)


@pytest.fixture
def make_concept() -> Callable[..., Concept]:
    """A function that makes a random concept of a family; keywords replace fields."""

    def make(base: str = "emoji", seed: int = 0, **fields: Any) -> Concept:
        generator = torch.Generator().manual_seed(seed)
        known = FAMILIES[base]

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        target_input = random(known.context_width).half()
        layers = {f"input_blocks.{n}.1.transformer_blocks.0.attn2": 32 * (n + 1) for n in range(3)}
        given: dict[str, Any] = {
            "name": "Berry",
            "family": base,
            "placeholder": "berry*",
            "superclass": "teddy",
            "embeddings": {key: random(2, width) for key, width in known.encoders.items()},
            "target_input": target_input,
            "whitened_target": target_input.float() * 0.5,
            "superclass_encoding": random(known.context_width),
            "values": {path: random(out) for path, out in layers.items()},
            "bias": 0.55,
            "temperature": 0.125,
            "covariance_fingerprint": "c0ffee",
            "training": {"steps": 200, "images": 5, "masked": False, "loss": 0.25},
            "author": "Ada",
            "licence": "CC0-1.0",
            "preview": b"\x89PNG\r\n\x1a\n not really",
        }
        return Concept(**{**given, **fields})

    return make
