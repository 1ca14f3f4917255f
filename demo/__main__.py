"""`make demo`: the whole job in a real ComfyUI, through its HTTP API.

Trains two concepts from their pictures, saves them, loads each and samples, chains both loaders and
samples both in one picture, sweeps the bias. Leaves the pictures, a contact sheet, a strip for the
README and report.json in demo/output/.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from lab.contact_sheet import Row, contact_sheet
from lab.judge import Judge, Verdict, load_judge
from lab.prompts import (
    Prompt,
    concept_prompts,
    identity,
    pair_prompts,
    text_alignment,
)
from lab.world.vocabulary import CONCEPTS, Individual
from tools.client import ComfyClient
from tools.ready import ready_comfyui
from tools.server import running_server
from tools.workflows import Graph, load_api

from .examples import FOLDER as PICTURES

OUTPUT = Path(__file__).with_name("output")
LEARNED = (CONCEPTS["berry"], CONCEPTS["royal"])
BIASES = (0.2, 0.4, 0.6, 0.8, 1.0)
SAMPLES = 4  # pictures a prompt; eight prompts make 32
QUALITY = 80  # of the contact sheet
# Which prompts of a row of the sheet the strip shows: beside a thing, in or on one.
STRIP = (2, 7)


def node_of(graph: Graph, kind: str, number: int = 0) -> dict:
    """The inputs of the `number`th node of a class, to be changed in place."""
    return [n for n in graph.values() if n["class_type"] == kind][number]["inputs"]


def placeholder(concept: Individual) -> str:
    return f"{concept.object}*"


class Demo:
    """One run of the demo against a live server."""

    def __init__(self, client: ComfyClient, models: Path, judge: Judge) -> None:
        self.client = client
        self.models = models
        self.judge = judge
        self.seconds: dict[str, float] = {}
        self.rows: list[Row] = []

    def train(self, concept: Individual) -> dict:
        """Learn a concept from its pictures and save it."""
        paths = sorted((PICTURES / concept.name).glob("*.png"))
        graph = load_api("train_concept")
        for number, path in enumerate(paths):
            node_of(graph, "LoadImage", number)["image"] = self.client.upload_image(path)
        node_of(graph, "PerfusionTrainConcept").update(
            placeholder=placeholder(concept), superclass=concept.object
        )
        node_of(graph, "PerfusionSaveConcept")["name"] = concept.name
        result = self.client.run(graph)
        self.seconds[f"train {concept.name}"] = round(result.seconds, 1)
        self.rows.append(Row(f"learn {placeholder(concept)} from", [Image.open(p) for p in paths]))
        size = (self.models / "perfusion" / f"{concept.name}.safetensors").stat().st_size
        return {
            "token": placeholder(concept),
            "superclass": concept.object,
            "file_bytes": size,
            "train_seconds": self.seconds[f"train {concept.name}"],
        }

    def sample(self, stage: str, graph: Graph, asked: Sequence[Prompt]) -> list[Image.Image]:
        """`SAMPLES` pictures of each prompt, in order."""
        start = time.monotonic()
        pictures: list[Image.Image] = []
        for number, prompt in enumerate(asked):
            node_of(graph, "CLIPTextEncode")["text"] = prompt.text
            node_of(graph, "EmptyLatentImage")["batch_size"] = SAMPLES
            node_of(graph, "KSampler")["seed"] = 1000 + number
            node_of(graph, "SaveImage")["filename_prefix"] = f"{stage}_{number}"
            result = self.client.run(graph)
            for image in result.images():
                picture = Image.open(io.BytesIO(self.client.view(image)))
                picture.load()
                pictures.append(picture)
        self.seconds[stage] = round(time.monotonic() - start, 1)
        folder = OUTPUT / stage.replace(" ", "_")
        folder.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(pictures):
            prompt = asked[number // SAMPLES]
            name = "".join(c if c.isalnum() else "_" for c in prompt.text)
            picture.save(folder / f"{name}_{number % SAMPLES}.png")
        return pictures

    def verdicts(self, pictures: list[Image.Image]) -> list[Verdict]:
        return self.judge.look_at(pictures)

    def show(self, title: str, pictures: list[Image.Image], asked: Sequence[Prompt]) -> None:
        """The first picture of every prompt on the contact sheet: chosen by place, not by look."""
        captions = [q.text for q in asked]
        self.rows.append(Row(title, pictures[::SAMPLES], captions))

    def use(self, concept: Individual) -> dict:
        """Load a concept and sample it beside things that no training picture has."""
        asked = concept_prompts(placeholder(concept), concept.object)
        graph = load_api("use_concept")
        node_of(graph, "PerfusionConceptLoader")["file"] = f"{concept.name}.safetensors"
        pictures = self.sample(f"use {concept.name}", graph, asked)
        self.show(f"use {placeholder(concept)}", pictures, asked)
        seen = self.verdicts(pictures)
        return {
            "identity": round(identity(seen, concept), 3),
            "text_alignment": round(text_alignment(seen, repeated(asked)), 3),
            "samples": len(pictures),
        }

    def compose(self, first: Individual, second: Individual) -> dict:
        """Chain two loaders and sample both concepts in one picture."""
        asked = pair_prompts(placeholder(first), first.object, placeholder(second), second.object)
        graph = load_api("compose_two")
        for number, concept in enumerate((first, second)):
            node_of(graph, "PerfusionConceptLoader", number)["file"] = f"{concept.name}.safetensors"
        pictures = self.sample("compose", graph, asked)
        self.show(f"{placeholder(first)} and {placeholder(second)}", pictures, asked)
        seen = self.verdicts(pictures)
        return {
            "both_identities": round(identity(seen, first, second), 3),
            "text_alignment": round(text_alignment(seen, repeated(asked)), 3),
            "samples": len(pictures),
        }

    def sweep(self, concept: Individual) -> list[dict]:
        """The same prompts and seeds at several biases, through Perfusion Tune."""
        asked = concept_prompts(placeholder(concept), concept.object)
        points = []
        for bias in BIASES:
            graph = load_api("tune_bias")
            node_of(graph, "PerfusionConceptLoader")["file"] = f"{concept.name}.safetensors"
            node_of(graph, "PerfusionTune")["bias"] = bias
            pictures = self.sample(f"sweep bias {bias}", graph, asked)
            self.show(f"bias {bias}", pictures, asked)
            seen = self.verdicts(pictures)
            points.append(
                {
                    "bias": bias,
                    "identity": round(identity(seen, concept), 3),
                    "text_alignment": round(text_alignment(seen, repeated(asked)), 3),
                }
            )
        return points


def strip(rows: Sequence[Row]) -> Image.Image:
    """What the demo does, in one line: the first picture that each concept is learned from, and
    pictures of the two apart and together. Chosen by place, as those of the sheet."""
    learned, used = rows[: len(LEARNED)], rows[len(LEARNED) : 2 * len(LEARNED) + 1]
    pictures = [row.pictures[0] for row in learned]
    captions = [row.title for row in learned]
    for row in used:
        pictures += [row.pictures[n] for n in STRIP]
        captions += [row.captions[n] for n in STRIP]
    return contact_sheet([Row("", pictures, captions)])


def repeated(asked: Sequence[Prompt]) -> list[Prompt]:
    return [q for q in asked for _ in range(SAMPLES)]


def clear(folder: Path) -> None:
    """Make room for a run's results."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.parse_args()
    begun = time.monotonic()
    with ThreadPoolExecutor(1) as side:
        judge = side.submit(load_judge)  # loads torch while the server starts
        clear(OUTPUT)
        with running_server(ready_comfyui()) as server:
            demo = Demo(server.client, server.models, judge.result())
            demo.seconds["start"] = round(time.monotonic() - begun, 1)
            report = {"comfyui": server.client.version(), "concepts": []}
            for concept in LEARNED:
                print(f"training {placeholder(concept)} ...", flush=True)
                report["concepts"].append(demo.train(concept))
            for concept, entry in zip(LEARNED, report["concepts"], strict=True):
                print(f"sampling {placeholder(concept)} ...", flush=True)
                entry.update(demo.use(concept))
            print("sampling both in one picture ...", flush=True)
            report["composition"] = demo.compose(*LEARNED)
            print("sweeping the bias ...", flush=True)
            report["bias_sweep"] = demo.sweep(LEARNED[0])
    report["seconds"] = {**demo.seconds, "total": round(time.monotonic() - begun, 1)}
    contact_sheet(demo.rows).save(OUTPUT / "contact_sheet.webp", quality=QUALITY)
    strip(demo.rows).save(OUTPUT / "strip.webp", quality=QUALITY)
    (OUTPUT / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for entry in report["concepts"]:
        print("{token}: identity {identity}, text alignment {text_alignment}, {file_bytes} bytes, "
              "trained in {train_seconds} s".format(**entry))  # fmt: skip
    print("both in one picture: {both_identities}".format(**report["composition"]))
    for point in report["bias_sweep"]:
        print("bias {bias}: identity {identity}, text alignment {text_alignment}".format(**point))
    print(f"{report['seconds']['total']} s; look at {OUTPUT / 'contact_sheet.webp'}")


if __name__ == "__main__":
    main()
