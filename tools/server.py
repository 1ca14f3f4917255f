"""Starts a real ComfyUI with this pack in it, in a base folder of its own, and stops it again."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tools.client import ComfyClient, ComfyError
from tools.console import words_of
from tools.locate import FOLDERS, PACK_NAME, ROOT, ComfyInstall
from tools.steps import say

# This checkout's own, also where a linked worktree shares what set-up made.
DEFAULT_BASE = ROOT / ".comfyui" / "base"


@dataclass
class RunningServer:
    """A live server: `url`, its folders under `base`, its `log`, a `client` to talk to it."""

    comfyui: ComfyInstall
    url: str
    base: Path
    log: Path
    process: subprocess.Popen[bytes]
    client: ComfyClient

    @property
    def output(self) -> Path:
        return self.base / "output"

    @property
    def input(self) -> Path:
        return self.base / "input"

    @property
    def models(self) -> Path:
        return self.base / "models"

    def log_text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def log_tail(self, lines: int = 25) -> str:
        return "\n".join(self.log_text().splitlines()[-lines:])

    def pack_error(self) -> str | None:
        """Why ComfyUI could not import this pack (it goes on without), None if it did."""
        text = self.log_text()
        end = text.find(f"{PACK_NAME} module for custom nodes")
        if end < 0:
            return None
        line_end = text.find("\n", end)
        begin = text.rfind("Traceback", 0, end)
        return text[max(begin, 0) : line_end].strip()

    def check_alive(self) -> None:
        code = self.process.poll()
        if code is not None:
            raise ComfyError(
                f"ComfyUI ended with exit code {code}; the end of {self.log}:\n{self.log_tail()}"
            )


def device_args(comfyui: ComfyInstall) -> list[str]:
    """`$PERFUSION_DEVICE_ARGS`, else `--cpu` where there is no accelerator that torch can use."""
    named = os.environ.get("PERFUSION_DEVICE_ARGS")
    if named is not None:
        return words_of(named)
    if not _accelerator_likely():
        return ["--cpu"]
    # Something is there: only ComfyUI's own torch knows if it can use it (seconds, so not before).
    code = (
        "import torch;"
        "x=getattr(torch,'xpu',None);m=torch.backends.mps;"
        "print(torch.cuda.is_available() or m.is_available() or bool(x and x.is_available()))"
    )
    done = subprocess.run(
        [comfyui.python, "-c", code],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        stdin=subprocess.DEVNULL,
    )
    return [] if done.stdout.strip().endswith("True") else ["--cpu"]


def _accelerator_likely() -> bool:
    if platform.system() == "Darwin":
        return platform.machine() == "arm64"
    if Path("/dev/kfd").exists() or Path("/dev/dri/renderD128").exists():
        return True
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return False
    return count.value > 0


def command(comfyui: ComfyInstall, base: Path, port: int, device_args: Sequence[str]) -> list[str]:
    """The command line of a server that keeps everything it writes under `base`."""
    known = (comfyui.path / "comfy" / "cli_args.py").read_text(encoding="utf-8")
    if '"--base-directory"' not in known:
        raise ComfyError(
            f"ComfyUI {comfyui.version} at {comfyui.path} is too old: no --base-directory"
        )
    for name in FOLDERS:
        (base / name).mkdir(parents=True, exist_ok=True)
    words = [str(comfyui.python), "-u", str(comfyui.path / "main.py")]
    words += ["--base-directory", str(base), "--port", str(port), "--disable-auto-launch"]
    words += device_args
    # Newer versions keep a database beside their own files; older ones have none. No API nodes:
    # they call out to the network. No scan of the model folders into that database.
    for option in (
        ["--database-url", "sqlite:///:memory:"],
        ["--disable-api-nodes"],
        ["--disable-assets-autoscan"],
    ):
        if f'"{option[0]}"' in known:
            words += option
    return words


def link_pack(base: Path, root: Path = ROOT) -> Path:
    """Put this checkout into `base/custom_nodes`, as a link."""
    return link_folder(base / "custom_nodes" / PACK_NAME, root)


def link_folder(link: Path, root: Path) -> Path:
    """Make `link` a link to the folder `root` (on Windows a junction)."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.exists() and link.resolve() == root.resolve():
        return link
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        link.rmdir()  # a junction; a real folder with something in it fails here, as it should
    if sys.platform == "win32":
        import _winapi

        _winapi.CreateJunction(str(root), str(link))
    else:
        link.symlink_to(root, target_is_directory=True)
    return link


