"""What goes on beside a training: progress, pictures on the way, Cancel, files on the way."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from comfy import model_management
from comfy.utils import ProgressBar
from PIL import Image

from ..perfusion_core.bridge import default_name, save_path
from ..perfusion_core.concept import Concept
from ..perfusion_core.concept_file import save_concept
from ..perfusion_core.progress import time_left
from ..perfusion_core.selection import Validation, ValidationLook

PREVIEW_SIZE = 512
TOLD_EVERY = 0.5  # seconds


class TrainingWatch:
    """Follows the steps of one training.

    Args:
        node_id: of the node that trains, as the host calls it; None outside a graph.
        steps: in all.
        save_every: save the concept every so many steps; 0 for never.
        look_every: look at it every so many steps; 0 for never.
        keep: whether a Cancel ends the training with what was learned, and not the whole run.
        preview: for what is saved on the way.
    """

    def __init__(
        self,
        node_id: str | None,
        steps: int,
        save_every: int,
        look_every: int,
        keep: bool,
        preview: bytes,
    ) -> None:
        self.validation: Validation | None = None
        self._node_id = node_id
        self._bar = ProgressBar(steps)
        self._save_every = save_every
        self._look_every = look_every
        self._keep = keep
        self._thumbnail = preview
        self._asked = False
        self._begun = time.monotonic()
        self._told = 0.0

    def step(self, done: int, total: int, loss: float, snapshot: Callable[[], Concept]) -> None:
        """See `OnStep`."""
        self._bar.update_absolute(done, total)
        left = time_left(time.monotonic() - self._begun, done, total)
        # Two lines: the page breaks a line that is too long for the node within a word.
        at = f"step {done} of {total}, loss {loss:.4f}\n{left}"
        self._tell(at, last=done == total)
        if self._save_every and done % self._save_every == 0 and done < total:
            concept = replace(snapshot(), preview=self._thumbnail)
            # Of all steps behind it, those before a resume too.
            name = f"{default_name(concept.name)}_step{concept.training['steps_done']}"
            save_concept(concept, save_path(name, overwrite=False))
        if self.validation is not None and self._due(done, total):
            self._look(self.validation, done, total, snapshot)
            self._tell(at, last=True)  # in place of "painting ..."
        if not self._keep:
            stop_when_asked()

    def cancelled(self) -> bool:
        """Whether training is to end here, and the rest of the graph to go on."""
        if self._keep and model_management.processing_interrupted():
            # Answered here: the rest of the graph goes on with what was learned.
            model_management.interrupt_current_processing(False)
            self._asked = True
        return self._asked

    def selected(self) -> Concept | None:
        """The concept that validation prefers, tuned unless cancelled; None without a score."""
        if self.validation is None or self.validation.best is None:
            return None
        if not self.cancelled():
            try:
                return self.validation.tuned(self._on_tuned)
            except model_management.InterruptProcessingException:
                if not self._keep:
                    raise
        return self.validation.kept()

    def _due(self, done: int, total: int) -> bool:
        if not self._look_every:
            return False
        scored = self.validation is not None and self.validation.scores
        return done % self._look_every == 0 or (scored and done == total)

    def _look(
        self, validation: Validation, done: int, total: int, snapshot: Callable[[], Concept]
    ) -> None:
        self._tell(f"step {done} of {total}, painting ...", last=True)
        try:
            look = validation.look(done, snapshot())
        except model_management.InterruptProcessingException:
            if not self._keep:
                raise
            self._asked = True
            return
        self._bar.update_absolute(done, total, _preview(look))

    def _on_tuned(self, look: ValidationLook, done: int, total: int) -> None:
        settings = look.settings
        self._bar.update_absolute(done, total, _preview(look))
        tried = f"bias {settings.bias:g}, temperature {settings.temperature:g}"
        self._tell(f"tried {done} of {total}: {tried}", last=True)

    def _tell(self, text: str, last: bool) -> None:
        """Text on the node; not more often than one can read."""
        now = time.monotonic()
        if self._node_id is None or (now - self._told < TOLD_EVERY and not last):
            return
        from server import PromptServer

        self._told = now
        PromptServer.instance.send_progress_text(text, self._node_id)


def stop_when_asked(*_: Any) -> None:
    """Raises the host's exception when the user has pressed Cancel."""
    model_management.throw_exception_if_processing_interrupted()


def _preview(look: ValidationLook) -> tuple[str, Image.Image, int]:
    """The first picture as the host shows it on a node."""
    array = (look.pictures[0].clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return "JPEG", Image.fromarray(array), PREVIEW_SIZE
