"""What the network may reach of the transport's application: platforms' calls and a health check.

The other interfaces of Flower's application take no credentials: they could start runs. Fetching a
code bundle is closed too, since no code ever travels.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from crossrec_model.errors import WireError
from crossrec_model.linkage.post import MAX_POST
from server.doorkeeper import NO_PASS, TOO_MANY, Doorkeeper, Refusal
from server.linking import PostOffice, TooManyError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

FLEET: Final = "/v1/fleet/"
HEALTH: Final = "/health"
NOTICE: Final = "/federation"
LINKAGE: Final = "/linkage"
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
        post: answers at `LINKAGE` whoever shows a pass; needs a doorkeeper.
    """

    def __init__(
        self,
        inner: Application,
        doorkeeper: Doorkeeper | None = None,
        notice: Callable[[], bytes] | None = None,
        post: PostOffice | None = None,
    ) -> None:
        self._inner, self._doorkeeper, self._notice = inner, doorkeeper, notice
        self._post = post

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
        elif scope["path"] == LINKAGE:
            await self._link(scope, receive, send)
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
        return self._doorkeeper.check(_texts(scope), address)

    async def _link(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a platform's request about a linkage; the connection stays for the next one."""
        platform = self._doorkeeper.vouched(_texts(scope)) if self._doorkeeper else None
        if self._post is None or scope["method"] != "POST":
            await _answer(send, 404, b"")
        elif platform is None:
            await _answer(send, NO_PASS.status, b"", (REASON, NO_PASS.told.encode()))
        else:
            message = await (await _whole(receive))()
            try:
                body = self._post.answer(platform, message.get("body", b""))
            except WireError:
                await _answer(send, 400, b"")
            except TooManyError:
                await _answer(send, TOO_MANY.status, b"", (REASON, TOO_MANY.told.encode()))
            else:
                await _answer(send, 200, body, close=False)


def _texts(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


async def _answer(
    send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes], close: bool = True
) -> None:
    shown = [(b"content-length", str(len(body)).encode()), *headers]
    if close:
        shown.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": shown})
    await send({"type": "http.response.body", "body": body})


def _refusal(scope: Scope) -> int | None:
    """Return the status with which a request is refused, None if it may pass."""
    path: str = scope["path"]
    if not (path in {HEALTH, NOTICE, LINKAGE} or path.startswith(FLEET)) or path in CLOSED:
        return 404
    headers = dict(scope["headers"])
    if len(headers) < len(scope["headers"]):
        # Of two, this side and the application inside could look at different ones.
        return 400
    if b"transfer-encoding" in headers:
        return 411
    length = headers.get(b"content-length", b"0")
    most = MAX_POST if path == LINKAGE else MAX_REQUEST_BYTES
    if not length.isdigit() or len(length) > _DIGITS or int(length) > most:
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
