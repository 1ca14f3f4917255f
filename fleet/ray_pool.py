"""Workers as actors of a Ray cluster: on many machines, each with its models kept between jobs.

A worker that sees the ledger's folder (a shared one, or on the same machine) uses it; for any other
an actor beside this process does, which Ray reaches over the network: then nothing is shared but
the pack and the model files, each machine its own, at the same paths.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from .devices import Device
from .errors import FleetError, LedgerFull
from .leases import Lease
from .ledger import JobState, Ledger
from .local_pool import PATIENCE, WorkerPlan, named
from .run import Event

ROOT = Path(__file__).resolve().parent.parent
JOINED_EVERY = 10.0  # seconds between two looks for machines that joined


class _Keeper:
    """The ledger, for workers that do not see its folder: runs beside the one who started it."""

    def __init__(self, plan: WorkerPlan) -> None:
        self._ledger = Ledger(plan.ledger, plan.expiry)
        self._read = named(plan.inputs)

    def name(self) -> str:
        return self._ledger.name

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self._ledger, method)(*arguments)

    def inputs(self, spec: Mapping[str, Any]) -> list[tuple[str, bytes]]:
        return list(self._read(spec))


class _FarLedger:
    """What a worker asks of a `Ledger`, by way of its keeper."""

    def __init__(self, keeper: Any) -> None:
        self._keeper = keeper

    def _call(self, method: str, *arguments: Any) -> Any:
        return ray.get(self._keeper.call.remote(method, *arguments))

    def take(self, job: str, worker: str) -> Lease | JobState:
        taken: Lease | JobState = self._call("take", job, worker)
        return taken

    def spec(self, job: str) -> dict[str, Any]:
        spec: dict[str, Any] = self._call("spec", job)
        return spec

    def snapshot(self, job: str) -> bytes | None:
        data: bytes | None = self._call("snapshot", job)
        return data

    def keep_snapshot(self, lease: Lease, data: bytes) -> None:
        self._call("keep_snapshot", lease, data)

    def renew(self, lease: Lease, note: dict[str, Any]) -> bool:
        return bool(self._call("renew", lease, note))

    def release(self, lease: Lease, note: dict[str, Any]) -> None:
        self._call("release", lease, note)

    def finish(self, lease: Lease, result: bytes, figures: Mapping[str, Any]) -> bool:
        return bool(self._call("finish", lease, result, dict(figures)))

    def fail(self, lease: Lease, error: str, figures: Mapping[str, Any], trace: str = "") -> None:
        self._call("fail", lease, error, dict(figures), trace)


class _RayWorker:
    """A worker in an actor's process."""

    def __init__(
        self, plan: WorkerPlan, name: str, arguments: Sequence[str], keeper: Any, direct: bool
    ) -> None:
        self._stop = threading.Event()
        seen = direct and (plan.ledger / "ledger.json").is_file()
        near = Ledger(plan.ledger, plan.expiry) if seen else None
        if near is not None and near.name == ray.get(keeper.name.remote()):
            self._worker = plan.worker(name, arguments, self._stop, near)
        else:
            self._worker = plan.worker(
                name,
                arguments,
                self._stop,
                _FarLedger(keeper),
                lambda spec: ray.get(keeper.inputs.remote(spec)),
            )

    def process(self) -> int:
        """The number of its process, once it is up."""
        return os.getpid()

    def work(self, job: str) -> dict[str, Any]:
        return self._worker.work(job)

    def stop(self) -> None:
        self._stop.set()


