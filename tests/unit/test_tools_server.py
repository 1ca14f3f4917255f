"""Starting and stopping a server, with little stand-in programs in ComfyUI's place."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools.client import ComfyClient, ComfyError
from tools.locate import ComfyInstall
from tools.server import (
    RunningServer,
    clear_base,
    command,
    device_args,
    free_port,
    link_pack,
    running_server,
    stop,
)


def program(tmp_path: Path, main: str, options: str = '"--base-directory"') -> ComfyInstall:
    """A folder that looks like ComfyUI; its main.py is `main`."""
    path = tmp_path / "ComfyUI"
    (path / "comfy").mkdir(parents=True)
    (path / "comfy" / "cli_args.py").write_text(options)
    (path / "main.py").write_text(main)
    return ComfyInstall(path, Path(sys.executable), False, "test")


def test_only_options_that_comfyui_knows_are_used(tmp_path: Path) -> None:
    old = program(tmp_path / "old", "")
    new = program(tmp_path / "new", "", '"--base-directory" "--database-url" "--disable-api-nodes"')
    assert "--database-url" not in command(old, tmp_path / "base", 1, [])
    words = command(new, tmp_path / "base", 1, ["--cpu"])
    assert words[words.index("--database-url") + 1] == "sqlite:///:memory:"
    assert "--disable-api-nodes" in words
    assert "--cpu" in words
    assert (tmp_path / "base" / "custom_nodes").is_dir()


def test_a_comfyui_that_is_too_old_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ComfyError, match="too old"):
        command(program(tmp_path, "", ""), tmp_path / "base", 1, [])


def test_device_arguments_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERFUSION_DEVICE_ARGS", "--gpu-only --fast")
    assert device_args(program(tmp_path, "")) == ["--gpu-only", "--fast"]


def test_a_server_that_dies_shows_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERFUSION_DEVICE_ARGS", "--cpu")
    comfyui = program(tmp_path, "print('no torch here'); raise SystemExit(3)")
    with (
        pytest.raises(ComfyError, match="(?s)exit code 3.*server.log.*no torch here"),
        running_server(comfyui, tmp_path / "base"),
    ):
        pytest.fail("it never answered")


def test_a_server_that_does_not_answer_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERFUSION_DEVICE_ARGS", "--cpu")
    comfyui = program(tmp_path, "import time; print('thinking'); time.sleep(60)")
    with (
        pytest.raises(ComfyError, match="(?s)did not answer within 1 s.*thinking"),
        running_server(comfyui, tmp_path / "base", timeout=1),
    ):
        pytest.fail("it never answered")


@pytest.mark.skipif(sys.platform == "win32", reason="signals cannot be ignored there")
def test_a_server_that_ignores_signals_is_killed() -> None:
    code = (
        "import signal, time\n"
        "for s in (signal.SIGINT, signal.SIGTERM): signal.signal(s, signal.SIG_IGN)\n"
        "print('deaf', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    started = time.monotonic()
    stop(process, patience=0.2)
    process.stdout.close()
    assert process.poll() is not None
    assert time.monotonic() - started < 5


def test_the_pack_is_linked_once_and_relinked_when_the_checkout_moves(tmp_path: Path) -> None:
    one, two, base = tmp_path / "one", tmp_path / "two", tmp_path / "base"
    for root in (one, two):
        root.mkdir()
        (root / "__init__.py").write_text(root.name)
    assert link_pack(base, one).resolve() == one
    assert link_pack(base, one).resolve() == one
    assert link_pack(base, two).resolve() == two
    clear_base(base)
    assert not base.exists()
    assert (two / "__init__.py").read_text() == "two", "the checkout itself stays"


def test_a_taken_port_is_left_alone() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        assert free_port(port) != port
    assert free_port(port) == port


def test_the_reason_why_the_pack_was_not_imported_is_found_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    comfyui = ComfyInstall(tmp_path, Path(sys.executable), False, "test")
    running = RunningServer(comfyui, "", tmp_path, log, process, ComfyClient(""))
    log.write_text("fine\nImport times for custom nodes:\n 0.0 seconds: /b/comfyui-perfusion\n")
    assert running.pack_error() is None
    log.write_text(
        "Traceback of something else\nTraceback (most recent call last):\n  File x\n"
        "ValueError: bad\n\nCannot import /b/comfyui-perfusion module for custom nodes: bad\nmore\n"
    )
    error = running.pack_error()
    assert error is not None
    assert error.startswith("Traceback (most recent call last)")
    assert error.endswith("module for custom nodes: bad")
