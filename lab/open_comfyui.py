"""Makes ComfyUI's Python modules importable for the scripts of the lab."""

from __future__ import annotations

from tools.inprocess import open_modules
from tools.locate import find_comfyui, home


def open_comfyui() -> None:
    """Open the ComfyUI that set-up found or made, on a GPU where there is one.

    Call before anything of `comfy` is imported: ComfyUI reads its arguments at import.
    """
    import torch

    device = () if torch.cuda.is_available() else ("--cpu",)
    # ComfyUI's default attention on a CPU is the slow, memory-sparing one.
    open_modules(
        find_comfyui(), home() / "scripts-base", (*device, "--use-pytorch-cross-attention")
    )
