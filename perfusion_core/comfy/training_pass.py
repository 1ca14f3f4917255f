"""What ComfyUI's model is given for a pass of training, and what its error is measured in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..families import ModelFamily
from ..method.backbone import TrainingPrompts
from .protocols import BaseModel, Model, ModelSampling


def conditions(
    base: BaseModel, family: ModelFamily, encoded: TrainingPrompts, noisy: Tensor
) -> dict[str, Any]:
    """ComfyUI's own keyword arguments of a forward pass over `noisy` [B, C, ..., H, W]."""
    height, width = (family.pixels * n for n in noisy.shape[-2:])
    given = family.given(encoded.context, encoded.beside)
    # A copy: some networks write their pads into it.
    given["cross_attn"] = given["cross_attn"].clone()
    made = base.extra_conds(
        **{name: value.to(noisy.device) for name, value in given.items()},
        pooled_output=encoded.extra,
        noise=noisy,
        # For an inpainting model: nothing is there yet, all is to be painted.
        latent_image=torch.zeros_like(noisy),
        device=noisy.device,
        width=width,
        height=height,
    )
    arguments = {
        name: cond.process_cond(len(noisy), device=noisy.device, area=None).cond
        for name, cond in made.items()
    }
    return {
        name: value.to(noisy.device) if torch.is_tensor(value) else value
        for name, value in arguments.items()
    }


def batches_of_one_length(
    family: ModelFamily, encoded: TrainingPrompts
) -> list[tuple[list[int], TrainingPrompts]]:
    """Prompts that can go through the network together, with their rows among all of them.

    That is all at once, unless the network takes a row of zeros for a word.
    """
    every = list(range(len(encoded.context)))
    if family.joins:
        return [(every, encoded)]
    words = encoded.context.detach().any(dim=-1).cpu()
    lengths = [int(row.nonzero().max()) + 1 if bool(row.any()) else 1 for row in words]
    found = []
    for length in sorted(set(lengths)):
        rows = [row for row in every if lengths[row] == length]
        found.append((rows, _part(encoded, rows, length)))
    return found


def _part(encoded: TrainingPrompts, rows: Sequence[int], length: int) -> TrainingPrompts:
    """Some rows of prompts of one length, without the zeros behind them."""
    extra = encoded.extra
    return TrainingPrompts(
        rows_of(encoded.context[:, :length], rows),
        rows_of(encoded.positions[:, :length], rows),
        rows_of(extra, rows) if torch.is_tensor(extra) else extra,
        {name: rows_of(value[:, :length], rows) for name, value in encoded.beside.items()},
    )


def rows_of(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    """`tensor[rows]`, whose gradient is added up in the same order every time."""
    apart = tensor.unbind()
    return torch.stack([apart[row] for row in rows])


def transformer_options(model: Model) -> dict[str, Any]:
    """What other nodes have set on this model (attention patches ...), for one pass."""
    from comfy.model_patcher import create_model_options_clone

    options: dict[str, Any] = create_model_options_clone(model.model_options)["transformer_options"]
    options["wrappers"] = {kind: dict(keyed) for kind, keyed in model.wrappers.items()}
    return options


def prediction_errors(
    sampling: ModelSampling, sigmas: Tensor, denoised: Tensor, clean: Tensor
) -> Tensor:
    """The error of what a model predicts, noise, v, flow or another, of the shape of `clean`.

    A prediction reaches the denoised picture through a factor that depends on sigma alone, which
    ComfyUI's own schedule knows; dividing by it gives the error of the prediction itself.

    Args:
        sigmas: noise levels [B].
        denoised: what the model gave [B, C, ..., H, W].
    """
    zero = sigmas.new_zeros(len(sigmas), *(1,) * (clean.dim() - 1))
    factor = sampling.calculate_denoised(sigmas, zero + 1, zero)
    return (denoised.float() - clean) / factor
