"""The core stands on torch alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_IMPORT_ALL = """
import importlib, pkgutil, sys
import perfusion_core
for module in pkgutil.walk_packages(perfusion_core.__path__, "perfusion_core."):
    importlib.import_module(module.name)
comfyui = {"comfy", "comfy_api", "folder_paths", "nodes"} & {n.split(".")[0] for n in sys.modules}
assert not comfyui, f"imported from ComfyUI: {comfyui}"
"""


def test_every_module_imports_without_comfyui(repo: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_ALL], cwd=repo, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
