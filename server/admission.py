"""Lets platforms in: asks new nodes who they are, gives each id one seat, hands out the plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from crossrec_model.errors import WireError
from crossrec_model.wire.messages import (
    PROTOCOL_VERSION,
    Hello,
    HelloReply,
    Refuse,
    Welcome,
    WelcomeReply,
    decode_as,
    encode,
)
from server.courier import Courier, Lost, NodeId, Payload
from server.registry import Registry, Verdict

#: An idle platform answers a greeting within a second; a busy one is not greeted.
GREETING_TIMEOUT_S: Final = 5.0


class Admission:
    """The gatekeeper of one run.

    The first platform that accepts the plan sets the vector's length and the names of the metrics;
    a later one that disagrees is refused, since its vectors could not be added to the others'.
    `objection` says of a platform id why it can't take part, None if it can.
    """

    def __init__(
        self,
        courier: Courier,
        *,
        session: bytes,
        plan: bytes,
        dimension: int,
        timeout_s: float,
        objection: Callable[[str], str | None],
        note: Callable[[str], None],
        joined: Callable[[str, str], object] = lambda platform, software: None,
    ) -> None:
        self._courier, self._note, self._admits = courier, note, objection
        self._hello = encode(Hello(session=session))
        self._welcome = encode(Welcome(plan=plan))
        self._dimension, self._timeout_s = dimension, timeout_s
        self._registry = Registry()
        self._silent: dict[NodeId, float] = {}
        self._joined = joined
        self._software: dict[NodeId, str] = {}
        self.agreed: WelcomeReply | None = None

    def seats(self) -> dict[str, NodeId]:
        """Greet every new node, then return the seats online, in sorted order of platform id."""
        online = self._courier.nodes()
        self._silent = {n: mark for n, mark in self._silent.items() if online.get(n) == mark}
        strangers = [n for n in self._registry.strangers(online) if n not in self._silent]
        if strangers:
            self._greet(strangers)
            online = self._courier.nodes()
        return self._registry.seated(online)

    def lost(self, nodes: Iterable[NodeId]) -> None:
        """Leave out nodes that gave no answer until they are heard again."""
        marks = self._courier.nodes()
        for node in nodes:
            self._registry = self._registry.doubt(node, marks.get(node, 0.0))

    def _greet(self, strangers: list[NodeId]) -> None:
        named = self._names(strangers)
        marks = self._courier.nodes()
        admitted: dict[NodeId, str] = {}
        for node, platform in sorted(named.items(), key=lambda pair: (pair[1], pair[0])):
            before = self._registry.seats.get(platform)
            self._registry, verdict = self._registry.claim(platform, node, marks)
            if verdict is Verdict.ADMITTED:
                # Its holder left between greeting and seating: it must not cost the seat again.
                if before is not None:
                    admitted.pop(before, None)
                admitted[node] = platform
            elif verdict is Verdict.REFUSED:
                reason = (
                    f"platform id {platform} is taken by a platform that is here; choose another"
                )
                self._refuse(node, platform, f"{reason} --id")
        self._welcome_all(admitted)

    def _names(self, strangers: list[NodeId]) -> dict[NodeId, str]:
        """Return the platform id of every node that answers the greeting."""
        marks = self._courier.nodes()
        greeting = dict.fromkeys(strangers, self._hello)
        named: dict[NodeId, str] = {}
        for node, answer in self._courier.exchange(greeting, timeout_s=GREETING_TIMEOUT_S):
            reply = self._decoded(node, answer)
            if reply is None:
                # Not greeted again before it is heard again, so that it can't slow every round.
                self._silent[node] = marks.get(node, 0.0)
            elif reply.protocol_version != PROTOCOL_VERSION:
                self._refuse(
                    node,
                    reply.platform,
                    f"protocol version {reply.protocol_version} is not {PROTOCOL_VERSION}; "
                    "install the coordinator's version of crossrec",
                )
            elif (owner := self._courier.owner(node)) not in {None, reply.platform}:
                self._refuse(
                    node,
                    reply.platform,
                    f"its connection was opened with the identity of {owner or 'nobody'}; "
                    "use this platform's own",
                )
            elif (problem := self._admits(reply.platform)) is not None:
                self._refuse(node, reply.platform, problem)
            else:
                named[node] = reply.platform
                self._software[node] = reply.software_version
        return named

    def _decoded(self, node: NodeId, answer: Payload | Lost) -> HelloReply | None:
        if isinstance(answer, Lost):
            return None
        try:
            return decode_as(HelloReply, answer)
        except WireError as error:
            self._note(f"a node did not say who it is: {error}")
            return None

    def _welcome_all(self, admitted: Mapping[NodeId, str]) -> None:
        welcomes = dict.fromkeys(admitted, self._welcome)
        answers = dict(self._courier.exchange(welcomes, timeout_s=self._timeout_s))
        for node in sorted(answers, key=lambda n: admitted[n]):
            platform, answer = admitted[node], answers[node]
            problem = str(answer.loss) if isinstance(answer, Lost) else self._objection(answer)
            if problem is None:
                self._note(f"platform {platform} joined")
                self._joined(platform, self._software.pop(node, ""))
                continue
            self._registry = self._registry.vacate(platform)
            if isinstance(answer, Lost):
                self._note(f"platform {platform} left before it joined: {problem}")
            else:
                self._refuse(node, platform, problem)

    def _objection(self, answer: Payload) -> str | None:
        """Return why this answer to the plan can't be accepted, None if it can."""
        try:
            reply = decode_as(WelcomeReply, answer)
        except WireError as error:
            return str(error)
        if reply.dimension != self._dimension:
            return (
                f"its model has {reply.dimension} shared parameters, the plan's has "
                f"{self._dimension}; install the coordinator's version of crossrec"
            )
        if self.agreed is None:
            self.agreed = reply
        if reply != self.agreed:
            return "its metrics differ from the others'; install the same version of crossrec"
        return None

    def _refuse(self, node: NodeId, platform: str, reason: str) -> None:
        self._registry = self._registry.refuse(node)
        self._note(f"platform {platform} was refused: {reason}")
        refusal = {node: encode(Refuse(reason=reason[:500]))}
        # Whatever it answers, it is refused.
        dict(self._courier.exchange(refusal, timeout_s=GREETING_TIMEOUT_S))
