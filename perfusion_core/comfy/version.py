"""Whether the ComfyUI around this pack is new enough, asked before anything of it is imported."""

from __future__ import annotations

import importlib.util
import re

from .contract import OLDEST


def too_old() -> str:
    """What to tell the user of a ComfyUI that this pack cannot run in; "" where it can."""
    found = _version()
    # No version, and the API for nodes is there: a fork, or one that was packed by somebody.
    old = _parts(found) < _parts(OLDEST) if found else importlib.util.find_spec("comfy_api") is None
    if not old:
        return ""
    this = f"this is {found}" if found else "this one does not say its version"
    return (
        f"Perfusion needs ComfyUI {OLDEST} or newer, and {this}, so its nodes are not there: "
        "update ComfyUI and start it again."
    )


def _version() -> str:
    try:
        from comfyui_version import __version__
    except ImportError:
        return ""
    return str(__version__)


def _parts(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))
