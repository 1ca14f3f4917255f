"""A small client of ComfyUI's HTTP API: queue a graph, follow it, fetch what it made."""

from __future__ import annotations

import json
import mimetypes
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from tools.websocket import WebSocket

Graph = Mapping[str, Mapping[str, Any]]
"""A graph in API format: node id → {"class_type": ..., "inputs": {...}}."""

Event = dict[str, Any]
"""One message of the websocket: {"type": ..., "data": {...}}."""


class ComfyError(RuntimeError):
    """ComfyUI could not be reached, has ended, or refused a request."""


class GraphRejected(ComfyError):
    """The graph did not pass ComfyUI's validation; nothing was run.

    `error` is the graph's error, `node_errors` maps node ids to theirs, both as ComfyUI gave them.
    """

    def __init__(self, error: dict[str, Any], node_errors: dict[str, Any]) -> None:
        self.error = error
        self.node_errors = node_errors
        lines = [
            f"graph rejected: {error.get('message', error)} {error.get('details', '')}".strip()
        ]
        for node, found in node_errors.items():
            for each in found.get("errors", []):
                lines.append(
                    f"  node {node} ({found.get('class_type')}): "
                    f"{each.get('message')}: {each.get('details')}"
                )
        super().__init__("\n".join(lines))


class GraphFailed(ComfyError):
    """A node raised: `exception_type` is the exception's class, `exception_message` its text."""

    def __init__(self, detail: dict[str, Any]) -> None:
        self.detail = detail
        self.node_id = str(detail.get("node_id"))
        self.node_type = str(detail.get("node_type"))
        self.exception_type = str(detail.get("exception_type"))
        self.exception_message = str(detail.get("exception_message")).strip()
        self.traceback = "".join(detail.get("traceback") or [])
        super().__init__(
            f"node {self.node_id} ({self.node_type}) raised {self.exception_type}: "
            f"{self.exception_message}"
        )


class GraphInterrupted(ComfyError):
    """The run was stopped by an interrupt."""


@dataclass
class Result:
    """What a finished run left: outputs by node id, as ComfyUI's history has them."""

    prompt_id: str
    outputs: dict[str, dict[str, Any]]
    seconds: float
    cached: set[str] = field(default_factory=set)
    """Ids of the nodes that ComfyUI took from its cache instead of running them."""

    def images(self, node: str | None = None) -> list[dict[str, str]]:
        """The references (`filename`, `subfolder`, `type`) of the images of one node, or of all."""
        chosen = self.outputs.values() if node is None else [self.outputs.get(node, {})]
        return [image for output in chosen for image in output.get("images", [])]


def _nothing() -> None:
    return None


