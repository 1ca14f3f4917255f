"""The example graphs, run through a live server from end to end with few steps."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tools.client import ComfyClient, GraphRejected, Result
from tools.layout import Layout, Point, Wire, boxes, crossings
from tools.server import RunningServer
from tools.workflows import (
    API_GRAPHS,
    UI_GRAPHS,
    Graph,
    heights,
    load_api,
    load_note,
    to_api,
    to_ui,
    wires,
)

PICTURES = Path(__file__).parents[2] / "demo" / "concepts"
NAMES = sorted(path.stem for path in API_GRAPHS.glob("*.json"))
# One sampler, on the built-in model, with concepts of files.
SAMPLING = ("compose_two", "tune_bias", "use_concept")
REAL = {"sd15_train_and_use": 512, "sdxl_train_and_use": 1024}
# Of transformers, whose parts are loaded apart.
IN_PARTS = ("anima_train_and_use", "anima_two_characters", "wan_train", "wan_video")
PARTS = {
    "UNETLoader": ("unet_name", "diffusion_models"),
    "CLIPLoader": ("clip_name", "text_encoders"),
    "VAELoader": ("vae_name", "vae"),
}


def inputs(graph: Graph, kind: str, number: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = [n for n in graph.values() if n["class_type"] == kind][number]["inputs"]
    return found


def pixels(client: ComfyClient, graph: Graph) -> np.ndarray:
    """The graph's pictures [N, h, w, 3], sampled with few steps."""
    return pictures(client, client.run(short(graph)))


def short(graph: Graph) -> Graph:
    inputs(graph, "KSampler")["steps"] = 3
    inputs(graph, "EmptyLatentImage")["batch_size"] = 2
    return graph


def pictures(client: ComfyClient, result: Result) -> np.ndarray:
    files = [Image.open(io.BytesIO(client.view(image))) for image in result.images()]
    return np.stack([np.asarray(f.convert("RGB")) for f in files])


def trained(client: ComfyClient, concept: str, word: str, steps: int = 4, **changes: Any) -> Graph:
    graph = load_api("train_concept")
    for number, path in enumerate(sorted((PICTURES / concept).glob("*.png"))):
        inputs(graph, "LoadImage", number)["image"] = client.upload_image(path)
    training = inputs(graph, "PerfusionTrainConcept")
    training.update(placeholder=f"{word}*", superclass=word, steps=steps, batch_size=2, **changes)
    inputs(graph, "PerfusionSaveConcept")["name"] = concept
    return graph


@pytest.fixture(scope="module")
def concepts(server: RunningServer) -> ComfyClient:
    """Two concepts, trained for a few steps through the server and saved; then its client."""
    for concept, word in (("berry", "teddy"), ("royal", "teapot")):
        server.client.run(trained(server.client, concept, word))
    return server.client


def stock(graph: Graph) -> Graph:
    """The same graph without our nodes: the sampler and the prompts on the bare model."""
    bare = {k: v for k, v in graph.items() if not v["class_type"].startswith("Perfusion")}
    demo = next(k for k, v in graph.items() if v["class_type"] == "PerfusionDemoModel")
    bare[demo] = graph[demo]
    slots = {"model": 0, "clip": 1}
    for node in bare.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] not in bare:
                node["inputs"][name] = [demo, slots[name]]
    return bare


def test_a_concept_that_was_just_saved_is_in_the_loaders_list(concepts: ComfyClient) -> None:
    info = concepts.object_info("PerfusionConceptLoader")
    if "PerfusionConceptLoader" in info:
        info = info["PerfusionConceptLoader"]
    kind, *rest = info["input"]["required"]["file"]
    names = kind if isinstance(kind, list) else rest[0]["options"]
    assert {"berry.safetensors", "royal.safetensors"} <= set(names)


@pytest.mark.parametrize("name", SAMPLING)
def test_the_graph_runs_and_its_concepts_change_the_picture(
    concepts: ComfyClient, name: str
) -> None:
    edited = pixels(concepts, load_api(name))
    assert edited.shape == (2, 128, 128, 3)
    assert edited.std() > 5, "a grey square"
    assert (edited != pixels(concepts, stock(load_api(name)))).any()


