"""Makes the host's Python modules importable for the demo's own scripts."""

from __future__ import annotations

from tools.inprocess import open_host
from tools.locate import find_host, home


def import_host() -> None:
    """Open the ComfyUI that set-up found or made, on a GPU where there is one.

    Call before anything of `comfy` is imported: the host reads its arguments at import.
    """
    import torch

    device = () if torch.cuda.is_available() else ("--cpu",)
    # The host's default attention on a CPU is the slow, memory-sparing one.
    open_host(find_host(), home() / "scripts-base", (*device, "--use-pytorch-cross-attention"))
