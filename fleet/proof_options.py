"""What `python -m fleet report` is called with."""

from __future__ import annotations

import argparse
from pathlib import Path

from .model_options import add_model_options
from .sweep_options import add_sampler_options, numbers

BIASES = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8]


def add_report_options(command: argparse.ArgumentParser) -> None:
    """Its arguments."""
    command.add_argument(
        "pictures",
        type=Path,
        metavar="FOLDER",
        help="4 to 6 pictures of one thing; captions beside them, if there are any, as name.txt",
    )
    command.add_argument(
        "superclass", metavar="WORD", help="the ordinary word for what it is, such as teddy"
    )
    add_model_options(command)
    command.add_argument(
        "--second",
        nargs=2,
        metavar=("FOLDER", "WORD"),
        help="another thing, to see both in one picture",
    )
    command.add_argument("--out", type=Path, default=Path("report"), help="a folder (report)")
    command.add_argument(
        "--steps", type=int, metavar="N", help="of training; a first look takes 50 (the default's)"
    )
    command.add_argument(
        "--batch-size", type=int, metavar="N", help="of training (the default's, 4)"
    )
    command.add_argument(
        "--resolution", type=int, default=0, metavar="PIXELS", help="of training (the model's)"
    )
    command.add_argument(
        "--side", type=int, default=0, metavar="PIXELS", help="of the pictures made (the model's)"
    )
    command.add_argument(
        "--biases", type=numbers, default=BIASES, metavar="LIST", help="0.3,0.4,0.5,0.6,0.7,0.8"
    )
    add_sampler_options(command, "--sampling-steps")
    command.add_argument(
        "--hide-pictures",
        action="store_true",
        help="leave your training pictures out of the page, which you may want to show to others",
    )
