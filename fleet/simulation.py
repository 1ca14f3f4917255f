"""The scheduler and the ledger under load: jobs that only sleep, workers that die at random.

    python -m fleet.simulation [--jobs 10000] [--workers 64] [--deaths 0.05] [--folder FOLDER]

Workers are processes of this machine, and die as by kill -9, at any moment: while they take a job,
work on it, keep its result. Prints what was measured, as JSON; ends with 1 unless every job is done
and none has two results.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .devices import Device
from .ledger import Ledger
from .local_pool import LocalPool, WorkerPlan
from .run import run
from .worker import JobContext, Stopped

MODELS = 4  # as if there were so many checkpoints


@dataclass(frozen=True)
class SleepingJob:
    """A job of the simulation."""

    id: str
    model: str


class SleepingTrainer:
    """Sleeps, and at times takes its process with it.

    Args:
        seconds: that a job takes.
        deaths: how likely the process ends within a job.
        log: a folder, in which each process writes the jobs that it did.
    """

    def __init__(self, _: Sequence[str], seconds: float, deaths: float, log: str) -> None:
        self._seconds = seconds
        self._deaths = deaths
        self._log = (Path(log) / f"{os.getpid()}").open("a", encoding="ascii")

    def train(
        self, spec: Mapping[str, Any], inputs: Sequence[tuple[str, bytes]], context: JobContext
    ) -> tuple[bytes, dict[str, Any]]:
        if random.random() < self._deaths:
            # Soon: within the job, or while its result is kept.
            threading.Timer(random.uniform(0, self._seconds + 0.01), _die).start()
        time.sleep(self._seconds)
        if context.stop_asked():
            raise Stopped
        self._log.write(f"{spec['number']}\n")
        self._log.flush()
        return hashlib.sha256(str(spec["number"]).encode()).digest(), {}


def no_inputs(_: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Jobs of the simulation have no pictures."""
    return iter(())


def simulate(
    folder: Path, jobs: int, workers: int, deaths: float, seconds: float = 0.0
) -> dict[str, Any]:
    """Run so many jobs on so many processes; figures, and "missing", "wrong" jobs."""
    log = folder / "log"
    log.mkdir(parents=True)
    ledger = Ledger(folder / "ledger")
    listed = []
    begun = time.monotonic()
    for number in range(jobs):
        job = SleepingJob(hashlib.sha1(str(number).encode()).hexdigest(), str(number % MODELS))
        listed.append(job)
        model = {"key": job.model}
        ledger.add(job.id, {"number": number, "name": f"job {number}", "model": model})
    added = time.monotonic()
    plan = WorkerPlan(
        ledger.root,
        "fleet.simulation:SleepingTrainer",
        "fleet.simulation:no_inputs",
        (seconds, deaths, str(log)),
    )
    outcome = run(listed, ledger, LocalPool(plan, [Device("none")] * workers))
    ended = time.monotonic()
    counts = ledger.counts()
    status = time.monotonic() - ended
    expected = {j.id: hashlib.sha256(str(n).encode()).digest() for n, j in enumerate(listed)}
    wrong = [j for j, data in expected.items() if _content(ledger.result(j)) != data]
    ran = Counter(line for path in log.iterdir() for line in path.read_text("ascii").split())
    return {
        "jobs": jobs,
        "workers": workers,
        "deaths": outcome.deaths,
        "seconds": round(ended - added, 1),
        "ms_to_add_a_job": round(1000 * (added - begun) / jobs, 3),
        "ms_per_job": round(1000 * (ended - added) / jobs, 3),
        "ms_of_status": round(1000 * status, 1),
        "counts": counts,
        "results_told_twice": jobs - len({*outcome.done, *outcome.elsewhere}),
        "done_here": len(outcome.done),
        "run_again_after_a_death": sum(ran.values()) - len(ran),
        "leases_left": sum(1 for _ in ledger.working()),
        "wrong": len(wrong),
        "stopped": outcome.stopped,
    }


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fleet.simulation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--deaths", type=float, default=0.05, help="how likely within a job")
    parser.add_argument("--seconds", type=float, default=0.0, help="that a job sleeps")
    parser.add_argument("--folder", type=Path, help="of the ledger; a temporary one otherwise")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="fleet-", dir=options.folder))
    try:
        found = simulate(folder, options.jobs, options.workers, options.deaths, options.seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(found, indent=1))
    counts = found["counts"]
    return int(found["wrong"] or counts["done"] != options.jobs or bool(found["stopped"]))


if __name__ == "__main__":
    sys.exit(main())
