"""`python -m tools release`: a dry run of a release, up to the picture that a new user gets first.

Packs what the Comfy Registry would pack, unpacks it into the custom_nodes of a fresh copy of
ComfyUI (COMFYUI_PATH, or the one of set-up; it is not touched), starts that, and looks whether all
nodes, help pages, texts and templates are there; then it runs `quick_start`, which trains a concept
and paints it. Says what is still to be done by hand. Publishes nothing.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from tools.archive import shipped, write
from tools.client import ComfyClient, ComfyError
from tools.locate import PACK_NAME, ROOT, ComfyInstall
from tools.ready import ready_comfyui
from tools.server import running_server
from tools.steps import SetupError, say
from tools.workflows import load_api

# Of a ComfyUI that somebody uses: what is his, and what is large.
NOT_COPIED = {"custom_nodes", "models", "input", "output", "temp", "user", ".git"}
NOT_COPIED |= {"venv", ".venv", "python_embeded"}
_NODE_ID = re.compile(r'node_id="(\w+)"')
QUICK_STEPS = 20


def main(arguments: Sequence[str]) -> int:
    """The command; the exit code is 1 where something is not as it has to be."""
    parser = argparse.ArgumentParser(prog="python -m tools release", description=__doc__)
    parser.add_argument("--out", type=Path, metavar="FILE.zip", help="keep the archive there")
    parser.add_argument(
        "--quick", action="store_true", help=f"train {QUICK_STEPS} steps, to see that it runs"
    )
    options = parser.parse_args(arguments)
    comfyui = ready_comfyui()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    print(f"Perfusion {version} in {comfyui}")
    with tempfile.TemporaryDirectory(prefix="perfusion release ", ignore_cleanup_errors=True) as t:
        folder = Path(t)
        archive = options.out or folder / f"{PACK_NAME}-{version}.zip"
        print(packed(archive))
        copy = fresh_copy(comfyui, folder / "ComfyUI")
        pack = copy.path / "custom_nodes" / PACK_NAME
        unpack(archive, pack)
        try:
            for line in tried(copy, pack, options.quick):
                print(line, flush=True)
        except (ComfyError, SetupError) as error:
            say(str(error))
            return 1
    left = still_to_do(version)
    print("before it is published:" if left else "nothing is left to do before it is published")
    for line in left:
        print(f"  - {line}")
    return 0


def packed(archive: Path) -> str:
    """Write the archive; what is in it, in a sentence."""
    names = shipped()
    write(archive, names)
    size = sum((ROOT / name).stat().st_size for name in names)
    parts: dict[str, int] = {}
    for name in names:
        top = PurePosixPath(name).parts[0]
        parts[top] = parts.get(top, 0) + (ROOT / name).stat().st_size
    largest = sorted(parts.items(), key=lambda part: -part[1])[:3]
    told = ", ".join(f"{name} {bytes_ / 1e6:.1f} MB" for name, bytes_ in largest)
    return (
        f"archive: {archive.stat().st_size / 1e6:.1f} MB, {len(names)} files, {size / 1e6:.1f} MB "
        f"unpacked ({told})"
    )


def fresh_copy(comfyui: ComfyInstall, target: Path) -> ComfyInstall:
    """ComfyUI as it is unpacked, without what anybody added to it."""
    shutil.copytree(comfyui.path, target, ignore=_left_out(comfyui.path), symlinks=True)
    (target / "custom_nodes").mkdir(exist_ok=True)
    return replace(comfyui, path=target)


def _left_out(root: Path) -> Any:
    def ignore(folder: str, names: list[str]) -> list[str]:
        top = Path(folder) == root
        return [name for name in names if name == "__pycache__" or (top and name in NOT_COPIED)]

    return ignore


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the archive as a registry's client does. Raises SetupError for a path that leads
    out of the folder."""
    with zipfile.ZipFile(archive) as packed:
        for name in packed.namelist():
            parts = PurePosixPath(name).parts
            if name.startswith("/") or ".." in parts or ":" in name or "\\" in name:
                raise SetupError(f"the archive holds {name}, which leads out of its folder")
        packed.extractall(folder)


def tried(comfyui: ComfyInstall, pack: Path, quick: bool) -> Iterator[str]:
    """What a fresh ComfyUI makes of the unpacked pack. Raises ComfyError."""
    begun = time.monotonic()
    # Its own folder is its base: what a user has who unpacked both.
    with running_server(comfyui, comfyui.path, pack=pack) as running:
        error = running.pack_error()
        if error:
            raise ComfyError(f"ComfyUI could not import the pack:\n{error}")
        yield f"ComfyUI {comfyui.version} started in {time.monotonic() - begun:.0f} s"
        yield looked_at(running.client, pack)
        graph = load_api("quick_start")
        if quick:
            for one in graph.values():
                if one["class_type"] == "PerfusionTrainConcept":
                    one["inputs"]["steps"] = QUICK_STEPS
        result = running.client.run(graph)
        pictures = result.images()
        for picture in pictures:
            if not running.client.view(picture).startswith(b"\x89PNG"):
                raise ComfyError("quick_start gave a picture that is none")
        if not pictures:
            raise ComfyError("quick_start gave no picture")
        yield f"quick_start: {len(pictures)} pictures in {result.seconds:.0f} s"


def looked_at(client: ComfyClient, pack: Path) -> str:
    """What the page has of the pack. Raises ComfyError for what is missing."""
    written = {
        found
        for file in (pack / "nodes").glob("*.py")
        for found in _NODE_ID.findall(file.read_text(encoding="utf-8"))
    }
    there = {name for name in client.object_info() if name.startswith("Perfusion")}
    if written != there:
        raise ComfyError(f"nodes that are not there: {', '.join(sorted(written ^ there))}")
    without = sorted(name for name in there if not (pack / "js" / "docs" / f"{name}.md").is_file())
    if without:
        raise ComfyError(f"nodes without a help page: {', '.join(without)}")
    templates = client._get("/workflow_templates").get(PACK_NAME, [])
    graphs = {path.stem for path in (pack / "workflows").glob("*.json")}
    if set(templates) != graphs:
        raise ComfyError(f"the template browser has {sorted(templates)}, not {sorted(graphs)}")
    languages = [path.name for path in sorted((pack / "locales").iterdir())]
    texts = client._get("/i18n")
    silent = [one for one in languages if not there <= set(texts.get(one, {}).get("nodeDefs", {}))]
    if silent:
        raise ComfyError(f"nodes without texts in {', '.join(silent)}")
    return (
        f"all {len(there)} nodes are there, each with its help page, in {', '.join(languages)}; "
        f"{len(graphs)} example graphs"
    )


def still_to_do(version: str, root: Path = ROOT) -> list[str]:
    """What nobody but the publisher can do, as far as it can be seen in the files."""
    project = (root / "pyproject.toml").read_text(encoding="utf-8")
    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    left = []
    if "OWNER" in re.sub(r"^#.*$", "", project, flags=re.MULTILINE):
        left.append("pyproject.toml: the true owner in place of OWNER, and the publisher's id")
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changes, re.MULTILINE):
        left.append(
            f'CHANGELOG.md: "## [{version}] - <date>" in place of "[Unreleased]", with the day'
        )
    if _git(root, "status", "--porcelain", "--untracked-files=no"):
        left.append("git: there are changes that are not committed, and they are in the archive")
    if f"v{version}" not in _git(root, "tag", "--list").split():
        left.append(f"git: the tag v{version}")
    return left


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *words],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
