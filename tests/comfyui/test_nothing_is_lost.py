"""What training has learned survives whatever fails beside it, after it, and a Cancel that keeps.

`PERFUSION_CANCELS=50 make test TESTS=tests/comfyui/test_nothing_is_lost.py` cancels that often on a
real server.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import pytest
import torch
from page import node, training, uploaded
from test_validation import train
from tiny_models import TinyVae, patched_modules, tiny_clip, tiny_model

from perfusion_core.concept.concept_file import load_concept
from tools.client import ComfyClient, GraphInterrupted
from tools.server import RunningServer

Interrupted = comfy.model_management.InterruptProcessingException
STEPS = 6


@pytest.fixture(scope="module")
def trainer(nodes: dict[str, Any]) -> Any:
    return nodes["PerfusionTrainConcept"]


@pytest.fixture
def model() -> Any:
    with torch.inference_mode():
        return tiny_model()


@pytest.fixture(scope="module")
def clip() -> Any:
    with torch.inference_mode():
        return tiny_clip(length=32)


@pytest.fixture(autouse=True)
def uncancelled() -> Iterator[None]:
    yield
    comfy.model_management.interrupt_current_processing(False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The concept folder."""
    path = tmp_path / "perfusion"
    kept = ([str(path)], {".safetensors"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "perfusion", kept)
    return path


@pytest.fixture
def few_steps(core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Painting in few steps."""
    monkeypatch.setattr(core("comfy.painter"), "STEPS", 2)


def learned(result: Any) -> tuple[int, str]:
    """How many steps the concept has behind it, and what the node says."""
    return result.args[0].concept.training["steps_done"], result.ui.as_dict()["text"][0]


def cancel_as_comfyui_does(monkeypatch: pytest.MonkeyPatch, at: Callable[[int], bool]) -> None:
    """A Cancel that comes when the bar is told of a step: its hook raises there and then."""

    def hook(value: int, *_: Any, **__: Any) -> None:
        if at(value):
            comfy.model_management.interrupt_current_processing(True)
        comfy.model_management.throw_exception_if_processing_interrupted()

    monkeypatch.setattr("comfy.utils.PROGRESS_BAR_HOOK", hook)
    for limit in ("PROGRESS_THROTTLE_MIN_INTERVAL", "PROGRESS_THROTTLE_MIN_PERCENT"):
        monkeypatch.setattr(f"comfy.utils.{limit}", 0, raising=False)


# --- Cancel


@pytest.mark.parametrize("step", [1, 3, STEPS])
def test_a_cancel_in_the_progress_bar_keeps_what_was_learned(
    step: int, trainer: Any, model: Any, clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel_as_comfyui_does(monkeypatch, lambda value: value == step)
    steps, said = learned(train(trainer, model, clip, steps=STEPS, on_cancel="keep"))
    assert steps == step
    assert ("then cancelled" in said) == (step < STEPS)
    assert patched_modules(model) == []


def test_a_cancel_in_the_progress_bar_may_discard(
    trainer: Any, model: Any, clip: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel_as_comfyui_does(monkeypatch, lambda value: value == 3)
    with pytest.raises(Interrupted):
        train(trainer, model, clip, steps=STEPS)
    assert not folder.exists()


@pytest.mark.parametrize("keep", [True, False])
def test_a_cancel_within_a_step(
    keep: bool, trainer: Any, model: Any, clip: Any, folder: Path, few_steps: None
) -> None:
    """Newer versions of ComfyUI raise it out of any layer."""
    cancel_within_pass(model, 4)
    given = {"steps": STEPS, "preview_every": 0, "on_cancel": "keep" if keep else "discard"}
    if keep:
        steps, said = learned(train(trainer, model, clip, **given))
        assert steps == 3
        assert "then cancelled" in said
    else:
        with pytest.raises(Interrupted):
            train(trainer, model, clip, **given)
    assert patched_modules(model) == []
    assert not folder.exists()


def cancel_within_pass(model: Any, number: int) -> None:
    fail_within_pass(model, number, Interrupted())


def fail_within_pass(model: Any, number: int, error: BaseException) -> None:
    """The model's pass of that number ends with an error."""
    passes: list[int] = []

    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
        passes.append(1)
        if len(passes) == number:
            raise error
        return executor(*args, **kwargs)

    kind = comfy.patcher_extension.WrappersMP.APPLY_MODEL
    model.add_wrapper_with_key(kind, "fails", wrapper)


# --- what goes on beside training


@pytest.mark.parametrize("where", ["full", "read-only", "gone"])
def test_a_copy_that_cannot_be_saved_does_not_end_training(
    where: str, trainer: Any, model: Any, clip: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "gone":
        folder.write_text("a file where the folder should be")
    else:

        def refuse(_: int) -> None:
            raise OSError({"full": 28, "read-only": 30}[where], "the system's words")

        monkeypatch.setattr(os, "fsync", refuse)
    steps, said = learned(train(trainer, model, clip, steps=STEPS, save_every=2))
    assert steps == STEPS
    expected = {"full": "disk is full", "read-only": "read-only", "gone": "is a file"}
    for step in (2, 4):
        assert f"the copy of step {step} was not saved" in said
    assert expected[where] in said


@pytest.mark.parametrize("error", [RuntimeError("shapes"), torch.OutOfMemoryError("no memory")])
def test_a_picture_that_fails_does_not_end_training(
    error: Exception, trainer: Any, model: Any, clip: Any, few_steps: None
) -> None:
    decoded: list[int] = []

    class Broken(TinyVae):
        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            decoded.append(1)
            raise error

    plain = train(trainer, model, clip, steps=STEPS, preview_every=0)
    result = train(trainer, model, clip, steps=STEPS, preview_every=2, vae=Broken())
    steps, said = learned(result)
    assert steps == STEPS
    assert result.args[0].concept.hash == plain.args[0].concept.hash
    assert f"no pictures from step 2 on, because one failed: {error}" in said
    assert len(decoded) == 1
    assert patched_modules(model) == []


# --- a step that fails


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (RuntimeError("the driver is gone"), "the driver is gone."),
        (torch.OutOfMemoryError("no memory"), "ran out of memory"),
        (RuntimeError("CUDA error: out of memory"), "ran out of memory"),
    ],
)
def test_what_was_learned_before_a_step_that_fails_is_saved(
    error: Exception, cause: str, trainer: Any, model: Any, clip: Any, folder: Path
) -> None:
    fail_within_pass(model, 5, error)
    with pytest.raises(ValueError, match=rf"{cause}.* 4 steps .*\"teddy_step4\.safetensors\""):
        train(trainer, model, clip, steps=STEPS, preview_every=0)
    saved = load_concept(folder / "teddy_step4.safetensors")
    assert saved.training["steps_done"] == 4
    assert patched_modules(model) == []


def test_an_error_of_the_first_step_stays_what_it_is(
    trainer: Any, model: Any, clip: Any, folder: Path
) -> None:
    fail_within_pass(model, 1, RuntimeError("shapes"))
    with pytest.raises(RuntimeError, match=r"^shapes$"):
        train(trainer, model, clip, steps=STEPS)
    assert not folder.exists()


def test_where_it_cannot_be_saved_either_both_causes_are_said(
    trainer: Any, model: Any, clip: Any, folder: Path
) -> None:
    folder.write_text("a file where the folder should be")
    fail_within_pass(model, 3, RuntimeError("the driver is gone"))
    with pytest.raises(ValueError, match=r"the driver is gone\. .*could not be saved: .*is a file"):
        train(trainer, model, clip, steps=STEPS, preview_every=0)


# --- what can be refused before the first step


@pytest.mark.parametrize(
    ("caption", "cause"),
    [
        ("a teddy* " + "and a thing " * 20, "is too long"),
        ("a photo of myteddy*s on a bed", "as a word of its own"),
    ],
)
def test_a_caption_that_would_come_up_late_is_refused_before_the_first_step(
    caption: str, cause: str, trainer: Any, model: Any, clip: Any, folder: Path
) -> None:
    fail_within_pass(model, 1, AssertionError("a step was made"))
    with pytest.raises(ValueError, match=cause):
        train(trainer, model, clip, captions=f"a photo of teddy*\n{caption}")


# --- on a real server


@pytest.mark.slow
def test_cancels_at_any_time_on_a_real_server_lose_nothing(
    server: RunningServer, client: ComfyClient
) -> None:
    pictures = uploaded(client)
    dice = random.Random(int(os.environ.get("PERFUSION_SEED", "0")))
    for number in range(int(os.environ.get("PERFUSION_CANCELS", "4"))):
        graph = training(
            pictures, f"kept/{number}", steps=300, seed=number, on_cancel="keep", preview_every=7
        )
        begun: list[float] = []
        result = client.run(graph, on_event=cancel(client, begun, 300, dice.uniform(0.0, 1.5)))
        assert begun
        (text,) = result.outputs["train"]["text"]
        assert "then cancelled" in text, text
        concept = load_concept(server.base / "models/perfusion/kept" / f"{number}.safetensors")
        assert 1 <= concept.training["steps_done"] < 300


def cancel(
    client: ComfyClient, begun: list[float], steps: int, wait: float
) -> Callable[[dict[str, Any]], None]:
    """Cancels some seconds after a training of so many steps has begun, and notes when that was."""

    def on_event(event: dict[str, Any]) -> None:
        of_training = event["type"] == "progress" and event["data"]["max"] == steps
        if of_training and not begun:
            begun.append(time.monotonic())
            time.sleep(wait)
            client.interrupt()

    return on_event


@pytest.mark.slow
def test_a_cancel_that_discards_still_stops_the_graph_on_a_real_server(
    server: RunningServer, client: ComfyClient
) -> None:
    graph = training(uploaded(client), "kept/discarded", steps=300)
    with pytest.raises(GraphInterrupted):
        client.run(graph, on_event=cancel(client, [], 300, 0.2))
    assert not (server.base / "models/perfusion/kept/discarded.safetensors").exists()
    client.run({"demo": node("PerfusionDemoModel"), **training(uploaded(client), "kept/after")})
