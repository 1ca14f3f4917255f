"""What a fleet costs and gains: one worker, two processes, two actors on Ray, one after the other.

    python -m tools run -- -m tests.benchmarks.fleet [--seeds 5] [--steps 200] [--folder FOLDER]

The eight concepts of demo/fleet.toml, each at so many seeds, in the emoji world on the CPU, every
worker with one thread: run it where nothing else runs. Prints JSON, a part for each way:

- seconds: from the first job's beginning to the last one's end, so without the workers' start;
- throughput: jobs a second, against one worker;
- overhead: of what a worker's time is not training, in % of a job, and in seconds a job: lease,
  pictures, result, scheduling (the first job of each worker, which loads the model, left out);
- loads: how often a worker loaded the model;
- same: whether all files are those of the one worker, byte for byte.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from fleet.devices import devices_of
from fleet.jobs import Job, jobs_of
from fleet.ledger import JobState, Ledger
from fleet.local_pool import LocalPool, WorkerPlan
from fleet.manifest import read_manifest
from fleet.run import Pool, run
from tools.locate import ROOT

WORKERS = 2


def manifest(folder: Path, seeds: int, steps: int) -> Path:
    """The demo's manifest, with more seeds and other steps, as a file in a folder."""
    text = (ROOT / "demo" / "fleet.toml").read_text(encoding="utf-8")
    for old, new in (
        ("seed = 1\n", ""),
        ("steps = 400", f"steps = {steps}"),
        ('pictures = "', f'pictures = "{(ROOT / "demo").as_posix()}/'),
        ("[concepts.berry]", f"[grid]\nseed = {list(range(1, seeds + 1))}\n\n[concepts.berry]"),
    ):
        assert old in text
        text = text.replace(old, new)
    path = folder / "fleet.toml"
    path.write_text(text, encoding="utf-8")
    return path


def measure(jobs: list[Job], ledger: Ledger, pool: Pool) -> dict[str, Any]:
    """Do the jobs; the figures, and "files": the results."""
    for job in jobs:
        ledger.add(job.id, job.spec)
    outcome = run(jobs, ledger, pool)
    assert not outcome.failed, outcome.failed
    assert not outcome.stopped, outcome.stopped
    by_worker: dict[str, list[dict[str, Any]]] = {}
    for job in jobs:
        figures = ledger.figures(JobState.DONE, job.id)
        by_worker.setdefault(figures["worker"], []).append(figures)
    begun, ended, training, spent, later = [], [], 0.0, 0.0, 0
    for figures in by_worker.values():
        ordered = sorted(figures, key=lambda one: one["ended"])
        begun.append(ordered[0]["ended"] - ordered[0]["seconds"])
        ended.append(ordered[-1]["ended"])
        spent += ordered[-1]["ended"] - ordered[0]["ended"]
        training += sum(one["train_seconds"] for one in ordered[1:])
        later += len(ordered) - 1
    return {
        "jobs": len(jobs),
        "workers": len(by_worker),
        "seconds": round(max(ended) - min(begun), 1),
        "seconds_of_training_a_job": round(training / later, 3),
        "overhead_seconds_a_job": round((spent - training) / later, 3),
        "overhead_percent": round(100 * (spent - training) / spent, 2),
        "loads": sum(one["loads"] for figures in by_worker.values() for one in figures),
        "files": [ledger.result(job.id).read_bytes() for job in jobs],
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.fleet", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=int, default=5, help="of each of the eight concepts")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="of the ledgers; a temporary one otherwise")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory(prefix="fleet-", dir=options.folder) as made:
        folder = Path(made)
        jobs = jobs_of(read_manifest(manifest(folder, options.seeds, options.steps)))
        found: dict[str, dict[str, Any]] = {}
        for way, workers in (("one worker", 1), ("processes", WORKERS), ("Ray", WORKERS)):
            ledger = Ledger(folder / way)
            plan, devices = WorkerPlan(ledger.root, options=(30.0,)), devices_of(f"cpu:{workers}")
            if way == "Ray":
                if importlib.util.find_spec("ray") is None:
                    print("Ray is not installed: left out", file=sys.stderr)
                    continue
                from fleet.ray_pool import RayPool

                found[way] = measure(jobs, ledger, RayPool(plan, devices, ""))
            else:
                found[way] = measure(jobs, ledger, LocalPool(plan, devices))
            one = found["one worker"]
            found[way]["throughput"] = round(one["seconds"] / found[way]["seconds"], 2)
            found[way]["same"] = found[way]["files"] == one["files"]
    for figures in found.values():
        del figures["files"]
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
