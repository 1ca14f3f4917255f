"""The header of a concept file: a concept's words and numbers as text, and read again."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from typing import Any

from ..limits import MAX_ENTRY, MAX_PREVIEW, MAX_TRAINING
from .concept import Concept, ConceptError
from .safetensors_file import shortened

FORMAT = "perfusion-concept"
# 3: learned with the gate on the whole of the edit. 1, and 2 with trained keys: learned where what
# is subtracted had none; they are used as any other.
VERSION, READ = "3", ("1", "2", "3")

LONGEST_PREVIEW = 4 * MAX_PREVIEW // 3 + 4  # as base64


def to_header(concept: Concept) -> dict[str, str]:
    """All of a concept but its tensors, as safetensors takes it: text by name."""
    header = {
        "format": FORMAT,
        "version": VERSION,
        "name": concept.name,
        "family": concept.family,
        "text_width": str(concept.width),
        "placeholder": concept.placeholder,
        "superclass": concept.superclass,
        "bias": repr(concept.bias),
        "temperature": repr(concept.temperature),
        "covariance": concept.covariance_fingerprint,
        "training": json.dumps(dict(concept.training), sort_keys=True),
        "author": concept.author,
        "licence": concept.licence,
        "hash": concept.hash,
    }
    if concept.preview is not None:
        header["preview"] = base64.b64encode(concept.preview).decode()
    return header


def check_format(header: Mapping[str, str]) -> None:
    """Raises ConceptError for the header of another kind of file, or of a later version."""
    if header.get("format") != FORMAT:
        raise ConceptError(
            "this safetensors file is not a concept: its header has the format "
            f'"{shortened(header.get("format", ""))}", not "{FORMAT}". LoRAs and checkpoints '
            "go through their own loaders, an embedding through Perfusion Import, as a start for "
            "training."
        )
    if header.get("version") not in READ:
        raise ConceptError(
            f'the file has version "{shortened(header.get("version", ""))}" of the format and this '
            f"Perfusion reads the versions {READ[0]} to {READ[-1]}. Update Perfusion."
        )


def entry(header: Mapping[str, str], key: str, most: int = MAX_ENTRY) -> str:
    """An entry of at most so many letters. Raises ConceptError where it is longer or missing."""
    if key not in header:
        raise ConceptError(
            f'the header has no entry "{key}": the file is damaged. Get another copy.'
        )
    if len(header[key]) > most:
        raise ConceptError(
            f'the header\'s entry "{key}" has {len(header[key])} letters; at most {most} are read. '
            "Get another copy."
        )
    return header[key]


def number(header: Mapping[str, str], key: str) -> float:
    """An entry as a number, which may be NaN or infinity. Raises ConceptError where it is none."""
    text = entry(header, key)
    try:
        return float(text)
    except ValueError as error:
        raise ConceptError(
            f'the header says {key} = "{shortened(text)}", which is not a number. Get another copy.'
        ) from error


def finite_number(header: Mapping[str, str], key: str) -> float:
    """An entry as a number. Raises ConceptError where it is none, NaN or infinity."""
    value = number(header, key)
    if not math.isfinite(value):
        raise ConceptError(
            f"the header says {key} = {value}, which is not a finite number. Get another copy."
        )
    return value


def training_entry(header: Mapping[str, str]) -> Mapping[str, Any]:
    """The notes on the training. Raises ConceptError where they are no JSON object."""
    try:
        training = json.loads(entry(header, "training", MAX_TRAINING))
    except ConceptError:
        raise
    except (ValueError, RecursionError) as error:  # deep brackets, numbers of thousands of digits
        raise ConceptError(
            f'the header\'s entry "training" is not JSON ({shortened(error)}). Get another copy.'
        ) from error
    if not isinstance(training, dict):
        raise ConceptError('the header\'s entry "training" is not a JSON object. Get another copy.')
    return training


def preview_entry(header: Mapping[str, str]) -> bytes | None:
    """The encoded preview, or None where there is none. Raises ConceptError if it is no base64."""
    if "preview" not in header:
        return None
    text = entry(header, "preview", LONGEST_PREVIEW)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:  # the second: letters that are not ASCII
        raise ConceptError(
            f'the header\'s entry "preview" is not base64 ({error}). Get another copy.'
        ) from error
