"""A node speaks only for the platform whose identity vouched for its connection."""

from __future__ import annotations

from collections.abc import Mapping

from crossrec_model.wire import messages as wire
from crossrec_model.wire.pieces import Frame
from server.admission import Admission
from server.courier import Arrivals, NodeId


class _Courier:
    """Two nodes, of which both say that they are platform A."""

    def __init__(self, owners: Mapping[int, str | None]) -> None:
        self.owners, self.refused = owners, []

    def nodes(self) -> dict[NodeId, float]:
        return {NodeId(number): 1.0 for number in self.owners}

    def owner(self, node: NodeId) -> str | None:
        return self.owners[node]

    def exchange(self, payloads: Mapping[NodeId, Frame], *, timeout_s: float) -> Arrivals:
        for node, payload in payloads.items():
            match wire.decode(payload):
                case wire.Hello():
                    reply = wire.HelloReply(
                        platform="A",
                        protocol_version=wire.PROTOCOL_VERSION,
                        software_version="1",
                    )
                case wire.Welcome():
                    reply = wire.WelcomeReply(
                        dimension=3, training_metrics=(), evaluation_metrics=()
                    )
                case wire.Refuse(reason=reason):
                    self.refused.append((node, reason))
                    reply = wire.Ack()
                case other:
                    raise AssertionError(other)
            yield node, wire.encode(reply)


def _seats(owners: Mapping[int, str | None]) -> tuple[dict[str, NodeId], list[tuple[int, str]]]:
    courier = _Courier(owners)
    joined: list[tuple[str, str]] = []
    admission = Admission(
        courier,
        session=bytes(16),
        plan=b"{}",
        dimension=3,
        timeout_s=1.0,
        objection=lambda platform: None,
        note=lambda text: None,
        joined=lambda platform, software: joined.append((platform, software)),
    )
    seats = admission.seats()
    assert joined == [(platform, "1") for platform in seats]
    return seats, courier.refused


def test_its_own_id_gets_the_seat() -> None:
    assert _seats({7: "A"}) == ({"A": 7}, [])


def test_a_platform_that_says_it_is_another_is_refused() -> None:
    seats, refused = _seats({7: "B"})
    assert seats == {}
    assert refused == [
        (7, "its connection was opened with the identity of B; use this platform's own")
    ]


def test_a_node_whose_pass_was_forgotten_is_refused() -> None:
    seats, refused = _seats({7: ""})
    assert seats == {}
    assert "with the identity of nobody" in refused[0][1]


def test_where_the_transport_does_not_know_the_keys_alone_decide() -> None:
    assert _seats({7: None}) == ({"A": 7}, [])


def test_a_liar_can_not_hold_the_seat_of_the_real_one() -> None:
    seats, refused = _seats({5: "B", 7: "A"})
    assert seats == {"A": 7}
    assert [node for node, _ in refused] == [5]
