"""Pictures of a concept while it trains, by ComfyUI's own sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..concept.concept import Concept
from ..method.settings import ConceptSettings
from .backbone import ComfyBackbone
from .concept_entry import ConceptEntry
from .prompts import add_concepts
from .protocols import Clip, Conditioning, Model, Vae
from .stack import apply_stack

STEPS, CFG = 20, 5.0
SAMPLER, SCHEDULER = "euler", "normal"


class BackbonePainter:
    """The `Painter` of a model that is being trained on.

    Args:
        vae: ComfyUI's VAE.
        shape: [C, H, W] or [C, F, H, W] of the latents of a picture.
        seed: of the noise; the same for every prompt.
        on_step: called after every sampling step; may raise to stop.
    """

    def __init__(
        self,
        backbone: ComfyBackbone,
        vae: Vae,
        shape: Sequence[int],
        seed: int,
        on_step: Callable[[], None] | None = None,
    ) -> None:
        self._backbone = backbone
        self._vae = vae
        self._shape = tuple(shape)
        self._seed = seed
        self._on_step = on_step

    def __call__(
        self, concept: Concept, settings: ConceptSettings, prompts: Sequence[str]
    ) -> Tensor:
        """See `Painter`. Leaves the global random state as it was, which ComfyUI's noise sets."""
        device = self._backbone.device
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices), self._backbone.paused() as (model, clip):
            # The training's own clone: another would be loaded onto the device anew.
            carrying = apply_stack(model, [ConceptEntry(concept, settings)])
            knowing = add_concepts(clip, [concept])
            negative = _encoded(knowing, "")
            # One by one: pictures while training should not need more memory than training.
            pictures = [self._one(carrying, _encoded(knowing, p), negative) for p in prompts]
        return torch.cat(pictures)

    def _one(self, model: Model, positive: Conditioning, negative: Conditioning) -> Tensor:
        import comfy.sample

        empty = torch.zeros(1, *self._shape)
        samples = comfy.sample.sample(
            model,
            comfy.sample.prepare_noise(empty, self._seed),
            STEPS,
            CFG,
            SAMPLER,
            SCHEDULER,
            positive,
            negative,
            empty,
            callback=self._after_step,
            disable_pbar=True,
            seed=self._seed,
        )
        return decoded_pictures(self._vae, samples)[:1].float().cpu()

    def _after_step(self, *_: Any) -> None:
        if self._on_step is not None:
            self._on_step()


def _encoded(clip: Clip, text: str) -> Any:
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def decoded_pictures(vae: Vae, latents: Tensor) -> Tensor:
    """Latents as pictures [N, H, W, 3]: each frame of a video is one."""
    decoded: Tensor = vae.decode(latents)[..., :3]
    return decoded.reshape(-1, *decoded.shape[-3:])
