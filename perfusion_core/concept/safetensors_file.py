"""The safetensors format itself: a header that is bounded before it is read, and writing.

A file begins with the header's length (8 bytes, little-endian), then JSON: tensor name -> dtype,
shape and offsets, and under "__metadata__" texts by name. Reading the tensors is left to the
library of that name; this is for what has to be known of anybody's file before that.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from torch import Tensor, float16, float32

_DTYPES = {float16: "F16", float32: "F32"}


class NotSafetensors(ValueError):
    """What keeps a file from being a safetensors file, or one of the size that was expected."""


@dataclass(frozen=True)
class TensorEntry:
    """What the header says of one tensor: `dtype` as the format names it, such as "F16"."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """A file's header.

    Attributes:
        metadata: texts by name.
        tensors: by name.
        text: the header's bytes, as they are in the file.
    """

    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorEntry]
    text: bytes


def read_header(file: BinaryIO, most: int) -> Header:
    """Read the header at the start of an open file.

    Raises NotSafetensors when there is none, or it has more than `most` bytes.
    """
    start = file.read(8)
    if len(start) < 8:
        raise NotSafetensors("it is too short to have a header")
    (length,) = struct.unpack("<Q", start)
    if length > most:
        raise NotSafetensors(f"its header would have {length} bytes; at most {most} are read")
    text = file.read(length)
    if len(text) < length:
        raise NotSafetensors("it ends within its header")
    # A number of thousands of digits is a ValueError, deep brackets a RecursionError.
    try:
        header = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise NotSafetensors(f"its header is not JSON: {shortened(error)}") from error
    if not isinstance(header, dict):
        raise NotSafetensors("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    return Header(_texts(metadata), {n: _entry(n, e) for n, e in header.items()}, text)


def _texts(metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict):
        raise NotSafetensors("the metadata in its header are not a JSON object")
    for name, text in metadata.items():
        if not isinstance(text, str):
            raise NotSafetensors(f'"{shortened(name)}" in its metadata is not a text')
        try:
            f"{name}{text}".encode()
        except UnicodeEncodeError as error:
            raise NotSafetensors(f"its metadata hold half a character: {error.reason}") from error
    return metadata


def _entry(name: str, entry: Any) -> TensorEntry:
    dtype, shape = (entry.get("dtype"), entry.get("shape")) if isinstance(entry, dict) else ("", "")
    if (
        isinstance(dtype, str)
        and isinstance(shape, list)
        and all(type(side) is int and 0 <= side < 1 << 40 for side in shape)
    ):
        return TensorEntry(dtype, tuple(shape))
    raise NotSafetensors(f'its header does not say what the tensor "{shortened(name)}" is')


def shortened(text: object, most: int = 200) -> str:
    """A text of anybody's as it goes into a message: printable, and of at most `most` letters."""
    shown = "".join(c if c.isprintable() else "?" for c in str(text)[: most + 1])
    return shown if len(shown) <= most else f"{shown[:most]}..."


def serialized(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file of fp16 and fp32 tensors on the CPU. The same content, the same bytes.

    The library's own writer puts the metadata in another order each time.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    parts, end = [], 0
    # Wider numbers first, as the library does, so that all are aligned.
    for name in sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)):
        tensor = tensors[name].contiguous()
        data = tensor.numpy().tobytes()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + len(data)],
        }
        parts.append(data)
        end += len(data)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *parts])
