"""One worker: takes a job's lease, keeps it alive meanwhile, keeps the result or the error.

It is the same for all runners. It asks of the ledger what `WorkerLedger` says, all of it plain
data: where a machine does not see the ledger's folder, its workers ask over the network.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from .errors import LedgerFull
from .leases import BEAT, Lease
from .ledger import JobState


class Stopped(Exception):
    """A job was left where it is, because its worker is to end."""


class Trainer(Protocol):
    """Does a job."""

    def train(
        self, spec: Mapping[str, Any], inputs: Sequence[tuple[str, bytes]], context: JobContext
    ) -> tuple[bytes, dict[str, Any]]:
        """The result and some figures. Raises ValueError for what the job itself is to blame for;
        Stopped; anything else ends the worker, and another tries the job again."""


class WorkerLedger(Protocol):
    """What a worker asks of a ledger; see `Ledger`."""

    def take(self, job: str, worker: str) -> Lease | JobState: ...

    def spec(self, job: str) -> dict[str, Any]: ...

    def snapshot(self, job: str) -> bytes | None: ...

    def keep_snapshot(self, lease: Lease, data: bytes) -> None: ...

    def renew(self, lease: Lease, note: dict[str, Any]) -> bool: ...

    def release(self, lease: Lease, note: dict[str, Any]) -> None: ...

    def finish(self, lease: Lease, result: bytes, figures: Mapping[str, Any]) -> bool: ...

    def fail(
        self, lease: Lease, error: str, figures: Mapping[str, Any], trace: str = ""
    ) -> None: ...


class JobContext:
    """What a trainer may ask and say while it works on a job."""

    def __init__(self, ledger: WorkerLedger, lease: Lease, stop: threading.Event) -> None:
        self._ledger = ledger
        self._lease = lease
        self._stop = stop
        self.note: dict[str, Any] = {}
        self.lost = threading.Event()  # somebody else has taken the job

    def at(self, done: int, total: int, loss: float) -> None:
        """So many steps are done."""
        self.note |= {"step": done, "steps": total, "loss": round(loss, 5)}

    def stop_asked(self) -> bool:
        """Whether to stop after this step."""
        return self._stop.is_set() or self.lost.is_set()

    def snapshot(self) -> bytes | None:
        """The state to go on from."""
        return self._ledger.snapshot(self._lease.job)

    def keep_snapshot(self, data: bytes) -> None:
        """Keep the state. Raises FleetError where the ledger's disk does not take it."""
        if not self.lost.is_set():
            self._ledger.keep_snapshot(self._lease, data)
            self.note["deaths"] = 0  # it came further than those before
            self._ledger.renew(self._lease, dict(self.note))


class Worker:
    """One worker, in its own process.

    Args:
        read_inputs: gives the name and the bytes of a job's pictures and masks.
        stop: set when the worker is to end after the step that it is at.
        beat: seconds between two signs of life.
    """

    def __init__(
        self,
        ledger: WorkerLedger,
        name: str,
        trainer: Trainer,
        read_inputs: Callable[[Mapping[str, Any]], Any],
        stop: threading.Event,
        beat: float = BEAT,
    ) -> None:
        self._ledger = ledger
        self._name = f"{name} on {socket.gethostname()}"
        self._trainer = trainer
        self._read_inputs = read_inputs
        self._stop = stop
        self._beat = beat
        self._held: tuple[Lease, JobContext] | None = None
        self._beating = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Show no more signs of life."""
        self._ended.set()
        self._thread.join()

    def work(self, job: str) -> dict[str, Any]:
        """Do a job; what came of it: "state" (of `JobState`), and "error" or figures.

        Raises LedgerFull, and what ends the worker, after the job was given back.
        """
        taken = self._ledger.take(job, self._name)
        if isinstance(taken, JobState):
            return {"state": taken.value}
        lease, begun = taken, time.monotonic()
        context = JobContext(self._ledger, lease, self._stop)
        context.note["worker"] = self._name
        self._held = (lease, context)
        try:
            return self._done(lease, context, begun)
        except Stopped:
            self._release(lease, context, {})
            return {"state": JobState.OPEN.value}
        except ValueError as error:
            if isinstance(error, LedgerFull):
                self._release(lease, context, {})
                raise
            try:
                return self._failed(lease, context, error, begun)
            except LedgerFull:
                self._release(lease, context, {})
                raise
        except BaseException as error:
            # Not the job's fault for sure, and the process may be broken, as after an error of the
            # GPU: a new one tries again, and not without end.
            before = context.note.get("deaths", lease.deaths)
            told = {"error": f"{type(error).__name__}: {error}", "deaths": before + 1}
            self._release(lease, context, told)
            raise
        finally:
            self._still()

    def _done(self, lease: Lease, context: JobContext, begun: float) -> dict[str, Any]:
        spec = self._ledger.spec(lease.job)
        context.note["name"] = spec["name"]
        result, figures = self._trainer.train(spec, list(self._read_inputs(spec)), context)
        figures = {
            "name": spec["name"],
            "model": spec["model"]["key"],
            "worker": self._name,
            "seconds": round(time.monotonic() - begun, 3),
            "ended": time.time(),
            **figures,
        }
        self._still()
        if not self._ledger.finish(lease, result, figures):
            return {"state": JobState.HELD.value}
        return {"state": JobState.DONE.value, **figures}

    def _failed(
        self, lease: Lease, context: JobContext, error: Exception, begun: float
    ) -> dict[str, Any]:
        figures = {
            "name": self._ledger.spec(lease.job)["name"],
            "worker": self._name,
            "seconds": round(time.monotonic() - begun, 3),
            "ended": time.time(),
            "step": context.note.get("step", 0),
        }
        trace = "".join(traceback.format_exception(error))
        self._still()
        self._ledger.fail(lease, str(error), figures, trace)
        return {"state": JobState.FAILED.value, "error": str(error), **figures}

    def _release(self, lease: Lease, context: JobContext, note: Mapping[str, Any]) -> None:
        self._still()
        with contextlib.suppress(OSError):  # it runs out by itself
            self._ledger.release(lease, {**context.note, **note})

    def _still(self) -> None:
        """No more signs of life for this job: they would undo what is written of its end."""
        with self._beating:
            self._held = None

    def _live(self) -> None:
        """Renews the lease of the job that is worked on."""
        while not self._ended.wait(self._beat):
            with self._beating:
                if self._held is None:
                    continue
                lease, context = self._held
                # A full disk, or a network folder that is away for a moment, is no reason to end.
                with contextlib.suppress(OSError):
                    if not self._ledger.renew(lease, dict(context.note)):
                        context.lost.set()
