"""The courier of linkages hears nobody but platforms that show a pass with each request."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from clients.passport import Passport
from crossrec_model.linkage.messages import Purpose
from crossrec_model.linkage.post import (
    ANY_THREAD,
    MAX_POST,
    Pull,
    Pulled,
    Push,
    Status,
    decode_post_as,
    encode_post,
)
from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.identity import IdentityKey, Member
from crossrec_model.secagg.node_pass import TOLERANCE_S
from crossrec_model.secagg.roster import Roster
from server.doorkeeper import Doorkeeper
from server.gate import LINKAGE, Gate
from server.linking import BURST, PostOffice

NOW = 1_800_000_000
KEYS = {name: IdentityKey.generate(SystemRandomness()) for name in "ABCD"}
ROSTER = Roster(
    federation="north",
    version=1,
    members=tuple(Member(name, KEYS[name].public) for name in "ABC"),
    signer=IdentityKey.generate(SystemRandomness()).public,
)
PULL = encode_post(Pull(partner="A", purpose=Purpose.USERS, thread=ANY_THREAD, number=0))
PUSH = encode_post(
    Push(partner="B", purpose=Purpose.USERS, thread=b"t" * 16, opens=True, number=0, frame=b"f")
)


async def _never(*_arguments: object) -> None:
    raise AssertionError("it passed the gate")


class Network:
    """Posts to a gate; `now` is the coordinator's clock."""

    def __init__(self) -> None:
        self.now = float(NOW)
        self.refused: list[tuple[str, str, str]] = []
        door = Doorkeeper(
            lambda: ROSTER, audit=lambda *what: self.refused.append(what), clock=lambda: self.now
        )
        self.office = PostOffice(lambda: ROSTER.platforms, clock=lambda: 0.0)
        self.gate = Gate(_never, door, None, self.office)

    def post(
        self,
        headers: dict[str, str],
        body: bytes,
        *,
        method: str = "POST",
        claimed: int | None = None,
    ) -> tuple[int, bytes]:
        answered: list[MutableMapping[str, Any]] = []
        length = str(len(body) if claimed is None else claimed)
        scope = {
            "type": "http",
            "path": LINKAGE,
            "method": method,
            "client": ("192.0.2.1", 7),
            "headers": [
                (name.encode(), value.encode())
                for name, value in (headers | {"content-length": length}).items()
            ],
        }

        async def receive() -> MutableMapping[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: MutableMapping[str, Any]) -> None:
            answered.append(message)

        asyncio.run(self.gate(scope, receive, send))
        return answered[0]["status"], answered[1]["body"]


def _headers(name: str, *, now: float = NOW, key: str = "") -> dict[str, str]:
    identity = KEYS[key or name]
    return Passport(
        platform=name, identity=identity, roster=lambda: ROSTER, clock=lambda: now
    ).introduction()


def test_a_platform_is_heard_under_its_own_name_only() -> None:
    network = Network()
    assert network.post(_headers("A"), PUSH)[0] == 200
    status, body = network.post(_headers("B"), PULL)
    assert status == 200
    assert decode_post_as(Pulled, body).frame == b"f"
    status, body = network.post(_headers("C"), PULL)
    assert decode_post_as(Pulled, body).status is Status.NOTHING


@pytest.mark.parametrize(
    "headers",
    [
        {},
        _headers("D"),
        _headers("A", key="B"),
        _headers("A", now=NOW - TOLERANCE_S - 1),
        {name: value for name, value in _headers("A").items() if name != "crossrec-pass"},
        {**_headers("A"), "flwr-public-key": "AAAA"},
    ],
)
def test_strangers_and_forged_or_old_passes_are_refused(headers: dict[str, str]) -> None:
    network = Network()
    assert network.post(headers, PUSH) == (401, b"")
    assert network.office.waiting == 0
    assert len(network.refused) == 1


def test_a_known_key_without_its_pass_is_not_heard() -> None:
    network = Network()
    headers = _headers("A")
    assert network.post(headers, PULL)[0] == 200
    # The transport's own requests are signed; these are not, so that the pass must come each time.
    bare = {"flwr-public-key": headers["flwr-public-key"]}
    assert network.post(bare, PUSH)[0] == 401
    network.now += TOLERANCE_S + 1
    assert network.post(headers, PUSH)[0] == 401
    assert network.office.waiting == 0


def test_what_is_no_request_too_long_or_too_often_is_refused() -> None:
    network = Network()
    headers = _headers("A")
    assert network.post(headers, b"nonsense")[0] == 400
    assert network.post(headers, PUSH, claimed=MAX_POST + 1)[0] == 413
    assert network.post(headers, PUSH, method="GET")[0] == 404
    statuses = {network.post(headers, PUSH)[0] for _ in range(int(BURST))}
    assert statuses == {200, 429}
    assert network.post(_headers("B"), PULL)[0] == 200


def test_a_coordinator_without_a_courier_has_none() -> None:
    network = Network()
    network.gate = Gate(_never, Doorkeeper(lambda: ROSTER, clock=lambda: NOW))
    assert network.post(_headers("A"), PUSH)[0] == 404
