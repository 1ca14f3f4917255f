"""Concept files: one safetensors file each, no pickle, all metadata in the header.

Tensors (see `Concept`): "target_input", "superclass_encoding", "embedding.<encoder>" and
"value.<layer path>" in fp16, "whitened_target" in fp32. A concept of trained keys also has
"key.<layer path>" in fp16, and its file version 2: a reader that knows no such keys would leave
them out. All others are of version 1.

A file may be anybody's. What it may hold is bounded here, and checked on its header before its
tensors are read; whatever keeps it from being a concept is a ConceptError.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ..limits import MAX_ENTRY, MAX_FILE, MAX_HEADER, MAX_LAYERS, MAX_TRAINING
from .concept import Concept, ConceptError, check_readable_words, check_recommended
from .concept_header import (
    LONGEST_PREVIEW,
    check_format,
    entry,
    finite_number,
    number,
    preview_entry,
    to_header,
    training_entry,
)
from .files import cause, write_atomically, write_new
from .safetensors_file import Header, NotSafetensors, read_header, serialized, shortened

# What a file of another kind begins with.
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_ZIP = b"PK\x03\x04"  # torch's own files are archives of a pickle
_LFS = b"version https://git-lfs"


def save_concept(concept: Concept, path: Path) -> None:
    """Write a concept file; afterwards `path` holds all of it, or, after an error, what it held.

    Raises ConceptError, which names the file, when the disk does not take it.
    """
    with _writing(concept, Path(path)):
        write_atomically(Path(path), concept_bytes(concept))


def save_new_concept(concept: Concept, path: Path) -> Path:
    """Write a concept file that replaces no other; return its path.

    A name that is taken gets the next free number: teddy, teddy_2, teddy_3 ... Raises ConceptError,
    which names the file, when the disk does not take it.
    """
    with _writing(concept, path):
        numbers = range(1, 1_000_000)
        paths = (path if n == 1 else path.with_stem(f"{path.stem}_{n}") for n in numbers)
        return write_new(paths, concept_bytes(concept))


@contextmanager
def _writing(concept: Concept, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConceptError(
            f'The concept "{concept.name}" could not be saved as {path}: {cause(error)}'
        ) from error


def concept_bytes(concept: Concept) -> bytes:
    """A concept file's content. Raises ConceptError for what `load_concept` would not read."""
    header = to_header(concept)
    _check_readable(concept, header)
    return serialized(concept.tensors(), header)


def _check_readable(concept: Concept, header: Mapping[str, str]) -> None:
    """Raises ConceptError for what `load_concept` would not read again."""
    most = {"training": MAX_TRAINING, "preview": LONGEST_PREVIEW}
    for key, text in header.items():
        bound = most.get(key, MAX_ENTRY)
        if len(text) > bound:
            raise ConceptError(
                f'The concept "{shortened(concept.name, 60)}" cannot be saved: its {key} has '
                f"{len(text)} letters, and a concept file has room for {bound}. Give it a shorter "
                "one."
            )
    if len(concept.values) > MAX_LAYERS:
        raise ConceptError(
            f'The concept "{concept.name}" cannot be saved: it has values for '
            f"{len(concept.values)} layers, and a concept file has room for {MAX_LAYERS}."
        )


def load_concept(path: Path) -> Concept:
    """Read a concept file.

    Raises ConceptError, which names the file, for whatever keeps it from being one.
    """
    with _opened(Path(path)) as (file, whole):
        header = whole.metadata
        _check_tensors(whole)
        file.seek(0)
        # In one piece: what was checked is what is read.
        concept = _from_file(header, load(file.read(MAX_FILE + 1)))
        if concept.hash != entry(header, "hash"):
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
    with _opened(Path(path)) as (file, whole):
        header = whole.metadata
        card = ConceptCard(
            name=entry(header, "name"),
            placeholder=entry(header, "placeholder"),
            superclass=entry(header, "superclass"),
            family=entry(header, "family"),
            width=int(finite_number(header, "text_width")),
            bias=finite_number(header, "bias"),
            temperature=finite_number(header, "temperature"),
            author=entry(header, "author"),
            licence=entry(header, "licence"),
            hash=entry(header, "hash"),
            size=os.fstat(file.fileno()).st_size,
            has_preview="preview" in header,
        )
        check_readable_words(card.placeholder, card.superclass)
        check_recommended(card.bias, card.temperature)
        return card


