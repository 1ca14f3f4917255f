"""A concept's size: on disk, while it is read, in memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from true_models import CPU, random_concept, true_model

from perfusion_core.comfy.concept_entry import ConceptEntry
from perfusion_core.comfy.models import detect_family, layers_of
from perfusion_core.comfy.stack_patch import StackPatch, StackTensors
from perfusion_core.concept.concept import Concept
from perfusion_core.concept.concept_file import load_concept, save_concept
from perfusion_core.method.settings import ConceptSettings

from .measure import Result, in_turn, timed

LIMITS = {"sd15": ("SD15", 40_000), "sdxl": ("SDXL", 200_000)}  # bytes, by the design
MANY = 16


def measure(folder: Path, runs: int) -> Iterator[Result]:
    """Bytes of a file, milliseconds to read it, bytes in memory of a concept that is applied."""
    for called, (name, limit) in LIMITS.items():
        model = true_model(name)
        family = detect_family(model)
        outs = {path: layer.out for path, layer in layers_of(model, family).items()}
        concepts = [random_concept(family, outs, f"word{j}*", seed=j) for j in range(MANY)]
        path = folder / f"{called}.safetensors"
        save_concept(concepts[0], path)
        size = path.stat().st_size
        yield Result(
            f"concept_file_bytes_{called}",
            f"a concept's file, {sum(outs.values()):,} values",
            size,
            limit,
            "the design's limit",
            "bytes",
        )
        held = (memory(concepts) - memory(concepts[:1])) / (MANY - 1)
        yield Result(
            f"concept_memory_bytes_{called}",
            "held by each concept that is applied, after a pass",
            held,
            size,
            "its file",
            "bytes",
        )
    path = folder / "sd15.safetensors"
    found = in_turn(
        {
            "ours": timed(lambda: load_concept(path)),
            "stock": timed(lambda: load_file(path)),
        },
        runs,
        warmups=3,
    )
    yield Result(
        "concept_load_ms",
        "reading and checking an SD 1.5 concept's file",
        1000 * found["ours"],
        1000 * found["stock"],
        "safetensors alone on it",
        runs=runs,
    )


def memory(concepts: list[Concept]) -> int:
    """Bytes of all tensors that a patch of these concepts holds once a pass has used it."""
    entries = [ConceptEntry(concept, ConceptSettings()) for concept in concepts]
    patch = StackPatch(entries, StackTensors(tuple(concepts)))
    width = concepts[0].width
    everything = (True,) * len(concepts)
    for path, edit in patch._edits(everything).items():
        edit.prepare(torch.zeros(1, 77, width))
        patch.tensors.differences.on(path, CPU, torch.float32)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors(patch)}
    return sum(storage.nbytes() for storage in storages.values())


def tensors(holder: object) -> list[torch.Tensor]:
    """Every tensor that can be reached from an object, not by way of classes and modules."""
    seen: set[int] = set()
    found: list[torch.Tensor] = []
    pending: list[Any] = [holder]
    while pending:
        each = pending.pop()
        left_out = each is not holder and (isinstance(each, type) or callable(each))
        if left_out or id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, torch.Tensor):
            found.append(each)
        else:
            pending += gc.get_referents(each)
    return found
