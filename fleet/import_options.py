"""What `python -m fleet import` is called with."""

from __future__ import annotations

import argparse
from pathlib import Path

from .model_options import add_model_options


def add_import_options(command: argparse.ArgumentParser) -> None:
    """Its arguments."""
    command.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="a concept of ChenDarYen's implementation or of perfusion-pytorch, or a textual "
        "inversion (.ckpt, .pt, .bin, .safetensors)",
    )
    add_model_options(command)
    command.add_argument(
        "--superclass",
        default="",
        metavar="WORD",
        help="the ordinary word for what it is, such as teddy; that of the file, if it has one",
    )
    command.add_argument(
        "--placeholder",
        default="",
        metavar="WORD",
        help="the new word for prompts (the superclass with a star: teddy*)",
    )
    command.add_argument(
        "--to", type=Path, metavar="FILE", help="the concept file to write (beside FILE)"
    )
