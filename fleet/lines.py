"""Where in a TOML text a value stands, so that an error can name the line."""

from __future__ import annotations

import re
from collections.abc import Sequence

_HEADER = re.compile(r"\s*\[\[?\s*(.+?)\s*\]\]?\s*(?:#.*)?")
_KEY = re.compile(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")
_PART = re.compile(r"""[\w-]+|"[^"]*"|'[^']*'""")


def line_of(text: str, path: Sequence[str]) -> int:
    """The line (from 1) of the value at `path`, such as ("concepts", "berry", "steps").

    Of a value within an inline table or an array, the line where that begins; of what is not there,
    the nearest that is around it; 1 where nothing is.
    """
    best, found = 0, 1
    table: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        header = _HEADER.fullmatch(line)
        key = _KEY.match(line)
        if header is not None:
            here = table = _parts(header[1])
        elif key is not None:
            here = [*table, *_parts(key[1])]
        else:
            continue
        shared = len(here) if list(path[: len(here)]) == here else 0
        if shared > best:
            best, found = shared, number
    return found


def _parts(dotted: str) -> list[str]:
    return [part.strip("\"'") for part in _PART.findall(dotted)]
