"""Sliders that move while the sampler runs: what is used, what is saved, what is not kept."""

from __future__ import annotations

import importlib
import json
from types import ModuleType
from typing import Any

import pytest
from page import Graph, ask, saved_picture, train, tuned

from tools.client import ComfyClient, GraphFailed, Result
from tools.server import RunningServer

STEPS = 60  # long enough for a request to arrive before the end
MOVED = {"bias": 0.2, "temperature": 0.3, "strength": 0.7}


@pytest.fixture(scope="module")
def file(server: RunningServer) -> str:
    return train(server.client, "live/berry")


def run_moving(client: ComfyClient, graph: Graph) -> Result:
    """Runs a graph whose sliders move when its second step is done."""
    answers: list[Any] = []

    def on_event(event: dict[str, Any]) -> None:
        if event["type"] == "progress" and event["data"]["value"] >= 2 and not answers:
            move = {"prompt_id": event["data"]["prompt_id"], "node_id": "tune", **MOVED}
            answers.append(ask(client, "/perfusion/live", body=move))

    result = client.run(graph, on_event=on_event)
    assert answers == [(200, {"status": "ok"})]
    return result


def test_a_moved_slider_is_used_saved_and_can_be_done_again(client: ComfyClient, file: str) -> None:
    still, _ = saved_picture(client, client.run(tuned(file, STEPS)))
    moving, graph = saved_picture(client, run_moving(client, tuned(file, STEPS, live=True)))
    assert moving != still
    used = graph["tune"]["inputs"]
    assert {name: used[name] for name in MOVED} == MOVED
    assert used["live"] is False
    # One entry: the sliders that the run began with, down to the step at which they were moved.
    assert used["moves"].endswith(": 0.6, 0.15, 1.0")
    again, _ = saved_picture(client, client.run(graph))
    assert again == moving
    # The last sliders alone make another picture: the moves are needed.
    without, _ = saved_picture(client, client.run(tuned(file, STEPS, **MOVED)))
    assert without != moving


def test_a_live_run_leaves_nothing_to_later_ones(client: ComfyClient, file: str) -> None:
    still, _ = saved_picture(client, client.run(tuned(file, STEPS)))
    moving = run_moving(client, tuned(file, STEPS, live=True))
    after = client.run(tuned(file, STEPS, live=True))
    assert not {"tune", "sampler"} & after.cached
    assert {"demo", "loader", "text"} <= after.cached
    picture, graph = saved_picture(client, after)
    assert picture == still
    assert graph["tune"]["inputs"]["live"] is True
    assert "moves" not in graph["tune"]["inputs"]
    assert saved_picture(client, client.run(tuned(file, STEPS)))[0] == still
    assert saved_picture(client, moving)[0] != still


def test_only_a_live_node_of_the_running_prompt_takes_sliders(
    client: ComfyClient, file: str
) -> None:
    answers: list[Any] = []

    def on_event(event: dict[str, Any]) -> None:
        if event["type"] != "progress" or answers:
            return
        running = event["data"]["prompt_id"]
        for prompt, node in ((running, "tune"), (running, "loader"), ("another", "tune")):
            move = {"prompt_id": prompt, "node_id": node, **MOVED}
            answers.append(ask(client, "/perfusion/live", body=move))

    graph = tuned(file, STEPS, bias=0.45)
    result = client.run(graph, on_event=on_event)
    assert [(code, answer["status"]) for code, answer in answers] == [(200, "over")] * 3
    move = {"prompt_id": result.prompt_id, "node_id": "tune", **MOVED}
    assert ask(client, "/perfusion/live", body=move)[1]["status"] == "over"


@pytest.mark.parametrize(
    "wrong",
    [{"bias": 5}, {"temperature": 0}, {"strength": "1"}, {"strength": None}, {"bias": True}],
)
def test_sliders_out_of_range_are_refused(client: ComfyClient, wrong: dict[str, Any]) -> None:
    move = {"prompt_id": "x", "node_id": "tune", **MOVED, **wrong}
    status, answer = ask(client, "/perfusion/live", body=move)
    assert status == 400
    assert next(iter(wrong)) in answer["error"]


def test_moves_that_cannot_be_read_say_what_is_expected(client: ComfyClient, file: str) -> None:
    with pytest.raises(GraphFailed, match='the move "nonsense" cannot be read'):
        client.run(tuned(file, moves="nonsense"))


def test_what_was_used_is_written_into_the_drawn_graph(pack: ModuleType) -> None:
    live = importlib.import_module(f"{pack.__name__}.perfusion_core.comfy.live")
    prompt = {
        "5": {"inputs": {"bias": 0.6, "concept": "x"}, "is_changed": ["once"]},
        "6": {"inputs": {"bias": 0.6}},
    }
    workflow = {
        "nodes": [{"id": 5, "widgets_values": [0.6, 0.15]}, {"id": 6, "widgets_values": [1]}]
    }
    pnginfo = {"workflow": json.loads(json.dumps(workflow))}
    values = {"bias": 0.4, "moves": "9.0: 0.6, 0.15, 1.0"}
    live.write_back(prompt, pnginfo, "5", ["bias", "temperature", "moves"], values)
    assert prompt["5"] == {"inputs": {**values, "concept": "x"}}
    assert prompt["6"]["inputs"] == {"bias": 0.6}
    nodes = pnginfo["workflow"]["nodes"]
    assert nodes[0]["widgets_values"] == [0.4, 0.15, "9.0: 0.6, 0.15, 1.0"]
    assert nodes[1]["widgets_values"] == [1]
    live.write_back(None, None, "5", ["bias"], {"bias": 1.0})  # as without a page


def test_a_node_that_another_one_unfolds_into_is_in_no_graph_to_write_to(pack: ModuleType) -> None:
    live = importlib.import_module(f"{pack.__name__}.perfusion_core.comfy.live")
    prompt = {"5": {"inputs": {"bias": 0.6}}}
    live.write_back(prompt, {"workflow": {}}, "5.0.0.1", ["bias"], {"bias": 1.0})
    assert prompt == {"5": {"inputs": {"bias": 0.6}}}


def test_what_was_used_is_written_into_a_subgraph_that_is_used_once(pack: ModuleType) -> None:
    live = importlib.import_module(f"{pack.__name__}.perfusion_core.comfy.live")
    inner = {"id": "uuid", "nodes": [{"id": 5, "type": "PerfusionTune", "widgets_values": [0.6]}]}
    holder = {"id": 12, "type": "uuid"}
    for holders, expected in (([holder], [0.4]), ([holder, {**holder, "id": 13}], [0.6])):
        workflow = json.loads(json.dumps({"nodes": holders, "definitions": {"subgraphs": [inner]}}))
        prompt = {"12:5": {"inputs": {"bias": 0.6}}}
        live.write_back(prompt, {"workflow": workflow}, "12:5", ["bias"], {"bias": 0.4})
        assert prompt["12:5"]["inputs"] == {"bias": 0.4}
        assert workflow["definitions"]["subgraphs"][0]["nodes"][0]["widgets_values"] == expected
