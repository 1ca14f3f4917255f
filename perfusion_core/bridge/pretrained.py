"""Models of `transformers` from folders on this machine: whole ones in safetensors, or an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .models import HostMismatch


def load_whole(folder: Path, model: Any, processor: Any, kind: str, remedy: str) -> tuple[Any, Any]:
    """(processor, model without gradients, in evaluation mode) of a folder.

    Nothing is downloaded, and nothing but safetensors is read.

    Args:
        model, processor: classes of `transformers`.
        kind: what the folder should hold, such as "CLIP".
        remedy: what to do when it does not.

    Raises HostMismatch when it cannot be read, or weights are missing: `transformers` would put
    random ones in their place.
    """
    try:
        prepares = processor.from_pretrained(folder, local_files_only=True)
        loaded, found = model.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise HostMismatch(
            f'"{folder}" cannot be read as a {kind} model: {error}. {remedy}'
        ) from error
    missing = sorted(found["missing_keys"])
    if missing:
        raise HostMismatch(
            f'"{folder}" is not a whole {kind} model: {len(missing)} of its weights are missing, '
            f'such as "{missing[0]}". {remedy}'
        )
    return prepares, loaded.requires_grad_(False)