class ComfyClient:
    """Talks to one server. `check_alive` may raise with a better reason than "no answer"."""

    def __init__(self, url: str, timeout: float = 60.0) -> None:
        self.url = url.rstrip("/")
        self.timeout = timeout
        self.client_id = uuid.uuid4().hex
        self.check_alive: Callable[[], None] = _nothing

    # What the server is and has.

    def system_stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = self._get("/system_stats")
        return stats

    def version(self) -> str:
        """ComfyUI's version, as the server says it."""
        return str(self.system_stats()["system"]["comfyui_version"])

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        """The descriptions of all node classes, or of one ({} if the server has no such class)."""
        path = "/object_info" if node is None else f"/object_info/{quote(node)}"
        info: dict[str, Any] = self._get(path)
        return info

    def models(self, folder: str) -> list[str]:
        """The files that ComfyUI lists in a model folder, such as "perfusion"."""
        return list(self._get(f"/models/{quote(folder)}"))

    # Running graphs.

    def run(
        self,
        graph: Graph,
        timeout: float = 600.0,
        on_event: Callable[[Event], None] | None = None,
    ) -> Result:
        """Queue `graph` and wait for its end.

        `on_event` gets every websocket message of the run ("progress", "executing", ...) while it
        goes on, in this thread; it may call `interrupt`. Raises `GraphRejected`, `GraphFailed`,
        `GraphInterrupted`, or `ComfyError` after `timeout` seconds (the run is then interrupted).
        """
        if on_event is None:
            return self.wait(self.queue(graph), timeout)
        address = self.url.replace("http", "ws", 1) + f"/ws?clientId={self.client_id}"
        socket = WebSocket(address)
        try:
            return self.wait(self.queue(graph), timeout, socket, on_event)
        finally:
            socket.close()

    def queue(self, graph: Graph) -> str:
        """Queue `graph`, return its prompt id. Strict: any node error rejects the whole graph."""
        try:
            answer = self._post("/prompt", {"prompt": graph, "client_id": self.client_id})
        except _Refused as refused:
            if refused.code == 400 and "node_errors" in refused.body:
                error = refused.body.get("error")
                raise GraphRejected(
                    error if isinstance(error, dict) else {"message": error},
                    refused.body["node_errors"] or {},
                ) from None
            raise
        prompt_id = str(answer["prompt_id"])
        # ComfyUI runs the valid outputs of a graph and drops the others; a test must not miss that.
        if answer.get("node_errors"):
            self.cancel(prompt_id)
            raise GraphRejected({"message": "some outputs are invalid"}, answer["node_errors"])
        return prompt_id

    def wait(
        self,
        prompt_id: str,
        timeout: float = 600.0,
        socket: WebSocket | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> Result:
        """Wait until a queued graph has ended; see `run`."""
        deadline = time.monotonic() + timeout
        following = socket is not None and on_event is not None
        pause = 0.02
        while True:
            # Events first: a short run may be over before its first message is read.
            if following and socket is not None and on_event is not None:
                following = not self._follow(prompt_id, socket, on_event)
            entry = self.history(prompt_id)
            if entry:
                return _result(prompt_id, entry)
            if time.monotonic() > deadline:
                self.cancel(prompt_id)
                raise ComfyError(f"the graph did not end within {timeout:.0f} s")
            if not following:
                time.sleep(pause)
                pause = min(pause * 1.5, 0.5)

    def _follow(self, prompt_id: str, socket: WebSocket, on_event: Callable[[Event], None]) -> bool:
        """Hand on messages of this run: True at its last one, False after a quiet second."""
        while True:
            try:
                text = socket.receive(timeout=1.0)
            except ConnectionError as error:
                self.check_alive()
                raise ComfyError(str(error)) from error
            if text is None:
                return False
            event: Event = json.loads(text)
            if (event.get("data") or {}).get("prompt_id") != prompt_id:
                continue
            on_event(event)
            if event["type"] in ("execution_success", "execution_error", "execution_interrupted"):
                return True

    def history(self, prompt_id: str) -> dict[str, Any]:
        """The history entry of a run that has ended, {} if it has not."""
        return dict(self._get(f"/history/{quote(prompt_id)}").get(prompt_id, {}))

    def queue_state(self) -> dict[str, Any]:
        """{"queue_running": [...], "queue_pending": [...]}"""
        return dict(self._get("/queue"))

    def interrupt(self) -> None:
        """Stop what is running now."""
        self._post("/interrupt", {})

    def cancel(self, prompt_id: str) -> None:
        """Take one run out of the queue, or stop it if it is running."""
        self._post("/queue", {"delete": [prompt_id]})
        self._post("/interrupt", {"prompt_id": prompt_id})

    def free(self, unload_models: bool = True, free_memory: bool = True) -> None:
        """Unload models and forget cached results (done by the worker before its next run)."""
        self._post("/free", {"unload_models": unload_models, "free_memory": free_memory})

    # Pictures.

    def view(self, image: Mapping[str, str]) -> bytes:
        """The bytes of an image that a `Result` names."""
        query = {key: image[key] for key in ("filename", "subfolder", "type") if key in image}
        return self._request(f"/view?{urlencode(query)}")

    def upload_image(
        self,
        source: Path | bytes,
        name: str | None = None,
        subfolder: str = "",
        overwrite: bool = True,
    ) -> str:
        """Upload a picture to ComfyUI's input folder; return the name to give a LoadImage node."""
        data = source if isinstance(source, bytes) else source.read_bytes()
        filename = name or (source.name if isinstance(source, Path) else "image.png")
        fields = {"type": "input", "subfolder": subfolder, "overwrite": str(overwrite).lower()}
        boundary = uuid.uuid4().hex
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'
            for key, value in fields.items()
        ]
        kind = mimetypes.guess_type(filename)[0] or "application/octet-stream"
        parts.append(
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{filename}"'
            f"\r\nContent-Type: {kind}\r\n\r\n"
        )
        body = "".join(parts).encode() + data + f"\r\n--{boundary}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        answer = json.loads(self._request("/upload/image", body, headers))
        return f"{answer['subfolder']}/{answer['name']}".lstrip("/")

    # Transport.

    def _get(self, path: str) -> Any:
        return json.loads(self._request(path))

    def _post(self, path: str, payload: Mapping[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        text = self._request(path, json.dumps(payload).encode(), headers)
        return json.loads(text) if text.strip() else {}

    def _request(
        self, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> bytes:
        request = urllib.request.Request(self.url + path, body, dict(headers or {}))
        try:
            with _OPENER.open(request, timeout=self.timeout) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            raise _Refused(path, error.code, error.read()) from None
        except OSError as error:
            self.check_alive()
            raise ComfyError(f"no answer from {self.url}{path}: {error}") from error


# The server is on this machine: a proxy that the environment names must not get in between.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class _Refused(ComfyError):
    def __init__(self, path: str, code: int, raw: bytes) -> None:
        self.code = code
        try:
            body = json.loads(raw)
        except ValueError:
            body = None
        self.body: dict[str, Any] = body if isinstance(body, dict) else {}
        super().__init__(f"{path}: HTTP {code}: {raw[:500].decode('utf-8', 'replace')}")


def _result(prompt_id: str, entry: dict[str, Any]) -> Result:
    """The result of an ended run, or the exception that says how it failed."""
    status = entry.get("status") or {}
    messages = {kind: data for kind, data in status.get("messages", [])}
    if "execution_error" in messages:
        raise GraphFailed(messages["execution_error"])
    if "execution_interrupted" in messages:
        raise GraphInterrupted(f"run {prompt_id} was interrupted")
    if status.get("status_str") != "success":
        raise ComfyError(f"run {prompt_id} ended as {status}")
    begin = messages.get("execution_start", {}).get("timestamp", 0)
    end = messages.get("execution_success", {}).get("timestamp", begin)
    return Result(
        prompt_id=prompt_id,
        outputs=entry.get("outputs", {}),
        seconds=(end - begin) / 1000,
        cached=set(messages.get("execution_cached", {}).get("nodes", [])),
    )
