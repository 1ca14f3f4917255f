"""Where things are: this checkout, the folder of what set-up makes, the ComfyUI to run in."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.steps import SetupError, fingerprint

ROOT = Path(__file__).resolve().parent.parent
PACK_NAME = "comfyui-perfusion"
# Of a base directory of ComfyUI.
FOLDERS = ("custom_nodes", "input", "models", "output", "temp", "user")


@dataclass(frozen=True)
class ComfyInstall:
    """A ComfyUI and the Python that runs it.

    `ours` is true if `python` belongs to an environment that set-up makes and may install into;
    an environment that was found is never changed.
    """

    path: Path
    python: Path
    ours: bool
    origin: str

    @property
    def version(self) -> str:
        return comfy_version(self.path)

    @property
    def venv(self) -> Path:
        """The environment's folder (of use only where `ours`)."""
        return self.python.parent.parent

    def __str__(self) -> str:
        return f"ComfyUI {self.version} at {self.path} ({self.origin})"


def home(root: Path = ROOT, env: Mapping[str, str] = os.environ) -> Path:
    """The folder that set-up fills: `$PERFUSION_COMFYUI_DIR`, else `.comfyui` of the main checkout.

    A linked git worktree shares the main checkout's folder, so that it needs no second download.
    """
    if env.get("PERFUSION_COMFYUI_DIR"):
        return Path(env["PERFUSION_COMFYUI_DIR"]).expanduser().resolve()
    return main_checkout(root) / ".comfyui"


def main_checkout(root: Path) -> Path:
    """`root` itself, or the checkout that it is a linked worktree of."""
    pointer = root / ".git"
    if not pointer.is_file():
        return root
    match = re.match(r"gitdir: (.+)", pointer.read_text(encoding="utf-8"))
    # .../<main>/.git/worktrees/<name>
    git_dir = (root / match.group(1).strip()).resolve() if match else root
    if git_dir.parent.name == "worktrees" and git_dir.parent.parent.name == ".git":
        return git_dir.parent.parent.parent
    return root


def is_comfy(path: Path) -> bool:
    return (path / "main.py").is_file() and (path / "comfy").is_dir()


def comfy_version(path: Path) -> str:
    try:
        text = (path / "comfyui_version.py").read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    match = re.search(r"__version__\s*=\s*[\"']([^\"']+)", text)
    return match.group(1) if match else "unknown"


def venv_python(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def find_comfyui(root: Path = ROOT, env: Mapping[str, str] = os.environ) -> ComfyInstall:
    """The ComfyUI to use: `COMFYUI_PATH`, else the one this checkout is installed in, else ours.

    Looks only; nothing is made, so the private one may not exist yet.
    """
    named = env.get("COMFYUI_PATH")
    if named:
        path = Path(named).expanduser().resolve()
        if not is_comfy(path):
            raise SetupError(f"COMFYUI_PATH={named} is not a ComfyUI (no main.py and comfy/ in it)")
        return _with_python(path, "COMFYUI_PATH", root, env)
    around = root.parent.parent
    if root.parent.name == "custom_nodes" and is_comfy(around):
        return _with_python(around, "around this checkout", root, env)
    folder = home(root, env)
    return ComfyInstall(folder / "ComfyUI", venv_python(folder / "venv"), True, "private")


def _with_python(path: Path, origin: str, root: Path, env: Mapping[str, str]) -> ComfyInstall:
    wanted = env.get("COMFYUI_PYTHON")
    if wanted and wanted != "private":
        python = Path(wanted).expanduser()
        if not python.is_file():
            raise SetupError(f"COMFYUI_PYTHON={wanted} does not exist")
        return ComfyInstall(path, python.absolute(), False, origin)
    if not wanted:
        for candidate in (
            venv_python(path / "venv"),
            venv_python(path / ".venv"),
            path.parent / "python_embeded" / "python.exe",  # so spelled in ComfyUI's portable build
        ):
            if candidate.is_file():
                return ComfyInstall(path, candidate, False, origin)
    try:
        requirements = (path / "requirements.txt").read_text(encoding="utf-8")
    except OSError as error:
        raise SetupError(f"{path} has no readable requirements.txt: {error}") from error
    venv = home(root, env) / f"venv-{fingerprint(requirements)[:8]}"
    return ComfyInstall(path, venv_python(venv), True, origin)
