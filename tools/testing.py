"""Runs pytest, in as many processes as the machine takes: `python -m tools.testing ARGS`.

Whole folders are worth it; a single file is run as it is. The browser tests stay together in one
process (`tests/conftest.py`): they share a browser, and watch the clock of a page.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

MOST = 4  # processes: each has a ComfyUI, and mostly a server, of its own
# Arguments with which there is to be one process: the user's own number, or a debugger's.
OWN_WAY = ("-n", "--numprocesses", "-s", "--pdb", "--trace", "--collect-only", "--co")


def in_parallel(arguments: Sequence[str], cores: int, known: bool) -> list[str]:
    """pytest-xdist's options for these arguments; none where one process is better.

    Args:
        known: whether the Python that runs the tests has pytest-xdist.
    """
    own = any(word == way or word.startswith(f"{way}=") for word in arguments for way in OWN_WAY)
    folders = any(Path(word).is_dir() for word in arguments if not word.startswith("-"))
    processes = min(MOST, cores)
    if own or not folders or not known or processes < 2:
        return []
    return ["-n", str(processes), "--dist", "loadscope"]


def main(arguments: list[str]) -> int:
    cores = os.cpu_count() or 1
    options = in_parallel(arguments, cores, importlib.util.find_spec("xdist") is not None)
    if options:
        # Threads that wait for each other on busy cores take many times as long.
        threads = max(1, cores // int(options[1]))
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    import pytest

    return int(pytest.main([*options, *arguments]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
