"""Concept files: one safetensors file each, no pickle, all metadata in the header.

Tensors (see `Concept`): "target_input", "superclass_encoding", "embedding.<encoder>" and
"value.<layer path>" in fp16, "whitened_target" in fp32. A concept of trained keys also has
"key.<layer path>" in fp16, and its file version 2: a reader that knows no such keys would leave
them out. All others are of version 1.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .concept import Concept, ConceptError
from .files import write_atomically

FORMAT = "perfusion-concept"
VERSION, VERSION_WITH_KEYS = "1", "2"

_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def save_concept(concept: Concept, path: Path) -> None:
    """Write a concept file; afterwards `path` holds all of it, or, after an error, what it held."""
    write_atomically(Path(path), save(concept.tensors(), _to_header(concept)))


def load_concept(path: Path) -> Concept:
    """Read a concept file.

    Raises ConceptError, which names the file, for whatever keeps it from being one.
    """
    with _opened(Path(path)) as (file, header):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        concept = _from_file(header, tensors)
        if concept.hash != _entry(header, "hash"):
            raise ConceptError(
                "the tensors do not match the hash in the header: the file was damaged or edited. "
                "Copy or download it again."
            )
    return concept


@dataclass(frozen=True)
class ConceptCard:
    """What a file says of its concept in the header, which is read without the tensors.

    Attributes: as of `Concept`; and
        width: d, the width of the text encodings.
        hash: of the tensors as they were saved; only `load_concept` compares it with them.
        size: of the file, in bytes.
        has_preview: whether `read_preview` has a picture.
    """

    name: str
    placeholder: str
    superclass: str
    family: str
    width: int
    bias: float
    temperature: float
    author: str
    licence: str
    hash: str
    size: int
    has_preview: bool


def read_card(path: Path) -> ConceptCard:
    """Read a concept file's header. Raises ConceptError as `load_concept` does."""
    path = Path(path)
    with _opened(path) as (_, header):
        return ConceptCard(
            name=_entry(header, "name"),
            placeholder=_entry(header, "placeholder"),
            superclass=_entry(header, "superclass"),
            family=_entry(header, "family"),
            width=int(_finite(header, "text_width")),
            bias=_finite(header, "bias"),
            temperature=_finite(header, "temperature"),
            author=_entry(header, "author"),
            licence=_entry(header, "licence"),
            hash=_entry(header, "hash"),
            size=path.stat().st_size,
            has_preview="preview" in header,
        )


def read_preview(path: Path) -> bytes | None:
    """The encoded picture in a concept file, or None. Raises ConceptError as `load_concept`."""
    with _opened(Path(path)) as (_, header):
        return _preview(header)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Mapping[str, str]]]:
    """The open file and its header; what is raised within names the file."""
    try:
        with _reading(path), safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            _check_format(header)
            yield file, header
    except ConceptError as error:
        raise ConceptError(f"{path}: {error}") from error


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Says in ConceptErrors what keeps a file from being read."""
    try:
        yield
    except FileNotFoundError as error:
        raise ConceptError(
            "there is no such file. Put concept files into models/perfusion and refresh the list."
        ) from error
    except OSError as error:
        raise ConceptError(f"the file cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        with path.open("rb") as file:
            if file.read(4).startswith(_PICKLE_STARTS):
                raise ConceptError(
                    "this is a pickle (a .pt, .bin or .ckpt file) under another name. Perfusion "
                    "never opens pickles, because they can run programs: get the concept as a "
                    ".safetensors file."
                ) from error
        raise ConceptError(
            f"this is not a whole safetensors file ({error}). It was cut short or damaged: "
            "copy or download it again."
        ) from error


def _to_header(concept: Concept) -> dict[str, str]:
    header = {
        "format": FORMAT,
        "version": VERSION_WITH_KEYS if concept.keys else VERSION,
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


def _check_format(header: Mapping[str, str]) -> None:
    if header.get("format") != FORMAT:
        raise ConceptError(
            f'this safetensors file is not a concept: its header has the format "'
            f'{header.get("format", "")}", not "{FORMAT}". LoRAs, embeddings and checkpoints go '
            "through their own loaders."
        )
    if header.get("version") not in (VERSION, VERSION_WITH_KEYS):
        raise ConceptError(
            f'the file has version "{header.get("version", "")}" of the format and this Perfusion '
            f"reads versions {VERSION} and {VERSION_WITH_KEYS}. Update Perfusion."
        )


def _from_file(header: Mapping[str, str], tensors: dict[str, Tensor]) -> Concept:
    def vector(name: str) -> Tensor:
        if name not in tensors:
            raise ConceptError(
                f"the tensor {name} is missing (there are {len(tensors)} others): the file is "
                "damaged. Get another copy."
            )
        return tensors[name]

    def group(prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

    return Concept(
        name=_entry(header, "name"),
        family=_entry(header, "family"),
        placeholder=_entry(header, "placeholder"),
        superclass=_entry(header, "superclass"),
        embeddings=group("embedding."),
        target_input=vector("target_input"),
        whitened_target=vector("whitened_target"),
        superclass_encoding=vector("superclass_encoding"),
        values=group("value."),
        keys=group("key."),
        bias=_number(header, "bias"),
        temperature=_number(header, "temperature"),
        covariance_fingerprint=_entry(header, "covariance"),
        training=_training(header),
        author=_entry(header, "author"),
        licence=_entry(header, "licence"),
        preview=_preview(header),
    )


def _entry(header: Mapping[str, str], key: str) -> str:
    if key not in header:
        raise ConceptError(
            f'the header has no entry "{key}": the file is damaged. Get another copy.'
        )
    return header[key]


def _number(header: Mapping[str, str], key: str) -> float:
    text = _entry(header, key)
    try:
        return float(text)
    except ValueError as error:
        raise ConceptError(
            f'the header says {key} = "{text}", which is not a number. Get another copy.'
        ) from error


def _finite(header: Mapping[str, str], key: str) -> float:
    number = _number(header, key)
    if not math.isfinite(number):
        raise ConceptError(
            f"the header says {key} = {number}, which is not a finite number. Get another copy."
        )
    return number


def _training(header: Mapping[str, str]) -> Mapping[str, Any]:
    try:
        training = json.loads(_entry(header, "training"))
    except json.JSONDecodeError as error:
        raise ConceptError(
            f'the header\'s entry "training" is not JSON ({error}). Get another copy.'
        ) from error
    if not isinstance(training, dict):
        raise ConceptError('the header\'s entry "training" is not a JSON object. Get another copy.')
    return training


def _preview(header: Mapping[str, str]) -> bytes | None:
    if "preview" not in header:
        return None
    try:
        return base64.b64decode(header["preview"], validate=True)
    except binascii.Error as error:
        raise ConceptError(
            f'the header\'s entry "preview" is not base64 ({error}). Get another copy.'
        ) from error
