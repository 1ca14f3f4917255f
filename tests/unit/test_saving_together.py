"""Processes that save under one name at the same time: none overwrites another's concept."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from perfusion_core.concept.concept import Concept
from perfusion_core.concept.concept_file import load_concept, save_concept

PROCESSES, EACH = 3, 15

SAVES = """
import os, sys, time
from dataclasses import replace
from pathlib import Path
from perfusion_core.concept.concept_file import load_concept, save_concept, save_new_concept
folder, number, each = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
if sys.argv[5] == "without links":  # such as exFAT
    def refused(*_):
        raise OSError(95, "Operation not supported")
    os.link = refused
concept = load_concept(folder / "source.safetensors")
(folder / f"ready{number}").touch()
while not (folder / "go").exists():
    time.sleep(0.001)
for n in range(each):
    own = replace(concept, author=f"{number} {n}")
    if sys.argv[4] == "new":
        save_new_concept(own, folder / "out" / "anna.safetensors")
    else:
        save_concept(own, folder / "out" / "anna.safetensors")
"""


def run_together(folder: Path, kind: str, disk: str) -> None:
    command = [sys.executable, "-c", SAVES, str(folder)]
    started = [
        subprocess.Popen([*command, str(number), str(EACH), kind, disk], stderr=subprocess.PIPE)
        for number in range(PROCESSES)
    ]
    while len(list(folder.glob("ready*"))) < PROCESSES:
        assert all(process.poll() is None for process in started)
    (folder / "go").touch()
    for process in started:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said.decode()


@pytest.mark.parametrize("disk", ["with links", "without links"])
def test_none_takes_the_name_of_another(
    make_concept: Callable[..., Concept], tmp_path: Path, disk: str
) -> None:
    save_concept(make_concept(), tmp_path / "source.safetensors")
    run_together(tmp_path, "new", disk)
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) == PROCESSES * EACH  # and nothing half written is left
    expected = {f"{number} {n}" for number in range(PROCESSES) for n in range(EACH)}
    assert {load_concept(file).author for file in files} == expected


def test_one_that_is_overwritten_is_whole_at_any_time(
    make_concept: Callable[..., Concept], tmp_path: Path
) -> None:
    save_concept(make_concept(), tmp_path / "source.safetensors")
    run_together(tmp_path, "over", "with links")
    (file,) = (tmp_path / "out").iterdir()
    assert load_concept(file).author.endswith(f" {EACH - 1}")
