"""The real ComfyUI starts with this pack in it, and our client gets along with it."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import pytest

from tools.client import ComfyClient, GraphFailed, GraphInterrupted, GraphRejected
from tools.server import RunningServer

# Ids are stable once released (DESIGN: nodes). Those that the first release has.
NODE_IDS = {
    "PerfusionApplyConcepts",
    "PerfusionCombineConcepts",
    "PerfusionConceptInfo",
    "PerfusionConceptLoader",
    "PerfusionCovariance",
    "PerfusionDemoModel",
    "PerfusionSaveConcept",
    "PerfusionTrainConcept",
    "PerfusionTune",
}


def png(width: int, height: int, rgb: tuple[int, int, int]) -> bytes:
    """A one-coloured PNG."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))
        )

    rows = (b"\0" + bytes(rgb) * width) * height
    header = struct.pack("!2I5B", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def invert_graph(name: str) -> dict[str, Any]:
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "inv"}},
    }


def test_the_server_is_comfyui_that_was_found(server: RunningServer, client: ComfyClient) -> None:
    assert client.version() == server.comfyui.version


def test_the_pack_is_imported_and_its_nodes_are_there(
    server: RunningServer, client: ComfyClient
) -> None:
    assert server.pack_error() is None
    ours = {name for name in client.object_info() if name.startswith("Perfusion")}
    assert ours >= NODE_IDS


def test_only_this_pack_is_loaded_and_nothing_is_written_into_comfyui(
    server: RunningServer,
) -> None:
    assert [path.name for path in (server.base / "custom_nodes").iterdir()] == ["comfyui-perfusion"]
    assert str(server.base) in server.log_text()


def test_a_graph_runs_and_its_picture_comes_back(client: ComfyClient) -> None:
    name = client.upload_image(png(8, 8, (255, 0, 0)), "red.png", subfolder="client")
    assert name == "client/red.png"
    result = client.run(invert_graph(name))
    (image,) = result.images("3")
    assert client.view(image).startswith(b"\x89PNG")
    assert client.run(invert_graph(name)).cached == {"1", "2", "3"}


def test_events_of_a_run_are_handed_on(client: ComfyClient) -> None:
    events: list[str] = []
    name = client.upload_image(png(8, 8, (0, 255, 0)), "green.png")
    client.run(invert_graph(name), on_event=lambda event: events.append(event["type"]))
    assert events[0] == "execution_start"
    assert "executing" in events
    assert events[-1] == "execution_success"


def test_an_invalid_graph_says_which_node_and_why(client: ComfyClient) -> None:
    with pytest.raises(GraphRejected, match=r"no-such-file\.png") as caught:
        client.run(invert_graph("no-such-file.png"))
    assert set(caught.value.node_errors) == {"1"}


def test_a_node_that_raises_says_which_and_why(server: RunningServer, client: ComfyClient) -> None:
    (server.input / "broken.png").write_bytes(b"this is no picture")
    with pytest.raises(GraphFailed, match="cannot identify image file") as caught:
        client.run(invert_graph("broken.png"))
    assert caught.value.node_type == "LoadImage"
    assert "Traceback" not in caught.value.exception_message
    assert "load_image" in caught.value.traceback


def test_an_interrupt_stops_the_run_and_the_next_one_works(client: ComfyClient) -> None:
    name = client.upload_image(png(64, 64, (0, 0, 255)), "blue.png")
    graph = invert_graph(name)
    for i in range(100, 400):
        before = ["2", 0] if i == 100 else [str(i - 1), 0]
        graph[str(i)] = {"class_type": "ImageInvert", "inputs": {"image": before}}
    graph["3"]["inputs"]["images"] = ["399", 0]
    told: list[str] = []

    def interrupt_once(event: dict[str, Any]) -> None:
        if event["type"] == "executing" and not told:
            told.append(event["type"])
            client.interrupt()

    with pytest.raises(GraphInterrupted):
        client.run(graph, on_event=interrupt_once)
    assert client.run(invert_graph(name)).images("3")
