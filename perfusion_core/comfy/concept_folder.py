"""Where concept files are: ComfyUI's model folder `perfusion`, and safe names within it."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path, PurePosixPath

from ..concept.concept import Concept, ConceptError
from ..concept.concept_file import save_concept, save_new_concept
from ..concept.safetensors_file import NotSafetensors, read_header, shortened
from ..limits import MAX_HEADER

FOLDER = "perfusion"
SUFFIX = ".safetensors"

# What Windows does not take in a file name, so that a concept can move between machines.
_FORBIDDEN = set('<>:"|?*')
_RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{p}{n}" for p in ("COM", "LPT") for n in range(1, 10))}

# File systems take 255 bytes of a name; the suffix is one part of it, and what a file is called
# while it is written another.
MAX_PART, MAX_DEPTH = 180, 8


def register_folder() -> None:
    """Make `models/perfusion` known to ComfyUI, after what extra_model_paths.yaml has added.

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
    """The file of a name from `concept_names`, or of one that Windows writes: people\\anna.

    Raises ConceptError when there is none, or when what is there is no file.
    """
    import folder_paths

    for wanted in dict.fromkeys((name, name.replace("\\", "/"))):
        # ComfyUI resolves the name inside its folders only.
        found = folder_paths.get_full_path(FOLDER, wanted) if wanted else None
        if found is not None and found.lower().endswith(SUFFIX):  # as ComfyUI's list
            return Path(found)
    raise ConceptError(_why_not(name))


def model_path(folder: str, name: str) -> Path | None:
    """The absolute path of a file in one of ComfyUI's model folders; None when there is none."""
    import folder_paths

    # ComfyUI resolves the name inside its folders only.
    found = folder_paths.get_full_path(folder, name) if name else None
    return None if found is None else Path(os.path.abspath(found))


def _why_not(name: str) -> str:
    """Why there is no concept file of that name."""
    import folder_paths

    for root in map(Path, folder_paths.get_folder_paths(FOLDER)):
        path = root / name.replace("\\", "/")
        # Of what lies outside the folder nothing is told.
        if not name.lower().endswith(SUFFIX) or ".." in path.parts or root not in path.parents:
            continue
        try:
            kind = path.lstat().st_mode
            if stat.S_ISLNK(kind) and not path.exists():
                return (
                    f'"{name}" is a link that leads nowhere. Put the file back that it leads to, '
                    "or delete the link."
                )
            if not path.is_file():
                return (
                    f'"{name}" is no file (a folder, a pipe or a device): take it out of the '
                    "concept folder"
                )
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:  # the second: a name with NUL in it
            reason = getattr(error, "strerror", None) or error
            return f'"{name}" cannot be read: {reason}. Give ComfyUI the right to read it.'
    known = concept_names()
    listed = ", ".join(known[:5]) + (" ..." if len(known) > 5 else "") if known else "none"
    return (
        f'There is no concept file "{shortened(name)}". Found in models/{FOLDER} (and where '
        f"extra_model_paths.yaml says): {listed}. Train and save a concept, or copy its "
        ".safetensors file there, and refresh the list (R)."
    )


def file_fingerprint(name: str) -> str:
    """Changes when the file of that name changes; "" when there is none.

    Of the header alone, which has the hash of the tensors: the file may be a checkpoint of 10 GB
    that was put there by mistake.
    """
    try:
        path = concept_path(name)
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return ""
        with path.open("rb") as file:
            header = read_header(file, MAX_HEADER).text
    except (ConceptError, OSError):
        return ""
    except NotSafetensors:
        header = repr(version_of(status)).encode()
    return hashlib.sha256(header + str(status.st_size).encode()).hexdigest()


def version_of(status: os.stat_result) -> tuple[int, ...]:
    """Differs when a file was changed, even one whose time and size were put back."""
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_ctime_ns


def folder_fingerprint() -> str:
    """Changes when any concept file changes: for a name that is not known yet."""
    digest = hashlib.sha256()
    for name in concept_names():
        digest.update(f"{name} {file_fingerprint(name)}\n".encode(errors="replace"))
    return digest.hexdigest()


def save_named(concept: Concept, name: str, overwrite: bool) -> Path:
    """Save a concept under a name that a user typed, subfolders allowed; return its file.

    Without `overwrite`, a name that is taken gets the next free number: teddy, teddy_2, teddy_3 ...
    Raises ConceptError for a name that leads anywhere else than into the concept folder, and when
    the disk does not take the file.
    """
    import folder_paths

    root = Path(folder_paths.get_folder_paths(FOLDER)[0])
    path = root / f"{checked_name(name)}{SUFFIX}"
    try:
        inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # links that lead in a circle
        inside = False
    if not inside:  # a link inside the folder could lead out of it
        raise ConceptError(f'"{name}" leads out of the concept folder {root}; use another name')
    if not overwrite:
        return save_new_concept(concept, path)
    save_concept(concept, path)
    return path


def checked_name(name: str) -> PurePosixPath:
    """A user's file name without its suffix, as a path that stays where it is put."""
    text = name.strip().replace("\\", "/").removesuffix(SUFFIX)
    parts = text.split("/")
    longest = max(len(part.encode("utf-8", "replace")) for part in parts)
    if len(parts) > MAX_DEPTH or longest > MAX_PART:
        raise ConceptError(
            f'"{shortened(name, 60)}" is too long for a file name: at most {MAX_PART} letters '
            f"(fewer where letters take several bytes) and {MAX_DEPTH - 1} subfolders fit. Use a "
            "shorter one."
        )
    bad = (
        not text
        or any(part.strip(". ") != part or not part for part in parts)
        or any(c in _FORBIDDEN or not c.isprintable() for c in text)
        or any(part.split(".")[0].strip().upper() in _RESERVED for part in parts)
        or any(part.lower().endswith(SUFFIX) for part in parts)
    )
    if bad:
        raise ConceptError(
            f'"{shortened(name)}" cannot be a file name. Use letters, digits, "-", "_" and spaces, '
            'and "/" for a subfolder, such as "people/anna"; no empty part, no part that begins or '
            "ends with a dot, no name that Windows keeps for itself, such as con or nul, and no "
            f'subfolder that ends with "{SUFFIX}".'
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
