"""The gRPC interface: messages of recommender.proto to calls and back, with health and reflection."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from clients.serving import calls
from clients.serving.calls import Code, RefusedCallError
from clients.serving.desk import Caller, Desk
from clients.serving.proto import recommender_pb2 as pb
from clients.serving.proto import recommender_pb2_grpc as pb_grpc

Reply = TypeVar("Reply")

SERVICE: Final = "crossrec.v1.Recommender"
#: Largest message that is read.
MOST_BYTES: Final = 64 * 1024
MOST_AT_ONCE: Final = 1000
STATUS: Final = {
    Code.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Code.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Code.EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Code.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Code.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Code.INTERNAL: grpc.StatusCode.INTERNAL,
}
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MOST_BYTES),
    ("grpc.max_metadata_size", 16 * 1024),
    # A port that is in use is told rather than shared.
    ("grpc.so_reuseport", 0),
)


class RecommenderService(pb_grpc.RecommenderServicer):
    """Each method: admit, read the message, run, write the answer or end with a status."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def Recommend(self, request: Any, context: Any) -> pb.RecommendReply:  # noqa: N802
        """The best items for a user."""

        async def answer() -> pb.RecommendReply:
            found = await self._desk.run(
                calls.RecommendCall(
                    user_id=request.user_id,
                    k=request.k,
                    filters=_filters(request.filters),
                    diversity=request.diversity,
                    method=request.method or "dpp",
                    explore=request.explore,
                    allow_unknown=request.allow_unknown,
                )
            )
            return pb.RecommendReply(
                platform=found.platform,
                model=found.model,
                known=found.known,
                notes=found.notes,
                items=[_item(item) for item in found.items],
            )

        return await self._answered("Recommend", context, answer)

    async def SimilarItems(self, request: Any, context: Any) -> pb.SimilarItemsReply:  # noqa: N802
        """Items that go with an item."""

        async def answer() -> pb.SimilarItemsReply:
            filters = _filters(request.filters)
            call = calls.SimilarCall(item_id=request.item_id, k=request.k, filters=filters)
            found = await self._desk.run(call)
            return pb.SimilarItemsReply(
                platform=found.platform,
                model=found.model,
                items=[_item(item) for item in found.items],
            )

        return await self._answered("SimilarItems", context, answer)

    async def RecordEvent(self, request: Any, context: Any) -> pb.RecordEventReply:  # noqa: N802
        """Keep an event."""

        async def answer() -> pb.RecordEventReply:
            call = calls.RecordCall(
                user_id=request.user_id,
                item_id=request.item_id,
                event=request.event,
                time=request.time,
                quantity=_optional(request, "quantity"),
                price=_optional(request, "price"),
                shop_id=request.shop_id,
                event_id=request.event_id,
            )
            found = await self._desk.run(call)
            return pb.RecordEventReply(number=found.number, again=found.again)

        return await self._answered("RecordEvent", context, answer)

    async def Explain(self, request: Any, context: Any) -> pb.ExplainReply:  # noqa: N802
        """What a score is made of."""

        async def answer() -> pb.ExplainReply:
            found = await self._desk.run(
                calls.ExplainCall(
                    user_id=request.user_id, item_id=request.item_id, most=request.most or 5
                )
            )
            return _explained(found)

        return await self._answered("Explain", context, answer)

    async def _answered(
        self, name: str, context: Any, answer: Callable[[], Awaitable[Reply]]
    ) -> Reply:
        started, code = time.perf_counter(), "cancelled"
        try:
            await self._desk.admit(_caller(context))
            reply = await answer()
            code = "ok"
            return reply
        except RefusedCallError as error:
            code = error.code.value
            await context.abort(STATUS[error.code], str(error))
            raise  # never reached: abort ends the call
        finally:
            self._desk.told("grpc", name, code, started)


class RpcServer:
    """The gRPC server on one port; `health` says SERVING while it is not stopping."""

    def __init__(
        self, desk: Desk, address: str, credentials: grpc.ServerCredentials | None
    ) -> None:
        self._server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=MOST_AT_ONCE)
        add: Any = pb_grpc.add_RecommenderServicer_to_server
        add(RecommenderService(desk), self._server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        if credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, credentials)

    async def start(self) -> None:
        """Answer calls."""
        for name in ("", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Say that it stops, answer what was begun, end."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)


def _caller(context: Any) -> Caller:
    address = context.peer().rpartition(":")[0]
    metadata = context.invocation_metadata() or ()
    shown = next((str(value) for name, value in metadata if name == "authorization"), "")
    kind, _, key = shown.partition(" ")
    return Caller(address=address, key=key if kind.lower() == "bearer" and key else None)


def _filters(message: Any) -> calls.Filters:
    return calls.Filters(
        new_only=message.new_only,
        include_out_of_stock=message.include_out_of_stock,
        exclude=tuple(message.exclude),
        shops=tuple(message.shops),
        category=tuple(message.category),
        price_from=_optional(message, "price_from"),
        price_to=_optional(message, "price_to"),
    )


def _optional(message: Any, name: str) -> float | None:
    return getattr(message, name) if message.HasField(name) else None


def _item(item: calls.Listed) -> pb.Item:
    return pb.Item(
        place=item.place,
        item_id=item.item_id,
        title=item.title,
        category=item.category,
        score=item.score,
        reason=item.reason,
        source=item.source,
    )


def _explained(found: calls.Explained) -> pb.ExplainReply:
    return pb.ExplainReply(
        platform=found.platform,
        model=found.model,
        score=found.score,
        explained=found.explained,
        parts=[
            pb.Part(component=p.component, item_id=p.item_id, what=p.what, value=p.value)
            for p in found.parts
        ],
        carriers=[
            pb.Carrier(item_id=c.item_id, title=c.title, value=c.value) for c in found.carriers
        ],
        decided_by=found.decided_by,
        own=found.own,
        shared=found.shared,
        linked_profile=found.linked_profile,
        words=found.words,
    )
