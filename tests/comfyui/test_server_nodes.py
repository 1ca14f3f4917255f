"""The nodes in graphs on the live server, with the model that comes with the pack."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import pytest
from page import PROMPT, Graph, loader, node, sampling, training, uploaded
from PIL import Image

from perfusion_core.concept.concept_file import load_concept
from tools.client import ComfyClient, GraphFailed, GraphInterrupted, GraphRejected
from tools.server import RunningServer
from tools.websocket import WebSocket

PREVIEW, TEXT, PREVIEW_OF_A_NODE = 1, 3, 4  # of ComfyUI's binary messages


@pytest.fixture(scope="module")
def pictures(server: RunningServer) -> list[str]:
    return uploaded(server.client)


def use(*loaders: Mapping[str, Any], prompt: str = PROMPT) -> Graph:
    """The demo model, a chain of loaders (named 1, 2 ...) and a sampled picture."""
    graph: Graph = {"demo": node("PerfusionDemoModel")}
    above = "demo"
    for number, inputs in enumerate(loaders, start=1):
        graph[str(number)] = loader(above=above, **inputs)
        above = str(number)
    return graph | sampling([above, 0], [above, 1], prompt)


def picture(client: ComfyClient, graph: Graph) -> bytes:
    (image,) = client.run(graph).images("image")
    data = client.view(image)
    assert data.startswith(b"\x89PNG")
    # The pixels alone: the text chunks beside them hold the graph.
    return b"".join(chunk for kind, chunk in chunks(data) if kind == b"IDAT")


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at < len(png):
        size = int.from_bytes(png[at : at + 4], "big")
        found.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


@pytest.fixture(scope="module")
def saved(server: RunningServer, pictures: list[str]) -> tuple[str, str]:
    """Two concepts, trained and saved through the server, with values that show at once."""
    names = []
    for name, placeholder, seed in (("one", "teddy*", 1), ("two", "pot*", 2)):
        graph = training(
            pictures, f"nodes/{name}", placeholder=placeholder, seed=seed, value_rate=1.0
        )
        server.client.run(graph)
        names.append(f"nodes/{name}.safetensors")
    return names[0], names[1]


def listed(client: ComfyClient) -> list[str]:
    info = client.object_info("PerfusionConceptLoader")["PerfusionConceptLoader"]
    options: list[str] = info["input"]["required"]["file"][1]["options"]
    return options


def test_a_trained_concept_is_in_the_list_and_changes_the_picture(
    client: ComfyClient, saved: tuple[str, str]
) -> None:
    assert set(saved) <= set(listed(client))
    stock = picture(client, use())
    assert picture(client, use({"file": saved[0]})) != stock
    assert picture(client, use()) == stock


def test_strength_0_is_the_stock_picture(client: ComfyClient, saved: tuple[str, str]) -> None:
    graph = use({"file": saved[0], "strength": 0.0})
    # The same prompt for both; without the concept's model its vectors alone are in the text.
    stock = graph | {"sampler": {**graph["sampler"], "inputs": {**graph["sampler"]["inputs"]}}}
    stock["sampler"]["inputs"]["model"] = ["demo", 0]
    assert picture(client, graph) == picture(client, stock)


def test_chained_loaders_equal_combined_concepts(
    client: ComfyClient, saved: tuple[str, str]
) -> None:
    prompt = "a teddy* next to a pot*"
    chained = use({"file": saved[0]}, {"file": saved[1]}, prompt=prompt)
    combined = {
        "demo": node("PerfusionDemoModel"),
        "one": loader(saved[0], "demo"),
        "two": loader(saved[1], "demo"),
        "both": node("PerfusionCombineConcepts", concept_1=["one", 2], concept_2=["two", 2]),
        "apply": node(
            "PerfusionApplyConcepts", model=["demo", 0], clip=["demo", 1], stack=["both", 0]
        ),
    } | sampling(["apply", 0], ["apply", 1], prompt)
    single = dict(combined)
    single["apply"] = node(
        "PerfusionApplyConcepts", model=["demo", 0], clip=["demo", 1], stack=["one", 2]
    )
    expected = picture(client, combined)
    assert picture(client, chained) == expected
    assert picture(client, single) != expected


def named_concepts(client: ComfyClient, image: Mapping[str, str]) -> Any:
    """What a saved picture's metadata say of concepts."""
    text = Image.open(io.BytesIO(client.view(image))).text
    assert "prompt" in text
    return json.loads(text.get("perfusion_concepts", "null"))


