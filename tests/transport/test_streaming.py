"""What the link holds while long frames arrive, and what it does with replies that lie."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from open_line import FINISH, Line, raw_node

from clients import flower as platform_side
from clients.connection import Handler
from clients.flower import FleetHttpClient, fleet, get_object_tree
from crossrec_model.wire import messages as wire
from crossrec_model.wire.codec import Pieces
from crossrec_model.wire.pieces import PIECE_BYTES, Payload
from server.courier import Loss, Lost, NodeId
from server.flower import GridCourier
from server.records import Array
from simulations.grid import InProcessGrid

ACK = wire.encode(wire.Ack())


def _answering(frame: bytes | Pieces) -> Handler:
    return lambda payload: ACK if payload == FINISH else frame


def _stored(line: Line) -> int:
    """Bytes in the link, as soon as its last waiting thread has let go."""
    store = line.link._state.object_store.store
    end = time.monotonic() + 5
    while store and time.monotonic() < end:
        time.sleep(0.01)
    return sum(len(entry.content) for entry in store.values()) + len(store)


def _long(seed: int, pieces: int) -> bytes:
    return np.random.default_rng(seed).bytes(pieces * PIECE_BYTES + 7)


def test_frames_in_pieces_arrive_whole_both_ways(line: Line) -> None:
    seen: list[Payload] = []

    def echo(payload: Payload) -> bytes | Pieces:
        if payload == FINISH:
            return ACK
        seen.append(payload)
        return (payload[:3], b"", payload[3:900], payload[900:])

    line.join(echo)
    (node,) = line.wait_for(1)
    vector = np.random.default_rng(3).random(PIECE_BYTES, dtype=np.float32)
    request = wire.TrainRequest(run=bytes(16), round=1, rounds=1, ticket=b"t", parameters=vector)
    ((_, answer),) = line.courier.exchange({node: wire.encode_pieces(request)}, timeout_s=60)
    assert answer == seen[0] == wire.encode(request)
    assert _stored(line) == 0
    line.finish()


def test_equal_long_replies_of_several_platforms_all_arrive(line: Line) -> None:
    """A piece that platforms share is one object in the link: none may take it from the other."""
    # Equal pieces within a frame, too, and the request's own pieces sent back.
    frame = wire.encode(wire.Secure(frame=bytes(1 << 16))) + bytes(3 * PIECE_BYTES)
    for _ in range(3):
        line.join(_answering(frame))
    nodes = line.wait_for(3)
    for _ in range(3):
        answers = dict(line.courier.exchange(dict.fromkeys(nodes, ACK), timeout_s=60))
        assert answers == dict.fromkeys(nodes, frame)
        assert _stored(line) == 0
    line.finish()


def test_an_exchange_given_up_withdraws_what_is_pending(line: Line) -> None:
    release = threading.Event()

    def slow(payload: Payload) -> bytes:
        if payload != FINISH:
            release.wait(20)
        return ACK

    line.join(_answering(ACK))
    (quick,) = line.wait_for(1)
    line.join(slow)
    (other,) = set(line.wait_for(2)) - {quick}
    with raw_node(line) as (_client, silent):
        line.wait_for(3)
        nodes = (quick, other, NodeId(silent.node_id))
        exchange = line.courier.exchange(dict.fromkeys(nodes, ACK), timeout_s=60)
        assert next(exchange) == (quick, ACK)
        exchange.close()
        assert _stored(line) == 0
    # The answer that comes late is for nobody, and does not stay.
    release.set()
    assert dict(line.courier.exchange({other: ACK}, timeout_s=20)) == {other: ACK}
    assert _stored(line) == 0
    line.finish()


def _reply(
    client: FleetHttpClient,
    node: platform_side.Node,
    frame: bytes | Pieces,
    change: Callable[[Array], None],
) -> None:
    """Answer the next message with a changed reply, all of whose objects are sent."""
    while not (got := client.PullMessages(fleet.PullMessagesRequest(node=node))).messages_list:
        time.sleep(0.02)
    incoming = platform_side.message_from_proto(got.messages_list[0])
    reply = platform_side._reply(frame, incoming)
    change(reply.content["crossrec"]["frame"])  # type: ignore[arg-type, call-overload, index]
    reply.metadata.__dict__["_message_id"] = reply.object_id
    announced = client.PushMessages(
        fleet.PushMessagesRequest(
            node=node,
            messages_list=[
                platform_side.message_to_proto(platform_side.remove_content_from_message(reply))
            ],
            message_object_trees=[get_object_tree(reply)],
        )
    )
    push = platform_side.make_push_object_fn_protobuf(
        client.PushObject, node, incoming.metadata.run_id, announced.session_id
    )
    # A lie that is seen through before all has come ends the reply.
    with suppress(platform_side.ObjectPushError):
        for name, thing in platform_side.get_all_nested_objects(reply).items():
            push(name, thing.deflate())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shape", (1 << 40,)),
        ("shape", (4,)),
        ("shape", (-1,)),
        ("shape", (2, 2)),
        ("stype", "numpy.ndarray"),
    ],
)
def test_a_reply_that_lies_about_itself_is_not_believed(
    line: Line, field: str, value: object
) -> None:
    with raw_node(line) as (client, node):
        liar = NodeId(node.node_id)
        line.wait_for(1)

        def lie(array: Array) -> None:
            array.__dict__[field] = value

        thread = threading.Thread(target=_reply, args=(client, node, (b"12345",), lie))
        thread.start()
        answers = dict(line.courier.exchange({liar: b"x"}, timeout_s=20))
        thread.join(10)
        assert answers == {liar: Lost(Loss.FAILED)}
        assert _stored(line) == 0


def test_a_piece_repeated_without_end_is_cut_off(line: Line) -> None:
    """One short piece may stand for gigabytes; the announced length is what counts."""
    with raw_node(line) as (client, node):
        line.wait_for(1)

        def repeat(array: Array) -> None:
            (piece,) = array.__dict__["_chunks"]
            array.__dict__["_chunks"] = [piece] * 10_000
            assert json.loads(array.deflate().split(b"\x00", 3)[-1])["shape"] == [PIECE_BYTES]

        frame = (bytes(PIECE_BYTES),)
        thread = threading.Thread(target=_reply, args=(client, node, frame, repeat))
        thread.start()
        answers = dict(line.courier.exchange({NodeId(node.node_id): b"x"}, timeout_s=20))
        thread.join(10)
        assert answers == {NodeId(node.node_id): Lost(Loss.FAILED)}
        assert _stored(line) == 0


def test_without_a_link_pieces_are_joined_and_bytes_are_handed_over_as_they_are() -> None:
    seen: list[Payload] = []
    frame = _long(5, 1)

    def handle(payload: Payload) -> bytes | Pieces:
        seen.append(payload)
        return (b"ab", memoryview(b"cd"))

    grid = InProcessGrid({"A": handle})
    courier = GridCourier(grid)
    (node,) = courier.nodes()
    request = wire.encode(wire.Secure(frame=frame[:1000]))
    assert dict(courier.exchange({node: request}, timeout_s=10)) == {node: b"abcd"}
    assert seen[0] is request
    grid.close()