@pytest.mark.parametrize("name", SAMPLING)
def test_strength_0_is_the_stock_image_bit_for_bit(concepts: ComfyClient, name: str) -> None:
    graph = load_api(name)
    # The prompt without a placeholder, since the stock text encoder does not know one.
    inputs(graph, "CLIPTextEncode")["text"] = "a photo of a teddy on a green background"
    for node in graph.values():
        if "strength" in node["inputs"]:
            node["inputs"]["strength"] = 0.0
    assert (pixels(concepts, graph) == pixels(concepts, stock(graph))).all()


def test_two_chained_loaders_equal_one_combined_stack(concepts: ComfyClient) -> None:
    chained = load_api("compose_two")
    combined = load_api("compose_two")
    first, second = (k for k, v in combined.items() if v["class_type"] == "PerfusionConceptLoader")
    demo = next(k for k, v in combined.items() if v["class_type"] == "PerfusionDemoModel")
    for key in (first, second):
        del combined[key]["inputs"]["model"], combined[key]["inputs"]["clip"]
    combined["90"] = {
        "class_type": "PerfusionCombineConcepts",
        "inputs": {"concept_1": [first, 2], "concept_2": [second, 2]},
    }
    combined["91"] = {
        "class_type": "PerfusionApplyConcepts",
        "inputs": {"model": [demo, 0], "clip": [demo, 1], "stack": ["90", 0]},
    }
    for key, node in combined.items():
        if key not in ("90", "91"):
            for name, value in node["inputs"].items():
                if isinstance(value, list) and value[0] == second:
                    node["inputs"][name] = ["91", value[1]]
    assert (pixels(concepts, chained) == pixels(concepts, combined)).all()


def test_a_tuned_model_samples_without_encoding_the_prompt_again(concepts: ComfyClient) -> None:
    graph = load_api("tune_bias")
    pixels(concepts, graph)
    graph = load_api("tune_bias")
    inputs(graph, "KSampler")["steps"] = 3
    inputs(graph, "EmptyLatentImage")["batch_size"] = 2
    inputs(graph, "PerfusionTune")["bias"] = 0.35
    result = concepts.run(graph)
    encoders = {k for k, v in graph.items() if v["class_type"] == "CLIPTextEncode"}
    assert encoders <= set(result.cached)


def test_prompts_queued_at_once_do_not_meet(concepts: ComfyClient) -> None:
    def graph(bias: float, lock: str) -> Graph:
        made = short(load_api("tune_bias"))
        inputs(made, "PerfusionConceptLoader")["key_lock"] = lock
        inputs(made, "PerfusionTune")["bias"] = bias
        # Not from the cache, whatever has run before.
        inputs(made, "KSampler")["seed"] = 4711
        return made

    kinds = [(0.1, "local"), (0.9, "local"), (0.1, "global")]
    queued = [concepts.queue(graph(*kind)) for kind in kinds]
    together = [pictures(concepts, concepts.wait(prompt)) for prompt in queued]
    for kind, found in zip(kinds, together, strict=True):
        concepts.free()
        fresh = graph(*kind)
        inputs(fresh, "SaveImage")["filename_prefix"] = f"alone_{kind[0]}_{kind[1]}"
        assert (pictures(concepts, concepts.run(fresh)) == found).all()
    assert (together[0] != together[1]).any()
    assert (together[0] != together[2]).any()


def test_a_missing_file_is_refused_by_name(concepts: ComfyClient) -> None:
    graph = load_api("use_concept")
    inputs(graph, "PerfusionConceptLoader")["file"] = "nobody.safetensors"
    with pytest.raises(GraphRejected, match="nobody"):
        concepts.queue(graph)


