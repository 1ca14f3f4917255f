"""Whatever lies in the concept folder is loaded or refused: soon, in little memory, by name.

`PERFUSION_FUZZ=100000 make test-unit ARGS="-k mutated"` tries that many mutated files.
"""

from __future__ import annotations

import base64
import io
import json
import os
import random
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from perfusion_core.concept.card import preview_kind
from perfusion_core.concept.concept import Concept, ConceptError
from perfusion_core.concept.concept_file import (
    MAX_FILE,
    MAX_LAYERS,
    load_concept,
    read_card,
    read_preview,
    save_concept,
    save_new_concept,
)
from perfusion_core.concept.safetensors_file import serialized
from perfusion_core.families.checkpoint_file import family_of_checkpoint

MakeConcept = Callable[..., Concept]

READERS: list[Callable[[Path], object]] = [load_concept, read_card, read_preview]
SECONDS, BYTES = 0.5, 100 << 20


@pytest.fixture
def saved(make_concept: MakeConcept, tmp_path: Path) -> Path:
    path = tmp_path / "berry.safetensors"
    save_concept(make_concept(), path)
    return path


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def put(path: Path, header: bytes | dict[str, Any], data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def with_metadata(path: Path, **entries: str) -> None:
    header, data = parts(path)
    header["__metadata__"].update(entries)
    put(path, header, data)


def read(reader: Callable[[Path], object], path: Path) -> str:
    """What a reader says against a file; "" if it takes it. Within the bounds, and no other error.

    The bounds are far above what is measured: a test of time must hold on a busy machine.
    """
    tracemalloc.start()
    begun = time.process_time()
    try:
        reader(path)
        return ""
    except ConceptError as error:
        said = str(error)
        said.encode()
        if str(path) not in said or len(said) > 2000:
            raise AssertionError(said[:3000]) from error
        return said
    finally:
        seconds, (_, peak) = time.process_time() - begun, tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < BYTES
        assert seconds < 10 * SECONDS  # tracing itself makes many small objects slow


# --- what a header may say

DIGITS = "9" * 5000
BRACKETS = "[" * 100_000
HALF_A_CHARACTER = '"\\ud800"'

BAD_METADATA: dict[str, dict[str, str]] = {
    "a preview that is no base64": {"preview": "§" * 9},
    "a preview of letters": {"preview": "é"},
    "a preview of megabytes": {"preview": "A" * (2 << 20)},
    "notes of thousands of digits": {"training": f'{{"loss": {DIGITS}}}'},
    "notes of brackets": {"training": f'{{"a": {BRACKETS}'},
    "notes of megabytes": {"training": json.dumps({"a": "b" * (1 << 20)})},
    "a placeholder of a million letters": {"placeholder": "a" * 1_000_000},
    "a placeholder that cannot be seen": {"placeholder": "te\u200bddy*"},
    "a placeholder with NUL": {"placeholder": "te\0ddy*"},
    "a placeholder with a line break": {"placeholder": "teddy*\n"},
    "a superclass of a million letters": {"superclass": "a" * 1_000_000},
    "an author of a million letters": {"author": "a" * 1_000_000},
    "a licence of a million letters": {"licence": "a" * 1_000_000},
    "a name of a million letters": {"name": "a" * 1_000_000},
    "a bias that is no number": {"bias": "1" + "0" * 400},
    "a bias beyond all sliders": {"bias": "1e30"},
    "a temperature below 0": {"temperature": "-5"},
    "a temperature of 0": {"temperature": "0"},
}
# What the tensors alone are wrong with, or a picture, does not concern the card.
ONLY_LOADED = {"notes of thousands of digits", "notes of brackets", "notes of megabytes"}
ONLY_LOADED |= {name for name in BAD_METADATA if "preview" in name}


@pytest.mark.parametrize("name", BAD_METADATA)
def test_what_a_header_may_not_say_is_refused_by_the_loader_and_by_the_card(
    name: str, saved: Path
) -> None:
    with_metadata(saved, **BAD_METADATA[name])
    assert read(load_concept, saved)
    assert bool(read(read_card, saved)) == (name not in ONLY_LOADED)


@pytest.mark.parametrize(
    "header",
    [
        b"{", b"[]", b"null", b"1", b"\xff\xfe", BRACKETS.encode(), f'{{"a": {DIGITS}}}'.encode(),
        b'{"__metadata__": []}', b'{"__metadata__": {"format": 1}}',
        f'{{"__metadata__": {{"format": {HALF_A_CHARACTER}}}}}'.encode(),
        b'{"a": null}', b'{"a": {"dtype": 1, "shape": [], "data_offsets": [0, 0]}}',
        b'{"a": {"dtype": "F16", "shape": [-1], "data_offsets": [0, 0]}}',
        b'{"a": {"dtype": "F16", "shape": [1e400], "data_offsets": [0, 0]}}',
        b'{"a": {"dtype": "F16", "shape": [true], "data_offsets": [0, 2]}}',
    ],
)  # fmt: skip
def test_what_is_no_header_is_refused(header: bytes, tmp_path: Path) -> None:
    put(tmp_path / "c.safetensors", header, b"\0" * 64)
    for reader in READERS:
        assert "not a whole safetensors file" in read(reader, tmp_path / "c.safetensors")
    assert family_of_checkpoint(tmp_path / "c.safetensors") is None


def test_tensors_of_another_dtype_are_refused_before_they_are_read(saved: Path) -> None:
    header, data = parts(saved)
    entry = next(e for n, e in header.items() if n.startswith("value."))
    entry["dtype"] = "F8_E4M3"
    put(saved, header, data)
    assert "F8_E4M3" in read(load_concept, saved)


def test_more_layers_than_any_model_has_are_refused(make_concept: MakeConcept, saved: Path) -> None:
    concept = make_concept()
    header, _ = parts(saved)
    tensors = concept.tensors()
    tensors |= {f"value.middle_block.{n}.attn2": torch.ones(1).half() for n in range(MAX_LAYERS)}
    saved.write_bytes(serialized(tensors, header["__metadata__"]))
    assert f"at most {MAX_LAYERS} layers" in read(load_concept, saved)


def test_a_header_of_a_million_tensors_is_refused(tmp_path: Path) -> None:
    entry = '"{}":{{"dtype":"F16","shape":[0],"data_offsets":[0,0]}}'
    text = "{" + ",".join(entry.format(n) for n in range(500_000)) + "}"
    put(tmp_path / "c.safetensors", text.encode(), b"")
    for reader in READERS:
        assert "header would have" in read(reader, tmp_path / "c.safetensors")


# --- what a file may be


def test_a_file_of_gigabytes_is_refused_by_its_size(saved: Path) -> None:
    header, data = parts(saved)
    put(saved, header, data)
    with saved.open("r+b") as file:
        file.truncate(5 << 30)  # sparse
    for reader in READERS:
        assert "5,369 MB" in read(reader, saved)
    assert MAX_FILE < 64 << 20


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\n <html>", "web page"),
        (b"PK\x03\x04" + b"\0" * 60, "pickle"),
        (b"\x80\x02}q\x00.", "pickle"),
        (b"\0" * 100, "not a whole safetensors file"),
        (b"just some text, long enough to be a header", "not a whole safetensors file"),
    ],
)
def test_the_kind_of_file_that_it_is_is_said(start: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(start)
    for reader in READERS:
        assert said in read(reader, path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "c.safetensors")
    for reader in READERS:
        assert "no file" in read(reader, tmp_path / "c.safetensors")
    assert family_of_checkpoint(tmp_path / "c.safetensors") is None


def test_a_link_in_a_circle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.safetensors").symlink_to(tmp_path / "c.safetensors")
    for reader in READERS:
        assert "cannot be read" in read(reader, tmp_path / "c.safetensors")


# --- numbers that are finite and useless


@pytest.mark.parametrize("name", ["whitened_target", "target_input", "superclass_encoding"])
def test_numbers_that_would_overflow_are_refused(name: str, make_concept: MakeConcept) -> None:
    concept = make_concept()
    tensor = getattr(concept, name).float()
    largest = 3e38 if name == "whitened_target" else 6e4
    with pytest.raises(ConceptError, match=rf"{name} holds the number"):
        make_concept(**{name: tensor * (largest / tensor.abs().max())})


def test_values_that_would_overflow_are_refused(make_concept: MakeConcept) -> None:
    values = {path: torch.full_like(v, 6e4) for path, v in make_concept().values.items()}
    with pytest.raises(ConceptError, match=r"value\..* black pictures"):
        make_concept(values=values)


def test_vectors_at_right_angles_are_refused(make_concept: MakeConcept) -> None:
    target = make_concept().target_input.double()
    other = torch.randn(len(target), generator=torch.Generator().manual_seed(1)).double()
    other -= (other @ target) / (target @ target) * target
    with pytest.raises(ConceptError, match="do not belong together"):
        make_concept(whitened_target=(other + 1e-9 * target).float())


# --- previews


def picture(kind: str, size: tuple[int, int]) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", size).save(held, kind)
    return held.getvalue()


def test_a_preview_is_a_picture_of_three_kinds_and_no_large_one() -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        assert preview_kind(picture(kind, (64, 64))) == f"image/{kind.lower()}"
    for other in (
        picture("GIF", (64, 64)), picture("PNG", (4000, 10)), picture("PNG", (16000, 500)),
        b"", b"\x89PNG\r\n\x1a\n", picture("PNG", (64, 64))[:20],
    ):  # fmt: skip
        assert preview_kind(other) is None


# --- writing


def test_the_same_concept_is_the_same_bytes(make_concept: MakeConcept, tmp_path: Path) -> None:
    concept = make_concept()
    for name in ("a", "b"):
        save_concept(concept, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    tensors = load_file(tmp_path / "a")  # the library reads what we write
    assert tensors.keys() == concept.tensors().keys()
    assert all(torch.equal(tensors[name], t) for name, t in concept.tensors().items())


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_replaces_none(
    links: bool, make_concept: MakeConcept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:

        def refuse(*_: object) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(os, "link", refuse)
    paths = [save_new_concept(make_concept(seed=n), tmp_path / "a.safetensors") for n in range(3)]
    assert [path.name for path in paths] == [
        "a.safetensors", "a_2.safetensors", "a_3.safetensors",
    ]  # fmt: skip
    made = [make_concept(seed=n).hash for n in range(3)]
    assert [load_concept(path).hash for path in paths] == made
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_two_processes_that_save_under_one_name_write_two_files(
    make_concept: MakeConcept, tmp_path: Path
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    concepts = [make_concept(seed=n) for n in range(24)]
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda c: save_new_concept(c, tmp_path / "a.safetensors"), concepts))
    assert len(set(paths)) == len(concepts)
    assert [load_concept(path).hash for path in paths] == [c.hash for c in concepts]


def test_what_a_killed_process_left_is_swept_and_what_another_writes_is_not(
    make_concept: MakeConcept, tmp_path: Path
) -> None:
    old, new = (tmp_path / f".a.safetensors.{c * 32}.partial" for c in "0f")
    mine = tmp_path / "notes.partial"
    for path in (old, new, mine):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    os.utime(mine, (1, 1))
    save_concept(make_concept(), tmp_path / "b.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {new.name, mine.name, "b.safetensors"}


# --- anything at all


TOKENS = [
    b"null", b"[[[[", b"]", b"{", b"}", b'"', b"\\", b"\\ud800", b"\xff", b"\0", b"NaN", b"-1",
    b"Infinity", b"1e999", b"F64", b"BOOL", b"data_offsets", b"\xe2\x80\x8b", b",", b":",
    b"[" * 2000,
]  # fmt: skip
NUMBERS = [b"-1", b"99999999999999999999", b"0.5", b"1e999"]


def mutated(data: bytes, dice: random.Random) -> bytes:
    """A copy with something wrong: bits, pieces cut or doubled, the header's texts and numbers."""
    changed = bytearray(data)
    (length,) = struct.unpack("<Q", data[:8])
    for _ in range(dice.choice((1, 1, 2, 5))):
        end = len(changed) if dice.random() < 0.2 else min(8 + length, len(changed))
        at, size = dice.randrange(end + 1), dice.randrange(1, 40)
        kind = dice.choice(("bit", "cut", "double", "token", "end", "length", "number"))
        if kind == "bit" and at < len(changed):
            changed[at] ^= 1 << dice.randrange(8)
        elif kind == "cut":
            changed[at : at + size] = b""
        elif kind == "double":
            changed[at:at] = changed[at : at + size]
        elif kind == "token":
            changed[at : at + 1] = dice.choice(TOKENS)
        elif kind == "end" and dice.random() < 0.3:
            del changed[at:]
        elif kind == "length":
            lengths = (0, 1, length - 1, length + 1, 2**63, 2**20)
            changed[:8] = struct.pack("<Q", dice.choice(lengths))
        elif kind == "number":
            digits = [n for n in range(8, end) if chr(changed[n]).isdigit()]
            if digits:
                at = dice.choice(digits)
                changed[at : at + 1] = dice.choice(NUMBERS)
    return bytes(changed)


def test_mutated_files_are_loaded_or_refused(
    make_concept: MakeConcept, saved: Path, tmp_path: Path
) -> None:
    count = int(os.environ.get("PERFUSION_FUZZ", "3000"))
    held = picture("PNG", (8, 8))
    seeds = []
    for concept in (make_concept(preview=held), make_concept("sdxl", preview=None)):
        save_concept(concept, saved)
        seeds.append(saved.read_bytes())
    path = tmp_path / "mutated.safetensors"
    refused = 0
    for seed in range(count):
        dice = random.Random(seed)
        path.write_bytes(mutated(dice.choice(seeds), dice))
        for reader in READERS:
            try:
                reader(path)
            except ConceptError as error:
                str(error).encode()
                refused += 1
            except BaseException as error:
                raise AssertionError(f"seed {seed}, {reader.__name__}: {error!r}") from error
        assert family_of_checkpoint(path) is None  # it holds no network
    assert refused > count // 2


def test_a_header_of_known_texts_survives(saved: Path) -> None:
    """That the fuzz begins at files that are good."""
    assert [read(reader, saved) for reader in READERS] == ["", "", ""]
    with_metadata(saved, preview=base64.b64encode(b"no picture").decode())
    assert [read(reader, saved) for reader in READERS] == ["", "", ""]
