"""What goes on beside a training: progress, pictures on the way, Cancel, files on the way."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from comfy import model_management
from comfy.utils import ProgressBar
from PIL import Image

from ..perfusion_core.comfy.concept_folder import default_name, save_named, saved_name
from ..perfusion_core.concept.concept import Concept
from ..perfusion_core.learn.time_left import time_left
from ..perfusion_core.method.validation import Validation, ValidationLook

logger = logging.getLogger(__name__)

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

    Attributes:
        validation: what paints and scores pictures on the way, or None.
        notes: what failed on the way without ending the training.
        rescued: where what was learned is, after a step that failed; a sentence, or "".
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
        self.notes: list[str] = []
        self.rescued = ""
        self._blind = False
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
        """See `OnStep`. What fails here, but for a Cancel that discards, does not end training."""
        left = time_left(time.monotonic() - self._begun, done, total)
        # Two lines: the page breaks a line that is too long for the node within a word. The two
        # spaces keep them apart in Nodes 2.0, which reads this as Markdown.
        at = f"step {done} of {total}, loss {loss:.4f}  \n{left}"
        with self._beside("its progress could not be shown"):
            self._bar.update_absolute(done, total)
            self._tell(at, last=done == total)
        if self._save_every and done % self._save_every == 0 and done < total:
            with self._beside(f"the copy of step {done} was not saved"):
                self._save(snapshot())
        if self.validation is not None and not self._blind and self._due(done, total):
            with self._beside(f"no pictures from step {done} on, because one failed", blinds=True):
                self._look(self.validation, done, total, snapshot)
                self._tell(at, last=True)  # in place of "painting ..."
        if not self._keep:
            stop_when_asked()

    def failed(self, error: BaseException, snapshot: Callable[[], Concept]) -> bool:
        """See `OnFailure`. A Cancel may keep what was learned; else it is saved, and `rescued` says
        where."""
        if isinstance(error, model_management.InterruptProcessingException):
            self._asked = self._keep
            return self._keep
        if isinstance(error, Exception):  # not when Python itself is to end
            try:
                concept = snapshot()
                steps, file = concept.training["steps_done"], self._save(concept)
                self.rescued = (
                    f' What was learned in the {steps} steps before that is saved as "{file}": '
                    "load it as it is, or connect it to resume to go on."
                )
            except Exception as second:
                self.rescued = f" What was learned before that could not be saved: {second}"
        return False

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
        if not self.cancelled() and not self._blind:
            with self._beside("the best bias and temperature were not looked for, because a picture"
                              " failed"):  # fmt: skip
                return self.validation.tuned(self._on_tuned)
        return self.validation.kept()

    @contextmanager
    def _beside(self, what: str, blinds: bool = False) -> Iterator[None]:
        """What goes on beside training: when it fails, that is told, and training goes on.

        Args:
            what: has happened then, as the node says it.
            blinds: no further picture is painted then.
        """
        try:
            yield
        except model_management.InterruptProcessingException:
            # ComfyUI raises it out of its own progress bar, sampler and layers.
            if not self._keep:
                raise
            self._asked = True
        except Exception as error:
            self._blind = self._blind or blinds
            self.notes.append(f"{what}: {error}")
            logger.warning("Perfusion: training goes on, but %s: %s", what, error)

    def _save(self, concept: Concept) -> str:
        """Save a concept on the way, under a name of its own; returns the file's."""
        # Of all steps behind it, those before a resume too.
        name = f"{default_name(concept.name)}_step{concept.training['steps_done']}"
        concept = replace(concept, preview=self._thumbnail)
        return saved_name(save_named(concept, name, overwrite=False))

    def _due(self, done: int, total: int) -> bool:
        if not self._look_every:
            return False
        scored = self.validation is not None and self.validation.scores
        return done % self._look_every == 0 or (scored and done == total)

    def _look(
        self, validation: Validation, done: int, total: int, snapshot: Callable[[], Concept]
    ) -> None:
        self._tell(f"step {done} of {total}, painting ...", last=True)
        look = validation.look(done, snapshot())
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
        server = PromptServer.instance
        # To the page that queued it: another page may have another node of this number.
        server.send_progress_text(text, self._node_id, server.client_id)


def stop_when_asked(*_: Any) -> None:
    """Raises the host's exception when the user has pressed Cancel."""
    model_management.throw_exception_if_processing_interrupted()


def _preview(look: ValidationLook) -> tuple[str, Image.Image, int]:
    """The first picture as the host shows it on a node."""
    array = (look.pictures[0].clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return "JPEG", Image.fromarray(array), PREVIEW_SIZE
