"""What the lab has done already: a stop loses one point at most.

Every training and every point is a file named by its key: all that decides it, the weights of base
model and judge among it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from demo import model as small
from tools.steps import write_atomic

from . import judge


def hashes(paths: Sequence[Path]) -> dict[str, str]:
    """File name -> the first half of the sha256 of its bytes."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:32] for path in paths}


def world() -> dict[str, str]:
    """The weights that figures rest on."""
    parts = [small.WEIGHTS / f"{part}.safetensors" for part in ("unet", "clip", "vae")]
    return hashes([*parts, judge.WEIGHTS])


def sources(root: Path) -> str:
    """Tells versions of the code that trains, edits and samples apart."""
    files = [p for part in ("perfusion_core", "demo", "lab") for p in root.glob(f"{part}/**/*.py")]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


class Cache:
    """Values in a folder, by their keys.

    Args:
        common: part of every key.
        code: what to note as the code that made a value; no part of the key, since most changes of
            code change no figure. `other_code` lists what was taken from another one.

    Attributes:
        seconds: what each value took that was used, in whichever run it was made.
    """

    def __init__(self, folder: Path, common: Mapping[str, Any], code: str) -> None:
        self.folder = folder
        self.common = dict(common)
        self.code = code
        self.other_code: set[Path] = set()
        self.seconds: dict[Path, float] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, key: Mapping[str, Any], suffix: str = ".json") -> Path:
        """Where the value of a key is, or would be."""
        text = json.dumps({**self.common, **key}, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}{suffix}"

    def get(self, key: Mapping[str, Any]) -> Any | None:
        """The value of a key, or None."""
        path = self.path(key)
        if not path.is_file():
            return None
        entry = json.loads(path.read_text(encoding="utf-8"))
        if entry["code"] != self.code:
            self.other_code.add(path)
        self.seconds[path] = entry["seconds"]
        return entry["value"]

    def has(self, key: Mapping[str, Any]) -> bool:
        """Whether there is a value of a key."""
        return self.path(key).is_file()

    def put(self, key: Mapping[str, Any], value: Any, seconds: float) -> None:
        """Keep a value that JSON can hold, and how long it took."""
        path, common = self.path(key), {**self.common, **key}
        entry = {"key": common, "code": self.code, "seconds": round(seconds, 1), "value": value}
        write_atomic(path, json.dumps(entry, indent=1) + "\n")
        self.seconds[path] = entry["seconds"]