def free_port(wanted: int = 0) -> int:
    """`wanted` if nobody listens there, else any free port."""
    with socket.socket() as probe:
        if wanted and probe.connect_ex(("127.0.0.1", wanted)) != 0:
            return wanted
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_server(
    comfyui: ComfyInstall,
    base: Path | None = None,
    *,
    port: int | None = None,
    extra_args: Sequence[str] = (),
    timeout: float = 300.0,
    pack: Path = ROOT,
) -> Iterator[RunningServer]:
    """Start `comfyui` with this pack, or another folder of it; yield it when it answers; stop it.

    Everything it reads and writes is under `base` (by default `.comfyui/base` of this checkout,
    which `make serve` uses as well); two servers at once need two. Raises `ComfyError`
    with the end of the log if ComfyUI ends, or does not answer within `timeout` seconds.
    """
    base = (base or DEFAULT_BASE).resolve()
    link_pack(base, pack)
    port = port or free_port()
    words = [*command(comfyui, base, port, device_args(comfyui)), *extra_args]
    log = base / "server.log"
    with log.open("wb") as sink, _terminable():
        process = _spawn(words, comfyui.path, sink)
        url = f"http://127.0.0.1:{port}"
        running = RunningServer(comfyui, url, base, log, process, ComfyClient(url))
        running.client.check_alive = running.check_alive
        try:
            _wait_until_up(running, timeout)
            yield running
        finally:
            stop(process)


def _spawn(words: Sequence[str], cwd: Path, sink: IO[bytes]) -> subprocess.Popen[bytes]:
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    # A group of its own: Ctrl-C in the terminal reaches us, and we stop the server in order.
    if sys.platform == "win32":
        return subprocess.Popen(
            words,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            creationflags=subprocess.CREATE_NEW_PROCESS_GROUP,
        )
    return subprocess.Popen(
        words,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=sink,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _wait_until_up(running: RunningServer, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        running.check_alive()
        with contextlib.suppress(ComfyError, OSError):
            running.client.system_stats()
            return
        if time.monotonic() > deadline:
            raise ComfyError(
                f"ComfyUI did not answer within {timeout:.0f} s; "
                f"the end of {running.log}:\n{running.log_tail()}"
            )
        time.sleep(0.2)


def stop(process: subprocess.Popen[bytes], patience: float = 10.0) -> None:
    """Ask the server to end as Ctrl-C would, then insist."""
    ways = [process.terminate, process.kill]
    if sys.platform == "win32":
        ways.insert(0, lambda: process.send_signal(signal.CTRL_BREAK_EVENT))
    elif signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        # Ignored in a shell's background jobs, and the server inherits that.
        ways.insert(0, lambda: process.send_signal(signal.SIGINT))
    for way in ways:
        if process.poll() is not None:
            return
        way()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    process.wait()


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM unwind the stack as Ctrl-C does, so that a terminated run leaves no server."""

    def interrupt(signum: int, frame: object) -> None:
        # Not SystemExit: pytest takes that for one test's failure and goes on.
        raise KeyboardInterrupt(f"signal {signum}")

    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def clear_base(base: Path) -> None:
    """Delete a base folder; the pack in it is a link, and what it points to stays."""
    link = base / "custom_nodes" / PACK_NAME
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        link.rmdir()
    shutil.rmtree(base, ignore_errors=True)
    if base.exists():
        say(f"{base} could not be deleted whole")
