"""Perfusion for ComfyUI: what ComfyUI looks for when it imports this folder, and nothing else."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .perfusion_core.comfy.version import too_old

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY: str | None = "./js"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint() -> ComfyExtension:
    """ComfyUI's way in: the pack's extension, which lists its nodes."""
    from .nodes import PerfusionExtension

    return PerfusionExtension()


if _reason := too_old():
    logging.getLogger(__name__).error(_reason)
    # The old way in, so that an old ComfyUI finds a pack without nodes and not a broken one.
    NODE_CLASS_MAPPINGS: dict[str, type] = {}
    WEB_DIRECTORY = None
