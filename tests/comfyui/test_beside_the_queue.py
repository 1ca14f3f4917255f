"""The page's questions about prompts: nothing that ComfyUI has to do waits for them."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from threading import Event, Thread
from types import ModuleType, SimpleNamespace
from typing import Any

import comfy.model_management
import pytest
import torch
from execution import PromptQueue
from server import PromptServer
from tiny_models import tiny_clip

from perfusion_core.concept.concept import Concept

TEXT = "a photo of a teddy* on a beach"
AT_ONCE = 0.05  # seconds; what ComfyUI may be kept waiting


@pytest.fixture
def tokens(pack: ModuleType) -> ModuleType:
    return importlib.import_module(f"{pack.__name__}.perfusion_core.page.prompt_similarities")


@pytest.fixture
def gates(pack: ModuleType) -> ModuleType:
    return importlib.import_module(f"{pack.__name__}.perfusion_core.comfy.gates_of_prompt")


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> PromptQueue:
    """ComfyUI's own queue, of a server that is not there."""
    server = SimpleNamespace(queue_updated=lambda: None)
    server.prompt_queue = PromptQueue(server)
    monkeypatch.setattr(PromptServer, "instance", server, raising=False)
    return server.prompt_queue


@pytest.fixture(autouse=True)
def _no_cancel() -> Iterator[None]:
    yield
    comfy.model_management.interrupt_current_processing(False)


class Slow:
    """Layers of a CLIP that wait: each tells that it has begun, and takes its time."""

    def __init__(self, clip: Any, seconds: float) -> None:
        self.begun, self.passes = Event(), 0
        for module in clip.cond_stage_model.modules():
            if module._parameters:
                module.register_forward_pre_hook(self._wait)
        self._seconds = seconds

    def _wait(self, *_: Any) -> None:
        self.passes += 1
        self.begun.set()
        time.sleep(self._seconds)


class Asked(Thread):
    """A question of the page in its own thread, as the server puts it."""

    def __init__(self, tokens: ModuleType, clip: Any, concept: Concept, text: str = TEXT) -> None:
        super().__init__()
        self.answer: Any = None
        self.encoders = tokens.Encoders()
        self.encoders.remember("1", clip)
        self._ask = lambda: self.encoders.similarities("1", [concept], text)

    def run(self) -> None:
        try:
            self.answer = self._ask()
        except BaseException as error:
            self.answer = error


def test_a_graph_does_not_wait_for_a_slow_text_encoder(
    tokens: ModuleType, gates: ModuleType, queue: PromptQueue, teddy: Any
) -> None:
    clip = tiny_clip()
    slow = Slow(clip, 0.5)
    asked = Asked(tokens, clip, teddy)
    asked.start()
    assert slow.begun.wait(60)
    begun = time.perf_counter()
    queue.put((0, "a graph"))
    _, number = queue.get()
    assert time.perf_counter() - begun < AT_ONCE
    asked.join(60)
    # Given up at the next layer, although the graph still runs.
    assert isinstance(asked.answer, gates.Busy)
    assert slow.passes <= 2
    queue.task_done(number, {}, None)


def test_an_answer_is_thrown_away_when_a_graph_has_run_meanwhile(
    tokens: ModuleType, gates: ModuleType, queue: PromptQueue, teddy: Any
) -> None:
    """What it did to the weights is not known: it may have put a LoRA on them."""
    clip = tiny_clip()
    slow = Slow(clip, 0.2)
    asked = Asked(tokens, clip, teddy)
    asked.start()
    assert slow.begun.wait(60)
    queue.put((0, "a graph"))
    _, number = queue.get()
    queue.task_done(number, {}, None)
    asked.join(60)
    assert isinstance(asked.answer, gates.Busy)


@pytest.mark.parametrize("running", [False, True])
def test_nothing_is_asked_of_an_encoder_while_a_graph_waits_or_runs(
    tokens: ModuleType, gates: ModuleType, queue: PromptQueue, teddy: Any, running: bool
) -> None:
    clip = tiny_clip()
    slow = Slow(clip, 0)
    queue.put((0, "a graph"))
    if running:
        queue.get()
    asked = Asked(tokens, clip, teddy)
    asked.run()
    assert isinstance(asked.answer, gates.Busy)
    assert not slow.passes


