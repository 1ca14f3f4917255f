"""The covariance of ComfyUI's text encoder, estimated once and kept while ComfyUI runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..cache import BoundedCache
from ..families import ModelFamily
from ..method.covariance import Covariance, cache_key, estimate
from .encoding import encode
from .models import ComfyMismatch, describe_families
from .protocols import Clip, Model, ModelPatcher
from .tokenizers import clip_family, encoder_widths

# Enough for a session's encoders; each is a matrix of at most 2048 x 2048 (16 MB).
_KEPT = 4
_cache: BoundedCache[str, Covariance] = BoundedCache(_KEPT)


def family_of_clip(clip: Clip) -> ModelFamily:
    """The family of ComfyUI's CLIP. Raises ComfyMismatch when concepts do not know its encoders."""
    family = clip_family(clip)
    if family is not None:
        return family
    found = encoder_widths(clip)
    listed = ", ".join(f"{name} (width {width})" for name, width in found.items()) or "unknown ones"
    raise ComfyMismatch(
        f"Perfusion concepts do not fit this CLIP: its text encoders are {listed}. Connect the "
        f"CLIP of a model of one of these families: {describe_families()}."
    )


def covariance_of(
    clip: Clip,
    captions: Sequence[str] | None = None,
    on_captions: Callable[[int, int], None] | None = None,
    model: Model | None = None,
) -> Covariance:
    """The covariance of ComfyUI's CLIP.

    Args:
        captions: what to estimate it from; None for the family's built-in captions.
        on_captions: called with (captions done, captions in all); may raise to stop.
        model: the MODEL; looked at only where its network has an adapter of the text.

    Raises ComfyMismatch when concepts do not know the CLIP, or an adapter is needed and not there.
    """
    from comfy import model_management

    family = family_of_clip(clip)
    texts = list(captions) if captions is not None else list(family.captions())
    # Loaded first: the fingerprint is then that of the weights that will be used.
    adapting = model if family.adapter else None
    patchers = [clip.patcher] if adapting is None else [clip.patcher, adapting]
    model_management.load_models_gpu(patchers)
    fingerprint = encoder_fingerprint(clip)
    if adapting is not None:
        fingerprint += adapter_fingerprint(adapting, family)
    key = cache_key(f"{family.id} {fingerprint}", texts)
    known = _cache.get(key)
    if known is not None:
        return known

    def encodings(batch: Sequence[str]) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            encoding = encode(clip, batch, base=None if adapting is None else adapting.model)
        return encoding.context, encoding.mask

    return _cache.put(key, estimate(encodings, texts, family.id, on_captions=on_captions))


def encoder_fingerprint(clip: Clip) -> str:
    """Hash of samples of all weights, the layer that is read, and the LoRAs of a CLIP."""
    digest = hashlib.sha256(_weights_fingerprint(clip.cond_stage_model.state_dict()))
    digest.update(f"{clip.layer_idx}".encode())
    return digest.hexdigest() + _patches_fingerprint(clip.patcher)


def adapter_fingerprint(model: Model, family: ModelFamily) -> str:
    """The same of the part of a MODEL's network that the text passes through before its layers."""
    adapter = getattr(model.model.diffusion_model, family.adapter)
    digest = hashlib.sha256(_weights_fingerprint(adapter.state_dict()))
    return digest.hexdigest() + _patches_fingerprint(model)


def _weights_fingerprint(weights: Mapping[str, Tensor]) -> bytes:
    digest = hashlib.sha256()
    for name, weight in weights.items():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        flat = weight.detach().flatten()
        sample = flat[:: max(1, len(flat) // 64)].float().cpu()
        digest.update(sample.numpy().tobytes())
    return digest.digest()


def _patches_fingerprint(patcher: ModelPatcher) -> str:
    return str(patcher.patches_uuid) if patcher.patches else ""
