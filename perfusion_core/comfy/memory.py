"""Whether an error says that memory ran out."""

from __future__ import annotations

# CPUs, MPS and a GPU whose allocator reports through its runtime have no class of their own for it.
_SAID = ("out of memory", "not enough memory", "can't allocate memory")
_CUDA_MEMORY_ALLOCATION = 2  # the code of CUDA's error, whatever its text says


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that a device, or the machine, has no memory left."""
    from comfy import model_management

    # Newer versions of ComfyUI know further errors of a GPU that mean it.
    is_oom = getattr(model_management, "is_oom", None)
    if is_oom is not None and is_oom(error):
        return True
    if isinstance(error, (model_management.OOM_EXCEPTION, MemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    if getattr(error, "error_code", None) == _CUDA_MEMORY_ALLOCATION:
        return True
    return any(said in str(error).lower() for said in _SAID)