class RayPool:
    """See `Pool`.

    Args:
        devices: one worker each, where Ray is started here; on a cluster their kind alone counts:
            a worker for each of its cards, or for each of its CPUs, as many as there are.
        address: of a cluster; "" to start Ray here, for as long as it takes.
        direct: False to ask for all of the ledger through Ray, also where its folder is seen.

    Raises FleetError where Ray cannot be reached.
    """

    def __init__(
        self, plan: WorkerPlan, devices: Sequence[Device], address: str, direct: bool = True
    ) -> None:
        self._plan = plan
        self._devices = list(devices)
        self._direct = direct
        self._cluster = bool(address)
        self._run = uuid.uuid4().hex[:6]
        self._folder = None if address else _short_folder()
        _start(self._devices, address, self._folder)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        keeper = ray.remote(num_cpus=0, max_concurrency=8, scheduling_strategy=here)(_Keeper)
        self._keeper = keeper.options(runtime_env=_environment({})).remote(plan)
        self._actors: dict[int, Any] = {}
        self._waiting: dict[Any, tuple[int, str]] = {}  # future -> worker, what it does
        self._started = 0
        self._looked = time.monotonic()

    @property
    def size(self) -> int:
        return self._room() if self._cluster else len(self._devices)

    def start(self, worker: int) -> None:
        self._started = max(self._started, worker + 1)
        device = self._devices[worker % len(self._devices)]
        card = device.name.startswith("cuda")
        kept = {k: v for k, v in device.environment.items() if k != "CUDA_VISIBLE_DEVICES"}
        actor = ray.remote(num_cpus=1, num_gpus=int(card), max_concurrency=2)(_RayWorker)
        made = actor.options(runtime_env=_environment(kept)).remote(
            self._plan, self._name(worker), device.arguments, self._keeper, self._direct
        )
        self._actors[worker] = made
        self._waiting[made.process.remote()] = (worker, "ready")

    def send(self, worker: int, job: str) -> None:
        self._waiting[self._actors[worker].work.remote(job)] = (worker, "ended")

    def wait(self, seconds: float) -> list[Event]:
        self._welcome()
        if not self._waiting:
            time.sleep(seconds)
            return []
        done, _ = ray.wait(list(self._waiting), num_returns=1, timeout=seconds)
        events = []
        for future in done:
            worker, kind = self._waiting.pop(future)
            try:
                told = ray.get(future)
                events.append(Event(worker, kind, told if kind == "ended" else {}))
            except LedgerFull as error:
                events.append(Event(worker, "full", {"error": _cause(error)}))
            except Exception as error:  # its own, or Ray's that the actor is gone
                ray.kill(self._actors.pop(worker))
                told = {"error": _cause(error), "holder": self._name(worker)}
                events.append(Event(worker, "died", told))
        return events

    def stop(self) -> None:
        for actor in self._actors.values():
            actor.stop.remote()
        working = [future for future, (_, kind) in self._waiting.items() if kind == "ended"]
        try:
            ray.wait(working, num_returns=len(working), timeout=PATIENCE) if working else None
        finally:
            for actor in (*self._actors.values(), self._keeper):
                ray.kill(actor)
            ray.shutdown()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)

    def _name(self, worker: int) -> str:
        return f"Ray worker {worker + 1} of {self._run}"

    def _room(self) -> int:
        """How many workers the cluster takes."""
        card = self._devices[0].name.startswith("cuda")
        return max(1, int(ray.cluster_resources().get("GPU" if card else "CPU", 0)))

    def _welcome(self) -> None:
        """Workers on machines that joined."""
        if self._cluster and time.monotonic() - self._looked > JOINED_EVERY:
            self._looked = time.monotonic()
            for worker in range(self._started, self._room()):
                self.start(worker)


def _start(devices: Sequence[Device], address: str, folder: str | None) -> None:
    cards = sum(device.name.startswith("cuda") for device in devices)
    try:
        if address:
            ray.init(address=address, log_to_driver=False, runtime_env=_environment({}))
        else:
            ray.init(
                num_cpus=len(devices),
                num_gpus=cards,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="warning",
                _temp_dir=folder,
            )
    except (RayError, OSError, ValueError, RuntimeError) as error:
        where = f"at {address} " if address else ""
        raise FleetError(
            f"Ray {where}cannot be used: {error}. Start a cluster with `ray start --head`, or "
            "leave --ray out to use the processes of this machine."
        ) from error


def _environment(variables: Mapping[str, str]) -> dict[str, Any]:
    """What Ray is to set up for a process: this pack importable, from the same path."""
    return {"env_vars": {**variables, "PYTHONPATH": str(ROOT)}}


def _short_folder() -> str | None:
    """A folder for Ray's sockets, whose names may have a hundred letters and not many more."""
    return None if sys.platform == "win32" else tempfile.mkdtemp(prefix="ray-", dir="/tmp")


def _cause(error: Exception) -> str:
    """An error's own words, without Ray's around them."""
    inner = getattr(error, "cause", None)
    return str(inner) if inner is not None else str(error).strip().splitlines()[0]
