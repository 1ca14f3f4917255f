"""How much memory a training step takes without gradient checkpointing."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..families import ModelFamily
from .models import compute_dtype
from .protocols import BaseModel, Clip

# Where ComfyUI's attention keeps its probabilities, autograd keeps two to three times as much of a
# forward pass as `ModelFamily.kept` says.
PROBABILITIES = 3


def kept_bytes(
    base: BaseModel, clip: Clip | None, family: ModelFamily, batch: Sequence[int]
) -> float:
    """Bytes that autograd keeps of a forward pass until backward.

    Args:
        clip: None where no prompt is encoded.
        batch: shape [B, C, ..., H, W] of one batch of latents.
    """
    from comfy import model_management

    size = compute_dtype(base).itemsize
    cells = batch[0] * math.prod(batch[2:])
    kept = size * cells * family.kept_by(base.diffusion_model)
    one_kernel = (
        model_management.xformers_enabled() or model_management.pytorch_attention_flash_attention()
    )
    if not one_kernel:
        kept *= PROBABILITIES
    if base.get_dtype() != compute_dtype(base):
        # Every layer's weights in the other dtype.
        kept += size * sum(p.numel() for p in base.diffusion_model.parameters())
    return kept + (0 if clip is None else batch[0] * _kept_of_a_prompt(clip, family))


def _kept_of_a_prompt(clip: Clip, family: ModelFamily) -> int:
    encoders = {name: getattr(clip.cond_stage_model, name) for name in family.encoders}
    numbers: int = sum(e.num_layers * family.encoders[name] for name, e in encoders.items())
    return family.kept_text * family.prompt * numbers
