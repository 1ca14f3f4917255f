"""One job in ComfyUI: from its pictures to the bytes of its concept file."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from perfusion_core.method.training_state import TrainingState

from .comfyui import Models, open_comfyui
from .errors import FleetError
from .snapshot import from_bytes, to_bytes
from .worker import JobContext, Stopped

POINTS = 60  # of the curve of a training's loss that is kept


class ComfyTrainer:
    """Trains jobs in this process, which opens ComfyUI.

    Args:
        arguments: of ComfyUI's command line.
        snapshot_every: seconds between two snapshots.
    """

    def __init__(self, arguments: Sequence[str], snapshot_every: float) -> None:
        open_comfyui(arguments)
        self._models = Models()
        self._every = snapshot_every

    def train(
        self, spec: Mapping[str, Any], inputs: Sequence[tuple[str, bytes]], context: JobContext
    ) -> tuple[bytes, dict[str, Any]]:
        """The concept file of a job, and figures of its training.

        Args:
            inputs: name and bytes of each picture, then of each mask.

        Raises what the session raises, FleetError, or Stopped.
        """
        import torch

        from perfusion_core.comfy.cancel import is_cancel
        from perfusion_core.concept.concept_file import concept_bytes
        from perfusion_core.learn.plan import Plan
        from perfusion_core.learn.session import learn
        from perfusion_core.method.training_settings import TrainingSettings

        settings = TrainingSettings(**spec["settings"])
        count = len(spec["pictures"])
        pictures = [pixels(*one) for one in inputs[:count]]
        masks = [_mask(*one) for one in inputs[count:]]
        loads = self._models.loads
        model, clip, vae = self._models.get(spec["model"])
        snapshots = _Snapshots(context, self._every)
        plan = Plan(
            spec["placeholder"],
            spec["superclass"],
            settings,
            resolution=spec["resolution"],
            flip=spec["flip"],
            checkpointing=spec["checkpointing"],
            snapshots=snapshots,
        )
        forget_peak()
        begun = time.monotonic()
        progress = _Progress(context)
        try:
            with torch.inference_mode():  # as ComfyUI runs its nodes
                learned = learn(model, clip, vae, pictures, masks, spec["captions"], plan, progress)
        except BaseException as error:  # a Cancel is no Exception in newer versions of ComfyUI
            if is_cancel(error):
                raise Stopped from error
            raise
        figures = {
            "steps": len(learned.losses),
            "resumed_from": snapshots.resumed_from,
            "train_seconds": round(time.monotonic() - begun, 3),
            "loss": learned.concept.training["loss"],
            "losses": _curve(learned.losses),
            "pictures": learned.sizes,
            "notes": [*snapshots.notes, *learned.notes],
            "loads": self._models.loads - loads,
            "peak_bytes": peak(),
        }
        return concept_bytes(learned.concept), figures


def _curve(losses: Sequence[float]) -> list[float]:
    """The losses of a training as at most `POINTS` means, each of as many steps."""
    each = max(1, -(-len(losses) // POINTS))
    parts = [losses[n : n + each] for n in range(0, len(losses), each)]
    return [round(sum(part) / len(part), 5) for part in parts]


class _Snapshots:
    """The session's snapshots, in the ledger."""

    def __init__(self, context: JobContext, every: float) -> None:
        self.resumed_from = 0
        self.notes: list[str] = []
        self._context = context
        self._every = every
        self._last = time.monotonic()

    def load(self) -> TrainingState | None:
        data = self._context.snapshot()
        if data is None:
            return None
        try:
            state = from_bytes(data)
        except Exception as error:  # whatever a damaged file makes of the readers
            self.notes.append(f"its snapshot could not be read, so it began anew: {error}")
            return None
        self.resumed_from = len(state.losses)
        return state

    def due(self, done: int) -> bool:
        if self._context.stop_asked():
            from comfy import model_management

            # The session saves the state, then looks for a Cancel.
            model_management.interrupt_current_processing(True)
            return True
        return time.monotonic() - self._last >= self._every

    def save(self, state: TrainingState) -> None:
        self._last = time.monotonic()  # first: a full disk is not tried again at every step
        try:
            self._context.keep_snapshot(to_bytes(state))
        except FleetError as error:  # training goes on: it may end before the next one is due
            note = f"a snapshot was not kept: {error}"
            self.notes += [note] if note not in self.notes else []


class _Progress:
    """What the session tells of its progress."""

    def __init__(self, context: JobContext) -> None:
        self._context = context

    def step(self, done: int, total: int, loss: float) -> None:
        self._context.at(done, total, loss)

    def painting(self, done: int, total: int) -> None:
        """Nothing is painted: a fleet looks at its concepts afterwards, in a sweep."""

    look: Callable[..., None] = painting
    tried: Callable[..., None] = painting


def pixels(name: str, data: bytes) -> Any:
    """A picture as ComfyUI's IMAGE [1, H, W, 3], as its Load Image reads it."""
    return _array(name, data, "RGB")[None]


def _mask(name: str, data: bytes) -> Any:
    """A mask as ComfyUI's MASK [1, H, W]: white is where the thing is."""
    return _array(name, data, "L")[None]


def _array(name: str, data: bytes, mode: str) -> Any:
    import numpy as np
    import torch
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.array(ImageOps.exif_transpose(image).convert(mode))
    except Exception as error:  # the library raises many kinds for a damaged file
        raise FleetError(
            f'"{name}" cannot be read as a picture ({error}): take it out, or save it again as PNG '
            "or JPEG"
        ) from error
    return torch.from_numpy(pixels.astype(np.float32) / 255.0)


def forget_peak() -> None:
    """Begin to measure the most memory of the GPU that is used."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak() -> int:
    """Bytes of the GPU that were used at most since `forget_peak`; where there is none, of memory
    by this process so far."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    if sys.platform == "win32":
        import psutil  # ComfyUI asks for it

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024  # bytes there, kilobytes on Linux
