"""What there is to choose from: the concept files' cards, previews, and a checkpoint's family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from ..cache import BoundedCache
from ..comfy.concept_folder import concept_names, concept_path, model_path, version_of
from ..concept.card import preview_kind
from ..concept.concept import Concept, ConceptError
from ..concept.concept_file import ConceptCard, load_concept, read_card, read_preview
from ..families import ModelFamily
from ..families.checkpoint_file import family_of_checkpoint
from ..limits import MAX_CARDS, MAX_PREVIEW_SIDE

CHECKPOINT_FOLDERS = ("checkpoints", "diffusion_models")

T = TypeVar("T")


class _ByFile(Generic[T]):
    """What was read of a file, kept until the file changes; of the last `size` files."""

    def __init__(self, read: Callable[[Path], T], size: int) -> None:
        self._read = read
        self._kept: BoundedCache[Path, tuple[tuple[int, ...], T]] = BoundedCache(size)

    def __call__(self, path: Path) -> T:
        version = version_of(path.stat())
        kept = self._kept.get(path)
        if kept is None or kept[0] != version:
            kept = self._kept.put(path, (version, self._read(path)))
        return kept[1]


_card_of = _ByFile(read_card, MAX_CARDS)
_concept_of = _ByFile(load_concept, 32)
_family_of = _ByFile(family_of_checkpoint, 256)


@dataclass(frozen=True)
class Listed:
    """One name of the loader's list, with its card or with what is wrong with the file."""

    file: str
    card: ConceptCard | None
    error: str


def concept_cards() -> tuple[list[Listed], int]:
    """The first `MAX_CARDS` concept files, and how many more there are."""
    names = concept_names()
    return [_listed(name) for name in names[:MAX_CARDS]], max(0, len(names) - MAX_CARDS)


def _listed(name: str) -> Listed:
    """As `concept_card`; a name with no file behind it (any more) says so too."""
    try:
        return concept_card(name)
    except ConceptError as error:
        return Listed(name, None, str(error))


def concept_card(name: str) -> Listed:
    """One concept file. A broken one is no exception: what is wrong with it is in the answer.

    Raises ConceptError when there is no file of that name.
    """
    path = concept_path(name)
    try:
        return Listed(name, _read(name, path, _card_of), "")
    except ConceptError as error:
        return Listed(name, None, str(error).removeprefix(f"{name}: "))


def concept_of(name: str) -> Concept:
    """The concept in the file of that name. Raises ConceptError, which names it so."""
    return _read(name, concept_path(name), _concept_of)


def _read(name: str, path: Path, read: Callable[[Path], T]) -> T:
    """What `read` gives for the concept file of that name.

    Raises ConceptError that calls the file by its name: where the folders lie is not the page's
    business.
    """
    try:
        return read(path)
    except OSError as error:
        raise ConceptError(f"{name}: the file cannot be read: {error.strerror}") from error
    except ConceptError as error:
        raise ConceptError(f"{name}: {str(error).removeprefix(f'{path}: ')}") from error


def concept_preview(name: str) -> tuple[bytes, str]:
    """The preview in a concept file and its media type.

    Raises ConceptError when there is no such file, or it has no picture that can be shown.
    """
    picture = _read(name, concept_path(name), read_preview)
    if picture is None:
        raise ConceptError(f'the concept file "{name}" has no preview')
    kind = preview_kind(picture)
    if kind is None:
        raise ConceptError(
            f'the preview in the concept file "{name}" is no PNG, JPEG or WebP picture of at most '
            f"{MAX_PREVIEW_SIDE} by {MAX_PREVIEW_SIDE} pixels"
        )
    return picture, kind


def checkpoint_family(folder: str, name: str) -> ModelFamily | None:
    """The family of a checkpoint of ComfyUI, or None when its file does not tell.

    Raises ConceptError for another folder, or when there is no such file in it.
    """
    if folder not in CHECKPOINT_FOLDERS:
        raise ConceptError(
            f'"{folder}" is not a folder of models; it must be one of '
            f"{', '.join(CHECKPOINT_FOLDERS)}"
        )
    path = model_path(folder, name)
    if path is None:
        raise ConceptError(f'there is no file "{name}" in the models\' folder {folder}')
    try:
        return _family_of(path)
    except OSError as error:
        raise ConceptError(f"{name}: the file cannot be read: {error.strerror}") from error
