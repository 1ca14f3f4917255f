"""Textual inversion (arXiv 2208.01618): the placeholder's embedding alone is learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from perfusion_core.comfy.backbone import training_backbone
from perfusion_core.method.batches import PictureGroup, batches

from ..local_comfyui import LocalComfyUI
from ..methods import Method, Pair
from ..recipe import BATCH, SEED, STEPS
from ..subjects import Subject
from .common import Words, denoising_loss, knowing, load, save, tuned


@dataclass(frozen=True)
class TextualInversion(Method):
    """Knob: `strength`, from the superclass's embedding (0) to the learned one (1) and beyond."""

    title = "textual inversion"

    # A step costs about what one of ours does; this one gets half as many again.
    steps: int = STEPS * 3 // 2
    rate: float = tuned("TextualInversion")

    def train(self, comfyui: LocalComfyUI, subject: Subject, file: Path) -> None:
        words = learn_word(
            comfyui.model,
            comfyui.clip,
            subject.groups(comfyui),
            subject.placeholder,
            subject.superclass,
            steps=self.steps,
            size=BATCH,
            rate=self.rate,
        )
        save(file, words, {})

    def apply(
        self,
        comfyui: LocalComfyUI,
        learned: Sequence[tuple[Subject, Path]],
        prompts: Sequence[str],
        strength: float = 1.0,
    ) -> Pair:
        known = []
        for subject, file in learned:
            words, _ = load(file)
            start = superclass_word(comfyui, subject)
            blend = {name: start[name].lerp(word, strength) for name, word in words.items()}
            known.append((subject, blend))
        return comfyui.model, knowing(comfyui.clip, known)


def superclass_word(comfyui: LocalComfyUI, subject: Subject) -> dict[str, torch.Tensor]:
    """The superclass's own embeddings."""
    with training_backbone(comfyui.model, comfyui.clip, (1, 5, 16, 16)) as backbone:
        found = backbone.superclass_embeddings(subject.superclass)
    return {name: vectors.detach().cpu().float() for name, vectors in found.items()}


def learn_word(
    model: Any,
    clip: Any,
    groups: Sequence[PictureGroup],
    placeholder: str,
    superclass: str,
    *,
    steps: int,
    size: int,
    rate: float,
    on_step: Callable[[], None] = lambda: None,
) -> Words:
    """The placeholder's embeddings, learned from the superclass's on.

    Args:
        size: pictures a step.
        on_step: called after each step.
    """
    with training_backbone(model, clip, (size, *groups[0].latents.shape[1:])) as backbone:
        words = {
            name: vectors.to(backbone.device, copy=True).requires_grad_()
            for name, vectors in backbone.superclass_embeddings(superclass).items()
        }
        optimizer = torch.optim.Adam(words.values(), lr=rate)
        for batch in islice(batches(groups, placeholder, superclass, size, SEED), steps):
            encoded = backbone.encode(batch.prompts, placeholder, words)
            errors = denoising_loss(model.model, batch, encoded.context, backbone.device)
            optimizer.zero_grad(set_to_none=True)
            errors.mean().backward()
            optimizer.step()
            on_step()
        return {name: vectors.detach() for name, vectors in words.items()}
