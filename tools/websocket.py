"""The receiving half of a websocket client (RFC 6455): enough to follow ComfyUI's events."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import struct
from urllib.parse import urlsplit

_MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


class WebSocket:
    """One connection. `receive` gives the text messages; pings are answered, pictures skipped."""

    def __init__(self, url: str, timeout: float = 30.0) -> None:
        parts = urlsplit(url)
        address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._buffer = b""
        self._fragments: list[bytes] = []
        self._socket = socket.create_connection(address, timeout=timeout)
        try:
            self._shake_hands(parts.netloc, f"{parts.path or '/'}?{parts.query}")
        except BaseException:
            self._socket.close()
            raise

    def _shake_hands(self, netloc: str, target: str) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        request = (
            f"GET {target} HTTP/1.1\r\nHost: {netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self._socket.sendall(request.encode())
        while b"\r\n\r\n" not in self._buffer:
            self._fill()
        head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
        accept = base64.b64encode(hashlib.sha1((key + _MAGIC).encode()).digest())
        if b" 101 " not in head.split(b"\r\n")[0] + b" " or accept not in head:
            raise ConnectionError(f"no websocket at {netloc}: {head[:80]!r}")

    def receive(self, timeout: float) -> str | None:
        """The next text message, or None if none came within `timeout` seconds.

        Raises `ConnectionError` when the other side has closed.
        """
        self._socket.settimeout(timeout)
        try:
            while True:
                text = self._next_frame()
                if text is not None:
                    return text
        except TimeoutError:
            # Bytes read so far stay in the buffer: a frame cut by the time-out is not lost.
            return None

    def _next_frame(self) -> str | None:
        first, second = self._peek(0, 2)
        length, offset = second & 0x7F, 2
        if length == 126:
            (length,) = struct.unpack("!H", self._peek(2, 2))
            offset = 4
        elif length == 127:
            (length,) = struct.unpack("!Q", self._peek(2, 8))
            offset = 10
        payload = self._peek(offset, length)
        self._buffer = self._buffer[offset + length :]
        return self._handle(opcode=first & 0x0F, last=bool(first & 0x80), payload=payload)

    def _handle(self, opcode: int, last: bool, payload: bytes) -> str | None:
        if opcode == _CLOSE:
            raise ConnectionError("ComfyUI closed the websocket")
        if opcode == _PING:
            self._send(_PONG, payload)
        if opcode == _TEXT:
            self._fragments = [payload]
        elif opcode == _CONTINUATION and self._fragments:
            self._fragments.append(payload)
        elif opcode == _BINARY:
            self._fragments = []
        if opcode in (_TEXT, _CONTINUATION) and last and self._fragments:
            text = b"".join(self._fragments).decode("utf-8")
            self._fragments = []
            return text
        return None

    def _send(self, opcode: int, payload: bytes) -> None:
        """Send a control frame (at most 125 bytes), masked as clients must."""
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self._socket.sendall(bytes([0x80 | opcode, 0x80 | len(payload)]) + mask + masked)

    def _peek(self, offset: int, count: int) -> bytes:
        while len(self._buffer) < offset + count:
            self._fill()
        return self._buffer[offset : offset + count]

    def _fill(self) -> None:
        data = self._socket.recv(1 << 16)
        if not data:
            raise ConnectionError("ComfyUI closed the websocket")
        self._buffer += data

    def close(self) -> None:
        self._socket.close()
