"""A text encoder that may run while ComfyUI runs something else.

Two threads cannot share one encoder: ComfyUI stores options of a run (layer, device) on its modules
and moves its weights between devices. So each question of the page gets modules of its own, which
share the encoder's weights. Only weights that a LoRA changes, and weights on another device, are
copied. Weights are only read, and ComfyUI is not asked to move any.

ComfyUI may change the weights meanwhile (it patches some in place), and the answer would be wrong.
So an answer is dropped when a graph has run meanwhile, and the encoder stops at its next layer when
a graph waits. ComfyUI never waits for the page.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .key_lock import without_key_lock
from .protocols import Clip, ModelPatcher, PromptQueue
from .weights import DYNAMIC, PLAIN, is_dynamic

# ComfyUI's functions for LoRAs on weights that are cast at each use.
_FUNCTIONS = (
    "weight_function",
    "bias_function",
    "weight_lowvram_function",
    "bias_lowvram_function",
)


class Busy(Exception):
    """ComfyUI has something to run, so no text encoder runs for a plot."""


class IdleQueue:
    """ComfyUI's queue at a time when it has nothing to run.

    Raises Busy when it has. Its lock is held for no longer than it takes to look.
    """

    def __init__(self) -> None:
        from server import PromptServer

        self._queue: PromptQueue = PromptServer.instance.prompt_queue
        self._started = self._queue.task_counter
        self.check()

    def check(self) -> None:
        """Raises Busy when anything runs, waits to run, or has run since."""
        # In this order: what leaves the queue has been counted by then.
        waiting = self._queue.get_tasks_remaining()
        if waiting or self._queue.task_counter != self._started:
            raise Busy


def beside(clip: Clip, before_layer: Callable[[], None] = lambda: None) -> Clip:
    """A stand-in for ComfyUI's CLIP whose encoder is its own, on the weights of `clip`.

    For `encode` alone, and for one prompt: it does not follow what ComfyUI does with the weights.

    Args:
        before_layer: called before each layer that has weights; may raise to stop.
    """
    encoder: Any = without_key_lock(clip.cond_stage_model)
    patcher = clip.patcher
    applied = getattr(encoder, "current_weight_patches_uuid", None)
    as_they_are = not is_dynamic(patcher) and applied == patcher.patches_uuid
    changed = {} if as_they_are else dict(_without_others_patches(patcher))
    twin = _twin(encoder, changed, before_layer, as_they_are, "", {})
    device = _gather(twin)
    if not as_they_are:
        _patch(twin, patcher.patches)
    stand_in: Any = copy.copy(clip)
    stand_in.cond_stage_model = twin
    stand_in.patcher = SimpleNamespace(load_device=device)
    other: Clip = stand_in
    return other


def _without_others_patches(patcher: ModelPatcher) -> Iterator[tuple[str, Tensor]]:
    """Weights that ComfyUI has put away before it changed them, by their path."""
    for path, entry in list(patcher.backup.items()):
        yield path, entry.weight


def _twin(
    module: nn.Module,
    changed: dict[str, Tensor],
    before_layer: Callable[[], None],
    keep_functions: bool,
    path: str,
    made: dict[nn.Module, nn.Module],
) -> nn.Module:
    """A module of the same class and state, all of whose modules are its own.

    Tensors are others, on the same memory: ComfyUI moves a weight by giving its tensor another.
    """
    if module in made:
        return made[module]
    twin = module.__class__.__new__(module.__class__)
    own = twin.__dict__
    own.update(module.__dict__)
    own.pop(DYNAMIC, None)
    made[module] = twin

    def tensors(table: dict[str, Any]) -> dict[str, Any]:
        return {
            name: None if tensor is None else changed.get(f"{path}{name}", tensor).detach()
            for name, tensor in table.items()
        }

    own["_parameters"] = tensors(module._parameters)
    own["_buffers"] = tensors(module._buffers)
    if not keep_functions:
        for name in _FUNCTIONS:
            if own.get(name):
                own[name] = type(own[name])() if isinstance(own[name], list) else None
    own["_forward_pre_hooks"] = OrderedDict(module._forward_pre_hooks)
    if own["_parameters"]:
        twin.register_forward_pre_hook(lambda *_: before_layer())
    own["_modules"] = {
        name: None
        if child is None
        else _twin(child, changed, before_layer, keep_functions, f"{path}{name}.", made)
        for name, child in module._modules.items()
    }
    return twin


def _gather(twin: nn.Module) -> torch.device:
    """Brings the weights of a twin to one device and returns it: where all lie, else the CPU."""
    tables: list[dict[str, Any]] = [
        table for part in twin.modules() for table in (part._parameters, part._buffers)
    ]
    found = {t.device for table in tables for t in table.values() if t is not None}
    device = found.pop() if len(found) == 1 else torch.device("cpu")
    if device.type == "meta":
        device = torch.device("cpu")
    for table in tables:
        for name, tensor in table.items():
            if tensor is None or tensor.device == device:
                continue
            if tensor.is_meta:  # not in the file: ComfyUI takes zeros
                table[name] = torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
            else:
                table[name] = tensor.to(device)
    return device


def _patch(twin: nn.Module, patches: dict[str, Any]) -> None:
    """Puts LoRAs onto a twin's weights, by ComfyUI's own function."""
    from comfy import lora

    for path, of_weight in list(patches.items()):
        parent, _, name = path.rpartition(".")
        try:
            table: dict[str, Any] = twin.get_submodule(parent)._parameters
        except AttributeError:
            continue  # of a part that this encoder does not have: ComfyUI passes it over, too
        weight = table.get(name)
        if weight is None:
            continue
        if type(weight) not in PLAIN:
            weight = weight.dequantize()
        patched = lora.calculate_weight(of_weight, weight.to(torch.float32, copy=True), path)
        table[name] = patched.to(weight.dtype)
