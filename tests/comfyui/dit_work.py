"""What the tests of transformers do with a small one: train a concept, sample with it."""

from __future__ import annotations

from typing import Any

import nodes
import torch
from tiny_dits import tiny_dit

from perfusion_core.comfy.backbone import training_backbone
from perfusion_core.comfy.models import detect_family
from perfusion_core.concept.concept import Concept
from perfusion_core.method.batches import PictureGroup
from perfusion_core.method.covariance import Covariance
from perfusion_core.method.training import train
from perfusion_core.method.training_settings import TrainingSettings

PROMPT = "a photo of a teddy* on a blue background"


def shape_of(model: Any, pictures: int = 1, frames: int = 1) -> tuple[int, ...]:
    """Of latents of a small MODEL, for some pictures or videos."""
    return tiny_dit(detect_family(model)).shape(pictures, frames)


def latents(model: Any) -> torch.Tensor:
    """Clean latents of two pictures."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(shape_of(model, 2), generator=generator)


def learned(model: Any, clip: Any, checkpointing: str = "off", **settings: Any) -> Concept:
    """A "teddy*" of three steps on two pictures."""
    family = detect_family(model)
    wanted = TrainingSettings(**{"steps": 3, "batch_size": 2, "value_rate": 0.5, **settings})
    once = not wanted.embedding_rate
    with (
        torch.inference_mode(),
        training_backbone(model, clip, shape_of(model, 2), checkpointing, once=once) as backbone,
    ):
        return train(
            backbone,
            [PictureGroup(latents(model))],
            placeholder="teddy*",
            superclass="teddy",
            covariance=Covariance(torch.eye(family.context_width), 1000, family.id),
            settings=wanted,
        ).concept


def sampled(
    model: Any,
    clip: Any,
    prompt: str = PROMPT,
    steps: int = 2,
    seed: int = 5,
    frames: int = 1,
    negative: str = "blurry",
) -> torch.Tensor:
    """Latents of ComfyUI's own KSampler node, run as ComfyUI runs it."""
    with torch.inference_mode():
        texts = [nodes.CLIPTextEncode().encode(clip, t)[0] for t in (prompt, negative)]
        empty = {"samples": torch.zeros(shape_of(model, 1, frames))}
        samples = nodes.KSampler().sample(
            model, seed, steps, 4.0, "euler", "normal", texts[0], texts[1], empty
        )
        found: torch.Tensor = samples[0]["samples"]
        return found.clone()
