"""ComfyUI's Cancel: asked for, raised, answered."""

from __future__ import annotations

from typing import Any


def stop_when_asked(*_: Any) -> None:
    """Raises ComfyUI's own exception when the user has pressed Cancel."""
    from comfy import model_management

    model_management.throw_exception_if_processing_interrupted()


def is_cancel(error: BaseException) -> bool:
    """Whether an exception is a Cancel: ComfyUI raises it out of its bar, sampler and layers."""
    from comfy import model_management

    return isinstance(error, model_management.InterruptProcessingException)


def take_cancel() -> bool:
    """Whether the user has pressed Cancel since; answered here, so that the graph goes on."""
    from comfy import model_management

    asked = bool(model_management.processing_interrupted())
    if asked:
        model_management.interrupt_current_processing(False)
    return asked
