"""The ledger: who has a job, what came of it, and what a full disk or a dead worker leave."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fleet import leases
from fleet.errors import FleetError, LedgerFull
from fleet.leases import Lease
from fleet.ledger import MOST_DEATHS, JobState, Ledger

JOB = "ab" + "0" * 38
SPEC = {"name": "anna", "model": {"key": "m"}}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger(tmp_path / "ledger")
    made.add(JOB, SPEC)
    return made


def taken(ledger: Ledger, job: str = JOB) -> Lease:
    lease = ledger.take(job, "worker 1")
    assert isinstance(lease, Lease)
    return lease


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> Any:
    """After `dead()`, every process that holds a job is gone."""

    def die() -> None:
        monkeypatch.setattr(leases, "process_is_gone", lambda process: True)

    return die


def test_a_job_is_taken_once_and_its_result_is_kept(ledger: Ledger) -> None:
    other = Ledger(ledger.root)
    lease = taken(ledger)
    assert other.take(JOB, "worker 2") is JobState.HELD
    assert ledger.finish(lease, b"result", {"seconds": 1})
    assert other.take(JOB, "worker 2") is JobState.DONE
    assert other.result(JOB).read_bytes() == b"result"
    assert other.figures(JobState.DONE, JOB) == {"seconds": 1}
    assert other.counts() == {"known": 1, "done": 1, "failed": 0}
    assert not list((ledger.root / "leases").iterdir())


def test_a_job_whose_pictures_were_moved_gets_their_new_paths(ledger: Ledger) -> None:
    moved = {**SPEC, "pictures": [{"path": "/elsewhere/1.png"}]}
    ledger.add(JOB, moved)
    assert ledger.spec(JOB) == moved


def test_of_many_that_want_a_job_at_once_one_gets_it(ledger: Ledger) -> None:
    ledgers = [Ledger(ledger.root) for _ in range(16)]
    gate = threading.Barrier(len(ledgers))

    def take(own: Ledger) -> Lease | JobState:
        gate.wait()
        return own.take(JOB, "worker")

    with ThreadPoolExecutor(len(ledgers)) as pool:
        got = list(pool.map(take, ledgers))
    assert sum(isinstance(one, Lease) for one in got) == 1


def test_of_many_that_find_a_dead_holder_one_gets_the_job(ledger: Ledger, dead: Any) -> None:
    taken(ledger)
    dead()
    assert isinstance(Ledger(ledger.root).take(JOB, "worker 2"), Lease)
    again = [Ledger(ledger.root) for _ in range(8)]
    # The one who took it is of this process, and "dead" too: each next one is a death more.
    got = [one.take(JOB, "worker") for one in again]
    assert [one.deaths for one in got if isinstance(one, Lease)] == [2, 3, 4]
    assert got[3] is JobState.FAILED


def test_a_killed_process_loses_its_job_at_once(ledger: Ledger) -> None:
    code = (
        "import os, sys; from pathlib import Path; from fleet.ledger import Ledger;"
        "print(Ledger(Path(sys.argv[1])).take(sys.argv[2], 'worker'), flush=True);"
        "sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(ledger.root), JOB],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout is not None
    assert b"Lease" in process.stdout.readline()
    assert ledger.take(JOB, "worker 2") is JobState.HELD
    process.kill()
    process.communicate()
    if sys.platform == "win32":
        pytest.skip("whether a process has ended is not asked there: its lease runs out")
    assert taken(ledger).deaths == 1


def test_a_holder_elsewhere_is_believed_dead_when_it_is_silent_for_long_enough(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = taken(ledger)
    monkeypatch.setattr(leases, "machine", lambda: "another machine")
    far = Ledger(ledger.root, expiry=0.1)
    assert far.take(JOB, "worker 2") is JobState.HELD  # seen for the first time
    time.sleep(0.12)
    assert ledger.renew(lease, {"step": 3})
    assert far.take(JOB, "worker 2") is JobState.HELD  # it has changed
    time.sleep(0.12)
    new = far.take(JOB, "worker 2")
    assert isinstance(new, Lease)
    assert new.deaths == 1
    # The first one wakes up: it finds that it has lost the job, and can keep no result.
    assert not ledger.renew(lease, {})
    assert not ledger.finish(lease, b"late", {})
    assert far.finish(new, b"result", {})
    assert far.result(JOB).read_bytes() == b"result"


def test_a_job_that_was_given_back_is_open_and_no_death(ledger: Ledger) -> None:
    ledger.release(taken(ledger), {"step": 4})
    assert list(ledger.working()) == []
    assert taken(ledger).deaths == 0


def test_a_job_over_which_workers_die_without_coming_further_fails(
    ledger: Ledger, dead: Any
) -> None:
    dead()
    lease = taken(ledger)
    for _ in range(MOST_DEATHS - 1):
        lease = taken(ledger)
    ledger.renew(lease, {"error": "CUDA error", "deaths": lease.deaths})
    assert ledger.take(JOB, "worker 1") is JobState.FAILED
    error = ledger.figures(JobState.FAILED, JOB)
    assert error["name"] == "anna"
    assert f"{MOST_DEATHS} workers ended over it before it was done: CUDA error" in error["error"]
    ledger.retry(JOB)
    assert taken(ledger).deaths == 0


def test_a_job_that_comes_further_each_time_is_tried_on(ledger: Ledger, dead: Any) -> None:
    dead()
    for _ in range(3 * MOST_DEATHS):
        lease = taken(ledger)
        ledger.keep_snapshot(lease, b"state")
        ledger.renew(lease, {"deaths": 0})
    assert ledger.snapshot(JOB) == b"state"


def test_what_a_dead_worker_left_of_an_ended_job_is_cleared(ledger: Ledger, dead: Any) -> None:
    lease = taken(ledger)
    ledger._mark("done", JOB, {})  # killed after that
    assert ledger.take(JOB, "worker 2") is JobState.DONE
    assert list(ledger.working()) == []
    assert not list((ledger.root / "leases").iterdir())
    assert not ledger.leases.holds(lease)


def test_a_failure_keeps_its_error_until_it_is_retried(ledger: Ledger) -> None:
    ledger.fail(taken(ledger), "the picture is bad", {"name": "anna"}, "Traceback: ...")
    assert ledger.take(JOB, "worker 1") is JobState.FAILED
    text = (ledger.folder(JOB) / "error.txt").read_text(encoding="utf-8")
    assert text == "the picture is bad\n\nTraceback: ..."
    assert ledger.figures(JobState.FAILED, JOB) == {"name": "anna", "error": "the picture is bad"}
    ledger.retry(JOB)
    assert ledger.finish(taken(ledger), b"result", {})
    assert not (ledger.folder(JOB) / "error.txt").exists()


@pytest.mark.parametrize("at", ["add", "take", "finish", "fail"])
def test_a_full_disk_is_told_and_loses_nothing(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    lease = None if at in ("add", "take") else taken(ledger)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(LedgerFull, match="the disk is full.*the same command again"):
            {
                "add": lambda: ledger.add("cd" + JOB, SPEC),
                "take": lambda: ledger.take(JOB, "worker 1"),
                "finish": lambda: ledger.finish(lease, b"result", {}),  # type: ignore[arg-type]
                "fail": lambda: ledger.fail(lease, "bad", {}),  # type: ignore[arg-type]
            }[at]()
    assert ledger.state(JOB) is JobState.OPEN
    assert not list(ledger.root.rglob("*.partial"))
    assert ledger.finish(lease or taken(ledger), b"result", {})
    assert ledger.result(JOB).read_bytes() == b"result"


def test_a_folder_that_is_no_ledger_of_this_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ledger.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(FleetError, match="is of format 99, and this fleet reads format 1"):
        Ledger(tmp_path)
    (tmp_path / "ledger.json").write_text("[]")
    with pytest.raises(FleetError, match="is not a part of a ledger"):
        Ledger(tmp_path)
    (tmp_path / "ledger.json").write_text("{")
    with pytest.raises(FleetError, match="cannot be read"):
        Ledger(tmp_path)


def test_no_operation_on_a_job_looks_at_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted: the entries of folders that are read while one job is added, taken and ended."""
    original, seen = os.scandir, [0]

    def counted(path: Any = ".") -> Any:
        found = list(original(path))
        seen[0] += len(found)
        return iter(found)

    def read(others: int) -> int:
        ledger = Ledger(tmp_path / str(others))
        for number in range(others):
            job = f"{number % 256:02x}{number:038x}"
            ledger.add(job, SPEC)
            ledger.finish(taken(ledger, job), b"", {})
        seen[0] = 0
        ledger.add(JOB, SPEC)
        ledger.finish(taken(ledger), b"", {})
        return seen[0]

    monkeypatch.setattr(os, "scandir", counted)
    # What the writer of files reads of its own folder: a part in 256 of the markers.
    assert read(512) <= read(0) + 8