def test_a_saved_picture_names_the_concepts_that_made_it(
    server: RunningServer, client: ComfyClient, saved: tuple[str, str]
) -> None:
    graph = use({"file": saved[0]}, {"file": saved[1], "placeholder": "cup*"})
    expected = [
        {
            "node": str(number),
            "file": file,
            "placeholder": placeholder,
            "hash": load_concept(server.models / "perfusion" / file).hash,
        }
        for number, (file, placeholder) in enumerate(
            zip(saved, ("teddy*", "cup*"), strict=True), start=1
        )
    ]
    for seed in (11, 12):
        graph["sampler"]["inputs"]["seed"] = seed
        result = client.run(graph)
        (image,) = result.images("image")
        assert named_concepts(client, image) == expected
    assert {"1", "2"} <= result.cached  # the second time no loader ran
    (image,) = client.run(use()).images("image")
    assert named_concepts(client, image) is None


def test_a_picture_names_the_word_that_another_node_gave(
    server: RunningServer, client: ComfyClient, saved: tuple[str, str]
) -> None:
    """Also when the loader's result is cached: what is recorded is what was used."""
    graph = use({"file": saved[0]}, prompt="a cup*")
    graph["word"] = node("PrimitiveString", value="cup*")
    graph["1"]["inputs"]["placeholder"] = ["word", 0]
    expected = [
        {
            "node": "1",
            "file": saved[0],
            "placeholder": "cup*",
            "hash": load_concept(server.models / "perfusion" / saved[0]).hash,
        }
    ]
    for seed in (31, 32):
        graph["sampler"]["inputs"]["seed"] = seed
        result = client.run(graph)
        (image,) = result.images("image")
        assert named_concepts(client, image) == expected
    assert "1" in result.cached


def test_a_picture_names_a_concept_that_its_graph_trained_also_when_it_is_cached(
    server: RunningServer, client: ComfyClient, pictures: list[str]
) -> None:
    graph = training(pictures, "nodes/named")
    # A whole number, as a page sends it, where the input is of the other kind.
    graph["train"]["inputs"]["train_bias"] = 1
    graph["apply"] = node(
        "PerfusionApplyConcepts", model=["demo", 0], clip=["demo", 1], stack=["train", 0]
    )
    graph |= sampling(["apply", 0], ["apply", 1])
    for seed in (21, 22):
        graph["sampler"]["inputs"]["seed"] = seed
        result = client.run(graph)
        (image,) = result.images("image")
        trained = load_concept(server.models / "perfusion" / "nodes" / "named.safetensors")
        assert named_concepts(client, image) == [
            {"node": "apply", "file": "", "placeholder": "teddy*", "hash": trained.hash}
        ]
    assert {"train", "apply"} <= result.cached


def test_moving_a_slider_of_tune_runs_the_sampler_alone(
    client: ComfyClient, saved: tuple[str, str]
) -> None:
    graph = use({"file": saved[0]})
    graph["tune"] = node("PerfusionTune", model=["1", 0], bias=0.6, temperature=0.15, strength=1.0)
    graph["sampler"]["inputs"]["model"] = ["tune", 0]
    before = picture(client, graph)
    graph["tune"]["inputs"]["bias"] = 0.2
    result = client.run(graph)
    assert {"demo", "1", "text", "none", "empty"} <= result.cached
    assert not {"tune", "sampler"} & result.cached
    assert picture(client, graph) != before


def test_a_concept_trained_again_under_its_name_is_loaded_again(
    client: ComfyClient, pictures: list[str]
) -> None:
    client.run(training(pictures, "nodes/again", value_rate=1.0))
    first = picture(client, use({"file": "nodes/again.safetensors"}))
    client.run(training(pictures, "nodes/again", value_rate=1.0, seed=9))
    assert picture(client, use({"file": "nodes/again.safetensors"})) != first


def test_a_concept_is_usable_in_the_run_that_trains_it(
    client: ComfyClient, pictures: list[str]
) -> None:
    graph = training(pictures, "nodes/direct")
    graph["apply"] = node(
        "PerfusionApplyConcepts", model=["demo", 0], clip=["demo", 1], stack=["train", 0]
    )
    result = client.run(graph | sampling(["apply", 0], ["apply", 1]))
    assert result.images("image")
    assert result.outputs["train"]["text"][0].startswith("2 steps")


