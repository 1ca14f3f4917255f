"""Files of other programs, read without running any code of theirs, and bounded before that.

What torch writes is an archive (zip) with a pickle in it. It goes through torch's own reader for
weights alone, which builds numbers, texts, lists and tensors and calls nothing else. Objects of
the few other classes that such files hold (a training's configuration, PyTorch's dictionary of
parameters) become stand-ins that keep their contents and do nothing.
"""

from __future__ import annotations

import collections
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from ..limits import MAX_FOREIGN, MAX_FOREIGN_PARTS, MAX_FOREIGN_PICKLE, MAX_HEADER
from .concept import ConceptError
from .concept_file import reading
from .safetensors_file import read_header, shortened

TORCH_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin")
SAFETENSORS_SUFFIXES = (".safetensors", ".sft")


class Inert:
    """An object of a class that is not ours: its contents, and nothing that acts.

    Attributes:
        state: what the file says of it.
    """

    def __init__(self, *_: Any) -> None:
        self.state: dict[str, Any] = {}

    def __new__(cls, *_: Any) -> Inert:
        made = super().__new__(cls)
        made.state = {}
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = dict(state) if isinstance(state, dict) else {}


def _stand_in(path: str) -> type[Inert]:
    module, _, name = path.rpartition(".")
    named = {"__module__": module, "__qualname__": name, "__hash__": object.__hash__}
    return type(name, (Inert,), named)


# What files of the two implementations and of textual inversions were seen to hold beside tensors.
_STAND_INS = tuple(
    map(
        _stand_in,
        (
            "omegaconf.base.ContainerMetadata",
            "omegaconf.base.Metadata",
            "omegaconf.dictconfig.DictConfig",
            "omegaconf.listconfig.ListConfig",
            "omegaconf.nodes.AnyNode",
            "omegaconf.nodes.BooleanNode",
            "omegaconf.nodes.FloatNode",
            "omegaconf.nodes.IntegerNode",
            "omegaconf.nodes.StringNode",
            "torch.nn.modules.container.ParameterDict",
            "typing.Any",
        ),
    )
)
_HARMLESS = (collections.defaultdict, bool, dict, float, int, list, set, str, tuple)


def read_foreign(path: Path) -> Mapping[str, Any]:
    """What a file of another program holds: tensors by name, or the mapping that torch saved.

    Raises ConceptError, which names the file, for one that cannot be read so, or is too large.
    """
    path = Path(path)
    try:
        with reading(path):
            size = path.stat().st_size
            if size > MAX_FOREIGN:
                raise ConceptError(
                    f"the file has {size / 1e6:,.0f} MB; embeddings and concepts have far less, "
                    f"and at most {MAX_FOREIGN / 1e6:.0f} are read. A checkpoint of a whole model "
                    "goes through its own loader."
                )
            if path.suffix.lower() in SAFETENSORS_SUFFIXES:
                return _safetensors(path)
            return _archive(path)
    except ConceptError as error:
        raise ConceptError(f"{path}: {error}") from error


def _safetensors(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        header = read_header(file, MAX_HEADER)
        if len(header.tensors) > MAX_FOREIGN_PARTS:
            raise ConceptError(
                f"the file has {len(header.tensors)} tensors; at most {MAX_FOREIGN_PARTS} are "
                "read. A LoRA or a checkpoint goes through its own loader."
            )
        file.seek(0)
        return load(file.read(MAX_FOREIGN + 1))


def _archive(path: Path) -> Mapping[str, Any]:
    if not zipfile.is_zipfile(path):
        raise ConceptError(
            "this is no archive that PyTorch 1.6 or newer writes. A file of an older one can be "
            "read by nothing but its pickle, which Perfusion does not open: save it again as "
            ".safetensors with the program that made it."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            _check_archive(archive)
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ConceptError(f"the archive is damaged ({shortened(error)}): copy it again") from error
    try:
        with _known_classes():
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader has many for what it does not take
        raise ConceptError(
            "PyTorch's reader for weights alone does not take this file "
            f"({shortened(str(error).splitlines()[0])}). It holds objects of a program's own, "
            "which could run code when they are opened: save it as .safetensors with that program."
        ) from error
    if not isinstance(found, Mapping):
        raise ConceptError(
            f"the file holds a {type(found).__name__}, not named tensors. Get another copy."
        )
    return found


def _known_classes() -> AbstractContextManager[object]:
    """While torch reads, it takes the stand-ins for the classes of their names."""
    allowed = getattr(torch.serialization, "safe_globals", None)  # PyTorch 2.5
    return nullcontext() if allowed is None else allowed([*_STAND_INS, *_HARMLESS])


def _check_archive(archive: zipfile.ZipFile) -> None:
    """Raises ConceptError for what would be far larger, once unpacked, than the file says."""
    members = archive.infolist()
    unpacked = sum(member.file_size for member in members)
    pickles = sum(m.file_size for m in members if m.filename.endswith(".pkl"))
    if len(members) > MAX_FOREIGN_PARTS or unpacked > MAX_FOREIGN or pickles > MAX_FOREIGN_PICKLE:
        raise ConceptError(
            f"the archive has {len(members)} parts, {unpacked / 1e6:,.0f} MB and "
            f"{pickles / 1e6:.1f} MB of them structure; no embedding and no concept has so much. "
            "Get another copy."
        )
