"""How the coordinator reaches its platforms, whatever carries the bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType, Protocol

NodeId = NewType("NodeId", int)


class Loss(StrEnum):
    """Why a node gave no answer."""

    LATE = "no answer in time"
    GONE = "the connection was lost"
    FAILED = "the transport reported an error"


@dataclass(frozen=True)
class Lost:
    """Stands in a node's place where its answer should be."""

    loss: Loss


class Courier(Protocol):
    """Carries opaque bytes to nodes and brings their answers."""

    def nodes(self) -> Mapping[NodeId, float]:
        """Return the nodes that are online, each with a mark.

        A node's mark grows whenever the node is heard again, so a mark that grew proves that the
        node is alive. Marks of different nodes can't be compared.
        """

    def exchange(
        self, payloads: Mapping[NodeId, bytes], *, timeout_s: float
    ) -> dict[NodeId, bytes | Lost]:
        """Send each node its payload and return each node's answer, or how it was lost.

        Every node is waited for on its own: one that dies half-way delays nobody else, and none is
        waited for longer than `timeout_s` seconds. The keys returned are the keys given.
        """
