"""Train many concepts, on many devices, without a server: see docs/fleet.md.

Run it from the pack's folder. Where this Python is not that of the ComfyUI around the pack (or of
the one that `make setup` made), that one is started in its place.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.console import forgiving

from .errors import FleetError
from .import_options import add_import_options
from .proof_options import add_report_options
from .sweep_options import add_sweep_options

EXAMPLES = """
examples:
  python -m fleet train demo/fleet.toml --dry-run     what would be done
  python -m fleet train demo/fleet.toml --devices cpu:2
  python -m fleet train people.toml --devices cuda:0,cuda:1
  python -m fleet train people.toml --ray             workers on a Ray cluster
  python -m fleet status people.toml
  python -m fleet sweep output/fleet/concepts/*.safetensors --biases 0.4,0.6,0.8
  python -m fleet report pictures/anna person --model v1-5.safetensors
  python -m fleet import teddy.ckpt --model v1-5.safetensors

A run that was stopped or killed goes on where it was: give the same command again.
"""

# Where the commands are: imported when they are asked for.
COMMANDS = {
    "train": ("train", "train"),
    "export": ("train", "export"),
    "sweep": ("sweep", "sweep"),
    "status": ("status", "status"),
    "retry": ("status", "retry"),
    "import": ("imports", "import_file"),
    "report": ("proof", "report"),
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m fleet",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="learn the concepts of a manifest")
    train.add_argument("manifest", type=Path, metavar="MANIFEST", help="a TOML file")
    train.add_argument("--dry-run", action="store_true", help="show the plan, and do nothing")
    _add_devices(train)
    train.add_argument(
        "--snapshot-every",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="how much work a killed worker loses at most (30)",
    )

    sweep = commands.add_parser(
        "sweep", help="pictures of concepts at many settings: sheets, a table, a recommended bias"
    )
    add_sweep_options(sweep)
    _add_devices(sweep)

    status = commands.add_parser("status", help="what is done, underway and failed")
    status.add_argument("ledger", type=Path, metavar="LEDGER", help="a manifest, or its ledger")

    retry = commands.add_parser("retry", help="open failed jobs again, for the next train")
    retry.add_argument("ledger", type=Path, metavar="LEDGER", help="a manifest, or its ledger")
    retry.add_argument("names", nargs="*", metavar="CONCEPT", help="those alone; else all")

    report = commands.add_parser(
        "report", help="train on your model with the defaults, look at it, write one page of it"
    )
    add_report_options(report)
    _add_devices(report, ray=False)

    importing = commands.add_parser(
        "import", help="make a concept file of what another program has learned"
    )
    add_import_options(importing)
    _add_devices(importing, ray=False)

    export = commands.add_parser("export", help="copy a manifest's concepts into a folder")
    export.add_argument("manifest", type=Path, metavar="MANIFEST")
    export.add_argument("folder", type=Path, metavar="FOLDER", help="such as models/perfusion")
    return made


def _add_devices(command: argparse.ArgumentParser, ray: bool = True) -> None:
    command.add_argument(
        "--devices",
        default="auto",
        metavar="DEVICES",
        help="one worker each: cuda:0,cuda:1 or cuda (all cards), cpu:2 (two workers), mps; "
        "auto (the default): all cards, else one worker on the CPU",
    )
    if ray:
        command.add_argument(
            "--ray",
            nargs="?",
            const="",
            metavar="ADDRESS",
            help="workers on the Ray cluster at ADDRESS (auto: the one this machine is part of); "
            "without ADDRESS, on one that is started here for as long as it takes",
        )
    command.add_argument(
        "--comfyui-args",
        default="",
        metavar="ARGS",
        help='options for ComfyUI, as in --comfyui-args="--fp32-vae": those that yours is started '
        "with, where a concept is to be the same to the last bit",
    )


def main(arguments: Sequence[str]) -> int:
    """Run a command; the exit code: 1 for an error or a job that failed, 130 for Ctrl-C."""
    options = parser().parse_args(arguments)
    forgiving()
    signal.signal(signal.SIGTERM, _as_ctrl_c)
    try:
        module, function = COMMANDS[options.command]
        if module != "status" and not _has_comfyuis_packages():
            return _hand_over(arguments)
        command = getattr(importlib.import_module(f"fleet.{module}"), function)
        return int(command(options))
    except FleetError as error:
        print(f"fleet: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fleet: stopped; the same command goes on from here", file=sys.stderr)
        return 130


def _as_ctrl_c(*_: object) -> None:
    raise KeyboardInterrupt


def _has_comfyuis_packages() -> bool:
    return all(importlib.util.find_spec(name) for name in ("torch", "safetensors", "einops"))


def _hand_over(arguments: Sequence[str]) -> int:
    """Run the same with the Python of the ComfyUI that is found."""
    from tools.locate import find_comfyui

    comfyui = find_comfyui()
    if not comfyui.python.is_file() or comfyui.python.samefile(sys.executable):
        raise FleetError(
            f"this Python ({sys.executable}) has no torch, and {comfyui} is not set up: run "
            "`make setup`, or start the fleet with the Python that runs your ComfyUI"
        )
    # By its folder: an embedded Python, as of ComfyUI for Windows, finds no module by the folder
    # that it is started in.
    folder = str(Path(__file__).parent)
    return subprocess.call([comfyui.python, folder, *arguments], env=dict(os.environ))
