"""A whole sampling step of a whole UNet, with concepts and without."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import comfy.model_management
import comfy.sample
import torch
from true_models import CPU, random_concept, true_model

from perfusion_core.comfy.concept_entry import ConceptEntry
from perfusion_core.comfy.models import detect_family, layers_of
from perfusion_core.comfy.stack import apply_stack
from perfusion_core.method.settings import ConceptSettings

from .measure import Result, in_turn

STEPS = 3  # of each sampling; the first one waits for what goes before it and is not counted


class Sampling:
    """A model of random weights, its conditioning, and concepts for it."""

    def __init__(self, name: str, concepts: int) -> None:
        self.model = true_model(name, CPU)
        family = detect_family(self.model)
        outs = {path: layer.out for path, layer in layers_of(self.model, family).items()}
        self.concepts = [random_concept(family, outs, f"word{j}*", seed=j) for j in range(concepts)]
        pooled = {"pooled_output": torch.randn(1, 1280)}
        prompts = torch.randn(2, 1, 77, family.context_width)
        prompts[0, 0, 5] = self.concepts[0].target_input
        self.positive, self.negative = ([[prompt, dict(pooled)]] for prompt in prompts)

    def carrying(self, concepts: int) -> Any:
        """The model with so many concepts on it."""
        entries = [ConceptEntry(c, ConceptSettings()) for c in self.concepts[:concepts]]
        return apply_stack(self.model, entries)

    def steps(self, model: Any, size: int) -> list[float]:
        """Seconds of each step at `size` pixels, cond and uncond in one batch."""
        latent = torch.zeros(1, 4, size // 8, size // 8)
        ends: list[float] = []

        def note(step: int, denoised: Any, x: Any, total: int) -> None:
            ends.append(time.perf_counter())

        with torch.inference_mode():
            comfy.sample.sample(
                model,
                torch.randn_like(latent),
                STEPS,
                4.0,
                "euler",
                "normal",
                self.positive,
                self.negative,
                latent,
                callback=note,
                disable_pbar=True,
                seed=1,
            )
        return [after - before for before, after in pairwise(ends)]


def measure(
    name: str, called: str, sizes: Sequence[int], counts: Sequence[int], runs: int
) -> Iterator[Result]:
    """A model's step with 1 concept (and more), against the same without.

    Args:
        name: of ComfyUI's config class.
        called: what the figures are called, with "{size}" for the size.
        sizes: of the picture, in pixels.
        counts: how many concepts.
    """
    sampling = Sampling(name, max(counts))
    for size in sizes:
        models = {"stock": sampling.model, **{str(n): sampling.carrying(n) for n in counts}}
        found = in_turn(
            {key: partial(sampling.steps, model, size) for key, model in models.items()}, runs
        )
        for count in counts:
            yield Result(
                called.format(size=size) + ("" if count == 1 else f"_{count}"),
                f"{name} at true size, {size} px, fp32, CFG, {count} concepts",
                1000 * found[str(count)],
                1000 * found["stock"],
                "the step without concepts",
                runs=runs * (STEPS - 1),
            )
    # Gigabytes, before the next model comes.
    del sampling, models
    comfy.model_management.unload_all_models()
    gc.collect()
