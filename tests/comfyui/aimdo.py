"""Dynamic VRAM on the CPU: ComfyUI's own code over a stand-in for the memory of a GPU.

`comfy_aimdo` gives ComfyUI address space on the GPU whose pages come and go. Here that is a tensor
on the CPU, and "does not fit" a budget. What runs above it, `ModelPatcherDynamic` and
`cast_bias_weight`, is ComfyUI's own. It changes ComfyUI for good: for a process of its own.
"""

from __future__ import annotations

import ctypes
import inspect
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from comfy.cli_args import args

# Where ComfyUI asks whether weights are on another device than they are used on. Here is only one.
ASKS = {
    'if hasattr(s, "_v") and comfy.model_management.is_device_cpu(device):': "if False:",
    'elif hasattr(s, "_v") and s.weight.device != device:': 'elif hasattr(s, "_v"):',
}


def lacking() -> str:
    """Why this ComfyUI cannot be tested so; "" if it can."""
    if not hasattr(comfy.model_patcher, "ModelPatcherDynamic"):
        return "this ComfyUI has no dynamic VRAM"
    source = inspect.getsource(comfy.ops.cast_bias_weight)
    if not all(asks in source for asks in ASKS):
        return "this ComfyUI's dynamic VRAM is an earlier one, which users had to ask for"
    return ""


class Memory:
    """In place of `comfy_aimdo.model_vbar.ModelVBAR`: pages that are there, or not."""

    budget = 0

    def __init__(self, size: int) -> None:
        with torch.inference_mode(False):
            self.bytes = torch.zeros(size + 4096, dtype=torch.uint8)
        self.size, self.end, self.faults = size, 0, 0
        self.there: dict[int, int] = {}
        self.signatures: dict[int, int] = {}

    def prioritize(self) -> None:
        pass

    def alloc(self, size: int) -> tuple[Memory, int, int]:
        begin = (self.end + 511) & ~511
        self.end = begin + size
        assert self.end <= self.size
        return self, begin, size

    def loaded_size(self) -> int:
        return sum(self.there.values())

    def free_memory(self, _: int) -> int:
        freed = self.loaded_size()
        self.there.clear()
        return freed


def fault(address: tuple[Memory, int, int]) -> bytearray | None:
    """The signature of what is at `address`, which is there afterwards; None if it does not fit."""
    memory, begin, size = address
    if begin not in memory.there:
        if memory.loaded_size() + size > Memory.budget:
            return None
        memory.faults += 1
        memory.there[begin], memory.signatures[begin] = size, memory.faults
    return bytearray(str(memory.signatures[begin]).encode().ljust(16))


def as_tensor(address: tuple[Any, int, int], _: Any) -> torch.Tensor:
    """A new tensor over memory that torch does not own."""
    memory, begin, size = address
    raw: Any = (ctypes.c_uint8 * size).from_address(memory.bytes.data_ptr() + begin)
    raw.owner = memory.bytes
    return torch.frombuffer(raw, dtype=torch.uint8)


class Stream:
    """In place of a CUDA stream."""

    def wait_stream(self, _: Any) -> None:
        pass

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: Any) -> None:
        pass


class HostBuffer:
    """In place of pinned memory, of which there is none."""

    size = 0

    def __init__(self, *_: Any) -> None:
        pass

    def truncate(self, *_: Any, **__: Any) -> None:
        pass


def install(fits: bool) -> type[Any]:
    """ComfyUI's dynamic model patcher, which from now on works on the CPU.

    Args:
        fits: whether weights fit on the device; if not, each is cast into one buffer at each use.
    """
    import comfy.memory_management  # of ComfyUI since dynamic VRAM
    import comfy_aimdo.host_buffer
    import comfy_aimdo.model_vbar
    import comfy_aimdo.torch

    Memory.budget = 1 << 40 if fits else 0
    args.disable_pinned_memory = True
    comfy_aimdo.model_vbar.vbar_fault = fault
    comfy_aimdo.model_vbar.vbar_unpin = lambda _: None
    comfy_aimdo.model_vbar.vbars_analyze = lambda _=None: 0
    comfy_aimdo.torch.aimdo_to_tensor = as_tensor
    comfy_aimdo.host_buffer.HostBuffer = HostBuffer

    dynamic = comfy.model_patcher.ModelPatcherDynamic
    # It gives a plain patcher where the device is a CPU.
    dynamic.__new__ = staticmethod(lambda cls, *_, **__: object.__new__(cls))

    def memory_of(self: Any, create: bool = False) -> Memory | None:
        memories = self.model.dynamic_vbars
        if create and self.load_device not in memories:
            memories[self.load_device] = Memory(self.model_size() * 10)
        found: Memory | None = memories.get(self.load_device)
        return found

    dynamic._vbar_get = memory_of
    # They ask CUDA about pinned memory.
    dynamic.partially_unload_ram = lambda *_, **__: 0
    dynamic.unregister_inactive_pins = lambda *_, **__: 0

    def unload(self: Any, *_: Any, **__: Any) -> int:  # it asserts that this is no CPU
        return self._vbar_get(create=True).free_memory(0) + int(self.restore_loaded_backups())

    dynamic.partially_unload = unload

    source = inspect.getsource(comfy.ops.cast_bias_weight)
    for asks, here in ASKS.items():
        source = source.replace(asks, here)
    exec(compile(source, "cast_bias_weight", "exec"), vars(comfy.ops))
    comfy.model_patcher.CoreModelPatcher = dynamic
    comfy.memory_management.aimdo_enabled = True
    if not fits:
        stream, buffer = Stream(), SimpleNamespace(bytes=torch.zeros(1 << 28, dtype=torch.uint8))
        comfy.model_management.get_offload_stream = lambda _: stream
        comfy.model_management.sync_stream = lambda *_: None
        comfy.model_management.current_stream = lambda _: None
        comfy.model_management.get_aimdo_cast_buffer = lambda *_: SimpleNamespace(
            size=buffer.bytes.numel, get=lambda size, begin=0: (buffer, begin, size)
        )
    found: type[Any] = dynamic
    return found
