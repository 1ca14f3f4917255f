"""What every tier of tests shares. The tiers: unit (no ComfyUI), comfyui (a real one)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parent.parent


class _RootIsNoPackage:
    """Keeps pytest from importing the `__init__.py` at the root, which only ComfyUI can import.

    pytest takes every folder with an `__init__.py` around a test for a package to set up.
    """

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(
        self, path: Path, parent: pytest.Collector
    ) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == REPO else None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_RootIsNoPackage(), "perfusion-root-is-no-package")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """In several processes (pytest-xdist) a file's tests stay together, so do the browser's."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = nodeid.split("::")[0]
            return "tests/browser" if "tests/browser/" in file else file

    return ByFile(config, log)


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of this checkout."""
    return REPO
