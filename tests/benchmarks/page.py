"""How long ComfyUI's queue waits while the page asks about a prompt."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from statistics import median
from threading import Thread
from types import SimpleNamespace
from typing import Any

from execution import PromptQueue
from server import PromptServer
from tiny_models import tiny_clip, tiny_concept, tiny_model

from perfusion_core.comfy.beside_queue import Busy
from perfusion_core.page import prompt_similarities as tokens

from .measure import Result

SLOW = 0.02  # seconds that a layer takes: a large encoder on a CPU


def measure(runs: int) -> Iterator[Result]:
    """Putting a graph into the queue, beside a text encoder that runs for the page and alone."""
    server = SimpleNamespace(queue_updated=lambda: None)
    queue = server.prompt_queue = PromptQueue(server)
    PromptServer.instance = server
    clip, model = tiny_clip(), tiny_model()
    concept = tiny_concept(model, clip, "teddy*", "teddy", seed=1)
    for module in clip.cond_stage_model.modules():
        if module._parameters:
            module.register_forward_pre_hook(lambda *_: time.sleep(SLOW))
    encoders = tokens.Encoders()
    encoders.remember("1", clip)

    def ask(number: int) -> None:
        with suppress(Busy):
            encoders.similarities("1", [concept], f"a teddy* {number}")

    def waited(number: int, beside: bool) -> float:
        asking = Thread(target=ask, args=(number,))
        if beside:
            asking.start()
            time.sleep(3 * SLOW)
        begun = time.perf_counter()
        queue.put((number, "a graph"))
        _, started = queue.get()
        took = time.perf_counter() - begun
        if beside:
            asking.join()
        queue.task_done(started, {}, None)
        return took

    found: dict[bool, list[Any]] = {True: [], False: []}
    for number in range(runs):
        for beside in (True, False):
            found[beside].append(1000 * waited(number, beside))
    yield Result(
        "queue_beside_a_prompt",
        "from sending a graph to its start, while the page's text encoder runs (20 ms a layer)",
        median(found[True]),
        median(found[False]),
        "nothing runs for the page",
        runs=runs,
    )
