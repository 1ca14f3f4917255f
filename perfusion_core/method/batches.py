"""What a training step sees: pictures in groups of one size, masks, captions, noise, times."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .templates import templates_for


class TrainingError(ValueError):
    """Training cannot begin or go on. The message says why and what to do."""


@dataclass(frozen=True, eq=False)
class PictureGroup:
    """Training pictures of one size.

    Attributes:
        latents: [N, C, H, W], or with an axis of frames [N, C, F, H, W], as the VAE gives them.
        masks: where the concept is [N, h, w], at least 0, of any size; or None for everywhere.
        captions: what to say of each picture, with "{}" for the placeholder, or "" for a template;
            empty: templates for all.

    Raises TrainingError when they do not go together, or hold no number.
    """

    latents: Tensor
    masks: Tensor | None = None
    captions: Sequence[str] = ()

    def __post_init__(self) -> None:
        latents, masks = self.latents, self.masks
        if latents.dim() not in (4, 5) or not len(latents):
            raise TrainingError(
                f"the latents have the shape {list(latents.shape)}; expected [pictures, channels, "
                "height, width], or with frames before the height, with at least one picture"
            )
        if not bool(latents.isfinite().all()):
            raise TrainingError(
                "the latents hold NaN or infinity: the VAE failed on a picture, most likely for "
                "want of precision. Start ComfyUI with --fp32-vae, or use another VAE."
            )
        if masks is not None and (masks.dim() != 3 or len(masks) != len(latents)):
            raise TrainingError(
                f"the masks have the shape {list(masks.shape)} for {len(latents)} pictures; "
                "expected [pictures, height, width], one mask for each picture"
            )
        if self.captions and len(self.captions) != len(latents):
            raise TrainingError(
                f"there are {len(self.captions)} captions for {len(latents)} pictures: give one "
                "for each"
            )

    def __len__(self) -> int:
        return len(self.latents)


@dataclass(frozen=True)
class Batch:
    """One step.

    Attributes:
        latents: clean [B, C, H, W] or [B, C, F, H, W].
        noise: standard normal, of that shape.
        times: [B], 0 (clean) to 1 (all noise).
        weights: of the loss, of that shape with 1 for C and F, or None.
        prompts: B prompts with the placeholder in each.
    """

    latents: Tensor
    noise: Tensor
    times: Tensor
    weights: Tensor | None
    prompts: list[str]


def mask_weights(masks: Tensor, latents: Tensor) -> Tensor:
    """Masks [N, h, w] as weights of the loss [N, 1, (1,) H, W] for latents [N, C, (F,) H, W].

    Each is averaged down to the latents' size and divided by its own largest value, so that 1 is
    where the concept surely is. Raises TrainingError for a mask that is nowhere above 0.
    """
    height, width = latents.shape[-2:]
    averaged = torch.nn.functional.adaptive_avg_pool2d(masks.float(), (height, width))
    peaks = averaged.amax(dim=(1, 2), keepdim=True)
    for number, peak in enumerate(peaks.flatten().tolist(), start=1):
        if not (math.isfinite(peak) and peak > 0):
            raise TrainingError(
                f"the mask of picture {number} is empty or not a number (counted among the "
                "pictures of its size): draw where the concept is, or train without masks"
            )
    one = (1,) * (latents.dim() - 3)
    return (averaged / peaks).reshape(len(masks), *one, height, width).to(latents.device)


def batches(
    groups: Sequence[PictureGroup], placeholder: str, superclass: str, size: int, seed: int
) -> Iterator[Batch]:
    """Batches of `size` without end, each from one group: the one that is most behind.

    Drawn on the CPU, so that a seed means the same everywhere.
    """
    if not groups:
        raise TrainingError("there is no training picture: at least one picture is needed")
    generator = torch.Generator().manual_seed(seed)
    templates = [t.format(placeholder) for t in templates_for(superclass)]
    # The caller may run in inference mode, whose tensors autograd refuses: clones are ordinary.
    latents = [group.latents.detach().clone() for group in groups]
    weights = [
        None if group.masks is None else mask_weights(group.masks.detach().clone(), group.latents)
        for group in groups
    ]
    orders = [_shuffled(len(group), size, generator) for group in groups]
    # One wording for all pictures of a step: the text encoder runs on one prompt, not on as many as
    # there are pictures.
    wordings = _shuffled(len(templates), 1, generator)
    drawn = [0] * len(groups)
    while True:
        n = min(range(len(groups)), key=lambda k: drawn[k] / len(groups[k]))
        drawn[n] += size
        picked = next(orders[n])
        captions = [groups[n].captions[i] if groups[n].captions else "" for i in picked]
        wording = "" if all(captions) else templates[next(wordings)[0]]
        prompts = [caption.replace("{}", placeholder) or wording for caption in captions]
        chosen = torch.tensor(picked, device=latents[n].device)
        noise = torch.randn(size, *latents[n].shape[1:], generator=generator)
        # One time in each of `size` equal strata: as uniform as independent draws, with less
        # variance.
        times = (torch.arange(size) + torch.rand(size, generator=generator)) / size
        of_group = weights[n]
        yield Batch(
            latents[n][chosen],
            noise.to(latents[n]),
            times.to(latents[n].device),
            None if of_group is None else of_group[chosen],
            prompts,
        )


def captions_of(groups: Sequence[PictureGroup]) -> list[str]:
    """Every caption of the pictures, with "{}" for the placeholder."""
    captions = [caption for group in groups for caption in group.captions if caption]
    return list(dict.fromkeys(captions))


def _shuffled(count: int, size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """`size` of range(count) at a time, without end: each comes up before any comes again."""
    pool: list[int] = []
    while True:
        while len(pool) < size:
            pool += torch.randperm(count, generator=generator).tolist()
        yield pool[:size]
        del pool[:size]
