"""Set-up as a list of steps, each finished or not: stamps, one lock, one log, one line per step."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

NPM = "npm error "  # begins every line of what npm says of a failure


class SetupError(RuntimeError):
    """Set-up cannot go on. The message is the one line that the user reads."""


def say(message: str) -> None:
    """One line on stderr: stdout belongs to what a command answers."""
    print(f"perfusion: {message}", file=sys.stderr, flush=True)


def fingerprint(*parts: object) -> str:
    """A short hash of what a step depends on; when it changes, the step is done again."""
    return hashlib.sha256(json.dumps([str(p) for p in parts]).encode()).hexdigest()[:16]


def write_atomic(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees either the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


class Steps:
    """Runs set-up steps at most once each, under `home/stamps`, logging to `home/setup.log`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.log = home / "setup.log"

    def stamp(self, name: str) -> Path:
        return self.home / "stamps" / name

    def done(self, name: str, key: str) -> bool:
        """True if step `name` was finished for exactly this `key`."""
        try:
            return self.stamp(name).read_text(encoding="utf-8").strip() == key
        except OSError:
            return False

    def step(self, name: str, key: str, doing: str, action: Callable[[], None]) -> bool:
        """Do `action` unless its stamp says it is done. The stamp is written after success only."""
        if self.done(name, key):
            return False
        say(f"{doing} ...")
        started = time.monotonic()
        self.stamp(name).unlink(missing_ok=True)
        try:
            action()
        except SetupError as error:
            raise SetupError(f"{doing}: failed: {error} (log: {self.log})") from error
        except OSError as error:
            raise SetupError(f"{doing}: failed: {error} (log: {self.log})") from error
        write_atomic(self.stamp(name), key + "\n")
        seconds = time.monotonic() - started
        if seconds >= 10:
            say(f"{doing}: done in {seconds:.0f} s")
        return True

    def run(
        self,
        command: Sequence[str | Path],
        cwd: Path | None = None,
        timeout: float | None = None,
    ) -> None:
        """Run `command`, its output in the log; on failure raise with the line that says why."""
        words = [str(word) for word in command]
        self.home.mkdir(parents=True, exist_ok=True)
        with self.log.open("a", encoding="utf-8", errors="replace") as log:
            log.write(f"\n$ {' '.join(words)}\n")
            log.flush()
            begin = log.tell()
            try:
                code = subprocess.call(
                    words,
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    timeout=timeout,
                )
            except subprocess.TimeoutExpired as error:
                raise SetupError(f"not ended after {timeout:.0f} s: {words[0]}") from error
        if code:
            with self.log.open("rb") as done:
                done.seek(begin)
                output = done.read().decode("utf-8", errors="replace")
            raise SetupError(why(output) or f"exit code {code}")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Only one set-up at a time in one home; the system drops the lock when a process dies."""
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "lock").open("a+b") as handle:
            told = False
            while not _try_lock(handle.fileno()):
                if not told:
                    say(f"waiting for another set-up in {self.home}")
                    told = True
                time.sleep(0.5)
            yield


def why(output: str) -> str:
    """The line of a tool's output that says why it failed: the last ERROR, else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if told := [line[len(NPM) :] for line in lines if line.startswith(NPM)]:
        return _npms_reason(told)
    errors = [line for line in lines if "error" in line.lower().split(":")[0]]
    reason = (errors or lines or [""])[-1]
    # pip's last word is then "no matching distribution", which misleads.
    unreachable = any("retrying" in line.lower() and "connection" in line for line in lines)
    return f"the package index cannot be reached ({reason})" if unreachable else reason


def _npms_reason(told: list[str]) -> str:
    """The line of npm's errors that says why: the first sentence; advice comes after it."""
    entries = re.compile(r"(code|syscall|errno|path|dest|cwd|type) ")
    reason = next((line for line in told if not entries.match(line)), told[0])
    reason = re.sub(r"^(network|engine|notarget|404) ", "", reason)
    return f"npm's registry cannot be reached ({reason})" if "request to" in reason else reason


if sys.platform == "win32":
    import msvcrt

    def _try_lock(fd: int) -> bool:
        try:
            os.lseek(fd, 0, os.SEEK_SET)
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True
