"""Tests in a real ComfyUI, in two ways that live side by side in one pytest run.

Through a live server: the fixtures `server` (one server for the session, with this pack in it) and
`client` (its HTTP API).

In this process: `import comfy.model_patcher`, `import folder_paths`, `import nodes` (ComfyUI's)
just work, also at the top of a test module, because ComfyUI is put on `sys.path` here, before any
test module is imported: on the CPU, its folders in a temporary base directory. The fixture `pack`
is this pack as ComfyUI imports it, one package named `comfyui_perfusion`; `nodes` are its nodes by
their ids, `core` gives its copy of a module of perfusion_core. Its classes are not those
of a plain `import perfusion_core`, which is a second copy; a test should use one or the other.

Helper modules in this folder are imported by their bare name (`from tiny_models import ...`):
ComfyUI has a package `tests` of its own, which would be found first.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from awaiting import awaited

from tools.client import ComfyClient
from tools.inprocess import import_pack, open_modules
from tools.locate import ComfyInstall
from tools.ready import ready_comfyui
from tools.server import RunningServer, running_server
from tools.steps import SetupError


def _ready() -> ComfyInstall:
    try:
        return ready_comfyui()
    except SetupError as error:
        raise pytest.UsageError(str(error)) from error


COMFYUI = _ready()
_BASE = tempfile.TemporaryDirectory(prefix="perfusion-inprocess-", ignore_cleanup_errors=True)
open_modules(COMFYUI, Path(_BASE.name))


def pytest_report_header() -> str:
    return f"tested in {COMFYUI}"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A live ComfyUI with this pack, started once for the session, in a base folder of its own."""
    with running_server(COMFYUI, tmp_path_factory.mktemp("base")) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> ComfyClient:
    """The API of the live server."""
    server.check_alive()
    return server.client


@pytest.fixture(scope="session")
def pack() -> ModuleType:
    """This pack as ComfyUI imports it, in this process."""
    return import_pack()


@pytest.fixture(scope="session")
def nodes(pack: ModuleType) -> dict[str, Any]:
    """The pack's nodes by their ids, as ComfyUI is given them."""

    async def listed() -> list[Any]:
        found: list[Any] = await (await pack.comfy_entrypoint()).get_node_list()
        return found

    return {node.GET_SCHEMA().node_id: node for node in awaited(listed())}


@pytest.fixture(scope="session")
def core(pack: ModuleType) -> Callable[[str], Any]:
    """A function that gives the pack's own copy of a module of perfusion_core."""
    return lambda name: importlib.import_module(f"{pack.__name__}.perfusion_core.{name}")


@pytest.fixture(scope="session")
def applying(core: Callable[[str], Any]) -> SimpleNamespace:
    """What puts concepts on a MODEL and on a CLIP."""
    stack = core("comfy.stack")
    return SimpleNamespace(
        recommended=core("comfy.concept_entry").recommended,
        apply_stack=stack.apply_stack,
        tune=stack.tune,
        add_concepts=core("comfy.prompts").add_concepts,
    )


# What most tests work on; `tiny_models` imports ComfyUI, which must be open by then.


@pytest.fixture
def model() -> Any:
    """A small MODEL of ComfyUI's own classes with random weights, new for each test."""
    from tiny_models import tiny_model

    return tiny_model()


@pytest.fixture(scope="module")
def clip() -> Any:
    """A small CLIP with ComfyUI's real tokenizer, one for each test module."""
    from tiny_models import tiny_clip

    return tiny_clip()


@pytest.fixture
def teddy(model: Any, clip: Any) -> Any:
    """A concept of random values, teddy*, that fits the two."""
    from tiny_models import tiny_concept

    return tiny_concept(model, clip)


@pytest.fixture
def pot(model: Any, clip: Any) -> Any:
    """Another one, pot*."""
    from tiny_models import tiny_concept

    return tiny_concept(model, clip, "pot*", "teapot", seed=7)


# Small transformers of ComfyUI's own classes, one after the other.


@pytest.fixture(scope="module", params=["COSMOS", "ANIMA", "WAN", "PIXART", "LTX", "HUNYUAN"])
def dit(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A family of transformers at small widths, which the pack knows meanwhile."""
    import tiny_dits

    found: tiny_dits.TinyDit = getattr(tiny_dits, request.param)
    if not found.here:
        pytest.skip(f"this ComfyUI has no {found.config}")
    with tiny_dits.registered(found.family):
        yield found


@pytest.fixture
def dit_model(dit: Any) -> Any:
    """A small MODEL of it with random weights, new for each test."""
    return dit.model()


@pytest.fixture(scope="module")
def dit_clip(dit: Any) -> Any:
    """Its CLIP, with ComfyUI's real tokenizers."""
    return dit.clip()
