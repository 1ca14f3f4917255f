"""What `python -m fleet sweep` is called with."""

from __future__ import annotations

import argparse
import math
from pathlib import Path


def add_sweep_options(command: argparse.ArgumentParser) -> None:
    """Its arguments."""
    command.add_argument("concepts", nargs="+", type=Path, metavar="CONCEPT", help="concept files")
    command.add_argument(
        "--model",
        default="demo",
        help='"demo" (the emoji world), a checkpoint file, or a model of --manifest (demo)',
    )
    command.add_argument(
        "--manifest",
        type=Path,
        help="where models are named, and by the concepts' names the pictures that they were "
        "learned from, to score against (otherwise the small picture in the concept file)",
    )
    command.add_argument("--out", type=Path, default=Path("sweep"), help="a folder (sweep)")
    command.add_argument(
        "--biases",
        type=numbers,
        default=[0.4, 0.5, 0.6, 0.7, 0.8],
        metavar="LIST",
        help="apart by commas (0.4,0.5,0.6,0.7,0.8)",
    )
    command.add_argument(
        "--temperatures", type=numbers, default=[0.15], metavar="LIST", help="likewise (0.15)"
    )
    add_sampler_options(command, "--steps")
    command.add_argument(
        "--write-bias",
        action="store_true",
        help="write the bias and temperature that score best into each concept file",
    )


def add_sampler_options(command: argparse.ArgumentParser, steps: str) -> None:
    """What pictures are made with. `steps` is what the option of the sampler's steps is called."""
    command.add_argument(
        "--seeds", type=whole_numbers, default=[1], metavar="LIST", help="of the noise (1)"
    )
    command.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="with {} for the concept; may be given several times (built-in ones)",
    )
    command.add_argument(steps, type=int, default=20, metavar="N", help="of the sampler (20)")
    command.add_argument("--cfg", type=float, default=7.0, help="(7)")
    command.add_argument("--sampler", default="euler", help="as KSampler calls it (euler)")
    command.add_argument("--scheduler", default="normal", help="as KSampler calls it (normal)")


def numbers(text: str) -> list[float]:
    """Numbers apart by commas, each once. For argparse, which says what is wrong."""
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or not all(map(math.isfinite, found)):
        raise argparse.ArgumentTypeError(
            f'"{text}" is no list of numbers; write them as 0.4,0.6,0.8'
        )
    return list(dict.fromkeys(found))


def whole_numbers(text: str) -> list[int]:
    """Whole numbers from 0 apart by commas, each once. For argparse, which says what is wrong."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f'"{text}" is no list of seeds; write them as 1,2,3')
    return list(dict.fromkeys(map(int, parts)))
