"""Weights that autograd can work with: on the device, in tensors of their own, while training.

ComfyUI keeps weights in several ways that suit sampling and not training: made in inference mode;
left off the device and cast at each use (--lowvram, --novram); kept in the file's dtype and brought
to the device page by page (dynamic VRAM, the default on NVIDIA cards since 0.16). The last two cast
into memory that the next layer uses again, while autograd still needs what was there: the gradients
would be wrong, and nothing would say so. So nothing is cast that way while training: what is not on
the device is brought there once. That takes no more memory, since autograd would hold every cast
weight until the end of the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .protocols import ModelPatcher

HALF = (torch.float16, torch.bfloat16)
PLAIN = (Tensor, torch.nn.Parameter)

# Where ComfyUI's dynamic VRAM keeps the address of a module's weights on the device; a module that
# has it is cast from there and not from its own parameters.
DYNAMIC = "_v"


def is_dynamic(patcher: ModelPatcher) -> bool:
    """Whether ComfyUI brings this model's weights to the device page by page (dynamic VRAM)."""
    asked = getattr(patcher, "is_dynamic", None)  # 0.3.75 does not know it
    return asked is not None and bool(asked())


@contextmanager
def trainable_weights(patcher: ModelPatcher, fine: bool = False) -> Iterator[None]:
    """Within this context the weights of a loaded model can be trained on; then all is as before.

    What is learned is the same as if ComfyUI had loaded the whole model onto the device.

    Args:
        patcher: ComfyUI's ModelPatcher, loaded.
        fine: of a text encoder, which ComfyUI runs in fp32: weights of 16 bits are cast here, once
            and not in every step. That takes no more memory at the peak, for autograd would hold
            what was cast until the end of the step.
    """
    stand_ins = _StandIns()
    try:
        # As tensors there say it: a "cuda" or "mps" has an index.
        device = torch.empty(0, device=patcher.load_device).device
        _bring(patcher, device, stand_ins)
        _make_ordinary(patcher.model, fine, stand_ins)
        yield
    finally:
        stand_ins.put_back()


def fine_bytes(patcher: ModelPatcher) -> int:
    """Bytes that `trainable_weights` takes more where it is `fine`."""
    parts = (m for m in patcher.model.modules() if not isinstance(m, torch.nn.Embedding))
    weights = (p for part in parts for p in part._parameters.values() if p is not None)
    return torch.float32.itemsize * sum(p.numel() for p in weights if p.dtype in HALF)


class _StandIns:
    """Tensors put in the place of a module's own, and what was there before."""

    def __init__(self) -> None:
        self._tensors: list[tuple[dict[str, Any], str, Any, Any]] = []
        self._addresses: list[tuple[Any, Any]] = []

    def put(self, table: dict[str, Any], name: str, tensor: Tensor, parameter: bool) -> None:
        """Put `tensor` where `table` (a module's parameters or buffers) has `name`."""
        if parameter:
            tensor = torch.nn.Parameter(tensor, requires_grad=False)
        self._tensors.append((table, name, table[name], tensor))
        table[name] = tensor

    def hide_address(self, module: Any) -> None:
        """Let `module` be cast from its own parameters."""
        self._addresses.append((module, module.__dict__.pop(DYNAMIC)))

    def put_back(self) -> None:
        for table, name, before, stand_in in reversed(self._tensors):
            # ComfyUI may have put something else there meanwhile; that is then its own.
            if table.get(name) is stand_in:
                table[name] = before
        for module, address in self._addresses:
            module.__dict__.setdefault(DYNAMIC, address)


def _bring(patcher: ModelPatcher, device: torch.device, stand_ins: _StandIns) -> None:
    """Bring every weight that is not on the device there, as ComfyUI would have loaded it whole."""
    dynamic = is_dynamic(patcher)
    for path, module in patcher.model.named_modules():
        paged = DYNAMIC in module.__dict__
        if paged:
            stand_ins.hide_address(module)
        for table in (module._parameters, module._buffers):
            for name, tensor in list(table.items()):
                if tensor is None:
                    continue
                dtype = _model_dtype(module, name, tensor) if dynamic else tensor.dtype
                if not paged and tensor.device == device and tensor.dtype == dtype:
                    continue
                parameter = table is module._parameters
                stand_ins.put(table, name, _copy(tensor, device, dtype), parameter)
                if paged:
                    # A LoRA: ComfyUI's own function, on the tensor that is there now.
                    # torch.compile puts its own part into a path.
                    key = f"{path}.{name}".replace("_orig_mod.", "")
                    patched = patcher.patch_weight_to_device(
                        key, device_to=device, return_weight=True
                    )
                    if patched is not table[name]:
                        stand_ins.put(table, name, patched.detach(), parameter)


def _model_dtype(module: Any, name: str, tensor: Tensor) -> torch.dtype:
    """The dtype that the model was made for: under dynamic VRAM a weight may keep its file's."""
    if type(tensor) not in PLAIN:
        return tensor.dtype
    dtype: torch.dtype = getattr(module, f"{name}_comfy_model_dtype", None) or tensor.dtype
    return dtype


def _copy(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A copy of a weight on the device."""
    if tensor.is_meta:  # not in the file: ComfyUI takes zeros
        return torch.zeros(tensor.shape, dtype=dtype, device=device)
    if type(tensor) not in PLAIN:
        return tensor.detach().to(device, copy=True)
    return tensor.detach().to(device, dtype, copy=True)


def _make_ordinary(model: Any, fine: bool, stand_ins: _StandIns) -> None:
    """Stand-ins for weights that were made in inference mode, which autograd refuses to save.

    They share the weights' memory; nothing is copied.
    """
    for part in model.modules():
        # ComfyUI casts no table of embeddings, only the rows that it takes.
        casts = HALF if fine and not isinstance(part, torch.nn.Embedding) else ()
        for table in (part._parameters, part._buffers):
            for name, tensor in list(table.items()):
                if tensor is None:
                    continue
                cast = tensor.dtype in casts and type(tensor) in PLAIN
                if cast or tensor.is_inference() or tensor.requires_grad:
                    stand_in = tensor.detach().float() if cast else _ordinary(tensor)
                    stand_ins.put(table, name, stand_in, table is part._parameters)


def _ordinary(tensor: Tensor) -> Tensor:
    if type(tensor) not in PLAIN:
        return tensor.detach().clone()  # a quantised tensor: what it wraps is not one storage
    empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return empty.set_(
        tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride()
    )


def no_room(patchers: Sequence[ModelPatcher]) -> str:
    """What to say when the weights of these models do not fit into the device's memory."""
    from comfy import model_management

    device = patchers[0].load_device
    needed = sum(patcher.model_size() for patcher in patchers) / 1024**3
    free = model_management.get_free_memory(device) / 1024**3
    return (
        f"The weights of the model and of its text encoder ({needed:.1f} GB) do not fit into the "
        f"memory of {device}, of which {free:.1f} GB are free now. Training needs all of them "
        "there; making pictures does not, so that still works. Close other programs that use the "
        "GPU, train on a smaller checkpoint of the same family (a pruned or fp8 one), or set "
        "embedding_rate to 0: the text encoder then leaves the device, and only values are learned."
    )
