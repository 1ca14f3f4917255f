"""In a ComfyUI that is too old the pack says so in one sentence."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

from perfusion_core.comfy.contract import OLDEST

# As ComfyUI loads a custom node, in a process that has a ComfyUI of that version and nothing else.
_LOAD = """
import importlib.util, logging, sys, types
version, has_api, folder = sys.argv[1:]
logging.basicConfig(format="%(levelname)s %(message)s")
if version:
    sys.modules["comfyui_version"] = types.ModuleType("comfyui_version")
    sys.modules["comfyui_version"].__version__ = version
if has_api == "api":
    api = types.ModuleType("comfy_api")
    api.__spec__ = importlib.util.spec_from_loader("comfy_api", None)
    sys.modules["comfy_api"] = api
spec = importlib.util.spec_from_file_location(
    "pack", folder + "/__init__.py", submodule_search_locations=[folder]
)
module = importlib.util.module_from_spec(spec)
sys.modules["pack"] = module
spec.loader.exec_module(module)
print(module.WEB_DIRECTORY, getattr(module, "NODE_CLASS_MAPPINGS", None))
"""


def loaded(repo: Path, version: str, api: bool) -> tuple[str, str]:
    """What the pack offers, and what is said, in a ComfyUI of that version ("": it says none)."""
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, version, "api" if api else "", str(repo)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip(), done.stderr.strip()


@pytest.mark.parametrize(
    ("version", "api", "this"),
    [
        ("0.3.51", True, "this is 0.3.51"),
        ("0.2.7", False, "this is 0.2.7"),
        ("", False, "this one does not say its version"),
    ],
)
def test_an_older_comfyui_is_told_what_is_needed(
    version: str, api: bool, this: str, repo: Path
) -> None:
    offered, said = loaded(repo, version, api)
    assert offered == "None {}"  # no nodes, and no page
    assert said == (
        f"ERROR Perfusion needs ComfyUI {OLDEST} or newer, and {this}, so its nodes are not there: "
        "update ComfyUI and start it again."
    )


@pytest.mark.parametrize("version", [OLDEST, "0.12.1", "1.0", ""])
def test_a_newer_one_is_told_nothing(version: str, repo: Path) -> None:
    assert loaded(repo, version, api=True) == ("./js None", "")


def test_the_oldest_is_the_same_wherever_it_is_stated(repo: Path) -> None:
    project = tomllib.loads((repo / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["comfy"]["requires-comfyui"] == f">={OLDEST}"
    readme = (repo / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"restart ComfyUI \({re.escape(OLDEST)} or newer;", readme)
