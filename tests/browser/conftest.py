"""Tests in a real browser: a real ComfyUI, its real frontend, and a Chromium of this system.

The fixture `comfy` is ComfyUI's page. It is opened on the frontend that ComfyUI pins; a test that
is marked with `on_every_frontend` runs on the newest one of PyPI as well, and on both with nodes as
elements of the page ("Nodes 2.0"). A test fails if its page had an error in the console, or a
request to the server that failed.

After each test `artifacts/` holds a picture of its page. Where no browser can be had the tests are
skipped with one line that says how to get one; in CI (`CI=true`) that is a failure.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
from serving import Frontend, Servers, example_concepts

from tools.browser import HOW_TO_GET_ONE, find_browser, frontend_folder
from tools.locate import home
from tools.ready import ready_comfyui
from tools.server import RunningServer
from tools.steps import SetupError, Steps

if TYPE_CHECKING:
    from comfy_page import ComfyPage
    from playwright.sync_api import BrowserContext

ARTIFACTS = Path(__file__).with_name("artifacts")


def _cannot(reason: str) -> NoReturn:
    """Skip, or fail in CI, where a missing browser would go unseen."""
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(f"the browser tests cannot run: {reason}", pytrace=False)
    pytest.skip(f"the browser tests cannot run: {reason}")


def _file_name(test: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", test.lower()).strip("-")


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    """One browser for the session, so that it keeps the frontend's compiled scripts."""
    try:
        program = find_browser()
    except SetupError as error:
        _cannot(str(error))
    if program is None:
        _cannot(f"no browser was found; {HOW_TO_GET_ONE}")
    try:
        from driving import browser_context
    except ImportError as error:
        _cannot(f"{error} (`pip install playwright` into the Python that runs ComfyUI)")
    shutil.rmtree(ARTIFACTS, ignore_errors=True)
    with browser_context(program, tmp_path_factory.mktemp("profile")) as context:
        yield context


@pytest.fixture(scope="session")
def servers(
    chromium: BrowserContext, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Servers]:
    """A live ComfyUI for each frontend, started when a test first needs it."""
    try:
        comfyui = ready_comfyui()
    except SetupError as error:
        raise pytest.UsageError(str(error)) from error
    with ExitStack() as stack:
        yield Servers(comfyui, tmp_path_factory, stack)


@pytest.fixture
def frontend(request: pytest.FixtureRequest) -> Frontend:
    """The frontend of a test: ComfyUI's own, unless the test says otherwise."""
    return getattr(request, "param", Frontend.PINNED)


@pytest.fixture
def server(servers: Servers, frontend: Frontend) -> RunningServer:
    """The live server that serves the test's frontend, with two trained concepts in it."""
    if frontend.newest and frontend_folder(Steps(home())) is None:
        _cannot("PyPI's newest frontend is not there; `make test-browser` gets it")
    running = servers.of(frontend)
    running.check_alive()
    return example_concepts(running)


@pytest.fixture
def comfy(
    request: pytest.FixtureRequest,
    chromium: BrowserContext,
    server: RunningServer,
    frontend: Frontend,
) -> Iterator[ComfyPage]:
    """ComfyUI's page, opened as a browser that was never here."""
    from comfy_page import ComfyPage, save_settings

    save_settings(chromium, server.url, {"Comfy.VueNodes.Enabled": frontend.nodes2})
    page = chromium.new_page()
    comfy = ComfyPage(page, server.url, frontend.nodes2, ARTIFACTS / _file_name(request.node.name))
    try:
        comfy.open()
        yield comfy
        comfy.keep()
    finally:
        page.close()
        # What a test that failed left behind would keep all after it waiting.
        chromium.request.post(f"{server.url}/api/queue", data={"clear": True})
        chromium.request.post(f"{server.url}/api/interrupt")
    assert not comfy.problems, "in the browser's console:\n" + "\n".join(comfy.problems)
