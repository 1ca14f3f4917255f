"""`python -m fleet sweep`: sheets, a table, scores and the recommended bias."""

from __future__ import annotations

import csv
import io
import threading
from pathlib import Path
from typing import Any

import folder_paths
import pytest
from PIL import Image
from test_fleet import fleet as fleet_command
from test_validation import small_clip
from tiny_models import tiny_concept

from demo import model as emoji_world
from fleet import sweep_pictures
from fleet.jobs import Hashes, model_spec
from fleet.ledger import Ledger
from fleet.manifest import DEMO, ModelEntry
from fleet.worker import JobContext
from perfusion_core.concept.concept_file import load_concept, save_concept

PROMPTS = ["a {} on a red background", "a {} at night"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A concept of random values for the emoji world."""
    model, clip, _ = emoji_world.load()
    path = tmp_path_factory.mktemp("concepts") / "teddy ü.safetensors"
    save_concept(tiny_concept(model, clip), path)
    return path


@pytest.fixture
def context(tmp_path: Path) -> JobContext:
    ledger = Ledger(tmp_path / "ledger")
    lease: Any = ledger.take("ab" * 20, "worker 1")
    return JobContext(ledger, lease, threading.Event())


@pytest.fixture
def clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for CLIP models."""
    folder = tmp_path / "clip_vision"
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "clip_vision", ([str(folder)], set()))
    return folder


def spec(**changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "model": model_spec(ModelEntry(DEMO), Hashes(Path("nowhere"))),
        "prompts": PROMPTS,
        "must_score": False,
        "biases": [0.2, 0.9],
        "temperatures": [0.1, 0.2],
        "seeds": [1],
        "steps": 2,
        "cfg": 2.0,
        "sampler": "euler",
        "scheduler": "normal",
    }
    return {**given, **changes}


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sweep_pictures, "open_comfyui", lambda arguments: None)  # it is open
    return sweep_pictures.SweepTrainer(())


def test_every_setting_is_painted_and_scored(
    trainer: Any, context: JobContext, file: Path, clips: Path, repo: Path
) -> None:
    small_clip(clips / "small")
    picture = repo / "demo" / "concepts" / "berry" / "berry_1.png"
    inputs = [("c", file.read_bytes()), (picture.name, picture.read_bytes())]
    sheet, figures = trainer.train(spec(), inputs, context)
    rows = figures["rows"]
    assert [(r["prompt"], r["temperature"], r["bias"]) for r in rows] == [
        (prompt, temperature, bias)
        for prompt in PROMPTS
        for temperature in (0.1, 0.2)
        for bias in (0.2, 0.9)
    ]
    assert all(isinstance(row["identity"], float) for row in rows)
    assert len({row["identity"] for row in rows}) > 1
    assert figures["scored_by"] == "small"
    assert context.note["step"] == context.note["steps"] == len(rows)
    width, height = Image.open(io.BytesIO(sheet)).size
    assert width > 2 * 128
    assert height > 4 * 128
    again, _ = trainer.train(spec(), inputs, context)
    assert again == sheet


def test_without_a_clip_model_there_is_no_score_and_no_best_bias(
    trainer: Any, context: JobContext, file: Path, clips: Path
) -> None:
    inputs = [("c", file.read_bytes())]
    _, figures = trainer.train(spec(prompts=PROMPTS[:1]), inputs, context)
    assert {row["identity"] for row in figures["rows"]} == {None}
    with pytest.raises(ValueError, match=r"no CLIP model to score with.*models/clip_vision"):
        trainer.train(spec(must_score=True), inputs, context)


@pytest.mark.slow
def test_the_command_writes_sheets_and_a_table(file: Path, tmp_path: Path, repo: Path) -> None:
    out = tmp_path / "Blätter"
    words = ("--out", out, "--devices", "cpu", "--biases", "0.4,0.8", "--steps", 2, "--cfg", 2)
    run = fleet_command(repo, "sweep", file, *words, "--prompt", PROMPTS[0])
    assert run.returncode == 0, run.stdout
    assert (out / "teddy ü.png").is_file()
    with (out / "table.csv").open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["bias"] for row in rows] == ["0.4", "0.8"]
    assert {row["concept"] for row in rows} == {"teddy ü"}
    # Once made, it is not made again.
    assert (
        "1 were ended before"
        in fleet_command(repo, "sweep", file, *words, "--prompt", PROMPTS[0]).stdout
    )
    assert load_concept(file).bias == 0.6
    told = fleet_command(repo, "sweep", file, "--out", out, "--model", "no").stdout
    assert '--model "no" is neither a file nor one of demo' in told
