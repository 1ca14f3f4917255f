"""Whether an error says that memory ran out."""

from __future__ import annotations

# CPUs, MPS and a GPU whose allocator reports through its runtime have no class of their own for it.
_SAID = ("out of memory", "not enough memory", "can't allocate memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that a device, or the machine, has no memory left."""
    from comfy import model_management

    if isinstance(error, (model_management.OOM_EXCEPTION, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error).lower() for said in _SAID)
