"""What users get: all that works at run time, without the lab, the tools and the tests."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from page import node, sampling

from tools.archive import shipped, write
from tools.client import ComfyClient
from tools.locate import PACK_NAME, find_comfyui
from tools.server import RunningServer, running_server

pytestmark = pytest.mark.skipif(
    not (Path(__file__).parents[2] / ".git").exists(), reason="what is shipped is asked of git"
)

# What a package that ComfyUI asks for is called in an import.
IMPORTED_AS = {"Pillow": "PIL", "pillow": "PIL"}
# What the fleet takes where somebody has installed it: `--ray`, and tables as Parquet.
WITH_MANY_MACHINES = {"ray", "pyarrow"}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pack as a user has it, in a folder of its own."""
    folder = tmp_path_factory.mktemp("archive")
    write(folder / "pack.zip", shipped())
    with zipfile.ZipFile(folder / "pack.zip") as archive:
        archive.extractall(folder / PACK_NAME)
    return folder / PACK_NAME


def test_what_only_we_need_stays_behind(unpacked: Path) -> None:
    there = {path.name for path in unpacked.iterdir()}
    assert not there & {"tests", "lab", "docs", ".ci", "Makefile"}
    assert there >= {
        "__init__.py", "LICENSE", "README.md", "demo", "fleet", "js", "locales", "nodes",
        "perfusion_core", "pyproject.toml", "requirements.txt", "subgraphs", "workflows",
    }  # fmt: skip
    size = sum(path.stat().st_size for path in unpacked.rglob("*") if path.is_file())
    assert size < 34_000_000  # of which the demo model's weights are 30


def test_the_fleet_starts_from_it_wherever_python_looks_for_modules(unpacked: Path) -> None:
    # As ComfyUI's embedded Python does: -I leaves out the folder that it is started in.
    for words in (["-I", str(unpacked / "fleet")], ["-m", "fleet"]):
        started = subprocess.run(
            [sys.executable, *words, "report", "--help"],
            cwd=unpacked, capture_output=True, encoding="utf-8", check=False,
        )  # fmt: skip
        assert started.returncode == 0, started.stderr
        assert "--second" in started.stdout


@pytest.mark.slow
def test_a_real_comfyui_has_all_of_it(
    client: ComfyClient, unpacked: Path, tmp_path: Path, repo: Path
) -> None:
    def listed(server: ComfyClient) -> set[str]:
        return {name for name in server.object_info() if name.startswith("Perfusion")}

    with running_server(find_comfyui(), tmp_path, pack=unpacked) as alone:
        assert alone.pack_error() is None
        assert listed(alone.client) == listed(client)
        for path in ("/workflow_templates", "/extensions", "/i18n"):
            assert alone.client._get(path) == client._get(path)
        assert blueprints(alone) == {path.stem for path in (repo / "subgraphs").glob("*.json")}
        graph = {"demo": node("PerfusionDemoModel"), **sampling(["demo", 0], ["demo", 1], "a frog")}
        graph["pictures"] = node("PreviewImage", images=["demo", 3])
        result = alone.client.run(graph)
        assert len(result.images("pictures")) == 5
        (image,) = result.images("image")
        assert alone.client.view(image).startswith(b"\x89PNG")


def blueprints(server: RunningServer) -> set[str]:
    """The pack's subgraph blueprints, by their names."""
    found = server.client._get("/global_subgraphs").values()
    return {one["name"] for one in found if "perfusion" in one["info"]["node_pack"]}


def test_nothing_is_imported_that_comfyui_does_not_bring(unpacked: Path) -> None:
    """So requirements.txt asks for nothing."""
    folder = find_comfyui().path
    asked = re.findall(r"^[\w-]+", (folder / "requirements.txt").read_text(encoding="utf-8"), re.M)
    brought = {IMPORTED_AS.get(name, name) for name in asked}
    comfyui = {path.stem for path in folder.iterdir()}
    ours = {path.name for path in unpacked.iterdir()}
    found = set()
    for path in unpacked.rglob("*.py"):
        for part in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(part, ast.Import):
                found |= {alias.name.split(".")[0] for alias in part.names}
            elif isinstance(part, ast.ImportFrom) and not part.level and part.module:
                found.add(part.module.split(".")[0])
    assert found - sys.stdlib_module_names - comfyui - brought - ours == WITH_MANY_MACHINES
