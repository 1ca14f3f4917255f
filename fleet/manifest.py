"""A manifest: what is to be learned, of which pictures, on which models, with which settings.

    ledger = "output/fleet"             # results and what is underway; beside the manifest

    [models.sd15]
    checkpoint = "models/v1-5.safetensors"
    [models.large]                      # or the files of one apart
    unet = "unet.safetensors"
    clip = ["clip_l.safetensors", "clip_g.safetensors"]
    clip_type = "sdxl"
    vae = "vae.safetensors"

    [defaults]                          # of every concept; the settings of Perfusion Train Concept
    model = "sd15"
    steps = 200

    [grid]                              # each concept once for every combination
    seed = [1, 2]

    [concepts.anna]
    pictures = "pictures/anna"          # a folder, or a list of files
    placeholder = "anna*"
    superclass = "person"

Paths are as from the manifest's folder. "demo" is a model that is always there: the emoji world.
Captions are in `name.txt` beside `name.png`, or in `captions`, one for each picture.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomllib

from .errors import FleetError
from .lines import line_of

LEDGER = "fleet-ledger"  # where none is named
DEMO = "demo"
# The settings of a training, by the names that the node has for them, with their types.
SETTINGS: Mapping[str, type] = {
    "steps": int,
    "batch_size": int,
    "seed": int,
    "vectors": int,
    "embedding_rate": float,
    "value_rate": float,
    "train_bias": float,
    "train_temperature": float,
    "ema": float,
    "key_mode": str,
    "resolution": int,
    "flip": bool,
    "checkpointing": str,
}
_MODEL = {"checkpoint", "unet", "clip", "clip_type", "vae"}
_TYPES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


@dataclass(frozen=True)
class ModelEntry:
    """A model by its files: none for the emoji world; "checkpoint"; or "unet", "clip", "vae"."""

    name: str
    files: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    clip_type: str = ""


@dataclass(frozen=True)
class PlannedConcept:
    """One training.

    Attributes:
        name: of the file that comes of it.
        pictures: files, in order. captions: what each shows; "" for a built-in one.
        masks: of each picture, where the thing is white; empty for none.
        settings: of `SETTINGS`, those that the manifest names.
        line: of the manifest, where it stands.
    """

    name: str
    model: ModelEntry
    placeholder: str
    superclass: str
    pictures: Sequence[Path]
    captions: Sequence[str]
    masks: Sequence[Path]
    settings: Mapping[str, Any]
    line: int


@dataclass(frozen=True)
class Manifest:
    """A manifest as it was read; `concepts` one for every combination of the grids."""

    path: Path
    ledger: Path
    concepts: Sequence[PlannedConcept]


def ledger_of(path: Path) -> Path:
    """The ledger of a manifest, or the folder itself; no picture is looked at."""
    return path if path.is_dir() else Reader(path).ledger()


def read_manifest(path: Path) -> Manifest:
    """Read and check a manifest. Raises FleetError, which names the line and what to do."""
    from .concepts import concepts_of

    reader = Reader(path)
    reader.check_keys((), {"ledger", "models", "defaults", "grid", "concepts"}, reader.data)
    return Manifest(path, reader.ledger(), concepts_of(reader, models_of(reader)))


class Reader:
    """A manifest's data, and errors that say where in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.text = path.read_text(encoding="utf-8-sig")
        except FileNotFoundError as error:
            raise FleetError(f"there is no manifest {path}: name a TOML file") from error
        except (OSError, UnicodeDecodeError) as error:
            raise FleetError(f"the manifest {path} cannot be read: {error}") from error
        try:
            self.data: dict[str, Any] = tomllib.loads(self.text)
        except tomllib.TOMLDecodeError as error:
            raise FleetError(f"{path} is not TOML: {error}") from error

    def error(self, where: Sequence[str], problem: str) -> FleetError:
        """An error at a value, to be raised."""
        line = line_of(self.text, where)
        return FleetError(
            f"{self.path}, line {line}: {'.'.join(where) or 'the manifest'} {problem}"
        )

    def line(self, *where: str) -> int:
        return line_of(self.text, where)

    def table(self, *where: str) -> dict[str, Any]:
        """A table; empty where it is not there."""
        found: Any = self.data
        for part in where:
            found = found.get(part, {})
        if not isinstance(found, dict):
            raise self.error(where, f"is {found!r}; expected a table, such as [{'.'.join(where)}]")
        return found

    def check_keys(self, where: Sequence[str], known: Iterable[str], found: Iterable[str]) -> None:
        for key in found:
            if key not in set(known):
                near = difflib.get_close_matches(key, list(known), 1)
                meant = f'did you mean "{near[0]}"?' if near else ""
                raise self.error([*where, key], f"is not known; {meant or _listed(known)}")

    def value(self, where: Sequence[str], value: Any, kind: type) -> Any:
        """A value of a type. Raises FleetError for one of another."""
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise self.error(where, f"is {value!r}; expected {_TYPES[kind]}")
        return value

    def texts(self, where: Sequence[str], value: Any) -> list[str]:
        """One text or a list of texts, as a list."""
        listed = [value] if isinstance(value, str) else value
        if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
            raise self.error(where, f"is {value!r}; expected a text or a list of texts")
        return listed

    def file(self, where: Sequence[str], text: str) -> Path:
        """A path as from the manifest's folder, which must be there."""
        path = (self.path.parent / Path(text).expanduser()).resolve()
        if not path.exists():
            raise self.error(where, f'names "{text}", and there is no {path}: correct the path')
        return path

    def ledger(self) -> Path:
        name = self.value(["ledger"], self.data.get("ledger", LEDGER), str)
        return (self.path.parent / Path(name).expanduser()).resolve()


def models_of(reader: Reader) -> dict[str, ModelEntry]:
    """The models of a manifest by their names, the emoji world among them. Raises FleetError."""
    models = {DEMO: ModelEntry(DEMO)}
    for name in reader.table("models"):
        where = ["models", name]
        table = reader.table(*where)
        reader.check_keys(where, _MODEL, table)
        parts = {"checkpoint"} if "checkpoint" in table else {"unet", "clip", "vae"}
        others = table.keys() - parts - {"clip_type"}
        if parts - table.keys() or others or ("checkpoint" in table and "clip_type" in table):
            raise reader.error(
                where, 'names no whole model: give "checkpoint", or "unet", "clip" and "vae"'
            )
        files = {
            part: [reader.file([*where, part], text) for text in _part(reader, where, table, part)]
            for part in sorted(parts)
        }
        kind = reader.value([*where, "clip_type"], table.get("clip_type", ""), str)
        models[name] = ModelEntry(name, files, kind)
    return models


def _part(reader: Reader, where: Sequence[str], table: dict[str, Any], part: str) -> list[str]:
    found = reader.texts([*where, part], table[part])
    if not found or (part != "clip" and len(found) > 1):
        raise reader.error([*where, part], f"names {len(found)} files; expected one")
    return found


def _listed(known: Iterable[str]) -> str:
    return f"known are {', '.join(sorted(known))}"
