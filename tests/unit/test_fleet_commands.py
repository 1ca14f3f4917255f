"""`python -m fleet` as it is called: help, errors, status, retry; the manifest that comes along."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fleet.commands as command
from fleet.errors import FleetError
from fleet.jobs import jobs_of, training_settings
from fleet.ledger import Ledger
from fleet.manifest import read_manifest
from fleet.report import seconds, size

SPEC = {"model": {"key": "m"}}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Three jobs: one done, one failed, one underway; one more that nobody began."""
    made = Ledger(tmp_path / "ledger")
    for number, name in enumerate(("anna", "bo", "cleo", "dora")):
        job = f"{number:02x}" + "0" * 38
        made.add(job, {**SPEC, "name": name})
        if name == "dora":
            break
        lease: Any = made.take(job, "worker 1 (cpu) on here")
        figures = {"name": name, "model": "m", "seconds": 20.0, "steps": 100, "peak_bytes": 5}
        if name == "anna":
            made.finish(lease, b"result", {**figures, "resumed_from": 50})
        elif name == "bo":
            made.fail(lease, "the picture is bad", figures)
        else:
            note = {"worker": "worker 1 (cpu) on here", "name": name, "step": 30, "steps": 100}
            made.renew(lease, note)
    return made


def test_the_help_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--help"])
    shown = capsys.readouterr().out
    names = tuple(command.COMMANDS)
    assert {"train", "sweep", "status", "retry", "export", "import"} <= set(names)
    for word in (*names, "demo/fleet.toml --dry-run"):
        assert word in shown
    for name in names:
        with pytest.raises(SystemExit):
            command.main([name, "--help"])
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 100


def test_status_says_what_is_done_underway_and_failed(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["status", str(ledger.root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    # 0.4 s a step: 40 s a job, of which two are left for one worker.
    assert lines[0] == ("4 jobs: 1 done, 1 failed, 1 underway, 1 waiting; about 1 min 20 s left")
    assert lines[1] == "  cleo: step 30 of 100, worker 1 (cpu) on here"
    assert lines[2].startswith("  failed bo: the picture is bad (")


def test_status_waits_for_no_torch(ledger: Ledger, repo: Path) -> None:
    code = (
        "import sys, fleet.commands as command; command.main(sys.argv[1:]);"
        "sys.exit('torch' in sys.modules)"
    )
    words = [sys.executable, "-c", code, "status", str(ledger.root)]
    assert subprocess.run(words, cwd=repo, stdout=subprocess.DEVNULL).returncode == 0


def test_retry_opens_what_failed_or_what_is_named(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["retry", str(ledger.root), "anna"]) == 1
    assert "anna: no failed job is called so" in capsys.readouterr().err
    assert command.main(["retry", str(ledger.root)]) == 0
    assert "1 jobs are open again: bo" in capsys.readouterr().out
    assert ledger.counts()["failed"] == 0


def test_what_is_wrong_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["status", str(tmp_path)]) == 1
    assert "there is no ledger in" in capsys.readouterr().err
    assert command.main(["status", str(tmp_path / "no.toml")]) == 1
    assert "there is no manifest" in capsys.readouterr().err


def test_a_python_without_torch_hands_over_to_comfyuis(
    tmp_path: Path,
    repo: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(command, "_has_comfyuis_packages", lambda: False)
    monkeypatch.setattr(subprocess, "call", lambda words, **_: called.append(list(words)) or 3)
    python = tmp_path / "bin" / "python"
    monkeypatch.setattr("tools.locate.venv_python", lambda venv: python)
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    assert command.main(["train", "a b.toml"]) == 1
    assert "run `make setup`" in capsys.readouterr().err
    python.parent.mkdir()
    python.write_text("")
    assert command.main(["train", "a b.toml"]) == 3
    assert called == [[python, str(repo / "fleet"), "train", "a b.toml"]]


def test_ray_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from fleet.local_pool import WorkerPlan
    from fleet.train import pool_of

    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "fleet.ray_pool", raising=False)
    with pytest.raises(FleetError, match="Ray is not installed here.*pip install ray"):
        pool_of(WorkerPlan(Path()), [], "")


def test_the_manifest_of_the_emoji_world_trains_as_the_demo_does(repo: Path) -> None:
    manifest = read_manifest(repo / "demo" / "fleet.toml")
    jobs = jobs_of(manifest)
    assert len(jobs) == 8
    graph = json.loads((repo / "demo" / "graphs" / "train_concept.json").read_text("utf-8"))
    (node,) = (n["inputs"] for n in graph.values() if n["class_type"] == "PerfusionTrainConcept")
    for planned in manifest.concepts:
        folder = repo / "demo" / "concepts" / planned.name
        told = json.loads((folder / "concept.json").read_text("utf-8"))
        assert planned.superclass == told["superclass"]
        assert planned.placeholder == f"{told['superclass']}*"
        assert list(planned.captions) == node["captions"].splitlines()
        settings = training_settings(planned.settings)
        for name in ("steps", "batch_size", "seed", "embedding_rate", "value_rate"):
            assert getattr(settings, name) == node[name]


def test_sizes_and_durations_read_well() -> None:
    assert [size(n) for n in (5, 29_900_000, 7e9)] == ["5 B", "29.9 MB", "7.0 GB"]
    assert [seconds(n) for n in (0.4, 65, 7300)] == ["0 s", "1 min 5 s", "2 h 1 min"]
