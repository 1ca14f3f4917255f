"""A training's state as a safetensors file: no pickle, whole or not there."""

from __future__ import annotations

import io
import json

import torch
from safetensors.torch import load, save

from perfusion_core.concept.safetensors_file import read_header
from perfusion_core.method.training_state import TrainingState

FORMAT = "perfusion-snapshot-1"
_LOSSES = "losses"  # as float64, which holds Python's numbers as they are
_MAX_HEADER = 4 << 20  # bytes


def to_bytes(state: TrainingState) -> bytes:
    """The file's content."""
    tensors = {name: tensor.contiguous() for name, tensor in state.tensors.items()}
    tensors[_LOSSES] = torch.tensor(list(state.losses), dtype=torch.float64)
    return save(tensors, {"format": FORMAT, "scaler": json.dumps(dict(state.scaler))})


def from_bytes(data: bytes) -> TrainingState:
    """The state in a file. Raises ValueError for what is no snapshot of this format."""
    header = read_header(io.BytesIO(data), _MAX_HEADER)
    if header.metadata.get("format") != FORMAT:
        raise ValueError(f'it is of the format "{header.metadata.get("format")}", not "{FORMAT}"')
    tensors = load(data)
    losses = tensors.pop(_LOSSES).tolist()
    return TrainingState(tensors, losses, json.loads(header.metadata["scaler"]))
