"""The concepts of a manifest: their pictures, captions, masks, words and grids of settings."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import FleetError
from .manifest import SETTINGS, ModelEntry, PlannedConcept, Reader

_WORDS = {"model", "placeholder", "superclass", "captions"}
_CONCEPT = {"pictures", "masks", "grid", *_WORDS, *SETTINGS}
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
# What a file name can hold on every system; a name is never a path.
_NAME = re.compile(r"[^./\\<>:\"|?*\x00-\x1f][^/\\<>:\"|?*\x00-\x1f]{0,99}")


def concepts_of(reader: Reader, models: Mapping[str, ModelEntry]) -> list[PlannedConcept]:
    """All concepts, each once for every combination of its grid. Raises FleetError."""
    defaults, grid = reader.table("defaults"), reader.table("grid")
    reader.check_keys(["defaults"], _WORDS | SETTINGS.keys(), defaults)
    if not reader.table("concepts"):
        raise reader.error(["concepts"], "has no concept: add a table such as [concepts.anna]")
    found: list[PlannedConcept] = []
    for name in reader.table("concepts"):
        where = ["concepts", name]
        table = reader.table(*where)
        reader.check_keys(where, _CONCEPT, table)
        if not _NAME.fullmatch(name):
            raise reader.error(where, "cannot be a file's name: use letters, digits, - and _")
        found += _Concept(reader, models, name, table, defaults, grid).entries()
    return found


class _Concept:
    """One table of concepts."""

    def __init__(
        self,
        reader: Reader,
        models: Mapping[str, ModelEntry],
        name: str,
        table: Mapping[str, Any],
        defaults: Mapping[str, Any],
        grid: Mapping[str, Any],
    ) -> None:
        self._reader = reader
        self._models = models
        self._name = name
        self._table = table
        self._defaults = defaults
        own = reader.table("concepts", name, "grid")
        # What a concept says of a setting itself is not spread.
        above = {key: values for key, values in grid.items() if key not in table}
        self._grid = {key: (self._where("grid"), values) for key, values in own.items()}
        self._grid |= {k: (["grid"], v) for k, v in above.items() if k not in own}

    def _where(self, key: str) -> list[str]:
        """Where a value stands: with the concept, or with the defaults."""
        if key in self._table or key not in self._defaults:
            return ["concepts", self._name, key]
        return ["defaults", key]

    def _text(self, key: str) -> str:
        value = self._table.get(key, self._defaults.get(key))
        if value is None:
            raise self._reader.error(
                ["concepts", self._name], f"has no {key}: add one, here or in [defaults]"
            )
        text: str = self._reader.value(self._where(key), value, str)
        return text

    def entries(self) -> Iterator[PlannedConcept]:
        pictures = self._pictures()
        captions, masks = self._captions(pictures), self._masks(pictures)
        placeholder, superclass = self._text("placeholder"), self._text("superclass")
        self._check_words(placeholder, superclass)
        given = {key: self._setting(self._where(key), key) for key in SETTINGS if self._has(key)}
        for label, combination in self._combinations():
            settings = {**given, **combination}
            self._check_settings(settings)
            yield PlannedConcept(
                self._name + label,
                self._model(),
                placeholder,
                superclass,
                pictures,
                captions,
                masks,
                settings,
                self._reader.line("concepts", self._name),
            )

    def _has(self, key: str) -> bool:
        return key in self._table or key in self._defaults

    def _setting(self, where: Sequence[str], key: str) -> Any:
        value = self._table.get(key, self._defaults.get(key))
        return self._reader.value(where, value, SETTINGS[key])

    def _model(self) -> ModelEntry:
        name = self._text("model")
        if name not in self._models:
            known = ", ".join(self._models)
            raise self._reader.error(
                self._where("model"), f'is "{name}", which is no model: name one of {known}'
            )
        return self._models[name]

    def _combinations(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """What to add to the name, and the settings, of every combination of the grid."""
        axes = []
        for key, (where, values) in self._grid.items():
            place = [*where, key]
            self._reader.check_keys(where, SETTINGS, [key])
            if not isinstance(values, list) or not values:
                raise self._reader.error(place, f"is {values!r}; expected a list of values")
            axes.append(
                [(key, self._reader.value(place, v, SETTINGS[key])) for v in dict.fromkeys(values)]
            )
        for chosen in itertools.product(*axes):
            label = "".join(f"-{key}{_shown(value)}" for key, value in chosen)
            yield label, dict(chosen)

    def _pictures(self) -> list[Path]:
        where = self._where("pictures")
        if "pictures" not in self._table:
            raise self._reader.error(
                where[:2], "has no pictures: name a folder, or a list of files"
            )
        found = []
        for text in self._reader.texts(where, self._table["pictures"]):
            path = self._reader.file(where, text)
            inside = (
                sorted(p for p in path.iterdir() if _is_picture(p)) if path.is_dir() else [path]
            )
            if not inside:
                raise self._reader.error(
                    where,
                    f'names "{text}", a folder without pictures ({", ".join(sorted(PICTURES))})',
                )
            found += inside
        if not found:
            raise self._reader.error(where, "is empty: name a folder, or a list of files")
        return found

    def _captions(self, pictures: Sequence[Path]) -> list[str]:
        beside = [path.with_suffix(".txt") for path in pictures]
        named = self._table.get("captions")
        if named is None and any(path.is_file() for path in beside):
            return [_caption(path) for path in beside]
        where = self._where("captions")
        lines = self._reader.texts(where, named or self._defaults.get("captions", []))
        if lines and len(lines) != len(pictures):
            raise self._reader.error(
                where,
                f"has {len(lines)} captions for the {len(pictures)} pictures of "
                f'"{self._name}": give one for each, in the order of their names, or write them '
                "beside the pictures, as name.txt",
            )
        return lines or [""] * len(pictures)

    def _masks(self, pictures: Sequence[Path]) -> list[Path]:
        """Of every picture the file in the masks' folder that is called as it is."""
        if "masks" not in self._table:
            return []
        where = self._where("masks")
        folder = self._reader.file(where, self._reader.value(where, self._table["masks"], str))
        by_stem = {p.stem: p for p in sorted(folder.iterdir()) if _is_picture(p)}
        missing = [path.name for path in pictures if path.stem not in by_stem]
        if missing:
            raise self._reader.error(
                where, f"has no mask for {', '.join(missing[:3])}: each needs one of its own name"
            )
        return [by_stem[path.stem] for path in pictures]

    def _check_words(self, placeholder: str, superclass: str) -> None:
        from perfusion_core.concept.concept import ConceptError, check_words

        try:
            check_words(placeholder, superclass)
        except ConceptError as error:
            where = self._where("placeholder")
            raise self._reader.error(where, f'is "{placeholder}": {error}') from error

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        from .jobs import training_settings

        try:
            training_settings(settings)
        except ValueError as error:
            key = next((k for k in settings if k.removeprefix("train_") in str(error)), "")
            line = self._where(key) if key else ["concepts", self._name]
            if key in self._grid:
                line = [*self._grid[key][0], key]
            raise self._reader.error(line, f'of "{self._name}" cannot be: {error}') from error


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES and not path.name.startswith(".")


def _caption(path: Path) -> str:
    try:
        return " ".join(path.read_text(encoding="utf-8-sig").split())
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise FleetError(
            f"the caption {path} cannot be read: {error}. Write it as UTF-8."
        ) from error


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
