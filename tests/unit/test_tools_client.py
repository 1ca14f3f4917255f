"""What the client makes of the server's answers, and of the websocket's bytes."""

from __future__ import annotations

import http.server
import json
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from tools.client import (
    ComfyClient,
    ComfyError,
    GraphFailed,
    GraphInterrupted,
    GraphRejected,
)
from tools.websocket import WebSocket


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers with what the test put under "METHOD /path"; remembers what was sent."""

    table: ClassVar[dict[str, tuple[int, Any]]] = {}
    seen: ClassVar[list[tuple[str, bytes]]] = []

    def answer(self) -> None:
        key = f"{self.command} {self.path}"
        self.seen.append((key, self.rfile.read(int(self.headers.get("Content-Length") or 0))))
        code, body = self.table.get(key, (404, {}))
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    do_GET = do_POST = answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def client() -> Iterator[ComfyClient]:
    Answers.table, Answers.seen = {}, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield ComfyClient(f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()
    thread.join()


def history(*messages: tuple[str, dict[str, Any]], status: str = "error") -> dict[str, Any]:
    entry = {"status": {"status_str": status, "messages": messages}, "outputs": {"9": {"n": 1}}}
    return {"p": entry}


def test_a_finished_run_gives_outputs_time_and_cached_nodes(client: ComfyClient) -> None:
    Answers.table["POST /prompt"] = (200, {"prompt_id": "p", "node_errors": {}})
    Answers.table["GET /history/p"] = (
        200,
        history(
            ("execution_start", {"timestamp": 1000}),
            ("execution_cached", {"nodes": ["3"]}),
            ("execution_success", {"timestamp": 3500}),
            status="success",
        ),
    )
    result = client.run({"9": {"class_type": "X", "inputs": {}}})
    assert (result.outputs, result.seconds, result.cached) == ({"9": {"n": 1}}, 2.5, {"3"})


def test_a_node_that_raised_is_named(client: ComfyClient) -> None:
    detail = {
        "node_id": "4",
        "node_type": "PerfusionConceptLoader",
        "exception_type": "ValueError",
        "exception_message": "teddy.safetensors is truncated\n",
        "traceback": ["a\n", "b\n"],
    }
    Answers.table["GET /history/p"] = (200, history(("execution_error", detail)))
    with pytest.raises(
        GraphFailed, match=r"^node 4 \(PerfusionConceptLoader\) raised ValueError: .*truncated$"
    ) as caught:
        client.wait("p")
    assert caught.value.traceback == "a\nb\n"


def test_an_interrupted_run_is_not_a_failed_one(client: ComfyClient) -> None:
    Answers.table["GET /history/p"] = (200, history(("execution_interrupted", {})))
    with pytest.raises(GraphInterrupted):
        client.wait("p")


def test_a_rejected_graph_lists_the_errors_of_its_nodes(client: ComfyClient) -> None:
    found = {"class_type": "X", "errors": [{"message": "Value not in list", "details": "a not in"}]}
    body = {"error": {"message": "invalid", "details": ""}, "node_errors": {"7": found}}
    Answers.table["POST /prompt"] = (400, body)
    with pytest.raises(GraphRejected, match=r"node 7 \(X\): Value not in list: a not in"):
        client.queue({})


def test_a_graph_of_which_one_output_is_invalid_is_rejected_and_taken_back(
    client: ComfyClient,
) -> None:
    found = {"class_type": "X", "errors": [{"message": "m", "details": "d"}]}
    Answers.table["POST /prompt"] = (200, {"prompt_id": "p", "node_errors": {"7": found}})
    Answers.table["POST /queue"] = (200, {})
    Answers.table["POST /interrupt"] = (200, {})
    with pytest.raises(GraphRejected, match="some outputs are invalid"):
        client.queue({})
    assert ("POST /queue", b'{"delete": ["p"]}') in Answers.seen


def test_a_run_that_does_not_end_is_cancelled(client: ComfyClient) -> None:
    Answers.table["GET /history/p"] = (200, {})
    Answers.table["POST /queue"] = (200, {})
    Answers.table["POST /interrupt"] = (200, {})
    with pytest.raises(ComfyError, match="did not end within 0 s"):
        client.wait("p", timeout=0.05)
    assert "POST /interrupt" in [key for key, _ in Answers.seen]


def test_a_refused_request_shows_the_servers_words(client: ComfyClient) -> None:
    Answers.table["GET /system_stats"] = (500, {"why": "out of paper"})
    with pytest.raises(ComfyError, match="HTTP 500: .*out of paper"):
        client.system_stats()


def test_a_server_that_is_gone_is_said_so() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    client = ComfyClient(f"http://127.0.0.1:{port}")
    with pytest.raises(ComfyError, match="no answer from"):
        client.system_stats()

    def dead() -> None:
        raise ComfyError("ComfyUI ended with exit code 1")

    client.check_alive = dead
    with pytest.raises(ComfyError, match="exit code 1"):
        client.system_stats()


def test_an_uploaded_picture_is_sent_whole(client: ComfyClient) -> None:
    Answers.table["POST /upload/image"] = (
        200,
        {"name": "a.png", "subfolder": "s", "type": "input"},
    )
    assert client.upload_image(b"\x89PNG\r\n--data", "a.png", subfolder="s") == "s/a.png"
    (_, body) = Answers.seen[-1]
    assert b"\r\n\r\n\x89PNG\r\n--data\r\n--" in body
    assert b'name="subfolder"\r\n\r\ns\r\n' in body


def frame(opcode: int, payload: bytes, last: bool = True) -> bytes:
    head = bytes([(0x80 if last else 0) | opcode])
    if len(payload) < 126:
        return head + bytes([len(payload)]) + payload
    if len(payload) < 1 << 16:
        return head + b"\x7e" + struct.pack("!H", len(payload)) + payload
    return head + b"\x7f" + struct.pack("!Q", len(payload)) + payload


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[WebSocket, socket.socket]]:
    """A connected websocket (hands shaken) and the server's end of it."""
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: ours)
    monkeypatch.setattr(WebSocket, "_shake_hands", lambda *_: None)
    web = WebSocket("ws://127.0.0.1:1/ws")
    yield web, theirs
    web.close()
    theirs.close()


