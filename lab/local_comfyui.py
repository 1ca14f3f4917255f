"""ComfyUI in this process, with the emoji world's model: learn a concept, sample prompts.

Import this only after `open_comfyui()`. It runs the same code as the nodes, without a server
between, for what asks for many pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.sample
import numpy as np
import torch
from PIL import Image

from demo import model as small
from perfusion_core.comfy.backbone import training_backbone
from perfusion_core.comfy.clip_covariance import covariance_of
from perfusion_core.comfy.concept_entry import ConceptEntry
from perfusion_core.comfy.pictures import Picture, picture_groups
from perfusion_core.comfy.prompts import LOCKED_PROMPT, SUPERCLASS_PROMPT, add_concepts
from perfusion_core.comfy.stack import apply_stack
from perfusion_core.concept.concept import Concept
from perfusion_core.method.batches import PictureGroup
from perfusion_core.method.training import Training, train
from perfusion_core.method.training_settings import TrainingSettings

STEPS, CFG = 20, 2.0
AT_ONCE = 32  # pictures sampled in one batch


def read_folder(folder: Path) -> list[Image.Image]:
    """The pictures of a folder in the order of their names."""
    kinds = {".png", ".jpg", ".jpeg", ".webp"}
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in kinds)
    return [Image.open(path).convert("RGB") for path in paths]


class LocalComfyUI:
    """MODEL, CLIP and VAE of the built-in world, and what the lab does with them."""

    def __init__(self) -> None:
        self.model, self.clip, self.vae = small.load()

    def groups(
        self,
        pictures: Sequence[Image.Image],
        masks: Sequence[np.ndarray] | None = None,
        captions: Sequence[str] = (),
    ) -> list[PictureGroup]:
        """Pictures as training takes them.

        Args:
            masks: where the concept is [H, W], 0 to 1, in each.
            captions: what each shows, with "{}" for the concept; empty for templates.
        """
        given = [
            Picture(
                torch.from_numpy(np.array(picture)).movedim(-1, 0).float() / 255,
                None if masks is None else torch.from_numpy(masks[n]).float(),
                captions[n] if captions else "",
            )
            for n, picture in enumerate(pictures)
        ]
        with torch.inference_mode():
            return picture_groups(self.vae, given)

    def learn(
        self,
        groups: Sequence[PictureGroup],
        superclass: str,
        settings: TrainingSettings,
        through: Callable[[Any], Any] = lambda backbone: backbone,
    ) -> Training:
        """Train a concept, whose placeholder is its superclass with a star.

        Args:
            groups: its pictures, of one size.
            through: what to make of ComfyUI's backbone, for designs that differ from ours.
        """
        with torch.inference_mode():
            covariance = covariance_of(self.clip)
            batch = (settings.batch_size, *groups[0].latents.shape[1:])
            with training_backbone(self.model, self.clip, batch) as backbone:
                return train(
                    through(backbone),
                    groups,
                    placeholder=placeholder(superclass),
                    superclass=superclass,
                    covariance=covariance,
                    settings=settings,
                )

    def sample(
        self, entries: Sequence[ConceptEntry], prompts: Sequence[str], seed: int
    ) -> list[Image.Image]:
        """One picture of each prompt, with the concepts of `entries` on the model."""
        model, clip = self.model, self.clip
        if entries:
            locks = [entry.settings.key_lock for entry in entries]
            model = apply_stack(model, entries)
            clip = add_concepts(clip, [entry.concept for entry in entries], locks)
        return self.draw(model, clip, prompts, seed)

    def draw(self, model: Any, clip: Any, prompts: Sequence[str], seed: int) -> list[Image.Image]:
        """One picture of each prompt, of any MODEL and CLIP of this world."""
        return self.decoded(self.latents(model, clip, prompts, seed))

    def decoded(self, latents: torch.Tensor) -> list[Image.Image]:
        """Latents [N, C, 16, 16] as pictures."""
        with torch.inference_mode():
            parts = [self.vae.decode(part) for part in latents.split(AT_ONCE)]
            arrays = (torch.cat(parts) * 255).round().byte().cpu().numpy()
        return [Image.fromarray(array) for array in arrays]

    def latents(self, model: Any, clip: Any, prompts: Sequence[str], seed: int) -> torch.Tensor:
        """What the sampler makes of each prompt [N, C, 16, 16]."""
        parts = [
            self._batch(model, clip, prompts[first : first + AT_ONCE], seed + first)
            for first in range(0, len(prompts), AT_ONCE)
        ]
        return torch.cat(parts)

    def _batch(self, model: Any, clip: Any, prompts: Sequence[str], seed: int) -> torch.Tensor:
        with torch.inference_mode():
            encoded = [clip.encode_from_tokens_scheduled(clip.tokenize(p))[0] for p in prompts]
            positive = [[torch.cat([context for context, _ in encoded]), _joined(encoded)]]
            negative = clip.encode_from_tokens_scheduled(clip.tokenize(""))
            latents = torch.zeros(len(prompts), small.LATENT_CHANNELS, 16, 16)
            noise = comfy.sample.prepare_noise(latents, seed)
            samples: torch.Tensor = comfy.sample.sample(
                model, noise, STEPS, CFG, "euler", "simple", positive, negative, latents,
                disable_pbar=True, seed=seed,
            )  # fmt: skip
        return samples


def placeholder(superclass: str) -> str:
    return f"{superclass.split()[-1]}*"


def _joined(encoded: Sequence[tuple[torch.Tensor, dict[str, Any]]]) -> dict[str, Any]:
    """What lies beside the contexts, for all prompts as one: the global key lock's twins."""
    return {
        name: torch.cat([beside[name] for _, beside in encoded])
        for name in (LOCKED_PROMPT, SUPERCLASS_PROMPT)
        if all(name in beside for _, beside in encoded)
    }


def entry_of(concept: Concept, **settings: Any) -> ConceptEntry:
    """A concept with settings: those it recommends, but for the ones given."""
    return ConceptEntry(concept, replace(concept.settings, **settings))
