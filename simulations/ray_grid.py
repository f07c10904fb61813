"""The same grid over Ray: every platform is an actor, on this machine or on others.

Ray is an optional extra. It needs seconds to start, so it pays where one machine is not enough.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from clients.connection import Answer, Handler, answer
from crossrec_model.errors import ConfigError
from server.records import from_record, to_record
from simulations.grid import FIRST_NODE, LocalGrid

if TYPE_CHECKING:
    from flwr.app import Message


class _Platform:
    """Lives in an actor: the handler is made there, so a platform's data stay in its process."""

    def __init__(self, make: Callable[[], Handler]) -> None:
        self._handle = make()

    def answer(self, payload: bytes) -> Answer:
        """Answer one frame; what goes to another process is in one piece."""
        result = answer(self._handle, payload)
        frame = result.payload
        whole = b"".join(frame) if isinstance(frame, tuple) else bytes(frame)
        return replace(result, payload=whole)


class RayGrid(LocalGrid):
    """Platforms as Ray actors; each handler's maker must be picklable.

    Raises:
        ConfigError: if Ray is not installed.
    """

    def __init__(
        self, makers: Mapping[str, Callable[[], Handler]], *, address: str | None = None
    ) -> None:
        try:
            self._ray: Any = importlib.import_module("ray")
        except ModuleNotFoundError:
            raise ConfigError(
                'Ray is not installed; run: pip install "crossrec[ray]", or use --engine local'
            ) from None
        numbered = dict(enumerate(makers.values(), start=FIRST_NODE))
        super().__init__(numbered)
        self._started_here = not self._ray.is_initialized()
        if self._started_here:
            self._ray.init(address=address, include_dashboard=False, log_to_driver=False)
        # No CPU is reserved: there may be more platforms than cores, and they take turns.
        actor = self._ray.remote(num_cpus=0)(_Platform)
        self._actors: dict[int, Any] = {n: actor.remote(make) for n, make in numbered.items()}

    def _submit(self, node: int, message: Message) -> Future[Message]:
        frame = bytes(from_record(message.content) or b"")
        remote: Future[Answer] = self._actors[node].answer.remote(frame).future()
        reply: Future[Message] = Future()
        remote.add_done_callback(lambda done: self._deliver(node, message, done, reply))
        return reply

    def _deliver(
        self, node: int, message: Message, done: Future[Answer], reply: Future[Message]
    ) -> None:
        if (error := done.exception()) is not None:
            reply.set_exception(error)
            return
        result = done.result()
        if result.last:
            self._ended(node, result.error)
        reply.set_result(type(message)(to_record(result.payload), reply_to=message))

    def close(self) -> None:
        """End the actors, and Ray if it was started here."""
        for actor in self._actors.values():
            self._ray.kill(actor)
        if self._started_here:
            self._ray.shutdown()
