"""The link over TLS with platforms as threads: bytes, pieces, deaths, and what is never done."""

from __future__ import annotations

import datetime as datetime_module
import hashlib
import io
import threading
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from counting_platform import make_handler
from open_line import FINISH, Line, open_line, raw_node

# Flower is imported through our adapters only, since they filter the one warning of its import.
from clients import flower as platform_side
from clients.connection import Endpoint, Handler
from clients.flower import (
    fleet,
    get_object_tree,
    serve,
)
from clients.keys import load_identity, read_roster
from clients.passport import Passport
from crossrec_model.config import FederationConfig, Plan
from crossrec_model.errors import ConnectionRefusedByPeerError
from crossrec_model.wire import messages as wire
from crossrec_model.wire.codec import Pieces
from server.courier import Loss, Lost, NodeId
from server.doorkeeper import Doorkeeper
from server.federation import Federation, RunOptions, fresh_start
from server.flower import GridCourier, Link
from server.gate import Gate, Receive, Scope, Send
from server.listener import bind, serving
from server.progress import PlainProgress
from server.tls import TlsFiles
from simulations.grid import InProcessGrid
from simulations.plain import PlainSum
from simulations.processes import make_roster


def _frame(megabytes: float) -> bytes:
    numbers = np.random.default_rng(1).random(int(megabytes * 2**18), dtype=np.float32)
    body = (numbers.view(np.uint8).data,)
    return wire.encode(wire.SumReply(run=bytes(16), round=1, body=body))


def test_sixteen_megabytes_travel_both_ways_in_pieces(line: Line) -> None:
    line.join(lambda payload: payload if payload != FINISH else wire.encode(wire.Ack()))
    (node,) = line.wait_for(1)
    frame = _frame(16)
    answers = dict(line.courier.exchange({node: frame}, timeout_s=60))
    assert answers == {node: frame}
    # 16 MiB and a head in pieces of 2 MiB: nine of them, and the four records around.
    assert line.paths.count("/v1/fleet/pull-object") == 13
    assert line.paths.count("/v1/fleet/push-object") == 13
    line.finish()
    # How long a platform worked is not told: it would show how much data it has.
    assert [run.clientapp_runtime for run in line.link._state.get_run_info()] == [0.0]


def test_no_bundle_is_asked_for_and_none_is_run(line: Line) -> None:
    from flwr.supercore.fab import Fab

    content = b"import os; os.abort()"
    line.link._state.store_fab(Fab(hashlib.sha256(content).hexdigest(), content, {}))
    line.join(make_handler("A", 8))
    (node,) = line.wait_for(1)
    hello = wire.encode(wire.Hello(session=bytes(16)))
    answer = dict(line.courier.exchange({node: hello}, timeout_s=10))[node]
    assert not isinstance(answer, Lost)
    assert wire.decode_as(wire.HelloReply, answer).platform == "A"
    # Code in place of a frame is not a frame.
    answer = dict(line.courier.exchange({node: content}, timeout_s=10))[node]
    malformed = wire.Failure(code=wire.FailureCode.MALFORMED)
    assert answer == wire.encode(malformed)
    line.finish()
    known = {"register-node", "activate-node", "pull-messages", "pull-object", "push-messages"}
    known |= {"push-object", "confirm-message-received", "send-node-heartbeat"}
    known |= {"deactivate-node", "unregister-node"}
    asked = set(line.paths) - {"", "/health"}
    assert asked <= {f"/v1/fleet/{name}" for name in known}


def test_a_death_in_mid_upload_delays_nobody_else(line: Line) -> None:
    arrived: dict[str, float] = {}
    echo = lambda payload: payload if payload != FINISH else wire.encode(wire.Ack())  # noqa: E731
    line.join(echo)
    (honest,) = line.wait_for(1)
    with raw_node(line) as (client, node):
        dying = NodeId(node.node_id)
        line.wait_for(2)
        frame, started = _frame(0.1), time.monotonic()

        def announce_and_die() -> None:
            while not (
                got := client.PullMessages(fleet.PullMessagesRequest(node=node))
            ).messages_list:
                time.sleep(0.02)
            incoming = platform_side.message_from_proto(got.messages_list[0])
            reply = platform_side._reply(frame, incoming)
            reply.metadata.__dict__["_message_id"] = reply.object_id
            # The reply is announced, then not one of its pieces comes.
            client.PushMessages(
                fleet.PushMessagesRequest(
                    node=node,
                    messages_list=[platform_side.message_to_proto(reply)],
                    message_object_trees=[get_object_tree(reply)],
                    clientapp_runtime_list=[0.1],
                )
            )
            arrived["announced"] = time.monotonic() - started

        thread = threading.Thread(target=announce_and_die)
        thread.start()
        answers = dict(line.courier.exchange({honest: frame, dying: frame}, timeout_s=2.0))
        assert time.monotonic() - started < 4.0
        thread.join(10)
    assert "announced" in arrived
    assert answers == {honest: frame, dying: Lost(Loss.LATE)}
    line.finish()


