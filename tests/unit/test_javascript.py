"""The JavaScript has tests of its own (tests/js); here they are part of `make test`."""

from __future__ import annotations

import pytest

from tools.node import OLDEST, find_node, run_tests


def test_javascript() -> None:
    command = find_node()
    if command is None:
        pytest.skip(f"there is no Node {OLDEST} or newer; set-up brings one to its own environment")
    result = run_tests(command, [])
    assert result.returncode == 0, result.stdout