def test_a_cancel_of_a_run_is_not_taken_by_a_plot(
    tokens: ModuleType, gates: ModuleType, queue: PromptQueue, teddy: Any
) -> None:
    clip = tiny_clip()
    linear = next(m for m in clip.cond_stage_model.modules() if isinstance(m, torch.nn.Linear))

    def start_and_cancel(*_: Any) -> None:
        queue.put((0, "a graph"))
        queue.get()
        comfy.model_management.interrupt_current_processing(True)

    linear.register_forward_pre_hook(start_and_cancel)
    asked = Asked(tokens, clip, teddy)
    asked.run()
    assert isinstance(asked.answer, gates.Busy)
    assert comfy.model_management.processing_interrupted()


def test_a_plot_leaves_the_encoder_as_it_is(
    tokens: ModuleType, queue: PromptQueue, teddy: Any
) -> None:
    """No weight moves, nothing is loaded, and what ComfyUI has set on the modules stays set."""
    clip = tiny_clip()
    clip.cond_stage_model.set_clip_options({"layer": -1})
    before = _state(clip.cond_stage_model)
    loaded = list(comfy.model_management.current_loaded_models)
    asked = Asked(tokens, clip, teddy)
    asked.run()
    assert max(asked.answer.similarities[0]) > 0.5
    assert _state(clip.cond_stage_model) == before
    # Those of other tests may have gone meanwhile.
    assert all(one in loaded for one in comfy.model_management.current_loaded_models)


def _state(module: torch.nn.Module) -> list[Any]:
    return [
        (
            name,
            {k: repr(v) for k, v in vars(part).items() if k not in ("_parameters", "_buffers")},
            {
                k: (id(t), t.data_ptr(), t._version)
                for k, t in part._parameters.items()
                if t is not None
            },
        )
        for name, part in module.named_modules()
    ]


def patched(clip: Any, scale: float) -> Any:
    """The CLIP with a patch such as a LoRA's on all its projections."""
    clone = clip.clone()
    weights = dict(clip.cond_stage_model.named_parameters())
    names = [name for name in weights if name.endswith("proj.weight")]
    generator = torch.Generator().manual_seed(3)
    patches = {
        name: ("diff", (torch.randn(weights[name].shape, generator=generator),)) for name in names
    }
    assert clone.add_patches(patches, scale)
    return clone


@pytest.mark.parametrize("loaded", ["nothing", "the same", "without", "another"])
def test_what_is_shown_is_what_the_node_would_compute(
    tokens: ModuleType,
    gates: ModuleType,
    applying: Any,
    queue: PromptQueue,
    teddy: Any,
    loaded: str,
) -> None:
    """Whatever ComfyUI has loaded last, the LoRAs of the plot's own CLIP count, and no others."""
    plain = tiny_clip()
    lora, other = patched(plain, 0.05), patched(plain, -0.1)
    entries = [applying.recommended(teddy)]
    expected = gates.gates_of_prompt(lora, TEXT, entries).similarities
    stock = gates.gates_of_prompt(plain, TEXT, entries).similarities
    assert not torch.allclose(expected, stock, atol=1e-3)
    last = {"the same": lora, "without": plain, "another": other, "nothing": None}[loaded]
    if last is None:
        comfy.model_management.unload_all_models()
    else:
        comfy.model_management.load_models_gpu([last.patcher])
    for clip, wanted in ((lora, expected), (plain, stock)):
        asked = Asked(tokens, clip, teddy)
        asked.run()
        found = torch.tensor(asked.answer.similarities).T
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_clip_with_a_global_key_lock_is_not_run_itself(
    pack: ModuleType, tokens: ModuleType, gates: ModuleType, queue: PromptQueue, teddy: Any
) -> None:
    clip = tiny_clip()
    plain = tokens.Encoders()
    plain.remember("1", clip)
    expected = plain.similarities("1", [teddy], TEXT)
    settings = importlib.import_module(f"{pack.__name__}.perfusion_core.method.settings")
    locking = gates.add_concepts(clip, [teddy], [settings.KeyLock.GLOBAL])
    own = set(locking.cond_stage_model.modules())
    ran = []

    def note(module: Any, *_: Any) -> None:
        ran.append(module in own)

    for module in own:
        module.register_forward_pre_hook(note)
    encoders = tokens.Encoders()
    encoders.remember("1", locking)
    assert encoders.similarities("1", [teddy], TEXT) == expected
    assert ran
    assert not any(ran)
