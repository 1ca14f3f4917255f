"""Workers on Ray, with jobs that take no time; skipped where Ray is not installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from fleet.devices import Device
from fleet.ledger import Ledger
from fleet.local_pool import WorkerPlan
from fleet.run import run
from fleet.simulation import SleepingJob

pytest.importorskip("ray", reason="Ray is not installed: python -m pip install ray")

JOBS = [SleepingJob(f"{n:02x}" + "0" * 38, "ab"[n % 2]) for n in range(24)]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger(tmp_path / "ledger")
    for number, job in enumerate(JOBS):
        made.add(job.id, {"name": f"job {number}", "number": number, "model": {"key": job.model}})
    return made


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a signal")
@pytest.mark.parametrize("direct", [True, False], ids=["shared folder", "through Ray"])
def test_actors_that_die_lose_no_job(ledger: Ledger, tmp_path: Path, direct: bool) -> None:
    from fleet.ray_pool import RayPool

    log = tmp_path / "log"
    log.mkdir()
    options: tuple[Any, ...] = (0.02, 0.15, str(log))
    trainer = "fleet.simulation:SleepingTrainer"
    plan = WorkerPlan(ledger.root, trainer, "fleet.simulation:no_inputs", options)
    outcome = run(JOBS, ledger, RayPool(plan, [Device("cpu")] * 2, "", direct))
    assert not outcome.stopped
    assert ledger.counts() == {"known": 24, "done": 24, "failed": 0}
    assert {*outcome.done, *outcome.elsewhere} == {job.id for job in JOBS}
    assert list(ledger.working()) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="clusters of one machine are made on Linux")
def test_machines_that_leave_and_join_during_a_run(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.cluster_utils import Cluster

    from fleet import ray_pool

    monkeypatch.setattr(ray_pool, "JOINED_EVERY", 0.5)
    log = tmp_path / "log"
    log.mkdir()
    trainer = "fleet.simulation:SleepingTrainer"
    options: tuple[Any, ...] = (0.5, 0.0, str(log))
    plan = WorkerPlan(ledger.root, trainer, "fleet.simulation:no_inputs", options)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        leaves = cluster.add_node(num_cpus=1)
        pool = ray_pool.RayPool(plan, [Device("cpu")], cluster.address)
        seen: list[int] = []

        def on_done(_: str) -> None:
            seen.append(len(seen))
            if len(seen) == 4:
                cluster.remove_node(leaves, allow_graceful=False)
            if len(seen) == 6:
                cluster.add_node(num_cpus=1)

        outcome = run(JOBS, ledger, pool, on_done=on_done)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert not outcome.stopped
    assert outcome.deaths > 0
    assert ledger.counts() == {"known": 24, "done": 24, "failed": 0}
    # Each process writes its own file: the head's, the one's that left, the one's that joined.
    assert len(list(log.iterdir())) >= 3