def quick(graph: Graph, client: ComfyClient) -> Graph:
    """The same graph in seconds: few steps, small, and the built-in model for checkpoints."""
    graph = on_one_model(graph)
    picture = client.upload_image(next((PICTURES / "berry").glob("*.png")))
    changes = {"steps": 2, "batch_size": 1, "resolution": 64, "width": 64, "height": 64}
    changes |= {"biases": "0.4, 0.8", "temperatures": "0.15", "image": picture}
    for node in graph.values():
        if node["class_type"] == "CheckpointLoaderSimple":
            node |= {"class_type": "PerfusionDemoModel", "inputs": {}}
        for name, value in node["inputs"].items():
            if name in changes and not isinstance(value, list):
                node["inputs"][name] = changes[name]
    return graph


def on_one_model(graph: Graph) -> Graph:
    """The same with the built-in model, files and pictures for what a model in parts has."""
    loaders = {
        node["class_type"]: key for key, node in graph.items() if node["class_type"] in PARTS
    }
    if not loaders:
        return graph
    model = loaders["UNETLoader"]
    slots = {loaders[kind]: slot for slot, kind in enumerate(PARTS)}
    known = iter(("berry.safetensors", "royal.safetensors"))
    for node in graph.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] in slots:
                node["inputs"][name] = [model, slots[value[0]]]
        if node["class_type"] == "PerfusionConceptLoader":
            node["inputs"]["file"] = next(known)
        if node["class_type"] == "EmptyHunyuanLatentVideo":
            node["class_type"] = "EmptyLatentImage"
            del node["inputs"]["length"]
    demo = {"class_type": "PerfusionDemoModel", "inputs": {}}
    others = {key: node for key, node in graph.items() if key not in slots}
    return {model: demo, **others}


@pytest.mark.parametrize("name", NAMES)
def test_every_graph_runs_to_its_end(concepts: ComfyClient, name: str) -> None:
    graph = quick(load_api(name), concepts)
    # Not under the names that other tests load.
    for node in graph.values():
        if node["class_type"] == "PerfusionSaveConcept":
            node["inputs"]["name"] = f"quick/{name}"
    outputs = concepts.run(graph).outputs
    info = concepts.object_info()
    expected = {key for key, node in graph.items() if info[node["class_type"]]["output_node"]}
    assert expected
    assert expected <= set(outputs)


@pytest.mark.parametrize(("name", "side"), REAL.items())
def test_graphs_for_real_models_have_the_published_settings(name: str, side: int) -> None:
    graph = load_api(name)
    training = inputs(graph, "PerfusionTrainConcept")
    published = {
        "embedding_rate": 0.006,
        "value_rate": 0.03,
        "train_bias": 0.75,
        "train_temperature": 0.1,
        "ema": 0.99,
    }
    assert training.items() >= published.items()
    assert training["resolution"] == side
    tuning = inputs(graph, "PerfusionTune")
    assert 0.6 <= tuning["bias"] <= 0.75
    assert tuning["temperature"] == 0.15
    assert inputs(graph, "EmptyLatentImage")["width"] == side


@pytest.mark.parametrize("name", NAMES)
def test_the_workflow_people_open_is_the_graph_that_is_tested(
    client: ComfyClient, name: str
) -> None:
    object_info = client.object_info()
    saved = json.loads((UI_GRAPHS / f"{name}.json").read_text(encoding="utf-8"))
    tested = load_api(name)
    found = to_api(saved, object_info)
    assert set(found) == set(tested)
    for key, node in tested.items():
        assert found[key]["class_type"] == node["class_type"]
        # The UI writes every widget's value; those that the API graph leaves out are defaults.
        assert found[key]["inputs"].items() >= node["inputs"].items()
    assert to_api(to_ui(tested, object_info), object_info) == found
    (note,) = (node for node in saved["nodes"] if node["type"] == "MarkdownNote")
    assert note["widgets_values"] == [load_note(name)]
    assert "seed 1" in load_note(name).lower()
    assert "**Expected:**" in load_note(name)
    title, *lines = [line for line in load_note(name).splitlines() if line]
    assert title.startswith("# ")
    assert 3 <= len(lines) <= 5, "a note of five lines"