def read_preview(path: Path) -> bytes | None:
    """The encoded picture in a concept file, or None. Raises ConceptError as `load_concept`."""
    with _opened(Path(path)) as (_, whole):
        return preview_entry(whole.metadata)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, Header]]:
    """The open file and its header; what is raised within is a ConceptError that names the file."""
    try:
        with reading(path), path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            whole = _header_of(file, size)
            check_format(whole.metadata)
            if size > MAX_FILE:
                raise ConceptError(
                    f"the file has {size / 1e6:,.0f} MB; a concept has far below one, and at most "
                    f"{MAX_FILE / 1e6:.0f} are read. Get another copy."
                )
            yield file, whole
    except ConceptError as error:
        raise ConceptError(f"{path}: {error}") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Says in ConceptErrors what keeps a file from being read."""
    try:
        # Opening a pipe would wait for somebody to write into it.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConceptError("this is no file (a folder, a pipe or a device). Take it away.")
        yield
    except FileNotFoundError as error:
        raise ConceptError(
            "there is no such file. Put concept files into models/perfusion and refresh the list."
        ) from error
    except OSError as error:
        raise ConceptError(f"the file cannot be read: {error.strerror or error}") from error
    except ConceptError:
        raise
    except (SafetensorError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        # The library's, Python's and torch's own words for what a damaged file can make of them.
        raise ConceptError(
            f"this is not a whole safetensors file ({shortened(error)}). It was cut short or "
            "damaged: copy or download it again."
        ) from error


def _header_of(file: BinaryIO, size: int) -> Header:
    try:
        return read_header(file, min(MAX_HEADER, size))
    except NotSafetensors:
        file.seek(0)
        _check_kind(file.read(64), size)
        raise


def _check_kind(start: bytes, size: int) -> None:
    """Raises ConceptError if a file that is no safetensors file is one of a kind that is known."""
    if not size:
        raise ConceptError("the file is empty. Copy or download it again.")
    if start.startswith(_LFS):
        raise ConceptError(
            "this is a pointer of Git LFS, which stands for the file until that is fetched. Run "
            '"git lfs pull" in the repository it came from, or download the file itself.'
        )
    if start.lstrip().startswith(b"<"):
        raise ConceptError(
            "this is a web page that was saved under the file's name, often that of a download "
            "which asks to log in. Download the file itself."
        )
    if start.startswith((*_PICKLES, _ZIP)):
        raise ConceptError(
            "this is a pickle (a .pt, .bin or .ckpt file) or another archive under another name. "
            "A loader never opens those, because they can run programs: get the concept as a "
            ".safetensors file. A concept of another implementation of the paper, or a textual "
            "inversion, goes through Perfusion Import, which reads numbers alone."
        )


def _check_tensors(whole: Header) -> None:
    """Raises ConceptError if the tensors are more, or others, than a concept can have."""
    layers = sum(name.startswith("value.") for name in whole.tensors)
    if layers > MAX_LAYERS or len(whole.tensors) > 2 * MAX_LAYERS + 32:
        raise ConceptError(
            f"the file has {len(whole.tensors)} tensors, {layers} of them values of layers; at "
            f"most {MAX_LAYERS} layers are read. Get another copy."
        )
    for name, tensor in whole.tensors.items():
        if tensor.dtype not in ("F16", "F32"):
            raise ConceptError(
                f"the tensor {shortened(name)} is of the dtype {shortened(tensor.dtype)}; a "
                "concept's are F16 or F32. Get another copy."
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
        name=entry(header, "name"),
        family=entry(header, "family"),
        placeholder=entry(header, "placeholder"),
        superclass=entry(header, "superclass"),
        embeddings=group("embedding."),
        target_input=vector("target_input"),
        whitened_target=vector("whitened_target"),
        superclass_encoding=vector("superclass_encoding"),
        values=group("value."),
        keys=group("key."),
        bias=number(header, "bias"),
        temperature=number(header, "temperature"),
        covariance_fingerprint=entry(header, "covariance"),
        training=training_entry(header),
        author=entry(header, "author"),
        licence=entry(header, "licence"),
        preview=preview_entry(header),
    )
