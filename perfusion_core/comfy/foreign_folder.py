"""Where files of other programs are: ComfyUI's model folder `embeddings`, and `perfusion`."""

from __future__ import annotations

from pathlib import Path

from ..concept.concept import ConceptError
from ..concept.foreign_file import SAFETENSORS_SUFFIXES, TORCH_SUFFIXES
from ..concept.safetensors_file import shortened
from .concept_folder import FOLDER, model_path, version_of

EMBEDDINGS = "embeddings"
# The same folders as those of concept files, with other files shown.
FOREIGN = "perfusion_foreign"


def register_foreign_folder() -> None:
    """Make the checkpoints of other implementations in `models/perfusion` known to ComfyUI.

    Safe to call again; after `register_folder`.
    """
    import folder_paths

    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOREIGN] = (paths, set(TORCH_SUFFIXES))


def foreign_names() -> list[str]:
    """Names of all files that may be read, relative to their folders."""
    import folder_paths

    folders = [f for f in (EMBEDDINGS, FOREIGN) if f in folder_paths.folder_names_and_paths]
    names = dict.fromkeys(n for folder in folders for n in folder_paths.get_filename_list(folder))
    return [name for name in names if name.lower().endswith(TORCH_SUFFIXES + SAFETENSORS_SUFFIXES)]


def foreign_path(name: str) -> Path:
    """The file of a name from `foreign_names`. Raises ConceptError when there is none."""
    wanted = name.replace("\\", "/")
    if wanted.lower().endswith(TORCH_SUFFIXES + SAFETENSORS_SUFFIXES):
        for folder in (EMBEDDINGS, FOREIGN):
            # ComfyUI resolves the name inside its folders only.
            found = model_path(folder, name) or model_path(folder, wanted)
            if found is not None:
                return found
    raise ConceptError(
        f'There is no file "{shortened(name)}" to import. Put a textual inversion into '
        f"models/{EMBEDDINGS}, or a concept of another implementation (.ckpt, .pt) into "
        f"models/{FOLDER}, and refresh the list (R)."
    )


def foreign_fingerprint(name: str) -> str:
    """Changes when the file of that name changes; "" when there is none."""
    try:
        return repr(version_of(foreign_path(name).stat()))
    except (ConceptError, OSError):
        return ""
