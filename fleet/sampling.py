"""Pictures of a MODEL by ComfyUI's own sampler, as KSampler makes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class Sampling:
    """Samples with the settings of a job.

    Args:
        model: ComfyUI's MODEL, to know the size and the kind of its latents by.
        spec: "steps", "cfg", "sampler" and "scheduler", as KSampler calls them; "side" of the
            pictures in pixels, 0 for the family's.
    """

    def __init__(self, model: Any, spec: Mapping[str, Any]) -> None:
        import comfy.sample
        import torch

        from perfusion_core.comfy.models import detect_family

        family = detect_family(model)
        side = (spec.get("side") or family.resolution) // family.pixels
        channels = model.model.latent_format.latent_channels
        empty = torch.zeros(1, channels, side, side)
        # A transformer's latents may have an axis of frames.
        self._empty = comfy.sample.fix_empty_latent_channels(model, empty)
        self._spec = spec

    def latent(self, model: Any, positive: Any, negative: Any, seed: int) -> Any:
        """The latent of one picture: the same seed, the same noise."""
        import comfy.sample

        spec = self._spec
        return comfy.sample.sample(
            model,
            comfy.sample.prepare_noise(self._empty, seed),
            spec["steps"],
            spec["cfg"],
            spec["sampler"],
            spec["scheduler"],
            positive,
            negative,
            self._empty,
            disable_pbar=True,
            seed=seed,
        )


def encoded(clip: Any, text: str) -> Any:
    """A prompt as a sampler takes it."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def decoded(vae: Any, latents: Sequence[Any]) -> list[Any]:
    """Pictures [1, H, W, 3] on the CPU.

    For after the last latent: where both do not fit, the autoencoder would push the model off the
    device for every picture.
    """
    pictures = []
    for latent in latents:
        found = vae.decode(latent)[..., :3].float().cpu()
        pictures.append(found.reshape(-1, *found.shape[-3:])[:1])
    return pictures
