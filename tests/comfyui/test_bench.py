"""`make bench` runs and writes what it promises. Its figures are nobody's pass or fail."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from perfusion_pytorch_edit import is_installed
from tiny_models import tiny_clip, tiny_model

from perfusion_core.method.batches import PictureGroup

FIELDS = {"name", "what", "ratio", "against", "unit", "runs", "median", "median_against"}


def test_the_quick_bench_of_the_projections(repo: Path, tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    options = ["--quick", "--only", "projections", "--runs", "1", "--output", str(output)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", *options],
        cwd=repo,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text(encoding="utf-8"))
    names = ["kv_projections_1", "kv_projections_16"]
    if is_installed():
        names = [f"{side}{name}" for name in names for side in ("", "perfusion_pytorch_")]
    assert [result["name"] for result in results] == names
    for result in results:
        assert result.keys() == FIELDS
        assert result["against"] == "stock"
        assert result["unit"] == "ms"
        assert result["runs"] == 1
        assert result["median_against"] > 0
        expected = result["median"] / result["median_against"]
        assert math.isclose(result["ratio"], expected, rel_tol=1e-2)
        assert result["name"] in done.stdout
    assert "torch" in done.stdout.splitlines()[0]


@pytest.fixture
def training(repo: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The bench's module; by another name, for ComfyUI has a package `tests` as well."""
    folder = repo / "tests" / "benchmarks"
    spec = importlib.util.spec_from_file_location(
        "benchmarks", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    monkeypatch.setitem(sys.modules, "benchmarks", importlib.util.module_from_spec(spec))
    yield importlib.import_module("benchmarks.training")
    for name in [name for name in sys.modules if name.startswith("benchmarks.")]:
        del sys.modules[name]


@pytest.fixture
def setting(training: ModuleType) -> Any:
    with torch.inference_mode():
        model, clip = tiny_model(), tiny_clip(length=32)
    return training.Setting(model, clip, PictureGroup(torch.randn(4, 4, 8, 8)), 2)


def test_a_training_step_is_measured_against_the_floor_and_the_rivals(
    training: ModuleType, setting: Any
) -> None:
    results = [r.entry() for r in training.measure(lambda: setting, "_tiny", "small", runs=1)]
    against = ("floor", "textual_inversion", "lora", "lora_batch")
    assert [result["name"] for result in results] == [f"train_step_vs_{n}_tiny" for n in against]
    for result in results:
        assert result.keys() == FIELDS
        assert result["runs"] == training.STEPS - 1
        assert result["median"] > 0 < result["median_against"]


def test_all_that_is_compared_runs_the_same_network_on_as_many_pictures(
    training: ModuleType, setting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[tuple[Any, ...]] = []
    forward = UNetModel.forward

    def noted(network: Any, x: torch.Tensor, *args: Any, **named: Any) -> Any:
        context = named["context"]
        passes.append((tuple(x.shape), x.dtype, tuple(context.shape), torch.is_grad_enabled()))
        return forward(network, x, *args, **named)

    # Of every network: newer versions of ComfyUI train a LoRA on a copy.
    monkeypatch.setattr(UNetModel, "forward", noted)
    found = {}
    for name in ("ours", "floor", "textual_inversion"):
        passes.clear()
        assert len(training.spent(getattr(setting, name))) == training.STEPS - 1
        found[name] = list(passes)
    for batch in (1, 2):
        passes.clear()
        told = training.spent(lambda tell, batch=batch: setting.lora(tell, batch=batch))
        assert len(told) == training.STEPS - 1
        found[f"lora {batch}"] = list(passes)
    once = ((2, 4, 8, 8), torch.float32, (2, 32, 192), True)
    for name in ("ours", "floor", "textual_inversion"):
        assert found[name] == [once] * training.STEPS
    apart = ((1, 4, 8, 8), torch.float32, (1, 32, 192), True)
    assert found["lora 1"] == [apart] * 2 * training.STEPS
    assert found["lora 2"]  # all captions of a batch over every picture of it: as ComfyUI does it


def test_the_floor_is_a_whole_backward_to_the_keys_and_values_and_nothing_beyond(
    training: ModuleType, setting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaves: list[torch.Tensor] = []
    leaf = training._leaf

    def kept(*given: Any) -> torch.Tensor:
        leaves.append(leaf(*given))
        return leaves[-1]

    monkeypatch.setattr(training, "_leaf", kept)
    setting.floor(lambda: None)
    assert len(leaves) == training.STEPS * 2 * 7  # layers of the small model
    assert all(one.is_leaf and one.grad is not None for one in leaves)
    network = setting.model.model.diffusion_model
    assert not any(module._forward_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())
