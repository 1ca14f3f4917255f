"""What the node shows of a training: ComfyUI's bar, a line of text, the pictures on the way."""

from __future__ import annotations

import time

import torch
from comfy.utils import ProgressBar
from PIL import Image

from ..perfusion_core.learn.time_left import time_left
from ..perfusion_core.method.validation import ValidationLook

PREVIEW_SIZE = 512
TOLD_EVERY = 0.5  # seconds


class NodeProgress:
    """See `Progress` of a session.

    Args:
        node_id: of the node that trains, as ComfyUI calls it; None outside a graph.
        steps: in all.
    """

    def __init__(self, node_id: str | None, steps: int) -> None:
        self._node_id = node_id
        self._bar = ProgressBar(steps)
        self._begun = time.monotonic()
        self._told = 0.0
        self._line = ""

    def step(self, done: int, total: int, loss: float) -> None:
        left = time_left(time.monotonic() - self._begun, done, total)
        # Two lines: the page breaks a line that is too long for the node within a word. The two
        # spaces keep them apart in Nodes 2.0, which reads this as Markdown.
        self._line = f"step {done} of {total}, loss {loss:.4f}  \n{left}"
        self._bar.update_absolute(done, total)
        self._tell(self._line, last=done == total)

    def painting(self, done: int, total: int) -> None:
        self._tell(f"step {done} of {total}, painting ...", last=True)

    def look(self, look: ValidationLook, done: int, total: int) -> None:
        self._bar.update_absolute(done, total, _preview(look))
        self._tell(self._line, last=True)  # in place of "painting ..."

    def tried(self, look: ValidationLook, done: int, total: int) -> None:
        settings = look.settings
        self._bar.update_absolute(done, total, _preview(look))
        which = f"bias {settings.bias:g}, temperature {settings.temperature:g}"
        self._tell(f"tried {done} of {total}: {which}", last=True)

    def _tell(self, text: str, last: bool) -> None:
        """Text on the node; not more often than one can read."""
        now = time.monotonic()
        if self._node_id is None or (now - self._told < TOLD_EVERY and not last):
            return
        from server import PromptServer

        self._told = now
        server = PromptServer.instance
        # To the page that queued it: another page may have another node of this number.
        server.send_progress_text(text, self._node_id, server.client_id)


def _preview(look: ValidationLook) -> tuple[str, Image.Image, int]:
    """The first picture as ComfyUI shows it on a node."""
    array = (look.pictures[0].clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return "JPEG", Image.fromarray(array), PREVIEW_SIZE
