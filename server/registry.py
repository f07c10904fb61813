"""Which platform sits at which node. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from server.courier import NodeId


class Verdict(Enum):
    """What becomes of a node that names itself."""

    ADMITTED = auto()
    #: Another node holds the id and may be dead: ask again when more marks are known.
    WAITING = auto()
    #: Another node holds the id and was heard after this one came.
    REFUSED = auto()


@dataclass(frozen=True)
class Registry:
    """Seats by platform id, and what else is known about nodes.

    `waiting` holds nodes that wait for a seat, with the holder's mark at that time; `doubted` holds
    nodes that gave no answer, with their own mark at that time.
    """

    seats: Mapping[str, NodeId] = field(default_factory=dict)
    waiting: Mapping[NodeId, float] = field(default_factory=dict)
    refused: frozenset[NodeId] = frozenset()
    doubted: Mapping[NodeId, float] = field(default_factory=dict)

    def claim(
        self, platform: str, node: NodeId, marks: Mapping[NodeId, float]
    ) -> tuple[Registry, Verdict]:
        """Let `node` claim the seat of `platform`; `marks` are those of the nodes online now.

        A platform that was killed and came back finds its own dead node in its seat. So a claim on
        a taken seat waits until either the holder goes offline (the newcomer gets the seat) or the
        holder's mark changes (it is alive, and the newcomer is refused).
        """
        holder = self.seats.get(platform)
        waiting = {n: mark for n, mark in self.waiting.items() if n != node}
        if holder is None or holder == node or holder not in marks:
            seats = {**self.seats, platform: node}
            return replace(self, seats=seats, waiting=waiting), Verdict.ADMITTED
        if marks[holder] != self.waiting.get(node, marks[holder]):
            return replace(self, waiting=waiting).refuse(node), Verdict.REFUSED
        waiting[node] = self.waiting.get(node, marks[holder])
        return replace(self, waiting=waiting), Verdict.WAITING

    def refuse(self, node: NodeId) -> Registry:
        """Return the registry in which this node never gets a seat."""
        return replace(self, refused=self.refused | {node})

    def doubt(self, node: NodeId, mark: float) -> Registry:
        """Return the registry in which this node is left out until its mark is not `mark`.

        A platform that was killed would else cost every round its whole time-out.
        """
        return replace(self, doubted={**self.doubted, node: mark})

    def vacate(self, platform: str) -> Registry:
        """Return the registry without this platform's seat."""
        return replace(self, seats={p: n for p, n in self.seats.items() if p != platform})

    def seated(self, online: Mapping[NodeId, float]) -> dict[str, NodeId]:
        """Return the seats whose node is online and not in doubt, sorted by platform id."""
        return {
            platform: node
            for platform, node in sorted(self.seats.items())
            if node in online and online[node] != self.doubted.get(node)
        }

    def strangers(self, online: Mapping[NodeId, float]) -> list[NodeId]:
        """Return the nodes online that neither hold a seat nor were refused one."""
        known = set(self.seats.values()) | self.refused
        return sorted(node for node in online if node not in known)
