"""Where concept files are: the host's model folder `perfusion`, and safe names within it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path, PurePosixPath

from ..concept import ConceptError

FOLDER = "perfusion"
SUFFIX = ".safetensors"

# What Windows does not take in a file name, so that a concept can move between machines.
_FORBIDDEN = set('<>:"|?*')


def register_folder() -> None:
    """Make `models/perfusion` known to the host, after what extra_model_paths.yaml has added.

    Creates nothing on disk. Safe to call again.
    """
    import folder_paths

    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {SUFFIX})


def concept_names() -> list[str]:
    """Names of all concept files, relative to their folders; new files are found at once."""
    import folder_paths

    return list(folder_paths.get_filename_list(FOLDER))


def concept_path(name: str) -> Path:
    """The file of a name from `concept_names`. Raises ConceptError when there is none."""
    import folder_paths

    # The host resolves the name inside its folders only.
    found = folder_paths.get_full_path(FOLDER, name) if name else None
    if found is None or not found.lower().endswith(SUFFIX):  # as the host's list
        known = concept_names()
        listed = ", ".join(known[:5]) + (" ..." if len(known) > 5 else "") if known else "none"
        where = " or ".join(folder_paths.get_folder_paths(FOLDER))
        raise ConceptError(
            f'There is no concept file "{name}". Found in {where}: {listed}. Train and save a '
            "concept, or copy its .safetensors file there, and refresh the list (R)."
        )
    return Path(found)


def file_fingerprint(name: str) -> str:
    """Changes when the file of that name changes; "" when there is none."""
    try:
        return hashlib.sha256(concept_path(name).read_bytes()).hexdigest()
    except (ConceptError, OSError):
        return ""


def folder_fingerprint() -> str:
    """Changes when any concept file changes: for a name that is not known yet."""
    digest = hashlib.sha256()
    for name in concept_names():
        digest.update(f"{name} {file_fingerprint(name)}\n".encode())
    return digest.hexdigest()


def save_path(name: str, overwrite: bool) -> Path:
    """Where to save a concept under a name that a user typed, subfolders allowed.

    Without `overwrite`, a name that is taken gets the next free number: teddy, teddy_2, teddy_3 ...
    Raises ConceptError for a name that leads anywhere else than into the concept folder.
    """
    import folder_paths

    root = Path(folder_paths.get_folder_paths(FOLDER)[0])
    path = root / f"{checked_name(name)}{SUFFIX}"
    # A link inside the folder could lead out of it.
    if not path.resolve().is_relative_to(root.resolve()):
        raise ConceptError(f'"{name}" leads out of the concept folder {root}; use another name')
    number, taken = 1, path
    while path.exists() and not overwrite:
        number += 1
        path = taken.with_name(f"{taken.stem}_{number}{SUFFIX}")
    return path


def checked_name(name: str) -> PurePosixPath:
    """A user's file name without its suffix, as a path that stays where it is put."""
    text = name.strip().replace("\\", "/").removesuffix(SUFFIX)
    parts = text.split("/")
    bad = (
        not text
        or any(part.strip(". ") != part or not part for part in parts)
        or any(c in _FORBIDDEN or not c.isprintable() for c in text)
    )
    if bad:
        raise ConceptError(
            f'"{name}" cannot be a file name. Use letters, digits, "-", "_" and spaces, and "/" '
            'for a subfolder, such as "people/anna"; no empty part, no part that begins or ends '
            "with a dot."
        )
    return PurePosixPath(*parts)


def default_name(text: str) -> str:
    """A file name made from any text, such as a placeholder: "<my teddy>*" gives "my teddy"."""
    kept = "".join(c if c.isalnum() or c in "-_ " else "" for c in text).strip()
    return kept or "concept"


def saved_name(path: Path) -> str:
    """The name that the loader's list has for a file of the concept folder."""
    import folder_paths

    for root in folder_paths.get_folder_paths(FOLDER):
        if path.is_relative_to(root):
            return os.path.relpath(path, root)
    return path.name
