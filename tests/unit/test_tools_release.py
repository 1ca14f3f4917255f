"""The dry run of a release: what is packed, where it is unpacked, what is left to do by hand."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from tools.locate import ComfyInstall
from tools.release import fresh_copy, still_to_do, unpack
from tools.steps import SetupError


@pytest.mark.parametrize("name", ["../evil.py", "/evil.py", "a/../../evil.py", "C:\\evil.py"])
def test_an_archive_never_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "pack.zip", "w") as archive:
        archive.writestr(name, "")
    with pytest.raises(SetupError, match="leads out of its folder"):
        unpack(tmp_path / "pack.zip", tmp_path / "to" / "pack")
    assert not list(tmp_path.rglob("evil.py"))


def test_the_copy_is_fresh_and_the_original_untouched(tmp_path: Path) -> None:
    original = tmp_path / "ComfyUI"
    for file in ("main.py", "comfy/models.py", "models/a.safetensors", "custom_nodes/x/a.py"):
        path = original / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="utf-8")
    before = sorted(original.rglob("*"))
    copy = fresh_copy(ComfyInstall(original, Path("python"), False, "test"), tmp_path / "copy")
    there = {path.relative_to(copy.path).as_posix() for path in copy.path.rglob("*")}
    assert there == {"main.py", "comfy", "comfy/models.py", "custom_nodes"}
    assert sorted(original.rglob("*")) == before


def test_it_says_what_the_publisher_has_to_do(tmp_path: Path) -> None:
    def written(project: str, changes: str) -> list[str]:
        (tmp_path / "pyproject.toml").write_text(project, encoding="utf-8")
        (tmp_path / "CHANGELOG.md").write_text(changes, encoding="utf-8")
        return [line.split(":")[0] for line in still_to_do("1.2.3", tmp_path)]

    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "a"], ["tag", "v1.2.3"]):
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True)
    ready = "## [1.2.3] - 2027-01-31\n"
    assert written('url = "https://github.com/OWNER/x"', ready) == ["pyproject.toml"]
    assert written("# OWNER is explained here", "## [Unreleased]: 1.2.3") == ["CHANGELOG.md"]
    assert written("", ready) == []
