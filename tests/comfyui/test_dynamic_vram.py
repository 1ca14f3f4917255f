"""Training where ComfyUI brings weights to the device page by page, its default on NVIDIA cards.

ComfyUI's own code over a stand-in for a GPU's memory (`aimdo.py`), each way in a process of its own
(`dynamic_vram.py`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aimdo
import comfy.model_management
import pytest
import torch
from dynamic_vram import CASES
from tiny_models import tiny_clip, tiny_model

from perfusion_core.comfy.backbone import training_backbone
from perfusion_core.comfy.weights import trainable_weights
from perfusion_core.method.batches import TrainingError

RUNNER = Path(__file__).with_name("dynamic_vram.py")
WAYS = ("fits", "short")

# A LoRA in a file of another dtype than the model: under dynamic VRAM ComfyUI adds it to the file's
# numbers, else to the model's. That is one rounding to fp16.
ROUNDED = "fp32 file with a LoRA"


@pytest.fixture(scope="module")
def reports() -> dict[str, dict[str, Any]]:
    """What training gave with dynamic VRAM and without it: where weights fit, and where not."""
    if aimdo.lacking():
        pytest.skip(aimdo.lacking())
    runs = {
        way: subprocess.Popen(
            [sys.executable, RUNNER, way],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for way in WAYS
    }
    found = {}
    for way, run in runs.items():
        output, errors = run.communicate()
        assert run.returncode == 0, errors[-3000:]
        found[way] = json.loads(output.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", WAYS)
def test_training_gives_what_it_gives_without_dynamic_vram(
    reports: dict[str, dict[str, Any]], way: str, case: str
) -> None:
    report = reports[way]["cases"][case]
    assert "failed" not in report, report["failed"]
    assert report["is dynamic"]
    learned, expected = report["dynamic"]["learned"], report["static"]["learned"]
    if case == ROUNDED:
        assert learned == pytest.approx(expected, rel=1e-3)
        assert learned != expected  # or it belongs to the others
    else:
        assert learned == expected


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", WAYS)
def test_training_under_dynamic_vram_leaves_nothing_behind(
    reports: dict[str, dict[str, Any]], way: str, case: str
) -> None:
    report = reports[way]["cases"][case]
    assert report["unchanged"]
    assert report["again"]
    assert report["dynamic"]["left"] == []
    # Every picture is that of the others: before training, after it, and after it once more.
    assert len(set(report["dynamic"]["sampled"])) == 1


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_sampling_with_a_concept_is_the_same_under_dynamic_vram(
    reports: dict[str, dict[str, Any]], way: str
) -> None:
    assert all(reports[way]["sampling"].values()), reports[way]["sampling"]


@pytest.mark.slow
def test_weights_as_comfyui_holds_them_would_teach_something_else(
    reports: dict[str, dict[str, Any]],
) -> None:
    """That the stand-in shows the fault: without `trainable_weights` the gradients are wrong."""
    untreated = reports["short"]["untreated"]
    assert untreated["losses"][0] == reports["short"]["cases"]["all in fp32"]["static"]["losses"][0]
    assert untreated["learned"] != reports["short"]["cases"]["all in fp32"]["static"]["learned"]


def test_weights_that_are_not_on_the_device_are_brought_there_while_training() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    with trainable_weights(SimpleNamespace(model=model, load_device="meta")):
        now = dict(model.named_parameters()) | dict(model.named_buffers())
        assert {tensor.device.type for tensor in now.values()} == {"meta"}
    now = dict(model.named_parameters()) | dict(model.named_buffers())
    assert all(now[name] is tensor for name, tensor in own.items())


@pytest.mark.parametrize("where", ["load_models_gpu", "trainable_weights"])
def test_weights_that_do_not_fit_are_said_to_be_the_cause(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: out of memory")

    model, clip = tiny_model(), tiny_clip(length=32)
    before = dict(model.model.named_parameters())
    if where == "load_models_gpu":
        monkeypatch.setattr(comfy.model_management, where, full)
    else:
        monkeypatch.setattr("perfusion_core.comfy.weights._make_ordinary", full)
    with (
        pytest.raises(TrainingError, match=r"weights of the model .* do not fit .* smaller"),
        training_backbone(model, clip, (1, 4, 8, 8)),
    ):
        pass
    after = dict(model.model.named_parameters())
    assert all(after[name] is tensor for name, tensor in before.items())
