"""Perfusion Import as ComfyUI calls it: its files, what it gives, what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import folder_paths
import pytest
import torch
from foreign_files import chendaryen


@pytest.fixture
def folders(core: Callable[[str], Any]) -> SimpleNamespace:
    """The folders that files to import are in."""
    concepts = core("comfy.concept_folder")
    concepts.register_folder()
    core("comfy.foreign_folder").register_foreign_folder()
    found = SimpleNamespace(
        concepts=Path(folder_paths.get_folder_paths("perfusion")[0]),
        embeddings=Path(folder_paths.get_folder_paths("embeddings")[0]),
    )
    for folder in (found.concepts, found.embeddings):
        folder.mkdir(parents=True, exist_ok=True)
    return found


def test_a_concept_of_another_implementation_is_imported(
    nodes: dict[str, Any], core: Callable[[str], Any], model: Any, clip: Any, folders: Any
) -> None:
    models = core("comfy.models")
    layers = models.layers_of(model, models.detect_family(model))
    file = folders.concepts / "bear.ckpt"
    chendaryen(file, layers, 192, "bear")
    node = nodes["PerfusionImport"]
    try:
        assert "bear.ckpt" in node.GET_SCHEMA().inputs[2].options
        assert "bear.ckpt" not in core("comfy.concept_folder").concept_names()
        with torch.inference_mode():
            given = node.execute(model, clip, "bear.ckpt", "", "")
    finally:
        file.unlink()
    entry = given.args[0]
    assert entry.concept.placeholder == "bear*"
    assert "Imported from ChenDarYen" in str(given.ui.as_dict())


def test_an_embedding_is_found_by_its_name(
    nodes: dict[str, Any], model: Any, clip: Any, folders: Any
) -> None:
    file = folders.embeddings / "anna.pt"
    torch.save({"string_to_param": {"*": torch.ones(1, 192)}}, file)
    node = nodes["PerfusionImport"]
    try:
        assert node.validate_inputs("anna.pt") is True
        before = node.fingerprint_inputs("anna.pt")
        with torch.inference_mode():
            given = node.execute(model, clip, "anna.pt", "anna*", "person")
        assert given.args[0].concept.superclass == "person"
        torch.save({"string_to_param": {"*": torch.ones(2, 192)}}, file)
        assert node.fingerprint_inputs("anna.pt") != before
    finally:
        file.unlink()
    assert "There is no file" in node.validate_inputs("anna.pt")
    assert "models/embeddings" in node.validate_inputs("../../secret.pt")
