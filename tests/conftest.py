"""What every tier of tests shares. The tiers: unit (no host), host (a real ComfyUI)."""

from __future__ import annotations

from pathlib import Path

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


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In several processes (pytest-xdist) a file's tests stay together, so do the browser's."""
    for item in items:
        browser = "browser" in item.path.relative_to(REPO).parts
        item.add_marker(pytest.mark.xdist_group("browser" if browser else item.path.stem))


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of this checkout."""
    return REPO
