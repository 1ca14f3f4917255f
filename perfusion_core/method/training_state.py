"""All that a training has to know to go on where it was, to the same concept bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .batches import TrainingError


@dataclass(frozen=True, eq=False)
class TrainingState:
    """A training between two steps. What it was asked for is not in it: pictures, words, settings.

    Attributes:
        tensors: by name, on the CPU: what is learned, Adam's moments of it, the target input.
        losses: of the steps so far; the batches after them are drawn again from the seed.
        scaler: numbers of the scale of the loss; empty where the loss is not scaled.
    """

    tensors: Mapping[str, Tensor]
    losses: Sequence[float]
    scaler: Mapping[str, float]


def kept(tensor: Tensor) -> Tensor:
    """A copy on the CPU that no later step changes."""
    return tensor.detach().to("cpu", copy=True)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What the optimiser has noted of each parameter: "<parameter>/<note>" -> a copy."""
    return {
        f"{name}/{note}": kept(tensor)
        for name, parameter in parameters.items()
        for note, tensor in optimizer.state.get(parameter, {}).items()
    }


def restore_parameters(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
) -> None:
    """Put parameters and the optimiser's notes back, by name.

    Raises TrainingError where a parameter is not there or has another shape.
    """
    for name, parameter in parameters.items():
        saved = tensors.get(name)
        if saved is None or saved.shape != parameter.shape:
            found = "nothing" if saved is None else f"the shape {list(saved.shape)}"
            raise TrainingError(
                f"the state to go on from has {found} for {name}; expected "
                f"{list(parameter.shape)}: it is of another training. Begin anew, without it."
            )
        with torch.no_grad():
            parameter.copy_(saved)
        notes = {
            other.removeprefix(f"{name}/"): tensor
            for other, tensor in tensors.items()
            if other.startswith(f"{name}/")
        }
        # Adam counts its steps on the CPU; its moments are where the parameter is.
        optimizer.state[parameter] = {
            note: kept(tensor) if note == "step" else tensor.to(parameter, copy=True)
            for note, tensor in notes.items()
        }
