"""What `python -m fleet sweep` is called with."""

from __future__ import annotations

import argparse


def add_sweep_options(command: argparse.ArgumentParser) -> None:
    """Its arguments."""