@pytest.mark.parametrize("name", NAMES)
def test_no_wire_of_a_workflow_crosses_another_ones_node(client: ComfyClient, name: str) -> None:
    """Of the file that people open: read from it, whatever made it."""
    object_info = client.object_info()
    saved = json.loads((UI_GRAPHS / f"{name}.json").read_text(encoding="utf-8"))
    graph = load_api(name)
    places = {str(node["id"]): tuple(node["pos"]) for node in saved["nodes"]}
    high, drawn = heights(graph, object_info), wires(graph, object_info)
    layout = Layout({key: places[key] for key in graph}, _routes(saved), [])
    assert not crossings(layout, drawn, high)
    found = list(boxes(layout, high).items())
    for n, (key, box) in enumerate(found):
        for other, its in found[n + 1 :]:
            apart = box.right < its.left or its.right < box.left
            assert apart or box.bottom < its.top or its.bottom < box.top, f"{key} lies on {other}"
    assert len(saved["groups"]) >= 2
    lefts = [group["bounding"][0] for group in saved["groups"]]
    assert lefts == sorted(lefts)


def _routes(saved: dict[str, Any]) -> dict[Wire, tuple[Point, ...]]:
    """The points that wires are led by, from the reroutes of a saved workflow."""
    reroutes = {one["id"]: one for one in saved["extra"].get("reroutes", [])}
    links = {link[0]: link for link in saved["links"]}
    found = {}
    for extension in saved["extra"].get("linkExtensions", []):
        points, at = [], extension["parentId"]
        while at is not None:
            points.insert(0, tuple(reroutes[at]["pos"]))
            assert extension["id"] in reroutes[at]["linkIds"]
            at = reroutes[at].get("parentId")
        _, source, output, target, slot, _ = links[extension["id"]]
        found[Wire(str(source), output, str(target), slot)] = tuple(points)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_no_node_of_a_graph_is_marked_as_deprecated(client: ComfyClient, name: str) -> None:
    object_info = client.object_info()
    for node in load_api(name).values():
        info = object_info[node["class_type"]]
        assert not info.get("deprecated"), node["class_type"]
        assert "deprecated" not in (info["display_name"] or "").lower(), node["class_type"]


@pytest.mark.parametrize("name", REAL)
def test_a_graph_names_the_model_that_it_needs_and_where_it_goes(name: str) -> None:
    saved = json.loads((UI_GRAPHS / f"{name}.json").read_text(encoding="utf-8"))
    (loader,) = (node for node in saved["nodes"] if node["type"] == "CheckpointLoaderSimple")
    (model,) = loader["properties"]["models"]
    assert model["name"] == inputs(load_api(name), "CheckpointLoaderSimple")["ckpt_name"]
    assert model["directory"] == "checkpoints"
    assert model["url"].startswith("https://")
    assert model["name"] in model["url"]


@pytest.mark.parametrize("name", IN_PARTS)
def test_a_graph_of_a_transformer_names_its_parts_and_the_settings_origin(name: str) -> None:
    saved = json.loads((UI_GRAPHS / f"{name}.json").read_text(encoding="utf-8"))
    for kind, (field, folder) in PARTS.items():
        (loader,) = (node for node in saved["nodes"] if node["type"] == kind)
        (model,) = loader["properties"]["models"]
        assert model["name"] == inputs(load_api(name), kind)[field]
        assert model["directory"] == folder
        assert model["url"].startswith("https://huggingface.co/")
        assert f"/{model['name']}" in model["url"]
    note = load_note(name)
    assert "**Published:**" in note
    assert "**Guesses:**" in note or "**Measured in a small world**" in note


def test_the_template_browser_has_every_graph_with_its_picture(client: ComfyClient) -> None:
    assert set(NAMES) == {path.stem for path in UI_GRAPHS.glob("*.json")}
    listed = client._get("/workflow_templates")
    (pack,) = (name for name, found in listed.items() if "quick_start" in found)
    assert set(listed[pack]) == set(NAMES)
    for name in NAMES:
        picture = client._request(f"/api/workflow_templates/{pack}/{name}.jpg")
        assert min(Image.open(io.BytesIO(picture)).size) > 100
