"""What the browser tests need: a Chromium of the system, and the newest ComfyUI frontend on PyPI.

A browser is part of the system, so it comes from the system's packages, where set-up may install
them (as root, with apt-get); elsewhere one that is there already is used.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

from tools.install import fetch_wheel
from tools.locate import ComfyInstall
from tools.steps import SetupError, Steps, fingerprint, say

# Chromium's, Chrome's and Edge's names, the one that set-up installs first.
PROGRAMS = (
    "chromium",
    "chromium-browser",
    "google-chrome-stable",
    "google-chrome",
    "chrome",
    "microsoft-edge-stable",
    "microsoft-edge",
    "msedge",
)
USUAL_PLACES = {
    "darwin": (
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
        "/Applications/Chromium.app/Contents/MacOS/Chromium",
        "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
    ),
    "win32": (
        r"%ProgramFiles%\Google\Chrome\Application\chrome.exe",
        r"%ProgramFiles(x86)%\Google\Chrome\Application\chrome.exe",
        r"%LocalAppData%\Google\Chrome\Application\chrome.exe",
        r"%ProgramFiles(x86)%\Microsoft\Edge\Application\msedge.exe",
        r"%ProgramFiles%\Microsoft\Edge\Application\msedge.exe",
    ),
}
# The fonts are those that the frontend falls back to: a bare system has none.
PACKAGES = ("chromium", "fonts-dejavu-core")

FRONTEND = "comfyui-frontend-package"
FRONTEND_FOLDER = "comfyui_frontend_package/static/"

HOW_TO_GET_ONE = (
    "install Chromium, Chrome or Edge, or name one in PERFUSION_BROWSER=/path/to/chrome "
    "(as root on Debian, `make test` installs chromium by itself)"
)


def find_browser(env: Mapping[str, str] = os.environ) -> Path | None:
    """The browser to drive: `PERFUSION_BROWSER`, else one on the PATH, else in the usual places.

    Raises `SetupError` if the one that is named does not run.
    """
    named = env.get("PERFUSION_BROWSER")
    if named:
        path = Path(named).expanduser().absolute()
        if not _runs(path):
            raise SetupError(f"PERFUSION_BROWSER={named} is not a browser that runs")
        return path
    on_path = (shutil.which(name, path=env.get("PATH")) for name in PROGRAMS)
    usual = (os.path.expandvars(place) for place in USUAL_PLACES.get(sys.platform, ()))
    return next((Path(p) for p in (*on_path, *usual) if p and _runs(Path(p))), None)


def _runs(program: Path) -> bool:
    """True if it says its version; Ubuntu's `chromium-browser` may be a note about a snap."""
    if sys.platform == "win32":
        return program.is_file()  # there it would open a window
    try:
        return (
            subprocess.run(
                [program, "--version"], capture_output=True, stdin=subprocess.DEVNULL, timeout=60
            ).returncode
            == 0
        )
    except (OSError, subprocess.TimeoutExpired):
        return False


def setup_browser(comfyui: ComfyInstall, steps: Steps) -> Path | None:
    """Make the browser and the newest frontend ready; say in one line if there can be none.

    A missing browser is no error here: the tests that need one are skipped (in CI they fail).
    """
    browser = find_browser()
    if browser is None and _may_install():
        steps.stamp("browser").unlink(missing_ok=True)
        try:
            with steps.lock():
                steps.step(
                    "browser",
                    fingerprint(PACKAGES),
                    f"installing {PACKAGES[0]} for the browser tests (apt-get)",
                    lambda: _apt_install(steps),
                )
        except SetupError as error:
            say(str(error))
        browser = find_browser()
    if browser is None:
        say(f"no browser for the browser tests: {HOW_TO_GET_ONE}")
        return None
    try:
        setup_frontend(comfyui, steps)
    except SetupError as error:
        say(str(error))
    return browser


def _may_install() -> bool:
    return sys.platform == "linux" and os.geteuid() == 0 and shutil.which("apt-get") is not None


def _apt_install(steps: Steps) -> None:
    apt = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=300"]
    install = [*apt, "install", "--yes", "--no-install-recommends", *PACKAGES]
    try:
        steps.run(install, timeout=1800)
    except SetupError:
        # No or old package lists, as in a fresh container; or an earlier install was cut off.
        steps.run(["dpkg", "--configure", "-a"], timeout=600)
        steps.run([*apt, "update"], timeout=600)
        steps.run(install, timeout=1800)


def frontend_folder(steps: Steps) -> Path | None:
    """The newest frontend that was unpacked (what `--front-end-root` takes), or None."""
    names = [path.name for path in steps.home.glob("frontend-*") if path.is_dir()]
    whole = [name for name in names if steps.stamp(name).is_file()]
    newest = max(whole, key=_version_of, default=None)
    return steps.home / newest if newest else None


def _version_of(name: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", name))


def setup_frontend(comfyui: ComfyInstall, steps: Steps) -> None:
    """Download PyPI's newest frontend and unpack it; nothing of ComfyUI's environment changes.

    Where PyPI cannot be asked, the newest one that was unpacked before goes on being used, which
    is said. Raises `SetupError` if there is none.
    """
    try:
        version, digest = newest_frontend(comfyui.python, steps)
        _unpack_once(comfyui, steps, version, digest)
    except SetupError as error:
        kept = frontend_folder(steps)
        if kept is None:
            raise SetupError(
                f"no newest frontend, its browser tests are skipped: {error}"
            ) from error
        say(f"the browser tests use {kept.name}, had earlier: {error}")


def newest_frontend(python: Path, steps: Steps) -> tuple[str, str]:
    """Version and sha256 of the newest frontend that `python`'s pip finds; nothing is installed.

    Raises `SetupError` if the index cannot be reached or gives no sha256.
    """
    report = steps.home / "newest-frontend.json"
    report.unlink(missing_ok=True)
    ask: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--no-deps",
    ]
    ask += ["--disable-pip-version-check", "--retries", "1", "--report", report, FRONTEND]
    steps.run(ask, timeout=300)
    try:
        (found,) = json.loads(report.read_text(encoding="utf-8"))["install"]
        return found["metadata"]["version"], found["download_info"]["archive_info"]["hashes"][
            "sha256"
        ]
    except (OSError, KeyError, ValueError) as error:
        raise SetupError(f"pip did not say which {FRONTEND} is the newest ({error!r})") from error


def _unpack_once(comfyui: ComfyInstall, steps: Steps, version: str, digest: str) -> None:
    target = steps.home / f"frontend-{version}"

    def action() -> None:
        wheel = fetch_wheel(comfyui.python, steps, f"{FRONTEND}=={version}", digest)
        unpack_frontend(wheel, target)
        wheel.unlink()

    name = target.name
    if steps.done(name, digest) and target.is_dir():
        return
    with steps.lock():
        if not target.is_dir():
            steps.stamp(name).unlink(missing_ok=True)
        steps.step(name, digest, f"unpacking ComfyUI's frontend {version}", action)


def unpack_frontend(wheel: Path, target: Path) -> None:
    """Unpack a frontend's files beside `target`, then move it there: it is whole or absent."""
    partial = target.with_name(target.name + ".partial")
    for folder in (partial, target):
        if folder.exists():
            shutil.rmtree(folder)
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            # The source maps are two thirds of it, and no test reads them.
            if (
                entry.is_dir()
                or not entry.filename.startswith(FRONTEND_FOLDER)
                or entry.filename.endswith(".map")
            ):
                continue
            path = partial / entry.filename[len(FRONTEND_FOLDER) :]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(entry))
    partial.rename(target)
