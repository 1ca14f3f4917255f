"""What is done and what is not, on disk: the truth that every fleet on the same folder goes by.

    ledger.json                     the format, and a name of its own
    jobs/ab/<job>/job.json  all that a worker has to know, written once
    jobs/ab/<job>/snapshot.safetensors  to go on from
    jobs/ab/<job>/result    what came of it (a concept file), whole or not there
    jobs/ab/<job>/error.txt of a failure, with the traceback
    done/ab/<job>, failed/ab/<job>  markers with a few figures, written last
    leases/                         who works on what (leases.py)
    hashes/                         of large files, so that they are read once

<job> is the hash of all that decides the result, "ab" its first two letters. No operation on a job
looks at other jobs: each is a handful of files whose names are known. `counts` reads the names in
these folders and no file.
"""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Any

from perfusion_core.concept.files import cause, write_atomically, write_new

from .errors import FleetError, LedgerFull
from .leases import EXPIRY, Lease, Leases

FORMAT = 1
MOST_DEATHS = 5  # workers that may die over one job without coming further

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


class JobState(str, Enum):
    """What the ledger says of a job that nobody is working on now, or of one that is taken."""

    OPEN = "open"
    HELD = "held"
    DONE = "done"
    FAILED = "failed"


class Ledger:
    """The ledger in the folder `root`, which is made where it is not there.

    Raises FleetError for a folder that is none; LedgerFull, from whatever writes, where the disk
    takes nothing more.
    """

    def __init__(self, root: Path, expiry: float = EXPIRY) -> None:
        self.root = root
        with _writing(root):
            for part in ("jobs", "done", "failed", "leases", "hashes"):
                (root / part).mkdir(parents=True, exist_ok=True)
            self.name = self._own_name()
        self.leases = Leases(root / "leases", expiry)

    def _own_name(self) -> str:
        path = self.root / "ledger.json"
        with suppress(FileExistsError):
            write_new([path], json.dumps({"format": FORMAT, "name": uuid.uuid4().hex}).encode())
        told = _read(path)
        if told.get("format") != FORMAT:
            raise FleetError(
                f"{path} is of format {told.get('format')}, and this fleet reads format {FORMAT}. "
                "Update the pack, or name another folder as the ledger."
            )
        return str(told["name"])

    # --- jobs

    def add(self, job: str, spec: Mapping[str, Any]) -> None:
        """Make a job known; one that is known gets its names and paths as they are now."""
        path, text = self.folder(job) / "job.json", json.dumps(spec, indent=1).encode()
        if not path.exists() or path.read_bytes() != text:
            with _writing(self.root):
                write_atomically(path, text)

    def spec(self, job: str) -> dict[str, Any]:
        """What `add` was given."""
        return _read(self.folder(job) / "job.json")

    def state(self, job: str) -> JobState:
        """DONE, FAILED or OPEN; whether an open one is held is known by taking it."""
        if self._marker("done", job).exists():
            return JobState.DONE
        return JobState.FAILED if self._marker("failed", job).exists() else JobState.OPEN

    def take(self, job: str, worker: str) -> Lease | JobState:
        """A lease on an open job; else why there is none. A job over which too many workers died
        is a failure from then on."""
        state = self.state(job)
        if state is not JobState.OPEN:
            return state
        with _writing(self.root):
            lease = self.leases.take(job, worker)
        if lease is None:
            # Its holder may have ended it since the first look.
            state = self.state(job)
            return JobState.HELD if state is JobState.OPEN else state
        state = self.state(job)
        if state is not JobState.OPEN:  # ended between the look and the lease
            self.leases.forget(lease)
            return state
        if lease.deaths >= MOST_DEATHS:
            why = lease.error or (
                "most likely it needs more memory than there is: lower batch_size or resolution, "
                "or run fewer workers"
            )
            told = f"{lease.deaths} workers ended over it before it was done: {why}"
            self.fail(lease, told, {"name": self.spec(job)["name"]})
            return JobState.FAILED
        return lease

    def snapshot(self, job: str) -> bytes | None:
        """The snapshot to go on from."""
        try:
            return (self.folder(job) / "snapshot.safetensors").read_bytes()
        except FileNotFoundError:
            return None

    def keep_snapshot(self, lease: Lease, data: bytes) -> None:
        """Keep a snapshot in place of the one before it."""
        with _writing(self.root):
            write_atomically(self.folder(lease.job) / "snapshot.safetensors", data)

    def renew(self, lease: Lease, note: dict[str, Any]) -> bool:
        """See `Leases.renew`."""
        return self.leases.renew(lease, note)

    def release(self, lease: Lease, note: dict[str, Any]) -> None:
        """See `Leases.release`."""
        self.leases.release(lease, note)

    def finish(self, lease: Lease, result: bytes, figures: Mapping[str, Any]) -> bool:
        """Keep the result of a job; False where somebody else took the job meanwhile."""
        if not self.leases.holds(lease):
            return False
        folder = self.folder(lease.job)
        with _writing(self.root):
            write_atomically(folder / "result", result)
            self._mark("done", lease.job, figures)
        (folder / "snapshot.safetensors").unlink(missing_ok=True)
        (folder / "error.txt").unlink(missing_ok=True)
        self.leases.forget(lease)
        return True

    def fail(self, lease: Lease, error: str, figures: Mapping[str, Any], trace: str = "") -> None:
        """Keep what went wrong with a job. It is not tried again until `retry`."""
        with _writing(self.root):
            text = f"{error}\n\n{trace}" if trace else f"{error}\n"
            write_atomically(self.folder(lease.job) / "error.txt", text.encode())
            self._mark("failed", lease.job, {**figures, "error": error})
        self.leases.forget(lease)

    def retry(self, job: str) -> None:
        """Open a failed job again, with no death counted."""
        self.leases.clear(job)
        self._marker("failed", job).unlink(missing_ok=True)

    def result(self, job: str) -> Path:
        """The file that came of a job that is done."""
        return self.folder(job) / "result"

    def figures(self, state: JobState, job: str) -> dict[str, Any]:
        """What was noted of a job that is done or failed."""
        return _read(self._marker(state.value, job))

    def folder(self, job: str) -> Path:
        return self.root / "jobs" / job[:2] / job

    # --- all of it

    def counts(self) -> dict[str, int]:
        """How many jobs are known, done and failed."""
        parts = {"jobs": "known", "done": "done", "failed": "failed"}
        return {word: sum(1 for _ in self.names(part)) for part, word in parts.items()}

    def names(self, part: str = "jobs") -> Iterator[str]:
        """The jobs that are in a part: "jobs", "done" or "failed"."""
        for shard in os.scandir(self.root / part):
            if shard.is_dir():
                for entry in os.scandir(shard.path):
                    if not entry.name.startswith("."):
                        yield entry.name

    def working(self) -> Iterator[dict[str, Any]]:
        """Who is at which job; see `Leases.all`. What the dead left of ended jobs is deleted."""
        for held in self.leases.all():
            if self.state(held["job"]) is JobState.OPEN:
                yield held
            else:
                self.leases.forget(Lease(held["job"], held["number"], 0))

    def _marker(self, part: str, job: str) -> Path:
        return self.root / part / job[:2] / job

    def _mark(self, part: str, job: str, figures: Mapping[str, Any]) -> None:
        write_atomically(self._marker(part, job), json.dumps(dict(figures)).encode())


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    """Says in the fleet's words what the disk does not take."""
    try:
        yield
    except OSError as error:
        if isinstance(error, FileExistsError):
            raise
        kind = LedgerFull if error.errno in _FULL else FleetError
        raise kind(
            f"the ledger {root} cannot be written: {cause(error)} Then run the same command again: "
            "it goes on from here."
        ) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FleetError(
            f"{path} cannot be read: {error}. The ledger was damaged: delete this file's folder, "
            "and what belongs to it is done again."
        ) from error
    if not isinstance(told, dict):
        raise FleetError(f"{path} is not a part of a ledger. Name another folder.")
    return told