@pytest.mark.parametrize("length", [0, 1, 125, 126, 65535, 65536])
def test_messages_of_every_length_arrive(
    pair: tuple[WebSocket, socket.socket], length: int
) -> None:
    web, server = pair
    text = "é" * (length // 2) + "x" * (length % 2)
    threading.Thread(target=server.sendall, args=(frame(1, text.encode()),)).start()
    assert web.receive(5) == text


def test_fragments_are_joined_pictures_skipped_and_pings_answered(
    pair: tuple[WebSocket, socket.socket],
) -> None:
    web, server = pair
    data = frame(2, b"\x00picture") + frame(1, b"one ", last=False) + frame(9, b"hi")
    server.sendall(data + frame(0, b"two"))
    assert web.receive(5) == "one two"
    pong = server.recv(100)
    mask = pong[2:6]
    assert pong[:2] == bytes([0x8A, 0x82])
    assert bytes(byte ^ mask[i % 4] for i, byte in enumerate(pong[6:])) == b"hi"


def test_a_message_cut_by_the_time_out_is_not_lost(
    pair: tuple[WebSocket, socket.socket],
) -> None:
    web, server = pair
    whole = frame(1, b"hello")
    server.sendall(whole[:4])
    assert web.receive(0.05) is None
    server.sendall(whole[4:])
    assert web.receive(5) == "hello"


def test_a_closed_connection_is_an_error(pair: tuple[WebSocket, socket.socket]) -> None:
    web, server = pair
    server.sendall(frame(8, b""))
    with pytest.raises(ConnectionError):
        web.receive(5)
