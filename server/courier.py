"""How the coordinator reaches its platforms, whatever carries the bytes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NewType, Protocol

from crossrec_model.wire.pieces import Frame, Payload

__all__ = ["Arrivals", "Courier", "Frame", "Loss", "Lost", "NodeId", "Payload", "arrivals"]

NodeId = NewType("NodeId", int)

CHECK_ONLINE_S: Final = 1.0  # how often silent nodes are checked for being online


class Loss(StrEnum):
    """Why a node gave no answer."""

    LATE = "no answer in time"
    GONE = "the connection was lost"
    FAILED = "the transport reported an error"


@dataclass(frozen=True)
class Lost:
    """Stands in a node's place where its answer should be."""

    loss: Loss


Arrival = tuple[NodeId, Payload | Lost]
#: Pairs in order of arrival. Closing it ends the exchange.
Arrivals = Generator[Arrival, None, None]


class Courier(Protocol):
    """Carries opaque bytes to nodes and brings their answers."""

    def nodes(self) -> Mapping[NodeId, float]:
        """Return the nodes that are online, each with a mark.

        A node's mark changes whenever the node is heard again, so a mark that changed proves that the
        node is alive. Marks of different nodes can't be compared.
        """

    def owner(self, node: NodeId) -> str | None:
        """Return the platform that vouched for the node; None where the transport does not know."""

    def exchange(self, payloads: Mapping[NodeId, Frame], *, timeout_s: float) -> Arrivals:
        """Send each node its frame; yield each node's answer, or how it was lost, as it comes.

        Every key given comes exactly once, in order of arrival. Nothing is sent before the first
        pair is asked for. Every node is waited for on its own: one that dies half-way delays nobody
        else, and none is waited for longer than `timeout_s` seconds from the sending on; an answer
        that came in time counts, however late it is asked for. A generator that is closed early
        withdraws what is pending.

        The courier keeps no answer that it has handed over, so that a caller who adds it up and
        drops it (with `del`, before asking for the next) holds one answer at a time.
        """


def arrivals(
    nodes: Iterable[NodeId],
    wait: Callable[[NodeId, threading.Event], Payload | Lost],
    online: Callable[[], Iterable[NodeId]],
    *,
    timeout_s: float,
) -> Arrivals:
    """Wait for every node in a thread of its own and yield what came, in order of arrival.

    `wait` returns one node's answer and gives up when its event is set; `online` says who is there.
    """
    came: queue.Queue[Arrival] = queue.Queue()
    stop = threading.Event()
    pending = set(nodes)
    end = time.monotonic() + timeout_s
    for node in pending:
        # A named function, so that no thread keeps an answer after it has put it into the queue.
        threading.Thread(target=_deliver, args=(node, wait, came, stop), daemon=True).start()
    try:
        checked = time.monotonic()
        while pending:
            ready = _next(came, end)
            if ready and ready[0][0] in pending:
                pending.discard(ready[0][0])
                # Popped, not bound to a name: a suspended generator would hold the answer.
                yield ready.pop()
            elif not ready and time.monotonic() >= end:
                break
            elif not ready and time.monotonic() - checked >= CHECK_ONLINE_S:
                gone = pending.difference(online())
                pending -= gone
                yield from ((node, Lost(Loss.GONE)) for node in gone)
                checked = time.monotonic()
        yield from ((node, Lost(Loss.LATE)) for node in pending)
    finally:
        stop.set()


def _deliver(
    node: NodeId,
    wait: Callable[[NodeId, threading.Event], Payload | Lost],
    came: queue.Queue[Arrival],
    stop: threading.Event,
) -> None:
    came.put((node, wait(node, stop)))


def _next(came: queue.Queue[Arrival], end: float) -> list[Arrival]:
    """Return the next arrival in a list, or an empty one when it is time to look around."""
    left = end - time.monotonic()
    try:
        if left > 0:
            return [came.get(timeout=min(left, CHECK_ONLINE_S))]
        return [came.get_nowait()]
    except queue.Empty:
        return []
