"""Perfusion for ComfyUI: what ComfyUI looks for when it imports this folder, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./js"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint() -> ComfyExtension:
    """ComfyUI's way in: the pack's extension, which lists its nodes."""
    from .nodes import PerfusionExtension

    return PerfusionExtension()
