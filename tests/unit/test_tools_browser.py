"""A browser is found, or installed where that may be done, or told of in one line."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import pytest

from tools import browser
from tools.locate import ComfyInstall
from tools.steps import SetupError, Steps, write_atomic

posix = pytest.mark.skipif(sys.platform == "win32", reason="makes shell scripts")


def program(path: Path, code: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\nexit {code}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def comfyui(tmp_path: Path) -> ComfyInstall:
    return ComfyInstall(tmp_path / "ComfyUI", Path(sys.executable), True, "private")


@posix
def test_the_one_that_is_named_comes_before_those_on_the_path(tmp_path: Path) -> None:
    named = program(tmp_path / "mine")
    on_path = program(tmp_path / "bin" / "google-chrome")
    env = {"PATH": str(on_path.parent)}
    assert browser.find_browser(env) == on_path
    assert browser.find_browser({**env, "PERFUSION_BROWSER": str(named)}) == named


@posix
def test_a_named_one_that_does_not_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="PERFUSION_BROWSER=.*not a browser that runs"):
        browser.find_browser({"PERFUSION_BROWSER": str(tmp_path / "nothing")})


@posix
def test_one_that_only_says_to_install_it_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browser, "USUAL_PLACES", {})
    program(tmp_path / "chromium-browser", code=1)
    assert browser.find_browser({"PATH": str(tmp_path)}) is None
    real = program(tmp_path / "google-chrome")
    assert browser.find_browser({"PATH": str(tmp_path)}) == real


def test_nothing_is_installed_where_one_is_there(
    tmp_path: Path, comfyui: ComfyInstall, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(tmp_path / "home")
    there = tmp_path / "chromium"
    monkeypatch.setattr(browser, "find_browser", lambda: there)
    monkeypatch.setattr(browser, "setup_frontend", lambda *_: None)
    monkeypatch.setattr(steps, "run", lambda *_, **__: pytest.fail("something was installed"))
    assert browser.setup_browser(comfyui, steps) == there


def test_old_package_lists_are_renewed_and_a_cut_off_install_is_finished(
    tmp_path: Path, comfyui: ComfyInstall, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, commands = Steps(tmp_path / "home"), []

    def run(command: list[str], **_: object) -> None:
        verb = next(word for word in command if word in ("install", "update", "--configure"))
        commands.append(verb)
        if commands == ["install"]:
            raise SetupError("E: Unable to locate package chromium")

    found = iter([None, tmp_path / "chromium"])
    monkeypatch.setattr(browser, "find_browser", lambda: next(found))
    monkeypatch.setattr(browser, "setup_frontend", lambda *_: None)
    monkeypatch.setattr(browser, "_may_install", lambda: True)
    monkeypatch.setattr(steps, "run", run)
    assert browser.setup_browser(comfyui, steps) == tmp_path / "chromium"
    assert commands == ["install", "--configure", "update", "install"]


@pytest.mark.parametrize("may_install", [False, True])
def test_without_one_it_says_in_a_line_how_to_get_one(
    tmp_path: Path,
    comfyui: ComfyInstall,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    may_install: bool,
) -> None:
    steps = Steps(tmp_path / "home")

    def run(*_: object, **__: object) -> None:
        raise SetupError("no network")

    monkeypatch.setattr(browser, "find_browser", lambda: None)
    monkeypatch.setattr(browser, "_may_install", lambda: may_install)
    monkeypatch.setattr(steps, "run", run)
    assert browser.setup_browser(comfyui, steps) is None
    lines = capsys.readouterr().err.splitlines()
    assert "PERFUSION_BROWSER=/path/to/chrome" in lines[-1]
    assert len(lines) == (3 if may_install else 1)  # what is done, why it failed, what to do


def test_a_frontend_is_unpacked_whole_or_not_at_all(tmp_path: Path) -> None:
    wheel, target = tmp_path / "frontend.whl", tmp_path / "frontend"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("comfyui_frontend_package/static/index.html", "<html>")
        archive.writestr("comfyui_frontend_package/static/assets/a.js", "1")
        archive.writestr("comfyui_frontend_package/static/assets/a.js.map", "{}")
        archive.writestr("comfyui_frontend_package/__init__.py", "")
    (tmp_path / "frontend.partial").mkdir()
    (tmp_path / "frontend.partial" / "half.js").touch()
    browser.unpack_frontend(wheel, target)
    files = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert files == {"index.html", "assets/a.js"}
    assert not (tmp_path / "frontend.partial").exists()


def unpacked(steps: Steps, version: str, whole: bool = True) -> Path:
    folder = steps.home / f"frontend-{version}"
    folder.mkdir(parents=True)
    if whole:
        write_atomic(steps.stamp(folder.name), "digest\n")
    return folder


def test_the_newest_frontend_that_is_whole_is_used(tmp_path: Path) -> None:
    steps = Steps(tmp_path)
    assert browser.frontend_folder(steps) is None
    unpacked(steps, "1.9.11")
    newest = unpacked(steps, "1.10.2")
    unpacked(steps, "1.58.1", whole=False)
    assert browser.frontend_folder(steps) == newest


def test_pip_is_asked_which_frontend_is_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(tmp_path)
    said = {
        "metadata": {"version": "9.8.7"},
        "download_info": {"archive_info": {"hashes": {"sha256": "abc"}}},
    }

    def run(command: list[str | Path], **_: object) -> None:
        assert "--dry-run" in command  # nothing of ComfyUI's environment changes
        assert command[-1] == "comfyui-frontend-package"
        report = Path(command[command.index("--report") + 1])
        report.write_text(json.dumps({"install": [said]}))

    monkeypatch.setattr(steps, "run", run)
    assert browser.newest_frontend(Path(sys.executable), steps) == ("9.8.7", "abc")
    del said["download_info"]
    with pytest.raises(
        SetupError, match="did not say which comfyui-frontend-package is the newest"
    ):
        browser.newest_frontend(Path(sys.executable), steps)


def test_without_the_index_the_frontend_that_was_had_earlier_is_used_or_none(
    tmp_path: Path,
    comfyui: ComfyInstall,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    steps = Steps(tmp_path / "home")

    def run(*_: object, **__: object) -> None:
        raise SetupError("the package index cannot be reached")

    monkeypatch.setattr(steps, "run", run)
    with pytest.raises(SetupError, match="its browser tests are skipped: the package index"):
        browser.setup_frontend(comfyui, steps)
    unpacked(steps, "1.58.1")
    browser.setup_frontend(comfyui, steps)
    assert "use frontend-1.58.1, had earlier: the package index" in capsys.readouterr().err
