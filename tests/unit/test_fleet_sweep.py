"""What a sweep asks for, and the table that comes of it."""

from __future__ import annotations

import argparse
import csv
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleet.errors import FleetError
from fleet.jobs import Hashes
from fleet.sweep import sweep_jobs, write_best
from fleet.sweep_options import numbers, whole_numbers
from fleet.sweep_table import best_settings, write_table
from perfusion_core.concept.concept import Concept
from perfusion_core.concept.concept_file import load_concept, save_concept


def row(bias: float, identity: float | None, text: float | None = 0.3, seed: int = 1) -> Any:
    return {
        "concept": "anna", "prompt": "a {}, red", "bias": bias, "temperature": 0.15, "seed": seed,
        "identity": identity, "text": text,
    }  # fmt: skip


ROWS = [row(0.4, 0.5), row(0.4, 0.7, seed=2), row(0.8, 0.8), row(0.8, 0.1, seed=2)]


def test_the_best_settings_are_those_of_the_highest_mean_score() -> None:
    best = best_settings(ROWS)
    assert best is not None
    assert best[:2] == (0.4, 0.15)
    assert best[2] == pytest.approx(0.18)
    assert best_settings([row(0.4, None, None)]) is None


def test_the_table_is_csv_and_parquet_where_that_can_be_had(tmp_path: Path) -> None:
    files = write_table([*ROWS, row(0.9, None, None)], tmp_path)
    with files[0].open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 5
    assert (rows[0]["prompt"], rows[0]["identity"], rows[4]["identity"]) == ("a {}, red", "0.5", "")
    if importlib.util.find_spec("pyarrow") is None:
        assert [file.name for file in files] == ["table.csv"]
        return
    from pyarrow.parquet import read_table

    assert read_table(files[1]).to_pylist()[:4] == ROWS


Options = Callable[..., argparse.Namespace]


@pytest.fixture
def file(make_concept: Callable[..., Concept], tmp_path: Path) -> Path:
    path = tmp_path / "anna.safetensors"
    save_concept(make_concept(), path)
    return path


@pytest.fixture
def options(file: Path) -> Options:
    def make(**changes: Any) -> argparse.Namespace:
        given: dict[str, Any] = {
            "concepts": [file], "model": "demo", "manifest": None, "biases": [0.4, 0.8],
            "temperatures": [0.15], "seeds": [1, 2], "prompt": ["a {}"], "steps": 4, "cfg": 2.0,
            "sampler": "euler", "scheduler": "normal", "write_bias": False,
        }  # fmt: skip
        return argparse.Namespace(**{**given, **changes})

    return make


def test_the_best_bias_goes_into_the_file_and_makes_no_other_job(
    options: Options, file: Path, tmp_path: Path
) -> None:
    hashes = Hashes(tmp_path / "hashes")
    (job,) = sweep_jobs(options(), hashes)
    assert job.steps == 4  # pictures
    before = load_concept(file)
    write_best([job], ROWS)
    after = load_concept(file)
    assert (after.bias, after.temperature) == (0.4, 0.15)
    assert after.hash == before.hash
    assert sweep_jobs(options(), hashes)[0].id == job.id
    assert sweep_jobs(options(seeds=[1]), hashes)[0].id != job.id


def test_what_cannot_be_swept_is_told_before_anything_runs(
    options: Options, tmp_path: Path
) -> None:
    hashes = Hashes(tmp_path / "hashes")
    with pytest.raises(FleetError, match="the temperature is 0.0; it must be above 0"):
        sweep_jobs(options(temperatures=[0.0]), hashes)
    with pytest.raises(FleetError, match='--model "no" is neither a file nor one of demo'):
        sweep_jobs(options(model="no"), hashes)
    with pytest.raises(FleetError, match="there is no such file"):
        sweep_jobs(options(concepts=[tmp_path / "no.safetensors"]), hashes)


def test_lists_of_numbers_are_read_or_refused() -> None:
    assert numbers("0.4, 0.6,0.4") == [0.4, 0.6]
    assert whole_numbers("1,2") == [1, 2]
    for reader, text in ((numbers, "a"), (numbers, "inf"), (numbers, ""), (whole_numbers, "1.5")):
        with pytest.raises(argparse.ArgumentTypeError, match="write them as"):
            reader(text)
