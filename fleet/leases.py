"""Who works on a job: files that only one process can make, and that are renewed while it lives.

The files of a job are "<job>.1", "<job>.2" and so on in one folder; the highest is in force. To
take a job is to make the next one, which the file system lets one process do. Another's file is
never deleted or replaced, so two that find a dead one at the same time cannot both win.

A holder rewrites its file every few seconds. Who waits for a job believes the holder dead when its
file has stayed the same for `EXPIRY` of the watcher's own clock (clocks of two machines are not
compared), or at once where it is of this machine and its process is gone.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfusion_core.concept.files import replace_file, write_new

EXPIRY = 120.0  # seconds; network folders may show a file as it was up to a minute ago
BEAT = 2.0  # seconds between two renewals


@dataclass(frozen=True)
class Lease:
    """A job that is taken by this process.

    Attributes:
        number: of its file.
        deaths: how many workers before died over the job without coming further.
        error: what the last of them said of it; "" for nothing.
    """

    job: str
    number: int
    deaths: int
    error: str = ""


def machine() -> str:
    """What tells this machine, since it was started, from all others."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        # Process numbers mean something only within one name space (containers have their own).
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        boot = space = ""
    return f"{socket.gethostname()} {boot} {space}".strip()


def process_is_gone(process: int) -> bool:
    """Whether a process of this machine has ended for sure; False where that cannot be known."""
    if sys.platform == "win32":  # there, signal 0 is no question
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


class Leases:
    """The leases of a ledger, in the folder `folder`.

    Args:
        expiry: seconds after which a lease that is not renewed counts no more.
    """

    def __init__(self, folder: Path, expiry: float = EXPIRY) -> None:
        self._folder = folder
        self._expiry = expiry
        self._seen: dict[str, tuple[bytes, float]] = {}  # name -> content, and since when
        self._machine = machine()

    def take(self, job: str, worker: str) -> Lease | None:
        """Take a job; None where somebody who may live has it. Raises OSError."""
        current = self._current(job)
        deaths, error = 0, ""
        if current:
            told = self._left(f"{job}.{current}")
            if told is None:
                return None
            deaths = int(told.get("deaths", 0)) + (not told.get("released"))
            error = str(told.get("error", ""))
        lease = Lease(job, current + 1, deaths, error)
        try:
            write_new([self._path(lease)], self._content(lease, {"worker": worker}))
        except FileExistsError:
            return None
        return lease

    def renew(self, lease: Lease, note: dict[str, Any]) -> bool:
        """Say that its holder lives; False where somebody else took the job meanwhile.

        Args:
            note: how far it is, for people; "deaths", where that is another number than when it was
                taken; "error": what went wrong.
        """
        if not self.holds(lease):
            return False
        path = self._path(lease)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
        try:
            partial.write_bytes(self._content(lease, note))
            replace_file(partial, path)
        finally:
            partial.unlink(missing_ok=True)
        return True

    def holds(self, lease: Lease) -> bool:
        """Whether a lease is still there, and in force."""
        return self._path(lease).exists() and not self._next(lease).exists()

    def release(self, lease: Lease, note: dict[str, Any]) -> None:
        """Give a job back that is not ended; notes as of `renew`."""
        self.renew(lease, {**note, "released": True})

    def declare_dead(self, job: str, worker: str) -> None:
        """Give back the job of a worker of that name, who is known to have ended."""
        number = self._current(job)
        try:
            told = json.loads((self._folder / f"{job}.{number}").read_bytes())
        except (OSError, ValueError):  # nobody has it
            return
        if str(told.get("worker", "")).startswith(worker) and not told.get("released"):
            deaths = int(told.get("deaths", 0)) + 1
            note = {"worker": told["worker"], "deaths": deaths, "released": True}
            self.renew(Lease(job, number, deaths), note)

    def forget(self, lease: Lease) -> None:
        """Delete all leases of a job that is ended, so that nobody takes it any more."""
        for number in range(1, lease.number + 1):
            (self._folder / f"{lease.job}.{number}").unlink(missing_ok=True)

    def clear(self, job: str) -> None:
        """Delete what is left of the leases of a job that nobody is working on."""
        self.forget(Lease(job, self._current(job), 0))

    def all(self) -> Iterator[dict[str, Any]]:
        """What is held, or was by who is dead: job, worker, machine, and what was noted last.

        With "dead": whether its process is known to have ended; "age": seconds since it was
        renewed, by the clock of whoever looks.
        """
        newest: dict[str, int] = {}
        for entry in os.scandir(self._folder):
            job, _, last = entry.name.rpartition(".")
            if last.isdigit() and not job.startswith("."):
                newest[job] = max(newest.get(job, 0), int(last))
        for job, number in newest.items():
            path = self._folder / f"{job}.{number}"
            try:
                told = json.loads(path.read_bytes())
                age = time.time() - path.stat().st_mtime
            except (OSError, ValueError):
                continue  # released meanwhile
            if not told.get("released"):
                dead = self._has_ended(told)
                yield {**told, "job": job, "number": number, "age": age, "dead": dead}

    def _current(self, job: str) -> int:
        """The highest number of a job's files; 0 for none. As many looks as there are files."""
        number = 0
        while (self._folder / f"{job}.{number + 1}").exists():
            number += 1
        return number

    def _left(self, name: str) -> dict[str, Any] | None:
        """What a lease says whose holder gave it back or is dead; None of one who may live."""
        try:
            content = (self._folder / name).read_bytes()
            told: dict[str, Any] = json.loads(content)
        except (OSError, ValueError):  # ended meanwhile, or half written by a disk without links
            return None
        if told.get("released") or self._has_ended(told):
            return told
        before, since = self._seen.get(name, (b"", 0.0))
        if content != before:
            self._seen[name] = (content, time.monotonic())
            return None
        return told if time.monotonic() - since >= self._expiry else None

    def _has_ended(self, told: dict[str, Any]) -> bool:
        """Whether the process that wrote this was on this machine and is no more."""
        return told.get("machine") == self._machine and process_is_gone(int(told["process"]))

    def _content(self, lease: Lease, note: dict[str, Any]) -> bytes:
        told = {
            "machine": self._machine,
            "process": os.getpid(),
            "deaths": lease.deaths,
            "beat": uuid.uuid4().hex,  # so that the file changes
            **note,
        }
        return json.dumps(told).encode()

    def _path(self, lease: Lease) -> Path:
        return self._folder / f"{lease.job}.{lease.number}"

    def _next(self, lease: Lease) -> Path:
        return self._folder / f"{lease.job}.{lease.number + 1}"
