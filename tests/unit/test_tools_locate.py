"""Which ComfyUI and which Python set-up chooses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.locate import find_comfyui, home, venv_python
from tools.steps import SetupError


def make_comfy(path: Path, version: str = "9.9.9") -> Path:
    (path / "comfy").mkdir(parents=True)
    (path / "main.py").touch()
    (path / "requirements.txt").write_text("torch\n")
    (path / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    return path


def make_venv(path: Path) -> Path:
    python = venv_python(path)
    python.parent.mkdir(parents=True)
    python.touch()
    return python


def test_without_any_other_the_private_one_is_taken(tmp_path: Path) -> None:
    comfyui = find_comfyui(tmp_path, {})
    assert comfyui.path == tmp_path / ".comfyui" / "ComfyUI"
    assert comfyui.venv == tmp_path / ".comfyui" / "venv"
    assert (comfyui.ours, comfyui.origin) == (True, "private")


def test_the_comfyui_around_the_checkout_is_taken(tmp_path: Path) -> None:
    comfy = make_comfy(tmp_path / "ComfyUI")
    checkout = comfy / "custom_nodes" / "perfusion"
    checkout.mkdir(parents=True)
    comfyui = find_comfyui(checkout, {})
    assert comfyui.path == comfy
    assert comfyui.version == "9.9.9"


def test_a_folder_named_custom_nodes_alone_is_no_comfyui(tmp_path: Path) -> None:
    checkout = tmp_path / "custom_nodes" / "perfusion"
    checkout.mkdir(parents=True)
    assert find_comfyui(checkout, {}).origin == "private"


def test_comfyui_path_comes_first(tmp_path: Path) -> None:
    around = make_comfy(tmp_path / "around")
    named = make_comfy(tmp_path / "named")
    checkout = around / "custom_nodes" / "perfusion"
    checkout.mkdir(parents=True)
    assert find_comfyui(checkout, {"COMFYUI_PATH": str(named)}).path == named


def test_a_wrong_comfyui_path_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="COMFYUI_PATH=.*nowhere is not a ComfyUI"):
        find_comfyui(tmp_path, {"COMFYUI_PATH": str(tmp_path / "nowhere")})


@pytest.mark.parametrize("folder", ["venv", ".venv"])
def test_an_environment_in_a_found_comfyui_is_used_and_not_ours(
    tmp_path: Path, folder: str
) -> None:
    comfy = make_comfy(tmp_path / "ComfyUI")
    python = make_venv(comfy / folder)
    comfyui = find_comfyui(tmp_path, {"COMFYUI_PATH": str(comfy)})
    assert (comfyui.python, comfyui.ours) == (python, False)


def test_the_portable_builds_python_is_found(tmp_path: Path) -> None:
    comfy = make_comfy(tmp_path / "portable" / "ComfyUI")
    python = tmp_path / "portable" / "python_embeded" / "python.exe"
    python.parent.mkdir()
    python.touch()
    comfyui = find_comfyui(tmp_path, {"COMFYUI_PATH": str(comfy)})
    assert (comfyui.python, comfyui.ours) == (python, False)


def test_comfyui_python_comes_before_an_environment_inside(tmp_path: Path) -> None:
    comfy = make_comfy(tmp_path / "ComfyUI")
    make_venv(comfy / "venv")
    mine = make_venv(tmp_path / "mine")
    env = {"COMFYUI_PATH": str(comfy), "COMFYUI_PYTHON": str(mine)}
    assert find_comfyui(tmp_path, env).python == mine
    with pytest.raises(SetupError, match="COMFYUI_PYTHON=.* does not exist"):
        find_comfyui(tmp_path, {**env, "COMFYUI_PYTHON": str(tmp_path / "none")})


def test_private_asks_for_an_environment_of_ours_for_a_found_comfyui(tmp_path: Path) -> None:
    comfy = make_comfy(tmp_path / "ComfyUI")
    make_venv(comfy / "venv")
    env = {"COMFYUI_PATH": str(comfy), "COMFYUI_PYTHON": "private"}
    comfyui = find_comfyui(tmp_path, env)
    assert comfyui.ours
    assert comfyui.venv.parent == tmp_path / ".comfyui"
    (comfy / "requirements.txt").write_text("torch\nkornia\n")
    assert find_comfyui(tmp_path, env).venv != comfyui.venv, "other requirements, other environment"


def test_a_linked_worktree_shares_the_main_checkouts_folder(tmp_path: Path) -> None:
    main, linked = tmp_path / "main", tmp_path / "linked"
    (main / ".git" / "worktrees" / "linked").mkdir(parents=True)
    linked.mkdir()
    (linked / ".git").write_text(f"gitdir: {main}/.git/worktrees/linked\n")
    assert home(linked, {}) == main / ".comfyui"
    assert home(main, {}) == main / ".comfyui"


def test_a_submodule_is_its_own_main_checkout(tmp_path: Path) -> None:
    (tmp_path / ".git").write_text("gitdir: ../.git/modules/perfusion\n")
    assert home(tmp_path, {}) == tmp_path / ".comfyui"


def test_perfusion_comfyui_dir_moves_what_setup_makes(tmp_path: Path) -> None:
    assert home(tmp_path, {"PERFUSION_COMFYUI_DIR": str(tmp_path / "big")}) == tmp_path / "big"
