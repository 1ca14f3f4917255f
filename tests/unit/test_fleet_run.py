"""Workers and the loop that hands them jobs, with jobs that take no time."""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fleet.devices import Device, devices_of
from fleet.errors import FleetError, LedgerFull
from fleet.ledger import MOST_DEATHS, JobState, Ledger
from fleet.local_pool import LocalPool, WorkerPlan
from fleet.run import run
from fleet.schedule import Schedule
from fleet.simulation import SleepingJob, no_inputs, simulate
from fleet.snapshot import from_bytes, to_bytes
from fleet.worker import JobContext, Stopped, Worker
from perfusion_core.method.training_state import TrainingState

JOBS = [SleepingJob(f"{n:02x}" + "0" * 38, "ab"[n % 2]) for n in range(6)]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger(tmp_path / "ledger")
    for number, job in enumerate(JOBS):
        made.add(job.id, {"name": f"job {number}", "number": number, "model": {"key": job.model}})
    return made


# --- which job next


def test_a_worker_stays_with_its_model_and_a_new_one_takes_the_longest_queue() -> None:
    many = [SleepingJob(f"a{n}", "a") for n in range(4)] + [SleepingJob(f"b{n}", "b") for n in "12"]
    schedule = Schedule(many)
    assert [schedule.next("b", {}).id for _ in range(2)] == ["b1", "b2"]  # type: ignore[union-attr]
    assert schedule.next("b", {"b": 1}).id == "a0"  # type: ignore[union-attr]
    schedule = Schedule(many)
    # Four jobs for two workers are fewer each than two jobs for none.
    assert schedule.next("", {"a": 2}).id == "b1"  # type: ignore[union-attr]


def test_a_job_that_is_held_comes_again_later() -> None:
    schedule = Schedule(JOBS[:1])
    job = schedule.next("", {})
    assert job is JOBS[0]
    schedule.put_back(job, 0.05)
    assert schedule.next("", {}) is None
    assert len(schedule) == 1
    time.sleep(0.06)
    assert schedule.next("", {}) is job


# --- a worker

Train = Callable[[Mapping[str, Any], JobContext], tuple[bytes, dict[str, Any]]]


def worker(ledger: Ledger, train: Train, **given: Any) -> Worker:
    class Trainer:
        def train(
            self, spec: Mapping[str, Any], inputs: Sequence[tuple[str, bytes]], context: JobContext
        ) -> tuple[bytes, dict[str, Any]]:
            return train(spec, context)

    return Worker(ledger, "worker 1", Trainer(), no_inputs, threading.Event(), **given)


def test_a_worker_keeps_the_result_and_says_how_far_it_is(ledger: Ledger) -> None:
    seen: list[dict[str, Any]] = []

    def train(_: Mapping[str, Any], context: JobContext) -> tuple[bytes, dict[str, Any]]:
        context.at(3, 9, 0.5)
        context.keep_snapshot(b"state")
        until = time.monotonic() + 5
        while time.monotonic() < until and not seen:
            seen.extend(one for one in ledger.working() if "step" in one)
            time.sleep(0.01)
        return b"result", {"loss": 0.25}

    told = worker(ledger, train, beat=0.01).work(JOBS[0].id)
    assert (told["state"], told["name"], told["loss"]) == ("done", "job 0", 0.25)
    assert (seen[0]["name"], seen[0]["step"], seen[0]["steps"]) == ("job 0", 3, 9)
    assert ledger.snapshot(JOBS[0].id) is None  # it is done
    assert worker(ledger, train).work(JOBS[0].id) == {"state": "done"}


def test_what_the_job_is_to_blame_for_is_kept_as_its_failure(ledger: Ledger) -> None:
    def bad(*_: object) -> Any:
        raise FleetError("the picture is bad")

    assert worker(ledger, bad).work(JOBS[0].id)["error"] == "the picture is bad"
    assert ledger.state(JOBS[0].id) is JobState.FAILED
    assert "test_fleet_run.py" in (ledger.folder(JOBS[0].id) / "error.txt").read_text()


def test_what_it_is_not_to_blame_for_is_tried_again_and_not_without_end(ledger: Ledger) -> None:
    def broken(*_: object) -> Any:
        raise RuntimeError("CUDA error: device-side assert")

    for _ in range(MOST_DEATHS):
        with pytest.raises(RuntimeError, match="CUDA error"):
            worker(ledger, broken).work(JOBS[0].id)
    assert worker(ledger, broken).work(JOBS[0].id) == {"state": "failed"}
    error = ledger.figures(JobState.FAILED, JOBS[0].id)["error"]
    assert error.endswith("RuntimeError: CUDA error: device-side assert")


def test_a_worker_that_is_stopped_gives_its_job_back(ledger: Ledger) -> None:
    def stopped(*_: object) -> Any:
        raise Stopped

    assert worker(ledger, stopped).work(JOBS[0].id) == {"state": "open"}
    assert worker(ledger, lambda *_: (b"", {})).work(JOBS[0].id)["state"] == "done"


