"""The command line of the house: `python -m tools.host setup|run|serve|where|clean`.

    setup                     make the host ready (nothing to do: under a second)
    run [--unit] -- ARGS...   set up, then run the host's Python with ARGS in this folder
                              (--need MODULE: it must be there; --want MODULE: it may be lacking
                              in an environment that was found; --browser: what the browser tests
                              need)
    serve [--port N]          open the host with its UI and this pack until Ctrl-C
    where                     say which ComfyUI and Python are used
    clean [--all]             delete what runs left (--all: what set-up made, too)

Environment: COMFYUI_PATH (a ComfyUI to use), COMFYUI_PYTHON (its Python; `private` for an
environment that set-up makes for it), PERFUSION_HOST_DIR (where set-up keeps what it makes, else
.host), PERFUSION_DEVICE_ARGS (ComfyUI's device options, else --cpu where there is no accelerator).
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
from pathlib import Path

from tools import browser, install
from tools.client import HostError
from tools.locate import ROOT, Host, find_host, home
from tools.server import DEFAULT_BASE, clear_base, free_port, running_host
from tools.steps import SetupError, Steps, say


def ready_host(*, need: list[str] | None = None, want: list[str] | None = None) -> Host:
    """The host, made ready; `need` names modules that its Python must have.

    `want` names ones that ours gets and a found one may lack. Raises `SetupError` if a found
    environment lacks one that it needs: we never install into it.
    """
    host = find_host()
    install.setup_host(host, Steps(home()))
    if want:
        _say_absent(host.python, install.setup_wanted(host, Steps(home()), want))
    missing = install.lacking(host.python, need) if need and not host.ours else []
    if missing:
        raise SetupError(
            f"{host.python} (found with {host.path}) lacks {', '.join(missing)}, and set-up never "
            f"changes an environment it did not make: add it with `{host.python} -m pip install "
            f"{' '.join(missing)}`, or set COMFYUI_PYTHON=private for one made for this ComfyUI"
        )
    return host


def _say_absent(python: Path, modules: list[str]) -> None:
    if modules:
        say(f"{python} has no {', '.join(modules)}: going on without")


def unit_python(want: list[str] | None = None) -> Path:
    """A Python for what needs no host: the host's if it is ready and ours, else a light one.

    Either is set-up's own, and gets what is wanted.
    """
    python = _unit_python(Steps(home()))
    if want:
        _say_absent(python, install.add_wanted(python, Steps(home()), want))
    return python


def _unit_python(steps: Steps) -> Path:
    host = find_host()
    if host.ours and host.python.is_file() and (host.path / "requirements.txt").is_file():
        key = install.host_key(host, ROOT)
        if steps.done(f"{host.venv.name}.packages", key):
            return host.python
    return install.setup_unit(steps)


def serve(port: int | None) -> int:
    host = ready_host()
    say(f"starting {host}")
    port = port or free_port(8188)
    with contextlib.suppress(KeyboardInterrupt), running_host(host, port=port) as running:
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
    parser = argparse.ArgumentParser(
        prog="tools.host", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("setup")
    commands.add_parser("where")
    run = commands.add_parser("run")
    run.add_argument("--unit", action="store_true", help="what needs no host: a light environment")
    run.add_argument("--need", action="append", default=[], help="a module that must be there")
    run.add_argument("--want", action="append", default=[], choices=install.WANTED)
    run.add_argument("--browser", action="store_true", help="a browser and the newest frontend")
    served = commands.add_parser("serve")
    served.add_argument("--port", type=int)
    cleaned = commands.add_parser("clean")
    cleaned.add_argument("--all", action="store_true")
    split = argv.index("--") if "--" in argv else len(argv)
    options = parser.parse_args(argv[:split])
    rest = argv[split + 1 :]

    try:
        if options.command == "run":
            if options.unit:
                return hand_over(unit_python(options.want), rest)
            host = ready_host(need=options.need, want=options.want)
            if options.browser:
                browser.setup_browser(host, Steps(home()))
            return hand_over(host.python, rest)
        if options.command == "serve":
            return serve(options.port)
        if options.command == "clean":
            return clean(options.all)
        host = ready_host() if options.command == "setup" else find_host()
        say(f"{host}, Python {host.python}")
        return 0
    except (SetupError, HostError) as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("stopped; the same command goes on from here")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
