"""From a slider to the sampler's first step, in a live server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.model_patcher
from true_models import META, random_concept

from demo.model import UNET_CONFIG, EmojiWorld
from perfusion_core.comfy.models import detect_family, layers_of
from perfusion_core.concept.concept_file import save_concept
from tools.client import ComfyClient
from tools.locate import ComfyInstall
from tools.server import running_server

from .measure import Result, in_turn

Graph = dict[str, dict[str, Any]]
CONCEPT = "bench.safetensors"


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def graph(moved: dict[str, Any]) -> Graph:
    """The demo's model, a concept, the node that is moved, and a sampler."""
    sliders = {"bias": 0.6, "temperature": 0.15, "strength": 1.0}
    return {
        "demo": node("PerfusionDemoModel"),
        "load": node(
            "PerfusionConceptLoader", file=CONCEPT, model=["demo", 0], clip=["demo", 1], **sliders
        ),
        "moved": moved,
        "text": node("CLIPTextEncode", clip=["load", 1], text="a photo of a teddy* in the snow"),
        "none": node("CLIPTextEncode", clip=["load", 1], text=""),
        "empty": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "sampler": node(
            "KSampler",
            model=["moved", 0],
            positive=["text", 0],
            negative=["none", 0],
            latent_image=["empty", 0],
            seed=1,
            steps=2,
            cfg=3.0,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
        ),
        "save": node("SaveLatent", samples=["sampler", 0], filename_prefix="bench"),
    }


class Slider:
    """Moves a value to where it never was, and waits for the first step."""

    def __init__(self, client: ComfyClient, kind: str, name: str, **inputs: Any) -> None:
        self.client = client
        self.kind, self.name, self.inputs = kind, name, inputs
        self.moves = 0

    def move(self) -> list[float]:
        self.moves += 1
        value = 0.4 + 0.001 * self.moves
        inputs = {**self.inputs, self.name: value}
        found: list[float] = []

        def note(event: dict[str, Any]) -> None:
            if event["type"] == "progress" and not found:
                found.append(time.perf_counter())

        moved = graph(node(self.kind, model=["load", 0], **inputs))
        begin = time.perf_counter()
        result = self.client.run(moved, on_event=note)
        if self.moves > 1 and "text" not in result.cached:
            raise RuntimeError("a prompt was encoded again")
        return [found[0] - begin]


def measure(comfyui: ComfyInstall, base: Path, runs: int) -> Iterator[Result]:
    """PerfusionTune's bias against the multiplier of ComfyUI's RescaleCFG, at the same place."""
    put_concept(base / "models" / "perfusion" / CONCEPT)
    with running_server(comfyui, base) as running:
        tune = Slider(running.client, "PerfusionTune", "bias", temperature=0.15, strength=1.0)
        stock = Slider(running.client, "RescaleCFG", "multiplier")
        found = in_turn({"tune": tune.move, "stock": stock.move}, runs, warmups=3)
    yield Result(
        "slider_to_first_step",
        "from queueing the graph to the end of the sampler's first step (demo model)",
        1000 * found["tune"],
        1000 * found["stock"],
        "RescaleCFG in PerfusionTune's place",
        runs=runs,
    )


def put_concept(path: Path) -> None:
    """A concept of random numbers for the demo's model."""
    base = EmojiWorld(UNET_CONFIG).get_model({}, "", device=META)
    model = comfy.model_patcher.ModelPatcher(base, META, META)
    family = detect_family(model)
    outs = {path: layer.out for path, layer in layers_of(model, family).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_concept(random_concept(family, outs), path)
