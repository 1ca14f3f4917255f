"""Models of `transformers` from folders on this machine: whole ones in safetensors, or an error."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..concept.safetensors_file import shortened
from ..limits import MAX_FIELD
from .models import ComfyMismatch

logger = logging.getLogger(__name__)

_told: set[str] = set()


def model_folders(
    kind: str, suits: Callable[[Mapping[str, Any]], bool], root_too: bool = False
) -> dict[str, Path]:
    """Name -> folder of every model of `transformers` in one of ComfyUI's model folders.

    What cannot be looked into is left out, and told in the log once: one bad folder does not hide
    the others, or the nodes that list them.

    Args:
        kind: ComfyUI's name of the model folder.
        suits: whether a model's config.json is that of one to be listed.
        root_too: the model may lie in the model folder itself.
    """
    import folder_paths

    found: dict[str, Path] = {}
    for root in map(Path, folder_paths.get_folder_paths(kind)):
        for folder in _inside(root, root_too):
            try:
                config = _config(folder / "config.json")
            except (OSError, ValueError, RecursionError) as error:
                _tell(
                    f'Perfusion: "{folder}" is not listed, its config.json cannot be read: {error}'
                )
                continue
            if config is not None and suits(config):
                found.setdefault(folder.name, folder)
    return found


def _inside(root: Path, root_too: bool) -> Iterator[Path]:
    """The folders in a folder in order, those that may be looked into; before them itself."""
    if root_too:
        yield root
    try:
        yield from sorted(root.iterdir()) if root.is_dir() else ()
    except OSError as error:
        _tell(f'Perfusion: the models in "{root}" are not listed: {error}')


def _config(path: Path) -> Mapping[str, Any] | None:
    """What a config.json says; None where there is none. Raises OSError, ValueError."""
    if not path.is_file():  # such as a pipe, which would be waited for
        return None
    with path.open("rb") as file:
        text = file.read(MAX_FIELD + 1)
    if len(text) > MAX_FIELD:
        raise ValueError(f"it has more than {MAX_FIELD} bytes")
    config = json.loads(text)
    if not isinstance(config, dict):
        raise ValueError("it is no JSON object")
    return config


def _tell(text: str) -> None:
    if text not in _told:
        _told.add(text)
        logger.warning("%s", text)


def load_whole(folder: Path, model: Any, processor: Any, kind: str, remedy: str) -> tuple[Any, Any]:
    """(processor, model without gradients, in evaluation mode) of a folder.

    Nothing is downloaded, and nothing but safetensors is read.

    Args:
        model, processor: classes of `transformers`.
        kind: what the folder should hold, such as "CLIP".
        remedy: what to do when it does not.

    Raises ComfyMismatch when it cannot be read, or weights are missing: `transformers` would put
    random ones in their place.
    """
    try:
        prepares = processor.from_pretrained(folder, local_files_only=True)
        loaded, found = model.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    # Whatever a file of anybody's can make the library raise: it has a dozen kinds of its own.
    except Exception as error:
        raise ComfyMismatch(
            f'"{folder}" cannot be read as a {kind} model: {shortened(error, 500)}. {remedy}'
        ) from error
    missing = sorted(found["missing_keys"])
    if missing:
        raise ComfyMismatch(
            f'"{folder}" is not a whole {kind} model: {len(missing)} of its weights are missing, '
            f'such as "{missing[0]}". {remedy}'
        )
    return prepares, loaded.requires_grad_(False)
