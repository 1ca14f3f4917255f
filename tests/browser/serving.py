"""The servers behind the pages: which frontend they serve, and the concepts that they have."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import pytest

from tools.browser import frontend_folder
from tools.locate import ROOT, ComfyInstall, home
from tools.server import RunningServer, running_server
from tools.steps import Steps
from tools.workflows import UI_GRAPHS, load_api

PICTURES = ROOT / "demo" / "concepts"
# Concepts that the example graphs name, and what they are.
CONCEPTS = {"berry": "teddy", "royal": "teapot"}


class Frontend(Enum):
    """Which frontend a page is of, and in which of its two designs its nodes are."""

    PINNED = "pinned"
    """The one that ComfyUI asks for, nodes painted on the canvas."""
    PINNED_NODES2 = "pinned nodes 2.0"
    NEWEST = "newest"
    """The newest on PyPI."""
    NEWEST_NODES2 = "newest nodes 2.0"

    @property
    def newest(self) -> bool:
        return self in (Frontend.NEWEST, Frontend.NEWEST_NODES2)

    @property
    def nodes2(self) -> bool:
        """Nodes are elements of the page ("Nodes 2.0")."""
        return self in (Frontend.PINNED_NODES2, Frontend.NEWEST_NODES2)


def _on(*frontends: Frontend) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("frontend", frontends, indirect=True, ids=lambda one: one.value)


on_every_frontend = _on(*Frontend)
on_both_designs = _on(Frontend.PINNED, Frontend.NEWEST_NODES2)
on_the_newest_frontend = _on(Frontend.NEWEST, Frontend.NEWEST_NODES2)


class _Folders(Protocol):
    def mktemp(self, basename: str) -> Path: ...


class Servers:
    """Servers by the frontend that they serve, started when first asked for."""

    def __init__(self, comfyui: ComfyInstall, folders: _Folders, stack: ExitStack) -> None:
        self._comfyui, self._folders, self._stack = comfyui, folders, stack
        self._running: dict[bool, RunningServer] = {}

    def of(self, frontend: Frontend) -> RunningServer:
        newest = frontend.newest
        if newest not in self._running:
            args = ["--front-end-root", str(frontend_folder(Steps(home())))] if newest else []
            context = running_server(self._comfyui, self._folders.mktemp("base"), extra_args=args)
            self._running[newest] = self._stack.enter_context(context)
        return self._running[newest]


def example_graph(name: str) -> dict[str, Any]:
    """One of the graphs of the template browser, in the UI's format."""
    graph: dict[str, Any] = json.loads((UI_GRAPHS / f"{name}.json").read_text(encoding="utf-8"))
    return graph


def give_pictures(server: RunningServer) -> None:
    """Put what the example graphs load into a server's input folder."""
    for picture in PICTURES.glob("*/*.png"):
        shutil.copy(picture, server.input)
    # The graphs for real models name pictures of the user's own.
    for picture in PICTURES.glob("berry/berry_*.png"):
        for named in ("my_teddy", "my_girl"):
            shutil.copy(picture, server.input / picture.name.replace("berry", named))


def example_concepts(server: RunningServer, steps: int | None = 2) -> RunningServer:
    """Train those concepts of the example graphs that a server does not have.

    The few steps are for tests: what a concept shows does not matter there, that it is a file as
    training makes them does. None: as the example graph for training says.
    """
    give_pictures(server)
    for name, word in CONCEPTS.items():
        if not (server.models / "perfusion" / f"{name}.safetensors").is_file():
            server.client.run(_training(name, word, steps), timeout=3600)
    return server


def _training(name: str, word: str, steps: int | None) -> dict[str, dict[str, Any]]:
    graph = load_api("train_concept")
    pictures = sorted((PICTURES / name).glob("*.png"))
    loaders = [node for node in graph.values() if node["class_type"] == "LoadImage"]
    for loader, picture in zip(loaders, pictures, strict=True):
        loader["inputs"]["image"] = picture.name
    for node in graph.values():
        if node["class_type"] == "PerfusionTrainConcept":
            node["inputs"].update(placeholder=f"{word}*", superclass=word)
            if steps is not None:
                node["inputs"].update(steps=steps, batch_size=1)
        if node["class_type"] == "PerfusionSaveConcept":
            node["inputs"]["name"] = name
    return graph