def test_a_full_disk_gives_the_job_back_and_ends_the_worker(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def train(*_: object) -> tuple[bytes, dict[str, Any]]:
        monkeypatch.setattr(os, "fsync", full)
        return b"result", {}

    with pytest.raises(LedgerFull, match="the disk is full"):
        worker(ledger, train).work(JOBS[0].id)
    monkeypatch.undo()
    assert worker(ledger, lambda *_: (b"result", {})).work(JOBS[0].id)["state"] == "done"


def test_a_worker_that_lost_its_job_stops_and_keeps_nothing(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(_: Mapping[str, Any], context: JobContext) -> tuple[bytes, dict[str, Any]]:
        monkeypatch.setattr("fleet.leases.process_is_gone", lambda process: True)
        assert not isinstance(Ledger(ledger.root).take(JOBS[0].id, "worker 2"), JobState)
        assert context.lost.wait(5)
        assert context.stop_asked()
        context.keep_snapshot(b"mine")
        return b"mine", {}

    assert worker(ledger, train, beat=0.01).work(JOBS[0].id) == {"state": "held"}
    assert ledger.state(JOBS[0].id) is JobState.OPEN
    assert ledger.snapshot(JOBS[0].id) is None


def test_a_snapshot_is_read_as_it_was_written() -> None:
    import torch

    tensors = {"a/exp_avg": torch.randn(3, 4), "target_input": torch.randn(5, dtype=torch.float64)}
    state = TrainingState(tensors, (0.1, 1 / 3), {"scale": 65536.0, "_growth_tracker": 3})
    read = from_bytes(to_bytes(state))
    assert read.losses == [0.1, 1 / 3]
    assert read.scaler == state.scaler
    assert read.tensors.keys() == tensors.keys()
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in tensors.items())
    with pytest.raises(ValueError, match="cut|short|header|ends"):
        from_bytes(to_bytes(state)[:20])


# --- many of them, in processes

posix = pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a signal")


def plan(ledger: Ledger, log: Path, seconds: float = 0.0, deaths: float = 0.0) -> WorkerPlan:
    log.mkdir(exist_ok=True)
    return WorkerPlan(
        ledger.root,
        "fleet.simulation:SleepingTrainer",
        "fleet.simulation:no_inputs",
        (seconds, deaths, str(log)),
    )


def test_two_fleets_on_one_ledger_do_each_job_once(ledger: Ledger, tmp_path: Path) -> None:
    outcomes = []

    def one() -> None:
        pool = LocalPool(plan(ledger, tmp_path / "log", 0.1), [Device("none")] * 2)
        outcomes.append(run(JOBS, Ledger(ledger.root), pool))

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = [job for outcome in outcomes for job in outcome.done]
    assert Counter(done) == Counter(job.id for job in JOBS)
    ran = [line for path in (tmp_path / "log").iterdir() for line in path.read_text().split()]
    assert sorted(ran) == sorted(str(n) for n in range(len(JOBS)))


@posix
def test_workers_that_die_at_random_lose_no_job_and_none_is_done_twice(tmp_path: Path) -> None:
    found = simulate(tmp_path, jobs=120, workers=6, deaths=0.1)
    assert found["counts"] == {"known": 120, "done": 120, "failed": 0}
    assert (found["wrong"], found["results_told_twice"], found["leases_left"]) == (0, 0, 0)
    assert found["deaths"] > 0


def test_workers_that_cannot_start_end_the_run_with_the_reason(
    ledger: Ledger, tmp_path: Path
) -> None:
    broken = WorkerPlan(ledger.root, "fleet.simulation:NoSuchTrainer")
    outcome = run(JOBS, ledger, LocalPool(broken, [Device("none")] * 2))
    assert "no worker could be started" in outcome.stopped
    assert "NoSuchTrainer" in outcome.stopped
    assert not outcome.done


def test_a_ledger_of_many_jobs_is_summed_up_in_less_than_a_second(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for number in range(10_000):  # as `add` and `finish` leave them, without waiting for the disk
        shard = f"{number % 256:02x}"
        (tmp_path / "jobs" / shard / f"{shard}{number}").mkdir(parents=True)
        if number % 2:
            (tmp_path / "done" / shard).mkdir(exist_ok=True)
            (tmp_path / "done" / shard / f"{shard}{number}").write_text("{}")
    begun = time.monotonic()
    assert ledger.counts() == {"known": 10_000, "done": 5_000, "failed": 0}
    assert time.monotonic() - begun < 1


# --- devices


def test_each_device_is_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    cards = devices_of("cuda:0, cuda:2")
    assert [card.environment for card in cards] == [
        {"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "2"},
    ]  # fmt: skip
    first, second = devices_of("cpu:2")
    assert first == second
    assert first.arguments == ("--cpu",)
    assert first.environment == {"OMP_NUM_THREADS": "4"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert devices_of("cuda:1")[0].environment == {"CUDA_VISIBLE_DEVICES": "5"}
    monkeypatch.setattr("fleet.devices._cards", lambda: 0)
    assert [device.name for device in devices_of("auto")] == ["cpu"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("gpu", '"gpu" is no device: name cuda:0'),
        ("cuda:0,cuda:0", "cuda:0 is named twice"),
        ("cpu:0", "cpu:0 is no worker"),
        ("", "names no device"),
        ("cuda:2", "CUDA_VISIBLE_DEVICES shows 2 cards"),
    ],
)
def test_a_device_that_is_none_is_told(
    monkeypatch: pytest.MonkeyPatch, text: str, told: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with pytest.raises(FleetError, match=told):
        devices_of(text)
