"""How many processes the tests run in."""

from __future__ import annotations

import pytest

from tools.testing import MOST, in_parallel


@pytest.mark.parametrize(
    ("arguments", "cores", "processes"),
    [
        (["tests/unit", "tests/comfyui"], 2, 2),
        (["tests/unit", "-k", "gate"], 64, MOST),
        (["tests/unit"], 1, 0),
        (["tests/unit/test_edit.py"], 8, 0),
        (["tests/unit", "-n", "0"], 8, 0),
        (["tests/unit", "--numprocesses=3"], 8, 0),
        (["tests/unit", "--pdb"], 8, 0),
        (["-x"], 8, 0),
    ],
)
def test_folders_run_in_several_processes_unless_asked_otherwise(
    arguments: list[str], cores: int, processes: int
) -> None:
    expected = ["-n", str(processes), "--dist", "loadscope"] if processes else []
    assert in_parallel(arguments, cores, known=True) == expected


def test_a_python_without_xdist_runs_them_in_one() -> None:
    assert in_parallel(["tests/unit"], 8, known=False) == []
