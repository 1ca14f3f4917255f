"""The figures of a sweep as a table: CSV, and Parquet where pyarrow is there."""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from perfusion_core.concept.files import write_atomically

COLUMNS = ("concept", "prompt", "bias", "temperature", "seed", "identity", "text")


def write_table(rows: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write the tables into a folder; their files. Scores are empty where nothing scored."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files = [folder / "table.csv"]
    write_atomically(files[0], text.getvalue().encode())
    if importlib.util.find_spec("pyarrow") is not None:
        import pyarrow
        import pyarrow.parquet

        data = {column: [row[column] for row in rows] for column in COLUMNS}
        sink = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(data), sink)
        files.append(folder / "table.parquet")
        write_atomically(files[1], sink.getvalue())
    return files


def best_settings(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float, float] | None:
    """Bias and temperature of the highest mean score of one concept's pictures, and that score:
    identity times text, as the training node selects by. None where there is no score."""
    found: dict[tuple[float, float], list[float]] = {}
    for row in rows:
        if row["identity"] is not None:
            score = max(0.0, row["identity"]) * max(0.0, row["text"])
            found.setdefault((row["bias"], row["temperature"]), []).append(score)
    if not found:
        return None
    means = {settings: sum(scores) / len(scores) for settings, scores in found.items()}
    bias, temperature = max(means, key=lambda settings: means[settings])
    return bias, temperature, means[bias, temperature]