def test_cancel_stops_training_and_the_model_is_as_before(
    client: ComfyClient, pictures: list[str]
) -> None:
    stock = picture(client, use(prompt="a photo of a teddy"))
    graph = training(pictures, "nodes/cancelled", steps=500)
    reached: list[int] = []

    def cancel(event: dict[str, Any]) -> None:
        if event["type"] == "progress" and event["data"]["max"] == 500:
            if not reached:
                client.interrupt()
            reached.append(event["data"]["value"])

    with pytest.raises(GraphInterrupted):
        client.run(graph, on_event=cancel)
    assert 1 <= len(reached) <= 4  # the request takes its way to the server while steps go on
    assert "nodes/cancelled.safetensors" not in listed(client)
    again = use(prompt="a photo of a teddy")
    again["sampler"]["inputs"]["seed"] = 4
    picture(client, again)
    again["sampler"]["inputs"]["seed"] = 3
    assert picture(client, again) == stock
    client.run(training(pictures, "nodes/after"))


def test_the_node_shows_pictures_and_the_time_left_while_it_trains(
    client: ComfyClient, pictures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[bytes] = []

    class Watching(WebSocket):
        def _handle(self, opcode: int, last: bool, payload: bytes) -> str | None:
            if opcode == 2:
                shown.append(payload)
            return super()._handle(opcode, last, payload)

    monkeypatch.setattr("tools.client.WebSocket", Watching)
    graph = training(pictures, "nodes/shown", preview_every=1)
    graph["sheet"] = node("SaveImage", images=["train", 2], filename_prefix="sheet")
    result = client.run(graph, on_event=lambda _: None)
    kinds = [int.from_bytes(payload[:4], "big") for payload in shown]
    texts = [payload for kind, payload in zip(kinds, shown, strict=True) if kind == TEXT]
    assert any(b"train" in t and b"step 2 of 2, loss" in t and b"0 s left" in t for t in texts)
    previews = [payload for kind, payload in zip(kinds, shown, strict=True) if kind == PREVIEW]
    assert previews
    assert all(payload[8:10] == b"\xff\xd8" for payload in previews)  # JPEG
    (sheet,) = result.images("sheet")
    assert client.view(sheet).startswith(b"\x89PNG")


def test_progress_and_previews_name_their_node_to_a_page_that_asks_for_it(
    client: ComfyClient, pictures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the page of today does: previews with the node that they are of, and states by node."""
    shown: list[dict[str, Any]] = []
    states: list[dict[str, Any]] = []
    asked = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}

    class Page(WebSocket):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self._send(1, json.dumps(asked).encode())

        def _handle(self, opcode: int, last: bool, payload: bytes) -> str | None:
            if opcode == 2 and int.from_bytes(payload[:4], "big") == PREVIEW_OF_A_NODE:
                length = int.from_bytes(payload[4:8], "big")
                shown.append(json.loads(payload[8 : 8 + length]))
                assert payload[8 + length :][:2] == b"\xff\xd8", "no JPEG"
            return super()._handle(opcode, last, payload)

    def follow(event: dict[str, Any]) -> None:
        if event["type"] == "progress_state" and "train" in event["data"]["nodes"]:
            states.append(event["data"]["nodes"]["train"])

    monkeypatch.setattr("tools.client.WebSocket", Page)
    client.run(training(pictures, "nodes/named", preview_every=1, seed=77), on_event=follow)
    assert shown
    assert {one["node_id"] for one in shown} == {"train"}
    assert (2, 2) in {(state["value"], state["max"]) for state in states}
    assert states[-1]["state"] == "finished"


def test_a_list_of_pictures_is_one_concept_and_an_empty_mask_is_refused(
    client: ComfyClient, pictures: list[str]
) -> None:
    graph = training(pictures, "nodes/list")
    graph["batch"] = node("RebatchImages", images=["images", 0], batch_size=1)
    graph["train"]["inputs"]["images"] = ["batch", 0]
    trained = client.run(graph).outputs["save"]["text"]
    assert len(trained) == 1  # a list is one concept, not one for each picture
    graph["train"]["inputs"]["images"] = ["images", 0]
    graph["train"]["inputs"]["masks"] = ["mask", 0]
    graph["mask"] = node("SolidMask", value=0.0, width=64, height=64)
    with pytest.raises(GraphFailed, match="mask of picture 1 is empty") as caught:
        client.run(graph)
    assert caught.value.node_type == "PerfusionTrainConcept"


def test_a_missing_file_is_refused_before_anything_runs(client: ComfyClient) -> None:
    with pytest.raises(GraphRejected, match=r'no concept file "nodes/none\.safetensors"'):
        client.run(use({"file": "nodes/none.safetensors"}))


def test_a_damaged_file_names_itself(server: RunningServer, client: ComfyClient) -> None:
    bad = server.base / "models" / "perfusion" / "bad.safetensors"
    bad.parent.mkdir(parents=True, exist_ok=True)
    bad.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(GraphFailed, match=r"bad\.safetensors.*pickle") as caught:
        client.run(use({"file": "bad.safetensors"}))
    assert caught.value.node_type == "PerfusionConceptLoader"
