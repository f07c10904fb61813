"""What the network may reach of the transport's application: platforms' calls and a health check.

The other interfaces of Flower's application take no credentials: they could start runs. Fetching a
code bundle is closed too, since no code ever travels.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

FLEET: Final = "/v1/fleet/"
HEALTH: Final = "/health"
CLOSED: Final = frozenset({"/v1/fleet/get-fab"})
#: Vectors travel in pieces of 2 MiB, so no honest request is larger than this.
MAX_REQUEST_BYTES: Final = 8 << 20


class Gate:
    """An ASGI application in front of another one."""

    def __init__(self, inner: Application) -> None:
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an allowed request on; answer any other one here, without a body."""
        if scope["type"] == "lifespan":
            await self._inner(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif (status := _refusal(scope)) is None:
            await self._inner(scope, await _whole(receive), send)
        else:
            headers = [(b"content-length", b"0"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": b""})


def _refusal(scope: Scope) -> int | None:
    """Return the status with which a request is refused, None if it may pass."""
    path: str = scope["path"]
    if not (path == HEALTH or path.startswith(FLEET)) or path in CLOSED:
        return 404
    headers = dict(scope["headers"])
    if b"transfer-encoding" in headers:
        return 411
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or int(length) > MAX_REQUEST_BYTES:
        return 413
    return None


async def _whole(receive: Receive) -> Receive:
    """Read a request's body and hand it on in one piece.

    Every piece would pass through all layers of the application inside by itself, which costs more
    than all else in a request of megabytes. `_refusal` has bounded the length.
    """
    pieces: list[bytes] = []
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return _replay([message], receive)
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    body = {"type": "http.request", "body": b"".join(pieces), "more_body": False}
    return _replay([body], receive)


def _replay(messages: list[MutableMapping[str, Any]], receive: Receive) -> Receive:
    """Return a `receive` that gives these messages first."""

    async def following() -> MutableMapping[str, Any]:
        return messages.pop(0) if messages else await receive()

    return following
