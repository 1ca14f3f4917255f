"""The JavaScript has tests of its own (tests/js); here they are part of `make test`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tools import eslint
from tools.node import OLDEST, find_node, run_tests
from tools.steps import SetupError, Steps

REGISTRY = "https://registry.npmjs.org/"


def test_javascript() -> None:
    command = find_node()
    if command is None:
        pytest.skip(f"there is no Node {OLDEST} or newer; set-up brings one to its own environment")
    result = run_tests(command, [])
    assert result.returncode == 0, result.stdout


def test_what_eslint_is_installed_from_is_exact_and_public() -> None:
    asked, locked = (
        json.loads((eslint.ASKED / name).read_text(encoding="utf-8")) for name in eslint.FILES
    )
    packages = {name: one for name, one in locked["packages"].items() if name}
    for name, version in asked["devDependencies"].items():
        assert packages[f"node_modules/{name}"]["version"] == version
    assert all(one["integrity"].startswith("sha512-") for one in packages.values())
    # Without an address npm asks its own registry; another's would be somebody's mirror.
    assert all(one.get("resolved", REGISTRY).startswith(REGISTRY) for one in packages.values())


def test_without_npms_registry_linting_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = (
        "npm error code ECONNREFUSED\nnpm error syscall connect\nnpm error FetchError: request to "
        "https://x/eslint failed, reason: refused\nnpm error A complete log can be found"
    )
    npm = [sys.executable, "-c", f"print({told!r}); raise SystemExit(1)"]
    monkeypatch.setattr(eslint, "find_npm", lambda: npm)
    monkeypatch.setattr(eslint, "find_node", lambda: [sys.executable])
    monkeypatch.setattr(eslint, "home", lambda: tmp_path)
    assert eslint.main([]) == 1
    _, reason = capsys.readouterr().err.splitlines()
    assert reason.startswith("perfusion: the JavaScript is not linted: installing ESLint")
    assert "npm's registry cannot be reached (FetchError: request to" in reason


def test_eslint_is_installed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = [
        sys.executable,
        "-c",
        "import pathlib; program = pathlib.Path('node_modules/eslint/bin/eslint.js');"
        "program.parent.mkdir(parents=True); program.touch()",
    ]
    monkeypatch.setattr(eslint, "find_npm", lambda: npm)
    program = eslint.setup_eslint(Steps(tmp_path))
    monkeypatch.setattr(eslint, "find_npm", lambda: None)
    assert eslint.setup_eslint(Steps(tmp_path)) == program
    program.unlink()
    with pytest.raises(SetupError, match="there is no npm"):
        eslint.setup_eslint(Steps(tmp_path))
