"""What Windows does otherwise, as far as it can be seen here: consoles, words, files in use."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from perfusion_core.concept import files
from tools import download
from tools.console import forgiving, words_of
from tools.steps import SetupError


def test_a_letter_that_the_console_lacks_ends_nothing() -> None:
    raw = io.BytesIO()
    console = io.TextIOWrapper(raw, encoding="cp1252")
    env: dict[str, str] = {}
    forgiving([console], env)
    print("C:\\Bilder\\Ännes Bär → 東京", file=console, flush=True)
    assert raw.getvalue().decode("cp1252").strip() == "C:\\Bilder\\Ännes Bär \\u2192 \\u6771\\u4eac"
    code = "print('\\u2192')"
    child = {**os.environ, **env, "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=child, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["tools", "fleet"])
def test_a_command_speaks_to_any_console(command: str, repo: Path) -> None:
    env = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    words = [sys.executable, "-m", command, "--help"]
    done = subprocess.run(words, cwd=repo, env=env, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert b"usage: python -m" in done.stdout


def test_a_backslash_is_part_of_a_path_on_windows() -> None:
    text = r'--base-directory "C:\Meine Bilder\ComfyUI" --cpu'
    assert words_of(text, "win32") == ["--base-directory", r"C:\Meine Bilder\ComfyUI", "--cpu"]
    assert words_of(r"--a\ b 'c d' # e", "linux") == ["--a b", "c d", "#", "e"]
    with pytest.raises(ValueError, match="quotation"):
        words_of('--listen "', "win32")


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A file that others have open, on Windows: `left` more attempts to replace it fail."""
    found = SimpleNamespace(left=3, replace=os.replace)

    def replace(source: Path, target: Path) -> None:
        if found.left:
            found.left -= 1
            raise PermissionError(13, "used by another process", str(target))
        found.replace(source, target)

    monkeypatch.setattr(files.os, "replace", replace)
    monkeypatch.setattr(files.sys, "platform", "win32")
    return found


def test_a_file_that_somebody_reads_is_replaced_a_moment_later(
    busy: SimpleNamespace, tmp_path: Path
) -> None:
    path = tmp_path / "Bär.safetensors"
    path.write_bytes(b"old")
    files.write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_one_that_stays_open_is_an_error_and_keeps_its_content(
    busy: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_PATIENCE", 0.05)
    busy.left = 10_000
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(PermissionError):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_set_up_says_what_it_will_download_before_it_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert download.size_of("comfyui", "linux", "x86_64").fetched > 1
    assert download.size_of("comfyui", "win32", "AMD64").fetched < 1
    home = tmp_path / "not" / "there yet"
    download.announce("comfyui", "ComfyUI 0.3.75 and its packages", home)
    said = capsys.readouterr().err
    assert "set-up will download about" in said
    assert "ComfyUI 0.3.75 and its packages" in said
    assert str(home) in said
    assert not home.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1e8))
    with pytest.raises(SetupError, match="0.1 GB free .* PERFUSION_COMFYUI_DIR"):
        download.announce("comfyui", "ComfyUI", home)
