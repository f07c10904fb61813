"""What the network may reach of the transport's application: platforms' calls and a health check.

The other interfaces of Flower's application take no credentials: they could start runs. Fetching a
code bundle is closed too, since no code ever travels.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from server.doorkeeper import Doorkeeper, Refusal

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

FLEET: Final = "/v1/fleet/"
HEALTH: Final = "/health"
NOTICE: Final = "/federation"
#: Header of a refusal, with its reason in one word.
REASON: Final = b"crossrec-refused"
CLOSED: Final = frozenset({"/v1/fleet/get-fab"})
#: Vectors travel in pieces of 2 MiB, so no honest request is larger than this.
MAX_REQUEST_BYTES: Final = 8 << 20
#: Python refuses to read numbers of thousands of digits.
_DIGITS: Final = 20


class Gate:
    """An ASGI application in front of another one.

    Args:
        inner: what answers the requests that may pass.
        doorkeeper: decides who may speak; without one everybody may.
        notice: what stands at `NOTICE`: the signed roster and plan.
    """

    def __init__(
        self,
        inner: Application,
        doorkeeper: Doorkeeper | None = None,
        notice: Callable[[], bytes] | None = None,
    ) -> None:
        self._inner, self._doorkeeper, self._notice = inner, doorkeeper, notice

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an allowed request on; answer any other one here, without a body."""
        if scope["type"] == "lifespan":
            await self._inner(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif refusal := self._refused(scope):
            await _answer(send, refusal.status, b"", (REASON, refusal.told.encode()))
        elif scope["path"] == NOTICE:
            body = self._notice() if self._notice else b""
            await _answer(send, 200 if body else 404, body)
        else:
            await self._inner(scope, await _whole(receive), send)

    def _refused(self, scope: Scope) -> Refusal | None:
        if status := _refusal(scope):
            return Refusal(status, "not-served")
        if self._doorkeeper is None:
            return None
        address = str((scope.get("client") or ("unknown",))[0])
        if scope["path"] == HEALTH:
            return self._doorkeeper.strangers_turn(address)
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        return self._doorkeeper.check(headers, address)


async def _answer(send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    length = (b"content-length", str(len(body)).encode())
    start = {"status": status, "headers": [length, (b"connection", b"close"), *headers]}
    await send({"type": "http.response.start", **start})
    await send({"type": "http.response.body", "body": body})


def _refusal(scope: Scope) -> int | None:
    """Return the status with which a request is refused, None if it may pass."""
    path: str = scope["path"]
    if not (path in {HEALTH, NOTICE} or path.startswith(FLEET)) or path in CLOSED:
        return 404
    headers = dict(scope["headers"])
    if len(headers) < len(scope["headers"]):
        # Of two, this side and the application inside could look at different ones.
        return 400
    if b"transfer-encoding" in headers:
        return 411
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or len(length) > _DIGITS or int(length) > MAX_REQUEST_BYTES:
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
