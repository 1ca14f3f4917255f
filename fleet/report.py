"""What people see of a fleet: the plan, the progress, the end, the state of a ledger."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from perfusion_core.learn.time_left import time_left

from .ledger import JobState, Ledger
from .run import Outcome

if TYPE_CHECKING:
    from .jobs import Job  # torch comes with it

SAMPLE = 50  # jobs that are done, whose figures are looked at for an estimate
LISTED = 40  # jobs, or failures, that are listed
LIVE = 120.0  # seconds; who showed no sign of life for longer is called silent


def size(count: float) -> str:
    """Bytes for people, such as "1.2 GB"."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def seconds(count: float) -> str:
    """A duration for people, such as "2 min 5 s"."""
    return time_left(count, 1, 2).removesuffix(" left")


def pace(ledger: Ledger) -> dict[str, tuple[float, float]]:
    """By model: seconds of a step, and most bytes used; of some of the jobs that are done."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for job in itertools.islice(ledger.names("done"), SAMPLE):
        figures = ledger.figures(JobState.DONE, job)
        if figures.get("steps", 0) > figures.get("resumed_from", 0):
            found.setdefault(figures["model"], []).append(figures)
    return {
        model: (
            sum(f["seconds"] for f in some) / sum(f["steps"] - f["resumed_from"] for f in some),
            max(f["peak_bytes"] for f in some),
        )
        for model, some in found.items()
    }


def plan_text(jobs: Sequence[Job], ledger: Ledger, workers: Sequence[str]) -> str:
    """What a run would do: jobs, what is done already, expected time and memory."""
    states = {job.id: ledger.state(job.id) for job in jobs}
    lines = []
    for job in jobs[:LISTED]:
        state = states[job.id]
        spec = job.spec
        told = f"{job.steps} steps, {len(spec['pictures'])} pictures, {spec['model']['name']}"
        shown = "to do" if state is JobState.OPEN else state.value
        lines.append(f"  {shown:7} {', '.join(job.names)}: {told}  [{job.id[:8]}]")
    if len(jobs) > LISTED:
        lines.append(f"  ... and {len(jobs) - LISTED} more")
    open_jobs = [job for job in jobs if states[job.id] is JobState.OPEN]
    counts = {s: sum(1 for state in states.values() if state is s) for s in JobState}
    lines.append(
        f"{len(jobs)} jobs: {counts[JobState.DONE]} done, {counts[JobState.FAILED]} failed "
        f"(python -m fleet retry), {len(open_jobs)} to do, on {', '.join(workers)}"
    )
    lines += _expected(open_jobs, ledger, len(workers))
    lines.append(f"ledger: {ledger.root}")
    return "\n".join(lines)


def _expected(jobs: Sequence[Job], ledger: Ledger, workers: int) -> list[str]:
    """Expected time and memory, from what was done here before."""
    if not jobs:
        return []
    paces = pace(ledger)
    known = [paces[job.model][0] * job.steps for job in jobs if job.model in paces]
    weights = {job.model: float(job.spec["model"]["bytes"]) for job in jobs}
    lines = []
    if len(known) == len(jobs):
        lines.append(
            f"expected: {seconds(sum(known) / workers)}, as jobs of these models took here before"
        )
    else:
        lines.append("expected time: known once a job of each model is done here")
    used = max((paces[model][1] for model in weights if model in paces), default=0.0)
    memory = f"; at most {size(used)} were used before" if used else ""
    lines.append(
        f"memory a worker: {size(max(weights.values()))} of weights, and what a step needs{memory}"
    )
    return lines


class Progress:
    """A bar of all steps, with the jobs underway, each with its time left. Where the output is no
    terminal, only a line for each job that ends."""

    def __init__(self, jobs: Sequence[Job], ledger: Ledger) -> None:
        from tqdm import tqdm

        self._ledger = ledger
        self._names = {job.id: ", ".join(job.names) for job in jobs}
        self._steps = {job.id: job.steps for job in jobs if ledger.state(job.id) is JobState.OPEN}
        self._told: set[str] = set()
        self._before: dict[str, tuple[int, float]] = {}  # job -> steps when first seen, and when
        self._last = 0.0
        self._bar = tqdm(total=sum(self._steps.values()), unit="step", disable=None, leave=False)

    def __call__(self, outcome: Outcome) -> None:
        """Show how far it is; see `run`."""
        ended = {**outcome.done, **outcome.failed}
        for job in ended.keys() - self._told:
            self._told.add(job)
            self._bar.write(self._ended(job, ended[job]))
        if not self._bar.disable and time.monotonic() - self._last >= 1:
            self._last = time.monotonic()
            underway = [h for h in self._ledger.working() if h["job"] in self._steps]
            steps = sum(int(held.get("step", 0)) for held in underway)
            gone = {*ended, *outcome.elsewhere}
            steps += sum(count for job, count in self._steps.items() if job in gone)
            jobs = f"{len(gone & self._steps.keys())}/{len(self._steps)} jobs"
            self._bar.set_description(jobs, refresh=False)
            self._bar.set_postfix_str(", ".join(map(self._shown, underway)), refresh=False)
            self._bar.update(steps - self._bar.n)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._bar.close()

    def _ended(self, job: str, told: Mapping[str, Any]) -> str:
        name = self._names.get(job, job[:8])
        if "error" in told:
            return f"failed  {name}: {told['error']}"
        resumed = f", from step {told['resumed_from']} on" if told.get("resumed_from") else ""
        notes = "".join(f"; {note}" for note in told.get("notes", ()))
        loss = f", loss {told['loss']:.4f}" if told.get("loss") is not None else ""
        return f"done    {name}: {seconds(told['seconds'])}{resumed}{loss}{notes}"

    def _shown(self, held: Mapping[str, Any]) -> str:
        """A job that is underway: its name, its step, its time left."""
        done, total = int(held.get("step", 0)), self._steps[held["job"]]
        left = ""
        if done:  # before, it reads its pictures
            first, since = self._before.setdefault(held["job"], (done, time.monotonic()))
            if done > first:
                left = " " + time_left(time.monotonic() - since, done - first, total - first)
        return f"{held.get('name', held['job'][:8])} {done}/{total}{left}"


def end_text(outcome: Outcome, names: Mapping[str, str], where: str, spent: float) -> str:
    """What succeeded, what failed and why, where the files are."""
    lines = [
        f"{len(outcome.done)} done, {len(outcome.failed)} failed, {len(outcome.elsewhere)} were "
        f"ended before or elsewhere; {seconds(spent)}"
        + (f"; {outcome.deaths} workers died and were replaced" if outcome.deaths else "")
    ]
    lines += [
        f"  failed: {names.get(job, job[:8])}: {told['error']}"
        for job, told in outcome.failed.items()
    ]
    if outcome.stopped:
        lines.append(outcome.stopped)
    lines.append(f"concepts: {where}")
    return "\n".join(lines)


def status_text(ledger: Ledger) -> str:
    """The state of a ledger. Its cost does not grow with what is in the jobs."""
    counts = ledger.counts()
    working = list(ledger.working())
    live = [held for held in working if not held["dead"] and held["age"] < LIVE]
    left = counts["known"] - counts["done"] - counts["failed"]
    lines = [
        f"{counts['known']} jobs: {counts['done']} done, {counts['failed']} failed, "
        f"{len(live)} underway, {left - len(live)} waiting"
    ]
    if left and live and (paces := pace(ledger)):
        each = sum(pace_of_step for pace_of_step, _ in paces.values()) / len(paces)
        steps = [int(held["steps"]) for held in live if held.get("steps")]
        if steps:
            usual = each * sum(steps) / len(steps)
            lines[0] += f"; about {seconds(usual * left / len(live))} left"
    for held in working:
        silent = "" if held in live else f", silent for {seconds(held['age'])}"
        step = f"step {held['step']} of {held['steps']}" if "step" in held else "beginning"
        name = held.get("name", held["job"][:8])
        lines.append(f"  {name}: {step}, {held['worker']}{silent}")
    for job in itertools.islice(ledger.names("failed"), LISTED):
        figures = ledger.figures(JobState.FAILED, job)
        folder = ledger.folder(job)
        lines.append(
            f"  failed {figures.get('name', job[:8])}: {figures['error']} ({folder / 'error.txt'})"
        )
    if counts["failed"] > LISTED:
        lines.append(f"  ... and {counts['failed'] - LISTED} more")
    return "\n".join(lines)
