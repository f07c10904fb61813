"""Requests: as the web server gives them to the gate, and as bytes on a connection."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import logging
from pathlib import Path
from typing import Any, Final

from targets import OF_BYTES, OF_JSON, OF_TEXT, Check, Cost, Target, same
from targets_keys import NODE_KEY, NOW, _made_pass, notice, parsed, signed_roster
from uvicorn.server import ServerState

from crossrec_model.errors import WireError
from crossrec_model.secagg.node_pass import HEADER
from server.doorkeeper import KEY_HEADER, Doorkeeper
from server.gate import Gate
from server.http_heads import BoundedHeads
from server.listener import _config


def doorkeeper() -> Doorkeeper:
    """One that strangers don't tire, since the time goes on with every look at the clock."""
    ticks = itertools.count()
    return Doorkeeper(lambda: signed_roster().roster, clock=lambda: NOW + next(ticks) % 200)


def _gate(_folder: Path) -> Check:
    """A request as JSON: type, path, headers as pairs of Latin-1 texts, the body's pieces."""
    gates = [Gate(_inner, doorkeeper(), lambda: notice().to_json()), Gate(_inner)]

    def check(data: bytes) -> None:
        request = parsed(data)
        scope = None if request is None else _scope(request)
        if request is None or scope is None:
            raise WireError("no request")
        pieces = request.get("body")
        bodies = (
            [str(piece).encode("utf-8", "replace") for piece in pieces]
            if isinstance(pieces, list)
            else [b""]
        )
        statuses = [asyncio.run(_asked(gate, scope, bodies)) for gate in gates]
        if statuses[0] != 200:
            raise WireError(f"answered {statuses[0]}")

    return check


def _scope(request: dict[str, Any]) -> dict[str, Any] | None:
    """What the web server makes of a request: bytes as headers, a text as path."""
    try:
        return {
            "type": "http" if request["type"] != "websocket" else "websocket",
            "path": str(request["path"]),
            "client": _client(request.get("client")),
            "headers": [
                (str(name).lower().encode("latin-1"), str(value).encode("latin-1"))
                for name, value in request["headers"]
            ],
        }
    except (KeyError, ValueError, TypeError):
        return None


def _client(given: object) -> tuple[str, int] | None:
    """An address as the web server gives it: a text and a port, or none."""
    if isinstance(given, list) and given and isinstance(given[0], str):
        return given[0], 443
    return None


async def _inner(scope: Any, receive: Any, send: Any) -> None:
    body = await receive()
    same(body.get("more_body", False), False, "whole body")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body.get("body", b"")})


async def _asked(gate: Gate, scope: dict[str, Any], bodies: list[bytes]) -> int:
    sent: list[Any] = []
    left = [
        {"type": "http.request", "body": body, "more_body": number < len(bodies)}
        for number, body in enumerate(bodies, 1)
    ] or [{"type": "http.disconnect"}]

    async def receive() -> Any:
        return left.pop(0) if left else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await gate(scope, receive, send)
    if scope["type"] == "websocket":
        return 1008
    same([m["type"] for m in sent], ["http.response.start", "http.response.body"], "answer")
    return int(sent[0]["status"])


def _requests() -> list[bytes]:
    shown_key = base64.b64encode(NODE_KEY).decode()
    known = [[KEY_HEADER, shown_key], [HEADER, _made_pass().to_header()], ["content-length", "3"]]
    paths = ("/v1/fleet/push-object", "/health", "/federation")
    return [
        json.dumps({
            "type": "http", "path": path, "client": ["127.0.0.1", 5], "headers": known,
            "body": ["abc", "de"],
        }).encode()
        for path in paths
    ]  # fmt: skip


class _Transport:
    """A connection that keeps what is written to it."""

    def __init__(self) -> None:
        self.written, self.closed = b"", False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Addresses as of TCP; no socket and no TLS."""
        return {"peername": ("127.0.0.1", 5), "sockname": ("127.0.0.1", 9092)}.get(name, default)

    def write(self, data: bytes) -> None:
        """Keep bytes."""
        same(self.closed, False, "a write after the end")
        self.written += data

    def close(self) -> None:
        """End."""
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        """Whether it has ended."""
        return self.closed

    def pause_reading(self) -> None:
        """Nothing more comes."""

    resume_reading = pause_reading


def _http(_folder: Path) -> Check:
    """Bytes on a connection; the first one says into how many pieces they come."""
    logging.getLogger("uvicorn.error").disabled = True
    config = _config(Gate(_inner, doorkeeper(), lambda: notice().to_json()), None)

    async def answered(data: bytes) -> bytes:
        transport = _Transport()
        protocol = BoundedHeads(config, ServerState(), {})
        protocol.connection_made(transport)
        size = 1 + len(data) // (1 + data[0] % 5)
        for at in range(1, len(data), size):
            if not transport.closed:
                protocol.data_received(data[at : at + size])
            for _ in range(20):
                await asyncio.sleep(0)
        protocol.connection_lost(None)
        if protocol.tasks:
            await asyncio.wait(protocol.tasks)
        return transport.written

    def check(data: bytes) -> None:
        sent = asyncio.run(answered(data)) if data else b""
        same(b"HTTP/1.1 500" in sent, False, "an exception behind the answer")
        if b"HTTP/1.1 200" not in sent:
            raise WireError("refused")

    return check


def _http_seeds() -> list[bytes]:
    head = f"host: a\r\n{KEY_HEADER}: {base64.b64encode(NODE_KEY).decode()}\r\n"
    head += f"{HEADER}: {_made_pass().to_header()}\r\n"
    return [
        f"\0GET /health HTTP/1.1\r\n{head}\r\n".encode(),
        f"\1POST /v1/fleet/push HTTP/1.1\r\n{head}Content-Length: 5\r\n\r\nabcde".encode(),
        f"\2GET /federation HTTP/1.1\r\n{head}\r\nGET /health HTTP/1.1\r\nhost: a\r\n\r\n".encode(),
    ]


TARGETS: Final = (
    Target(
        name="coordinator.gate", seeds=_requests, check=_gate, changes=OF_JSON, cost=Cost.MEDIUM
    ),
    Target(
        name="coordinator.http",
        seeds=_http_seeds,
        check=_http,
        changes=OF_BYTES + OF_TEXT,
        cost=Cost.MEDIUM,
    ),
)
