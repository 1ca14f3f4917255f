"""The concept folder as it is on disks: links, pipes, names; one bad entry spoils nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import folder_paths
import pytest

from perfusion_core.comfy.concept_folder import (
    MAX_DEPTH,
    MAX_PART,
    checked_name,
    concept_path,
    file_fingerprint,
    folder_fingerprint,
    save_named,
)
from perfusion_core.concept.concept import ConceptError
from perfusion_core.page.concept_index import concept_card, concept_cards


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty concept folder."""
    path = tmp_path / "models" / "perfusion"
    path.mkdir(parents=True)
    kept = ([str(path)], {".safetensors"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "perfusion", kept)
    return path


def dangling(path: Path) -> None:
    path.symlink_to(path.with_name("gone"))


def circle(path: Path) -> None:
    path.symlink_to(path)


BAD: dict[str, Any] = {
    "a dangling link": (dangling, "a link that leads nowhere"),
    "a link in a circle": (circle, ""),
    "a pipe": (os.mkfifo if hasattr(os, "mkfifo") else dangling, ""),
    "an empty file": (Path.touch, "is empty"),
    "a folder of that name": (Path.mkdir, ""),
}


@pytest.mark.parametrize("kind", BAD)
def test_one_bad_entry_hides_no_other(kind: str, folder: Path, teddy: Any) -> None:
    make, said = BAD[kind]
    save_named(teddy, "anna", overwrite=False)
    make(folder / "bad.safetensors")
    save_named(teddy, "zoe", overwrite=False)
    cards, more = concept_cards()
    shown = {listed.file: listed for listed in cards}
    assert more == 0
    for good in ("anna.safetensors", "zoe.safetensors"):
        card = shown[good].card
        assert card is not None
        assert card.placeholder == "teddy*"
    # What ComfyUI lists at all is there with the reason.
    if "bad.safetensors" in shown:
        assert shown["bad.safetensors"].card is None
        assert said in shown["bad.safetensors"].error
    assert file_fingerprint("bad.safetensors") == file_fingerprint("bad.safetensors")
    assert folder_fingerprint()


def test_a_file_that_is_deleted_meanwhile_hides_no_other(
    folder: Path, teddy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_named(teddy, "anna", overwrite=False)
    names = ["anna.safetensors", "gone.safetensors"]
    monkeypatch.setattr("perfusion_core.page.concept_index.concept_names", lambda: names)
    first, second = concept_cards()[0]
    assert first.card is not None
    assert "gone.safetensors" in second.error


def test_what_is_told_of_a_missing_file_names_no_folder_of_this_machine(folder: Path) -> None:
    outside = str(folder / "x.safetensors")
    for name in ("gone.safetensors", "../gone.safetensors", outside, "", "\0"):
        with pytest.raises(ConceptError) as told:
            concept_path(name)
        assert str(folder.parent) not in str(told.value).replace(name, "")


def test_a_name_as_windows_writes_it_is_found(folder: Path, teddy: Any) -> None:
    path = save_named(teddy, "people\\anna", overwrite=False)
    assert path == folder / "people" / "anna.safetensors"
    assert concept_path("people\\anna.safetensors") == concept_path("people/anna.safetensors")


@pytest.mark.parametrize(
    "name",
    [
        "a" * 240, "é" * 120, "/".join("a" * (MAX_DEPTH + 1)), "/".join("a" * 2000), "con", "nul.x",
        "people/COM1", "x.safetensors/y", "../a", "/a", "a//b", ".a", "a.", "a\0b", "a\nb", "a:b",
        "te\u200bddy", "",
    ],
)  # fmt: skip
def test_names_that_no_disk_would_take_are_refused_in_words(
    name: str, folder: Path, teddy: Any
) -> None:
    with pytest.raises(ConceptError) as told:
        save_named(teddy, name, overwrite=False)
    assert len(str(told.value)) < 1000
    assert list(folder.iterdir()) == []


def test_the_longest_name_and_the_deepest_folder_are_saved(folder: Path, teddy: Any) -> None:
    for name in ("a" * MAX_PART, "é" * (MAX_PART // 2), "/".join("a" * MAX_DEPTH)):
        assert save_named(teddy, name, overwrite=False).is_file()
        checked_name(name)


def test_a_fingerprint_follows_the_file_and_reads_its_header_alone(
    folder: Path, teddy: Any, pot: Any
) -> None:
    path = save_named(teddy, "anna", overwrite=False)
    before, status = file_fingerprint("anna.safetensors"), path.stat()
    save_named(pot, "anna", overwrite=True)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file_fingerprint("anna.safetensors") != before
    save_named(teddy, "anna", overwrite=True)
    assert file_fingerprint("anna.safetensors") == before
    with path.open("r+b") as file:
        file.truncate(20 << 30)  # a checkpoint put there by mistake; sparse
    assert file_fingerprint("anna.safetensors") != before


def test_a_card_is_of_the_file_that_is_there_though_size_and_time_are_the_same(
    folder: Path, teddy: Any, pot: Any
) -> None:
    path = save_named(teddy, "anna", overwrite=False)
    status = path.stat()
    assert concept_card("anna.safetensors").card.hash == teddy.hash  # type: ignore[union-attr]
    save_named(pot, "anna", overwrite=True)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert concept_card("anna.safetensors").card.hash == pot.hash  # type: ignore[union-attr]
