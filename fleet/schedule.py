"""Which job next: a worker stays with the model that it has loaded while there are jobs of it."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Protocol


class Schedulable(Protocol):
    """What the schedule has to know of a job."""

    @property
    def id(self) -> str: ...

    @property
    def model(self) -> str: ...


class Schedule:
    """The jobs that nobody of this fleet is working on, in order. Every call takes a time that
    depends on the number of models and not on that of jobs."""

    def __init__(self, jobs: Iterable[Schedulable]) -> None:
        self._groups: dict[str, deque[Schedulable]] = {}
        self._later: list[tuple[float, int, Schedulable]] = []
        self._count = 0
        for job in jobs:
            self._groups.setdefault(job.model, deque()).append(job)

    def __len__(self) -> int:
        return len(self._later) + sum(map(len, self._groups.values()))

    def next(self, loaded: str, workers: Mapping[str, int]) -> Schedulable | None:
        """A job for a worker; None where there is none now.

        Args:
            loaded: the model that it has loaded; "" for none.
            workers: how many have each model loaded: where a model is to be loaded, it is the one
                that has the most jobs for each of its workers.
        """
        while self._later and self._later[0][0] <= time.monotonic():
            job = heapq.heappop(self._later)[2]
            self._groups.setdefault(job.model, deque()).append(job)
        waiting = {model: jobs for model, jobs in self._groups.items() if jobs}
        if not waiting:
            return None
        if loaded not in waiting:
            loaded = max(waiting, key=lambda m: len(waiting[m]) / (1 + workers.get(m, 0)))
        return waiting[loaded].popleft()

    def put_back(self, job: Schedulable, seconds: float = 0.0) -> None:
        """A job is to be done after all: next, or not before so many seconds."""
        if seconds:
            self._count += 1  # jobs are not compared
            heapq.heappush(self._later, (time.monotonic() + seconds, self._count, job))
        else:
            self._groups.setdefault(job.model, deque()).appendleft(job)
