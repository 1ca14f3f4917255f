"""Workers as processes of this machine, one a device: nothing to install."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from .devices import Device
from .errors import LedgerFull
from .leases import BEAT, EXPIRY
from .ledger import Ledger
from .run import Event
from .worker import Worker, WorkerLedger

PATIENCE = 120.0  # seconds for workers to end the step that they are at

_context = multiprocessing.get_context("spawn")  # CUDA, and ComfyUI's own options, do not fork


@dataclass(frozen=True)
class WorkerPlan:
    """How a worker comes up, on any runner.

    Attributes:
        ledger: its folder.
        trainer: "module:class", made with the device's arguments for ComfyUI and `options`.
        inputs: "module:function" that reads a job's pictures.
        expiry, beat: of leases, in seconds.
    """

    ledger: Path
    trainer: str = "fleet.training:ComfyTrainer"
    inputs: str = "fleet.jobs:read_inputs"
    options: tuple[Any, ...] = ()
    expiry: float = EXPIRY
    beat: float = BEAT

    def worker(
        self,
        name: str,
        arguments: Sequence[str],
        stop: threading.Event,
        ledger: WorkerLedger | None = None,
        read_inputs: Callable[[Mapping[str, Any]], Any] | None = None,
    ) -> Worker:
        """The worker, in this process.

        Args:
            ledger, read_inputs: in place of the folder and of the files of this machine.
        """
        trainer = named(self.trainer)(arguments, *self.options)
        known = ledger or Ledger(self.ledger, self.expiry)
        read = read_inputs or named(self.inputs)
        return Worker(known, name, trainer, read, stop, self.beat)


class LocalPool:
    """See `Pool`."""

    def __init__(self, plan: WorkerPlan, devices: Sequence[Device]) -> None:
        self._plan = plan
        self._devices = devices
        self._processes: dict[int, SpawnProcess] = {}
        self._connections: dict[int, Connection[Any, Any]] = {}

    @property
    def size(self) -> int:
        return len(self._devices)

    def start(self, worker: int) -> None:
        device = self._devices[worker]
        ours, theirs = _context.Pipe()
        name = f"worker {worker + 1} ({device.name})"
        process = _context.Process(
            target=_main, args=(theirs, self._plan, name, device.arguments), name=name
        )
        # Before Python starts there: torch reads them when it is imported.
        with _environment(device.environment):
            process.start()
        theirs.close()  # so that its end is heard here
        self._processes[worker], self._connections[worker] = process, ours

    def send(self, worker: int, job: str) -> None:
        _say(self._connections[worker], job)  # where it is dead, `wait` says so

    def wait(self, seconds: float) -> list[Event]:
        by_connection = {connection: n for n, connection in self._connections.items()}
        if not by_connection:
            time.sleep(seconds)
        events = []
        for ready in wait(list(by_connection), seconds) if by_connection else ():
            assert isinstance(ready, Connection)
            worker = by_connection[ready]
            try:
                kind, told = ready.recv()
            except (EOFError, OSError):
                kind, told = "died", {"error": self._gone(worker)}
            if kind == "died":
                self._forget(worker)
            events.append(Event(worker, kind, told))
        return events

    def stop(self) -> None:
        for connection in self._connections.values():
            _say(connection, None)
        until = time.monotonic() + PATIENCE
        for worker, process in list(self._processes.items()):
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():
                process.kill()
            self._forget(worker)

    def _gone(self, worker: int) -> str:
        process = self._processes[worker]
        process.join(PATIENCE)
        return f"{process.name} ended by itself (exit code {process.exitcode})"

    def _forget(self, worker: int) -> None:
        if worker in self._processes:
            self._processes.pop(worker).join(PATIENCE)
            self._connections.pop(worker).close()


class _environment:
    """Variables of the environment, for as long as it takes to start a process with them."""

    def __init__(self, changes: Mapping[str, str]) -> None:
        self._changes = changes

    def __enter__(self) -> None:
        self._before = {name: os.environ.get(name) for name in self._changes}
        os.environ.update(self._changes)

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _main(
    connection: Connection[Any, Any], plan: WorkerPlan, name: str, arguments: Sequence[str]
) -> None:
    """A worker's process: jobs come through `connection`, None for the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that started it
    stop = threading.Event()
    jobs: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_listen, args=(connection, jobs, stop), daemon=True).start()
    try:
        worker = plan.worker(name, arguments, stop)
        connection.send(("ready", {}))
        while (job := jobs.get()) is not None:
            connection.send(("ended", worker.work(job)))
        worker.close()
    except LedgerFull as error:
        _say(connection, ("full", {"error": str(error)}))
    except BaseException as error:
        told = f"{name}: {type(error).__name__}: {error}"
        _say(connection, ("died", {"error": told, "trace": traceback.format_exc()}))
    # Should anything keep Python from ending.
    last = threading.Timer(10, os._exit, (0,))
    last.daemon = True
    last.start()


def _listen(
    connection: Connection[Any, Any], jobs: queue.Queue[str | None], stop: threading.Event
) -> None:
    """Hears what comes while a job runs. The end of whoever started this ends it too."""
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            job = None
        if job is None:
            stop.set()
            jobs.put(None)
            return
        jobs.put(job)


def _say(connection: Connection[Any, Any], message: object) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        connection.send(message)


def named(name: str) -> Any:
    """What "module:attribute" names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
