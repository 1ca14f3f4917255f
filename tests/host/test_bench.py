"""`make bench` runs and writes what it promises. Its figures are nobody's pass or fail."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

from peer import peer_is_installed

FIELDS = {"name", "what", "ratio", "against", "unit", "runs", "median", "median_against"}


def test_the_quick_bench_of_the_projections(repo: Path, tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    options = ["--quick", "--only", "projections", "--runs", "1", "--output", str(output)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", *options],
        cwd=repo,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text(encoding="utf-8"))
    names = ["kv_projections_1", "kv_projections_16"]
    if peer_is_installed():
        names = [f"{side}{name}" for name in names for side in ("", "peer_")]
    assert [result["name"] for result in results] == names
    for result in results:
        assert result.keys() == FIELDS
        assert result["against"] == "stock"
        assert result["unit"] == "ms"
        assert result["runs"] == 1
        assert result["median_against"] > 0
        expected = result["median"] / result["median_against"]
        assert math.isclose(result["ratio"], expected, rel_tol=1e-2)
        assert result["name"] in done.stdout
    assert "torch" in done.stdout.splitlines()[0]
