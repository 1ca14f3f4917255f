"""The development commands: the same through make and through `python -m tools`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.__main__ import COMMANDS, SEQUENCES, TESTS, arguments_of, main


def test_make_names_only_commands_that_there_are(repo: Path) -> None:
    text = (repo / "Makefile").read_text(encoding="utf-8")
    called = set(re.findall(r"\$\(TOOLS\) ([a-z-]+)", text))
    assert called == {*COMMANDS, *SEQUENCES, "setup", "serve", "watch", "clean"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], [*TESTS]),
        (["-k", "lab", "-x"], [*TESTS, "-k", "lab", "-x"]),
        (["tests/unit", "-x"], ["tests/unit", "-x"]),
        (["tests/unit/test_edit.py::test_one"], ["tests/unit/test_edit.py::test_one"]),
    ],
)
def test_all_tests_are_run_unless_some_are_named(given: list[str], expected: list[str]) -> None:
    assert arguments_of("test", given) == ["-m", "tools.testing", *expected]


def test_what_follows_a_command_is_handed_to_it() -> None:
    assert arguments_of("lab", ["--full"]) == ["-m", "lab", "--full"]


def test_the_parts_of_a_command_stop_at_the_first_that_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[str] = []

    def call(words: list[object], **_: object) -> int:
        ran.append(str(words[2]))
        return 3 if words[2] == "mypy" else 0

    monkeypatch.setattr("tools.__main__.unit_python", lambda want: Path(sys.executable))
    monkeypatch.setattr(subprocess, "call", call)
    assert main(["lint"]) == 3
    assert ran == ["ruff", "ruff", "tools.typecheck", "mypy"]
