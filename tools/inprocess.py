"""ComfyUI's modules in this process: for tests and scripts that need no server."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from tools.locate import FOLDERS, ROOT, ComfyInstall

PACK_MODULE = "comfyui_perfusion"


def open_modules(comfyui: ComfyInstall, base: Path, arguments: Sequence[str] = ("--cpu",)) -> None:
    """Make `import comfy...` work here, every folder of ComfyUI's under `base`.

    ComfyUI reads its command line once, when `comfy.cli_args` is first imported, so that has to
    happen here. It imports neither torch nor any model code, and is cheap.
    """
    if "comfy" in sys.modules:
        raise RuntimeError("comfy is imported already, its options can no longer be set")
    for name in FOLDERS:
        (base / name).mkdir(parents=True, exist_ok=True)
    # First on the path: `nodes` is a module of ComfyUI and a folder of this checkout.
    sys.path.insert(0, str(comfyui.path))
    options = importlib.import_module("comfy.options")
    options.enable_args_parsing()
    argv = sys.argv
    sys.argv = ["main.py", *arguments, "--base-directory", str(base), "--disable-api-nodes"]
    try:
        importlib.import_module("comfy.cli_args")
        importlib.import_module("folder_paths")
        # As in main.py, before ComfyUI's nodes put a module of this name in front of the package.
        importlib.import_module("utils")
    finally:
        sys.argv = argv


def import_pack(root: Path = ROOT) -> ModuleType:
    """This checkout as ComfyUI imports it: one package, its parts reached by relative imports."""
    if PACK_MODULE in sys.modules:
        return sys.modules[PACK_MODULE]
    spec = importlib.util.spec_from_file_location(
        PACK_MODULE, root / "__init__.py", submodule_search_locations=[str(root)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{root} has no __init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK_MODULE] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[PACK_MODULE]
        raise
    return module
