"""Answers that get lost on the way: nobody waits for what can't come, and the end is confirmed."""

from __future__ import annotations

import httpx
import pytest
from counting_platform import make_handler
from open_line import FINISH, Line

# Flower is imported through our adapters only, since they filter the one warning of its import.
from clients import flower as platform_side
from clients.flower import FleetHttpClient, fleet
from crossrec_model.wire import messages as wire
from server.courier import Loss, Lost

ACK = wire.encode(wire.Ack())


def test_a_question_that_was_lost_on_the_way_costs_no_deadline(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is cut when the coordinator has answered and the platform has not heard it."""
    pull, cut = FleetHttpClient.PullMessages, [False]

    def pulling(client: FleetHttpClient, request: fleet.PullMessagesRequest) -> object:
        response = pull(client, request)
        if response.messages_list and not cut[0]:
            cut[0] = True
            raise httpx.ReadError("connection reset")
        return response

    monkeypatch.setattr(FleetHttpClient, "PullMessages", pulling)
    line.join(make_handler("A", 8))
    (node,) = line.wait_for(1)
    hello = wire.encode(wire.Hello(session=bytes(16)))
    # Long before the time is over.
    assert dict(line.courier.exchange({node: hello}, timeout_s=250)) == {node: Lost(Loss.GONE)}
    assert cut == [True]
    (again,) = line.wait_for(1)
    assert again != node
    line.finish()


def test_a_platform_says_again_that_it_has_the_final_model(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator was not there to hear it, and would wait for this platform."""
    send, lost = platform_side._Session._send, [False]

    def sending(session: platform_side._Session, reply: object, run_id: int) -> None:
        if not lost[0]:
            lost[0] = True
            raise platform_side._LostError("the coordinator was killed")
        send(session, reply, run_id)  # type: ignore[arg-type]

    finals: list[bytes] = []
    inner = make_handler("A", 8)

    def handle(payload: bytes) -> bytes | tuple[bytes | memoryview, ...]:
        finals.append(bytes(payload))
        return inner(payload)  # type: ignore[return-value]

    monkeypatch.setattr(platform_side._Session, "_send", sending)
    line.join(handle)
    (node,) = line.wait_for(1)
    assert dict(line.courier.exchange({node: FINISH}, timeout_s=60)) == {node: Lost(Loss.GONE)}
    (again,) = line.wait_for(1)
    assert dict(line.courier.exchange({again: FINISH}, timeout_s=60)) == {again: ACK}
    line.threads[0].join(10)
    assert not line.threads[0].is_alive()
    assert finals == [FINISH, FINISH]
