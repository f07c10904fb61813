"""The door in front of the courier: who shows no pass that counts now reads and sends nothing."""

from __future__ import annotations

import asyncio
import time
from base64 import b64encode
from collections.abc import MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any

from crossrec_model.linkage.messages import Purpose
from crossrec_model.linkage.post import (
    ANY_THREAD,
    MAX_POST,
    Pull,
    Pulled,
    Push,
    decode_post_as,
    encode_post,
)
from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.identity import IdentityKey, Member
from crossrec_model.secagg.node_pass import HEADER, TOLERANCE_S, NodePass, federation_of
from crossrec_model.secagg.roster import Roster
from server.doorkeeper import KEY_HEADER, Doorkeeper
from server.gate import LINKAGE, Gate
from server.linking import BEGIN_BURST, BEGIN_PER_S, BURST, MOST_OF_ALL, PostOffice

KEYS = {name: IdentityKey.generate(SystemRandomness()) for name in "ABC"}
ROSTER = Roster(
    federation="north",
    version=1,
    members=tuple(Member(name, key.public) for name, key in KEYS.items()),
    signer=IdentityKey.generate(SystemRandomness()).public,
)
NODE = b"n" * 32
PUSH = encode_post(
    Push(partner="B", purpose=Purpose.USERS, thread=b"t" * 16, opens=True, number=0, frame=b"f")
)
PULL = encode_post(Pull(partner="A", purpose=Purpose.USERS, thread=bytes(16), number=0))
Headers = dict[str, str]


@dataclass
class Stand:
    rosters: list[Roster] = field(default_factory=lambda: [ROSTER])
    now: float = field(default_factory=time.time)
    inner: int = 0

    def __post_init__(self) -> None:
        self.keeper = Doorkeeper(lambda: self.rosters[-1], clock=lambda: self.now)
        self.post = PostOffice(lambda: self.rosters[-1].platforms, clock=lambda: self.now)
        self.gate = Gate(self._never, self.keeper, post=self.post)

    async def _never(self, *_given: object) -> None:
        self.inner += 1

    def ask(self, body: bytes, headers: Headers, method: str = "POST") -> tuple[int, bytes]:
        sent: list[MutableMapping[str, Any]] = []
        shown = [(name.encode(), value.encode()) for name, value in headers.items()]
        shown.append((b"content-length", str(len(body)).encode()))
        scope = {"type": "http", "method": method, "path": LINKAGE, "headers": shown,
                 "client": ("127.0.0.1", 1)}  # fmt: skip

        async def receive() -> MutableMapping[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        asyncio.run(self.gate(scope, receive, send))
        return sent[0]["status"], sent[1]["body"]

    def shown(self, platform: str, *, by: str | None = None, node: bytes = NODE) -> Headers:
        key, now = KEYS[by or platform], int(self.now)
        given = NodePass.issue(platform, key, federation_of(ROSTER), node, now)
        return {KEY_HEADER: b64encode(node).decode(), HEADER: given.to_header()}


def test_a_platform_speaks_for_itself_alone() -> None:
    stand = Stand()
    assert stand.ask(PUSH, stand.shown("A"))[0] == 200
    status, body = stand.ask(PULL, stand.shown("B", node=b"b" * 32))
    assert (status, decode_post_as(Pulled, body).frame) == (200, b"f")
    # C asks for what A has sent, and gets what A has sent to C.
    status, body = stand.ask(PULL, stand.shown("C", node=b"c" * 32))
    assert (status, decode_post_as(Pulled, body).frame) == (200, b"")
    assert not stand.inner


def test_without_a_pass_that_counts_now_nothing_is_read_or_sent() -> None:
    stand = Stand()
    good = stand.shown("A")
    # The session's key is known at the door by now; it alone is no pass here.
    assert stand.ask(PULL, good)[0] == 200
    key = {KEY_HEADER: good[KEY_HEADER]}
    for wrong in ({}, key, key | {HEADER: "x"}, key | stand.shown("A", by="C"),
                  stand.shown("A", node=b"o" * 32) | key):  # fmt: skip
        assert stand.ask(PUSH, wrong) == (401, b"")
    stand.now += TOLERANCE_S + 2
    assert stand.ask(PUSH, good) == (401, b"")
    assert stand.post.waiting == 0


def test_who_was_expelled_is_out_at_once() -> None:
    stand = Stand()
    assert stand.ask(PULL, stand.shown("A"))[0] == 200
    members = tuple(member for member in ROSTER.members if member.platform != "A")
    stand.rosters.append(replace(ROSTER, version=2, members=members, allow_two=True))
    assert stand.ask(PUSH, stand.shown("A")) == (401, b"")
    assert stand.post.waiting == 0


def test_what_is_no_request_is_refused() -> None:
    stand = Stand()
    assert stand.ask(b"x", stand.shown("A")) == (400, b"")
    assert stand.ask(PUSH, stand.shown("A"), "GET") == (404, b"")
    assert stand.ask(bytes(MAX_POST + 1), stand.shown("A")) == (413, b"")
    closed = Stand()
    closed.gate = Gate(closed._never, closed.keeper)
    assert closed.ask(PUSH, closed.shown("A")) == (404, b"")
    open_to_all = Stand()
    open_to_all.gate = Gate(open_to_all._never, post=open_to_all.post)
    assert open_to_all.ask(PUSH, open_to_all.shown("A")) == (401, b"")
    assert not stand.inner + closed.inner + open_to_all.inner


def test_who_asks_without_end_is_slowed_down() -> None:
    stand = Stand()
    stand.now = int(stand.now)
    shown = stand.shown("A")
    statuses = [stand.ask(PULL, shown)[0] for _ in range(int(BURST) + 5)]
    assert statuses.count(200) == BURST
    assert statuses[-1] == 429


def test_one_platform_writes_no_audit_line_without_end() -> None:
    heard: list[tuple[str, str, str]] = []
    now = 0.0
    office = PostOffice(lambda: ("A", "B"), lambda *who: heard.append(who), lambda: now)
    for second in range(600):
        now = float(second)
        for k in range(3):
            office.answer("A", _opening(second, k))
    assert len(heard) <= BEGIN_BURST + 600 * BEGIN_PER_S + 1
    # Whoever waits is let in again, though the asking never stopped.
    assert len(heard) > BEGIN_BURST + 500 * BEGIN_PER_S


def test_who_does_not_name_the_thread_takes_nothing_out_of_a_box() -> None:
    office = PostOffice(lambda: ("A", "B"))
    office.answer("A", PUSH)
    late = Pull(partner="A", purpose=Purpose.USERS, thread=ANY_THREAD, number=7)
    office.answer("B", encode_post(late))
    assert office.waiting == 1
    assert decode_post_as(Pulled, office.answer("B", PULL)).frame == b"f"


def test_all_senders_together_fill_no_more_than_there_is_room_for() -> None:
    names = tuple(f"P{k}" for k in range(40))
    office = PostOffice(lambda: names, clock=lambda: 0.0)
    for sender in names:
        for partner in names[:9]:
            for number in range(8):
                push = Push(
                    partner=partner, purpose=Purpose.ITEMS, thread=b"t" * 16,
                    opens=number == 0, number=number, frame=b"f",
                )  # fmt: skip
                office.answer(sender, encode_post(push))
    assert office.waiting == MOST_OF_ALL


def _opening(second: int, k: int) -> bytes:
    thread = second.to_bytes(8, "little") + k.to_bytes(8, "big")
    return encode_post(
        Push(partner="B", purpose=Purpose.USERS, thread=thread, opens=True, number=0, frame=b"f")
    )
