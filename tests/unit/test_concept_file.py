"""Concept files: what goes in comes out, and whatever is not one says so."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from perfusion_core.concept.concept import Concept, ConceptError
from perfusion_core.concept.concept_file import load_concept, read_card, read_preview, save_concept

MakeConcept = Callable[..., Concept]


@pytest.fixture
def saved(make_concept: MakeConcept, tmp_path: Path) -> Path:
    path = tmp_path / "berry.safetensors"
    save_concept(make_concept(), path)
    return path


def rewrite(
    path: Path, header: dict[str, str | None], tensors: dict[str, Any] | None = None
) -> None:
    """Save the file again with header entries replaced (None: removed) and tensors replaced."""
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
        kept = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    metadata.update({k: v for k, v in header.items() if v is not None})
    for key, value in header.items():
        if value is None:
            del metadata[key]
    kept.update(tensors or {})
    save_file({name: t for name, t in kept.items() if t is not None}, path, metadata)


@pytest.mark.parametrize("family", ["emoji", "sdxl"])
def test_what_is_saved_is_what_is_loaded(
    make_concept: MakeConcept, tmp_path: Path, family: str
) -> None:
    concept = make_concept(family)
    save_concept(concept, tmp_path / "new" / "folder" / "c.safetensors")
    loaded = load_concept(tmp_path / "new" / "folder" / "c.safetensors")
    for name, tensor in concept.tensors().items():
        assert loaded.tensors()[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors()[name], tensor), name
    for name in (
        "name", "family", "placeholder", "superclass", "bias", "temperature", "author", "licence",
        "covariance_fingerprint", "training", "preview", "hash", "layers",
    ):  # fmt: skip
        assert getattr(loaded, name) == getattr(concept, name), name


def test_a_file_without_the_optional_parts(make_concept: MakeConcept, tmp_path: Path) -> None:
    concept = make_concept(author="", licence="", preview=None, training={})
    save_concept(concept, tmp_path / "c.safetensors")
    loaded = load_concept(tmp_path / "c.safetensors")
    assert (loaded.author, loaded.preview, dict(loaded.training)) == ("", None, {})


# The widths of all cross-attention layers, as the U-Nets have them (channels, how many layers).
SD1 = [(320, 5), (640, 5), (1280, 6)]
SDXL = [(640, 10), (1280, 60)]


@pytest.mark.parametrize(
    ("family", "widths", "numbers", "limit"),
    [("sd1", SD1, 12_480, 40_000), ("sdxl", SDXL, 83_200, 200_000)],
)
def test_files_are_small(
    make_concept: MakeConcept,
    tmp_path: Path,
    family: str,
    widths: list[tuple[int, int]],
    numbers: int,
    limit: int,
) -> None:
    outs = [out for out, count in widths for _ in range(count)]
    values = {
        f"output_blocks.{n % 12}.1.transformer_blocks.{n}.attn2": torch.randn(out)
        for n, out in enumerate(outs)
    }
    assert sum(outs) == numbers
    one = {key: t[:1] for key, t in make_concept(family).embeddings.items()}
    save_concept(make_concept(family, values=values, embeddings=one), tmp_path / "c")
    assert (tmp_path / "c").stat().st_size < limit


# --- writing


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    make_concept: MakeConcept, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConceptError, match=r"berry\.safetensors: the disk is full\. Free some"):
        save_concept(make_concept(seed=1), saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_file_is_replaced_whole(make_concept: MakeConcept, saved: Path) -> None:
    save_concept(make_concept(seed=1), saved)
    assert load_concept(saved).hash == make_concept(seed=1).hash
    assert list(saved.parent.iterdir()) == [saved]


def test_a_loaded_concept_does_not_depend_on_its_file(saved: Path) -> None:
    concept = load_concept(saved)
    before = concept.target_input.clone()
    saved.write_bytes(b"\0" * saved.stat().st_size)
    assert torch.equal(concept.target_input, before)


# --- what bad files get


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(ConceptError) as caught:
        load_concept(path)
    for part in (str(path), *parts):
        assert part in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    refused(tmp_path / "gone.safetensors", "no such file", "models/perfusion")


def test_a_folder(tmp_path: Path) -> None:
    refused(tmp_path, "this is no file")


@pytest.mark.parametrize("share", [0.001, 0.05, 0.5, 0.99])
def test_a_truncated_file(saved: Path, share: float) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(len(whole) * share)])
    refused(saved, "not a whole safetensors file", "copy or download it again")


def test_a_pickle_under_another_name(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "attacked"),))

    torch.save({"x": torch.ones(2)}, tmp_path / "zip.safetensors")
    (tmp_path / "raw.safetensors").write_bytes(pickle.dumps(Attack()))
    for name in ("zip", "raw"):
        refused(tmp_path / f"{name}.safetensors", "pickle", "never opens")
    assert not (tmp_path / "attacked").exists()


def test_a_header_length_that_begins_like_a_pickle_is_none(
    make_concept: MakeConcept, tmp_path: Path
) -> None:
    path = tmp_path / "c.safetensors"
    save_concept(make_concept(author=""), path)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    save_concept(make_concept(author="a" * (0x0480 - length)), path)
    assert path.read_bytes().startswith(b"\x80\x04")  # as a pickle of protocol 4 does
    load_concept(path)


def test_another_safetensors_file(tmp_path: Path) -> None:
    save_file({"lora_up": torch.ones(2)}, tmp_path / "lora.safetensors")
    refused(tmp_path / "lora.safetensors", "not a concept", "own loaders")


def test_an_unknown_version(saved: Path) -> None:
    rewrite(saved, {"version": "4"})
    refused(saved, 'version "4"', "reads the versions 1 to 3", "Update")


@pytest.mark.parametrize("version", ["1", "2"])
def test_files_of_earlier_versions_are_read(
    make_concept: MakeConcept, saved: Path, version: str
) -> None:
    rewrite(saved, {"version": version})
    assert load_concept(saved).hash == make_concept().hash


def test_a_file_of_locked_keys_holds_no_key(
    make_concept: MakeConcept, saved: Path, tmp_path: Path
) -> None:
    with safe_open(saved, framework="pt") as file:
        assert file.metadata()["version"] == "3"
        assert set(file.keys()) == set(make_concept().tensors())
        assert not [name for name in file.keys() if name.startswith("key.")]  # noqa: SIM118


def test_a_file_of_trained_keys(make_concept: MakeConcept, tmp_path: Path) -> None:
    values = make_concept().values
    concept = make_concept(keys={path: value * 2 for path, value in values.items()})
    assert concept.hash != make_concept().hash
    save_concept(concept, tmp_path / "c.safetensors")
    loaded = load_concept(tmp_path / "c.safetensors")
    assert loaded.hash == concept.hash
    for path, value in values.items():
        assert torch.equal(loaded.keys[path], value * 2)
    rewrite(tmp_path / "c.safetensors", {}, {f"key.{path}": None for path in values})
    refused(tmp_path / "c.safetensors", "do not match the hash")


@pytest.mark.parametrize("entry", ["name", "family", "superclass", "bias", "training", "hash"])
def test_a_missing_header_entry(saved: Path, entry: str) -> None:
    rewrite(saved, {entry: None})
    refused(saved, f'no entry "{entry}"')


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("bias", "high", 'bias = "high"'),
        ("training", "{", "not JSON"),
        ("training", "[]", "not a JSON object"),
        ("preview", "?", "not base64"),
        ("hash", "0" * 64, "do not match the hash"),
        ("family", "sd9", '"sd9" is not known'),
        ("family", "sd1", "expected [768]"),
    ],
)
def test_a_broken_header_entry(saved: Path, entry: str, value: str, message: str) -> None:
    rewrite(saved, {entry: value})
    refused(saved, message)


@pytest.mark.parametrize("name", ["target_input", "whitened_target", "superclass_encoding"])
def test_a_missing_tensor(saved: Path, name: str) -> None:
    rewrite(saved, {}, {name: None})
    refused(saved, f"tensor {name} is missing")


def test_missing_groups_of_tensors(saved: Path, make_concept: MakeConcept) -> None:
    names = make_concept().tensors()
    rewrite(saved, {}, {n: None for n in names if n.startswith("value.")})
    refused(saved, "no learned values")


def test_a_missing_layer_does_not_go_unnoticed(saved: Path, make_concept: MakeConcept) -> None:
    layer = next(n for n in make_concept().tensors() if n.startswith("value."))
    rewrite(saved, {}, {layer: None})
    refused(saved, "do not match the hash")


def test_a_layer_that_no_model_of_the_family_can_have(saved: Path) -> None:
    rewrite(saved, {}, {"value.text_model.7.attn2": torch.ones(32).half()})
    refused(saved, "values for text_model.7.attn2", "no cross-attention layer of the emoji world")


def test_nan(saved: Path) -> None:
    rewrite(saved, {}, {"superclass_encoding": torch.full((192,), torch.nan).half()})
    refused(saved, "superclass_encoding holds NaN")


def test_a_changed_tensor(saved: Path) -> None:
    rewrite(saved, {}, {"superclass_encoding": torch.ones(192).half()})
    refused(saved, "do not match the hash")


def test_the_card_says_what_the_concept_says_and_needs_no_tensors(
    make_concept: MakeConcept, saved: Path
) -> None:
    concept, card = make_concept(), read_card(saved)
    for name in (
        "name", "placeholder", "superclass", "family", "width", "bias", "temperature", "author",
        "licence", "hash",
    ):  # fmt: skip
        assert getattr(card, name) == getattr(concept, name), name
    assert card.size == saved.stat().st_size
    assert card.has_preview
    assert read_preview(saved) == concept.preview
    without = saved.with_name("without.safetensors")
    save_concept(make_concept(preview=None), without)
    assert not read_card(without).has_preview
    assert read_preview(without) is None


@pytest.mark.parametrize("header", [{"format": "lora"}, {"bias": "nan"}, {"placeholder": None}])
def test_a_card_of_what_is_no_concept_names_the_file(
    saved: Path, header: dict[str, str | None]
) -> None:
    rewrite(saved, header)
    with pytest.raises(ConceptError, match=r"berry\.safetensors"):
        read_card(saved)
    saved.write_bytes(b"PK\x03\x04")
    with pytest.raises(ConceptError, match="pickle"):
        read_card(saved)