def test_a_node_that_says_goodbye_is_gone_before_the_time_is_over(line: Line) -> None:
    with raw_node(line) as (client, node):
        goodbye = fleet.DeactivateNodeRequest(node_id=node.node_id)
        leaver = threading.Timer(0.3, client.DeactivateNode, (goodbye,))
        leaver.start()
        started = time.monotonic()
        answers = dict(line.courier.exchange({NodeId(node.node_id): b"x"}, timeout_s=30.0))
        leaver.join()
    assert time.monotonic() - started < 10.0
    assert answers == {NodeId(node.node_id): Lost(Loss.GONE)}


def test_an_unknown_node_is_gone_and_nothing_to_send_is_nothing(line: Line) -> None:
    assert dict(line.courier.exchange({NodeId(12345): b"x"}, timeout_s=5.0)) == {
        NodeId(12345): Lost(Loss.GONE)
    }
    assert dict(line.courier.exchange({}, timeout_s=5.0)) == {}


@pytest.mark.parametrize("seconds", [4000.0, -4000.0])
def test_a_clock_that_is_set_does_not_end_the_link(
    line: Line, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """Or a machine that slept for longer than Flower's minute."""
    # A request that was signed before and is looked at after is refused, and the node joins anew.
    asking, intercept = threading.Lock(), platform_side.NodeAuthHttpInterceptor.intercept

    def alone(self: Any, context: Any, call_next: Any) -> Any:
        with asking:
            return intercept(self, context, call_next)

    monkeypatch.setattr(platform_side.NodeAuthHttpInterceptor, "intercept", alone)
    line.join(make_handler("A", 8))
    (node,) = line.wait_for(1)
    real, off = time.time, [0.0]

    monkeypatch.setattr(time, "time", lambda: real() + off[0])
    # Both sides' clocks: else the platform's requests would be refused.
    clock = SimpleNamespace(now=lambda tz: datetime.fromtimestamp(time.time(), tz))
    shifted = SimpleNamespace(**{**vars(datetime_module), "datetime": clock})
    monkeypatch.setattr("flwr.supercore.date.datetime", shifted)
    with asking:
        off[0] = seconds
        assert line.courier.nodes() == {}
    # Its next heartbeat shows it.
    assert line.wait_for(1) == [node]
    line.finish()


def test_a_platform_that_is_expelled_while_it_waits_ends_with_the_reason(
    tls_files: TlsFiles, tmp_path: Path
) -> None:
    signed = read_roster(make_roster(tmp_path, "ABC")).roster
    others = tuple(member for member in signed.members if member.platform != "A")
    left = replace(signed, members=others, version=2, allow_two=True)
    counts, ended = [signed], []
    link = Link(Doorkeeper(lambda: counts[-1]))
    passport = Passport(platform="A", identity=load_identity(tmp_path / "A"), roster=lambda: signed)

    def platform(address: str) -> None:
        try:
            serve(make_handler("A", 8), address=address, ca=tls_files.ca, passport=passport)
        except ConnectionRefusedByPeerError as error:
            ended.append(str(error))

    with bind("127.0.0.1", 0) as listener:
        with serving(link.application, listener, tls_files), link.courier() as courier:
            address = f"127.0.0.1:{listener.getsockname()[1]}"
            thread = threading.Thread(target=platform, args=(address,), daemon=True)
            thread.start()
            Line(link, courier, address, tls_files, [], [thread]).wait_for(1)
            counts.append(left)
            thread.join(20)
            assert not thread.is_alive()
    assert len(ended) == 1
    assert "not, or no longer, on its roster" in ended[0]


def test_nobody_speaks_for_another_node(line: Line) -> None:
    line.join(make_handler("A", 8))
    (victim,) = line.wait_for(1)
    with raw_node(line) as (client, node):
        node.node_id = victim
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            client.PullMessages(fleet.PullMessagesRequest(node=node))
    line.finish()


def test_both_transports_hand_over_identical_bytes(line: Line) -> None:
    plan = Plan(federation=FederationConfig(rounds=2, min_platforms=2, round_timeout_s=20.0))
    start = fresh_start(plan, np.zeros(8, dtype=np.float32))

    def run(courier: GridCourier) -> None:
        Federation(
            courier,
            start,
            RunOptions(platforms=2),
            aggregation=PlainSum(courier, plan),
            save=lambda _: None,
            progress=PlainProgress(io.StringIO()),
        ).run()

    def recorded(name: str, frames: list[bytes]) -> Handler:
        inner = make_handler(name, 8)

        def handle(payload: bytes) -> bytes | Pieces:
            reply = inner(payload)
            # The greeting holds a fresh random session.
            if not isinstance(wire.decode(payload), wire.Hello):
                frames.extend((payload, b"".join(reply) if isinstance(reply, tuple) else reply))
            return reply

        return handle

    real: dict[str, list[bytes]] = {"A": [], "B": []}
    local: dict[str, list[bytes]] = {"A": [], "B": []}
    for name, frames in real.items():
        line.join(recorded(name, frames))
    run(line.courier)
    for thread in line.threads:
        thread.join(10)
    grid = InProcessGrid({name: recorded(name, frames) for name, frames in local.items()})
    run(GridCourier(grid))
    grid.close()
    # Welcome, two rounds of training and evaluation, finish; each with its reply.
    assert [len(frames) for frames in real.values()] == [12, 12]
    assert real == local


def test_the_coordinator_forgets_messages_that_nobody_waits_for(line: Line) -> None:
    seen: list[bytes] = []
    line.join(lambda payload: (seen.append(payload), wire.encode(wire.Ack()))[1])
    (node,) = line.wait_for(1)
    with raw_node(line) as (client, silent):
        line.wait_for(2)
        assert dict(line.courier.exchange({NodeId(silent.node_id): b"old"}, timeout_s=0.2)) == {
            NodeId(silent.node_id): Lost(Loss.LATE)
        }
        pulled = client.PullMessages(fleet.PullMessagesRequest(node=silent))
        assert len(pulled.messages_list) == 0
    ack = wire.encode(wire.Ack())
    assert dict(line.courier.exchange({node: ack}, timeout_s=10)) == {node: ack}
    assert seen == [ack]
    line.finish()


def test_the_gate_refuses_what_has_no_length_or_is_no_http() -> None:
    import asyncio

    async def never(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise AssertionError("the gate let it through")

    async def through(scope: dict[str, object]) -> list[dict[str, object]]:
        sent: list[dict[str, object]] = []

        async def send(message: object) -> None:
            sent.append(message)  # type: ignore[arg-type]

        await Gate(never)(scope, _no_receive, send)
        return sent

    def headers(*pairs: tuple[bytes, bytes]) -> dict[str, object]:
        return {"type": "http", "path": "/v1/fleet/push-object", "headers": list(pairs)}

    chunked = asyncio.run(through(headers((b"transfer-encoding", b"chunked"))))
    assert chunked[0]["status"] == 411
    odd = asyncio.run(through(headers((b"content-length", b"-1"))))
    assert odd[0]["status"] == 413
    socket_scope: dict[str, object] = {"type": "websocket", "path": "/v1/fleet/x"}
    assert asyncio.run(through(socket_scope)) == [{"type": "websocket.close", "code": 1008}]


async def _no_receive() -> dict[str, object]:
    raise AssertionError("nothing is to be read")


def test_an_endpoint_is_reported_while_it_does_not_answer(tls_files: TlsFiles) -> None:
    """A platform outlives a coordinator that restarts on the same port."""
    lines: list[str] = []
    with open_line(tls_files) as first:
        arguments = {"address": first.address, "ca": tls_files.ca, "report": lines.append}
        thread = threading.Thread(
            target=serve, args=(make_handler("A", 8),), kwargs=arguments, daemon=True
        )
        thread.start()
        first.wait_for(1)
    port = int(Endpoint(address=first.address).port)
    link = Link()
    with bind("127.0.0.1", port) as listener:
        with serving(link.application, listener, tls_files), link.courier() as courier:
            second = Line(link, courier, first.address, tls_files, [], [thread])
            second.wait_for(1)
            second.finish()
    assert any("does not answer" in line and "trying again" in line for line in lines)
    assert any("does not know this node any more" in line for line in lines)
