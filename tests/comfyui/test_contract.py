"""What the pack relies on in ComfyUI: all of it is written down, and the ComfyUI at hand has it."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny_clip, tiny_model
from torch import nn

from perfusion_core.comfy import protocols
from perfusion_core.comfy.contract import CONTRACT, FITS, MOVED, OLDEST, SEEN, SINCE, Part
from perfusion_core.comfy.tokenizers import tokenizers_of
from perfusion_core.families import FAMILIES, REFUSED
from tools import watch
from tools.locate import find_comfyui

COMFY = find_comfyui().path
MODULES = ("comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths")
MODULES += ("latent_preview", "nodes", "server")


def test_the_comfyui_at_hand_has_all_that_is_relied_on() -> None:
    assert watch.missing(COMFY) == []


def test_every_model_class_of_the_comfyui_at_hand_is_judged() -> None:
    assert watch.unjudged(COMFY) == []


def here(part: Part) -> bool:
    return watch.numbers(part.since) <= watch.numbers(find_comfyui().version)


@pytest.mark.parametrize("part", [p for p in CONTRACT if here(p)], ids=lambda p: p.title)
def test_what_is_read_in_the_sources_is_there_when_they_run(part: Part) -> None:
    owner: Any = importlib.import_module(part.file.removesuffix(".py").replace("/", "."))
    if part.owner:
        owner = getattr(owner, part.owner)
    in_sources = watch.members(COMFY / part.file, part.owner)
    assert in_sources is not None
    for member in part.members:
        name = member.partition("(")[0]
        # What methods put on `self` is on no class.
        on_self = part.owner and in_sources[name] is None and "(" not in member
        assert on_self or hasattr(owner, name), member


def used(file: Path) -> Iterator[tuple[str, str]]:
    """(module of ComfyUI, name in it) of all that a file of the pack takes from there."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    modules: dict[str, str] = {}  # as the file calls them
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                modules[alias.asname or alias.name] = alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                path = f"{node.module}.{alias.name}".replace(".", "/")
                if (COMFY / f"{path}.py").is_file():
                    modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                else:
                    yield node.module, alias.name
                    if node.module == "comfy_api.latest":
                        modules[alias.asname or alias.name] = f"comfy_api.latest._{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in modules:
            module = modules[ast.unparse(node.value)]
            if not (COMFY / f"{module}.{node.attr}".replace(".", "/")).with_suffix(".py").is_file():
                yield module, node.attr


def test_what_the_pack_takes_from_comfyui_is_written_down(repo: Path) -> None:
    known = {
        (part.file.removesuffix(".py").removesuffix("/__init__").replace("/", "."), name)
        for part in CONTRACT
        for name in (part.owner, *(m.partition("(")[0] for m in part.members if not part.owner))
    }
    files = [repo / "__init__.py"]
    for folder in ("perfusion_core", "nodes", "demo"):
        files += sorted((repo / folder).rglob("*.py"))
    found = {
        (module, name): file.relative_to(repo)
        for file in files
        for module, name in used(file)
        if module.split(".")[0] in MODULES
    }
    assert len(found) > 60
    unknown = {f"{m}.{n} ({file})" for (m, n), file in found.items() if (m, n) not in known}
    assert not unknown, f"add to perfusion_core/comfy/contract.py: {sorted(unknown)}"


# Type of an object of ComfyUI's -> its classes there, of which each may have a part of it.
CLASSES: dict[Any, tuple[str, ...]] = {
    protocols.BaseModel: ("BaseModel",),
    protocols.Clip: ("CLIP",),
    protocols.Condition: ("CONDRegular",),
    protocols.Executor: ("WrapperExecutor",),
    protocols.LatentFormat: ("LatentFormat",),
    protocols.Model: ("ModelPatcher",),
    protocols.ModelPatcher: ("ModelPatcher",),
    protocols.ModelSampling: ("EPS", "ModelSamplingDiscrete"),
    protocols.PromptQueue: ("PromptQueue",),
    protocols.TextEncoder: ("SD1ClipModel",),
    protocols.Tokenizer: ("SDTokenizer",),
    protocols.Vae: ("VAE",),
}
# Of torch: a module, and a layer of one.
OF_TORCH = {protocols.Modules, protocols.Projection}


def relied_on(protocol: Any) -> dict[str, tuple[str, ...] | None]:
    """Name of each attribute that a type names -> its parameters, or None where it has none."""
    found: dict[str, tuple[str, ...] | None] = dict.fromkeys(protocol.__annotations__)
    for name, value in vars(protocol).items():
        if isinstance(value, property):
            found[name] = None
        elif (
            inspect.isfunction(value) and not name.startswith("_") and not hasattr(nn.Module, name)
        ):
            parameters = inspect.signature(value).parameters.values()
            named = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
            found[name] = tuple(named[1:])
    return found


def test_every_type_of_an_object_of_comfyuis_has_its_classes_here() -> None:
    named = {
        value
        for value in vars(protocols).values()
        if getattr(value, "_is_protocol", False) and value.__module__ == protocols.__name__
    }
    assert named == CLASSES.keys() | OF_TORCH


def test_what_the_types_of_comfyuis_objects_name_is_written_down_and_there() -> None:
    unknown, moved = [], []
    for protocol, owners in CLASSES.items():
        parts = [part for part in CONTRACT if part.owner in owners]
        since = {m.partition("(")[0]: p.since for p in reversed(parts) for m in p.members}
        for name, parameters in relied_on(protocol).items():
            title = f"{protocol.__name__}.{name}"
            # What came later is asked for with getattr.
            if since.get(name) != OLDEST:
                unknown.append(f"{title} ({since.get(name)})")
            member = name if parameters is None else f"{name}({', '.join(parameters)})"
            gone = [watch.missing(COMFY, (replace(part, members=(member,)),)) for part in parts]
            if all(gone):
                moved.append(f"{title}, first seen in {since.get(name)}: {gone[0][0]}")
    assert not unknown, f"add to perfusion_core/comfy/contract.py: {unknown}"
    assert not moved, f"{find_comfyui().version} has it otherwise: {moved}"


def test_the_objects_themselves_have_what_their_types_name() -> None:
    model, clip = tiny_model(), tiny_clip()
    base, tokenizers = model.model, tokenizers_of(clip)
    objects = [
        (protocols.Model, model),
        (protocols.ModelPatcher, model),
        (protocols.ModelPatcher, clip.patcher),
        (protocols.BaseModel, base),
        (protocols.ModelSampling, base.model_sampling),
        (protocols.LatentFormat, base.latent_format),
        (protocols.Clip, clip),
        (protocols.TextEncoder, clip.cond_stage_model),
        *((protocols.Tokenizer, tokenizer) for tokenizer in tokenizers.values()),
    ]
    gone = {f"{p.__name__}.{n}" for p, it in objects for n in relied_on(p) if not hasattr(it, n)}
    assert not gone


def test_the_versions_of_the_contract_are_those_that_were_seen() -> None:
    assert SEEN[0] == OLDEST
    assert {part.since for part in CONTRACT} | {one.since for one in MOVED} <= set(SEEN)
    assert set(SINCE.values()) <= set(SEEN)
    assert SINCE.keys() <= REFUSED.keys()
    assert set(FITS.values()) <= FAMILIES.keys()
