"""Hands jobs to workers until none is left. The same for all runners.

The loop keeps in memory which jobs are left and who is at what. Whether a job may be done is
decided by the ledger alone, when a worker takes it: other fleets may be at the same jobs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from .errors import FleetError
from .ledger import JobState, Ledger
from .schedule import Schedulable, Schedule

HELD_FOR = 5.0  # seconds until a job that another fleet has is looked at again
MOST_STARTS = 3  # of a worker that ends before it has done anything


@dataclass(frozen=True)
class Event:
    """What a worker says.

    Attributes:
        worker: its number.
        kind: "ready"; "ended" (a job, `told` is what came of it); "died"; "full" (the ledger's disk
            takes nothing more).
        told: "error" of the last two; "holder" of one that died elsewhere, as the lease calls it.
    """

    worker: int
    kind: str
    told: dict[str, Any] = field(default_factory=dict)


class Pool(Protocol):
    """Workers on some runner, by number."""

    def start(self, worker: int) -> None:
        """Start a worker, or another in place of one that died."""

    def send(self, worker: int, job: str) -> None:
        """Give a job to a worker that is idle."""

    def wait(self, seconds: float) -> list[Event]:
        """What happens within so many seconds, as soon as anything does."""

    def stop(self) -> None:
        """End all workers after the step that each is at, and wait for them."""

    @property
    def size(self) -> int:
        """How many workers there are to be."""


@dataclass
class Outcome:
    """What came of a run.

    Attributes:
        done: jobs that this fleet did, with figures.
        failed: jobs that failed, here or before, with figures and "error".
        elsewhere: jobs that were done when they were looked at.
        deaths: of workers.
        stopped: why the run ended before its jobs; "" where it did not.
    """

    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, dict[str, Any]] = field(default_factory=dict)
    elsewhere: set[str] = field(default_factory=set)
    deaths: int = 0
    stopped: str = ""


def run(
    jobs: Iterable[Schedulable],
    ledger: Ledger,
    pool: Pool,
    on_event: Callable[[Outcome], None] = lambda outcome: None,
    on_done: Callable[[str], None] = lambda job: None,
) -> Outcome:
    """Do the jobs, which are in the ledger.

    Args:
        on_event: called several times a second, to show how far it is.
        on_done: called with each job that this fleet has done.

    A KeyboardInterrupt ends it as `stopped`: every worker ends its step, and keeps a snapshot.
    """
    loop = _Loop(jobs, ledger, pool)
    try:
        loop.run(on_event, on_done)
    except KeyboardInterrupt:
        loop.outcome.stopped = "stopped; the same command goes on from here"
    except FleetError as error:  # of `on_done`, or of a ledger that can no longer be read
        loop.outcome.stopped = str(error)
    finally:
        pool.stop()
    return loop.outcome


class _Loop:
    def __init__(self, jobs: Iterable[Schedulable], ledger: Ledger, pool: Pool) -> None:
        self.outcome = Outcome()
        self._ledger = ledger
        self._pool = pool
        self._schedule = Schedule(job for job in jobs if self._is_open(job))
        self._idle: list[int] = []
        self._doing: dict[int, Schedulable] = {}
        self._loaded: dict[int, str] = {}
        self._starts = Counter[int]()
        self._count = 0  # of workers that the run began with
        self._lost: set[int] = set()  # workers that do not come up

    def run(self, on_event: Callable[[Outcome], None], on_done: Callable[[str], None]) -> None:
        self._count = min(self._pool.size, len(self._schedule))
        for worker in range(self._count):
            self._pool.start(worker)
        while (self._doing or len(self._schedule)) and not self.outcome.stopped:
            self._hand_out()
            if not self._doing and not len(self._schedule):
                break
            for event in self._pool.wait(0.25):
                self._hear(event, on_done)
            on_event(self.outcome)

    def _hand_out(self) -> None:
        """A job for every idle worker, as far as there are any now."""
        for worker in list(self._idle):
            job = self._next_open(worker)
            if job is None:
                break
            self._idle.remove(worker)
            self._doing[worker] = job
            self._loaded[worker] = job.model
            self._pool.send(worker, job.id)

    def _next_open(self, worker: int) -> Schedulable | None:
        models = Counter(self._loaded.values())
        while (job := self._schedule.next(self._loaded.get(worker, ""), models)) is not None:
            if self._is_open(job):
                return job
        return None

    def _is_open(self, job: Schedulable) -> bool:
        """Whether a job is to be done; what came of one that is not is noted."""
        state = self._ledger.state(job.id)
        if state is not JobState.OPEN:
            self._ended_before(job, state)
        return state is JobState.OPEN

    def _ended_before(self, job: Schedulable, state: JobState) -> None:
        if state is JobState.FAILED:
            self.outcome.failed[job.id] = self._ledger.figures(state, job.id)
        else:
            self.outcome.elsewhere.add(job.id)

    def _hear(self, event: Event, on_done: Callable[[str], None]) -> None:
        worker = event.worker
        if event.kind == "ready":
            self._starts[worker] = 0
            self._idle.append(worker)
        elif event.kind == "ended":
            self._idle.append(worker)
            self._ended(self._doing.pop(worker), event.told, on_done)
        elif event.kind == "full":
            self.outcome.stopped = event.told["error"]
        elif event.kind == "died":
            job = self._doing.get(worker)
            if job is not None and "holder" in event.told:
                self._ledger.leases.declare_dead(job.id, event.told["holder"])
            self._died(worker, str(event.told.get("error", "")))

    def _ended(
        self, job: Schedulable, told: dict[str, Any], on_done: Callable[[str], None]
    ) -> None:
        state = JobState(told["state"])
        if state is JobState.DONE and "seconds" in told:
            self.outcome.done[job.id] = told
            on_done(job.id)
        elif state is JobState.FAILED and "error" in told:
            self.outcome.failed[job.id] = told
        elif state in (JobState.DONE, JobState.FAILED):
            self._ended_before(job, state)
        else:
            self._schedule.put_back(job, HELD_FOR if state is JobState.HELD else 0.0)

    def _died(self, worker: int, error: str) -> None:
        """A worker is gone: its job is open again, and another worker takes its place."""
        self.outcome.deaths += 1
        self._loaded.pop(worker, None)
        if worker in self._idle:
            self._idle.remove(worker)
        job = self._doing.pop(worker, None)
        if job is not None:
            self._schedule.put_back(job)
        else:
            self._starts[worker] += 1
        if self._starts[worker] >= MOST_STARTS:
            self._lost.add(worker)
            if len(self._lost) >= self._count:
                self.outcome.stopped = f"no worker could be started: {error}"
            return
        self._pool.start(worker)
