"""The HTTP interface: the same calls as JSON, described by OpenAPI, with health and metrics."""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from clients.serving import calls
from clients.serving.calls import Code, RefusedCallError
from clients.serving.desk import Caller, Desk

#: Largest body that is read.
MOST_BYTES: Final = 64 * 1024
STATUS: Final = {
    Code.NOT_FOUND: 404,
    Code.INVALID: 422,
    Code.EXHAUSTED: 429,
    Code.UNAUTHENTICATED: 401,
    Code.UNAVAILABLE: 503,
    Code.INTERNAL: 500,
}
#: Path → the call's name.
CALLS: Final = {
    "/v1/recommend": "Recommend",
    "/v1/similar-items": "SimilarItems",
    "/v1/events": "RecordEvent",
    "/v1/explain": "Explain",
}
_CODES: Final = {status: code.value for code, status in STATUS.items()}
_OPEN: Final = ("/health",)
_REFUSALS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"description": code.value.replace("-", " ")} for code, status in STATUS.items()
}

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def make_app(desk: Desk) -> FastAPI:
    """The application over a desk."""
    app = FastAPI(
        title="crossrec recommender",
        version="1",
        description="A platform's recommendations. The same calls are offered over gRPC.",
        # Their pages load scripts from elsewhere; /openapi.json stays.
        docs_url=None,
        redoc_url=None,
    )

    @app.post("/v1/recommend", responses=_REFUSALS)
    async def recommend(call: calls.RecommendCall) -> calls.Recommended:
        """The best items for a user."""
        return await desk.run(call)

    @app.post("/v1/similar-items", responses=_REFUSALS)
    async def similar_items(call: calls.SimilarCall) -> calls.Similar:
        """Items that go with an item."""
        return await desk.run(call)

    @app.post("/v1/events", responses=_REFUSALS)
    async def record_event(call: calls.RecordCall) -> calls.Recorded:
        """Keep an event: it is on the disk when the answer comes."""
        return await desk.run(call)

    @app.post("/v1/explain", responses=_REFUSALS)
    async def explain(call: calls.ExplainCall) -> calls.Explained:
        """What a user's score for an item is made of."""
        return await desk.run(call)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether calls are answered, and by which model."""
        return {"status": "serving", "model": desk.service.model.version}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(desk.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(RefusedCallError)
    async def refused(_request: Request, error: RefusedCallError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, STATUS[error.code])

    @app.exception_handler(RequestValidationError)
    async def malformed(_request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"error": _first(error)}, STATUS[Code.INVALID])

    return app


class Gate:
    """Stands before the application: size, host, key and rate are looked at before a body is parsed.

    `hosts` are the names a request may call us by, None for any: a web page elsewhere must not reach
    a service on loopback through a name that it points here.
    """

    def __init__(self, app: FastAPI, desk: Desk, hosts: frozenset[str] | None) -> None:
        self._app, self._desk, self._hosts = app, desk, hosts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, path = time.perf_counter(), scope["path"]
        status = 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal, body = await self._looked_at(scope, receive)
            if refusal is not None:
                await refusal(scope, receive, sending)
            else:
                await self._app(scope, _replay(body, receive), sending)
        finally:
            if path in CALLS:
                code = "ok" if status < 400 else _CODES.get(status, "invalid")
                self._desk.told("http", CALLS[path], code, started)

    async def _looked_at(
        self, scope: Message, receive: Receive
    ) -> tuple[JSONResponse | None, bytes]:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if self._hosts is not None and _host(headers.get(b"host", "")) not in self._hosts:
            return _refusal(403, "this host name is not served; call the service by its own"), b""
        if scope["path"] in _OPEN:
            return None, b""
        try:
            await self._desk.admit(_caller(scope, headers))
        except RefusedCallError as error:
            more = {"WWW-Authenticate": "Bearer"} if error.code is Code.UNAUTHENTICATED else None
            return _refusal(STATUS[error.code], str(error), more), b""
        if scope["method"] != "POST":
            return None, b""
        # Not what a form or a page of another origin can send without asking first.
        if headers.get(b"content-type", "").partition(";")[0].strip() != "application/json":
            return _refusal(415, "the body must be application/json; set Content-Type"), b""
        body = await _body(receive)
        if body is None:
            return _refusal(413, f"the body is above {MOST_BYTES} bytes; send less"), b""
        return None, body


async def _body(receive: Receive) -> bytes | None:
    """The whole body, None if it is too large."""
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MOST_BYTES:
            return None
        more = message.get("more_body", False)
    return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    told = False

    async def again() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _caller(scope: Message, headers: dict[bytes, str]) -> Caller:
    kind, _, key = headers.get(b"authorization", "").partition(" ")
    address = scope["client"][0] if scope.get("client") else "unknown"
    return Caller(address=address, key=key if kind.lower() == "bearer" and key else None)


def _host(header: str) -> str:
    """A Host header without its port."""
    if header.startswith("["):
        return header.partition("]")[0].removeprefix("[")
    return header.partition(":")[0].lower()


def loopback_names(host: str) -> frozenset[str] | None:
    """The names of a service on loopback; None for any other host."""
    return frozenset({"localhost", "127.0.0.1", "::1", host}) if is_loopback(host) else None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refusal(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": message}, status, headers)


def _first(error: RequestValidationError) -> str:
    """What is wrong with a body, in one line."""
    found = error.errors()[0]
    where = ".".join(str(step) for step in found["loc"][1:]) or "the body"
    more = len(error.errors()) - 1
    tail = f" (and {more} more)" if more else ""
    text = json.dumps(f"{where}: {found['msg']}", ensure_ascii=True)[1:-1]
    return f"{text}{tail}"
