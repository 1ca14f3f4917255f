"""Makes ComfyUI, or the light environment of the unit tests, ready to be used."""

from __future__ import annotations

from pathlib import Path

from tools import install
from tools.locate import ROOT, ComfyInstall, find_comfyui, home
from tools.steps import SetupError, Steps, say


def ready_comfyui(*, need: list[str] | None = None, want: list[str] | None = None) -> ComfyInstall:
    """The ComfyUI to use, made ready; `need` names modules that its Python must have.

    `want` names ones that an environment of our making gets and a found one may lack. Raises
    `SetupError` if a found environment lacks one that it needs: we never install into it.
    """
    comfyui = find_comfyui()
    install.setup_comfyui(comfyui, Steps(home()))
    if want:
        _say_absent(comfyui.python, install.setup_wanted(comfyui, Steps(home()), want))
    missing = install.lacking(comfyui.python, need) if need and not comfyui.ours else []
    if missing:
        raise SetupError(
            f"{comfyui.python} (found with {comfyui.path}) lacks {', '.join(missing)}, and set-up "
            "never changes an environment it did not make: add it with "
            f"`{comfyui.python} -m pip install {' '.join(missing)}`, or set "
            "COMFYUI_PYTHON=private for one made for this ComfyUI"
        )
    return comfyui


def unit_python(want: list[str] | None = None) -> Path:
    """A Python for what needs no ComfyUI: ComfyUI's if it is ready and ours, else a light one.

    Either is set-up's own, and gets what is wanted.
    """
    python = _unit_python(Steps(home()))
    if want:
        _say_absent(python, install.add_wanted(python, Steps(home()), want))
    return python


def _say_absent(python: Path, modules: list[str]) -> None:
    if modules:
        say(f"{python} has no {', '.join(modules)}: going on without")


def _unit_python(steps: Steps) -> Path:
    comfyui = find_comfyui()
    if comfyui.ours and comfyui.python.is_file() and (comfyui.path / "requirements.txt").is_file():
        key = install.environment_key(comfyui, ROOT)
        if steps.done(f"{comfyui.venv.name}.packages", key):
            return comfyui.python
    return install.setup_unit(steps)
