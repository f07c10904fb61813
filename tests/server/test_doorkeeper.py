"""Nobody reaches the coordinator but nodes for which a platform of the roster vouches."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace

import pytest

from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.identity import IdentityKey, Member
from crossrec_model.secagg.node_pass import HEADER, NodePass, federation_of
from crossrec_model.secagg.roster import Roster
from server import doorkeeper as door
from server.doorkeeper import BURST, KEY_HEADER, RATE_PER_S, SESSIONS, Doorkeeper

KEYS = {name: IdentityKey.generate(SystemRandomness()) for name in "ABCD"}
SIGNER = IdentityKey.generate(SystemRandomness())


def _roster(names: str) -> Roster:
    members = tuple(Member(name, KEYS[name].public) for name in names)
    return Roster(federation="north", version=1, members=members, signer=SIGNER.public)


class Stage:
    def __init__(self) -> None:
        self.now, self.roster = 1_800_000_000.0, _roster("ABC")
        self.audited: list[tuple[str, str, str]] = []
        self.keeper = Doorkeeper(
            lambda: self.roster,
            audit=lambda *entry: self.audited.append(entry),
            clock=lambda: self.now,
        )

    def headers(self, node: bytes, platform: str | None, *, signer: str | None = None) -> dict:
        found = {KEY_HEADER: b64encode(node).decode()}
        if platform is not None:
            key = KEYS[signer or platform]
            given = NodePass.issue(platform, key, federation_of(self.roster), node, int(self.now))
            found[HEADER] = given.to_header()
        return found

    def check(self, headers: dict, address: str = "10.0.0.1") -> door.Refusal | None:
        return self.keeper.check(headers, address)


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_a_pass_opens_the_door_for_its_key_and_the_key_alone_from_then_on(stage: Stage) -> None:
    assert stage.check(stage.headers(b"node", "A")) is None
    assert stage.keeper.platform_of(b"node") == "A"
    stage.now += 10_000  # the pass is old by now, the session is not
    assert stage.check(stage.headers(b"node", None)) is None
    assert stage.check(stage.headers(b"other", None)) == door.NO_PASS
    assert stage.audited == [("no-pass", "", "10.0.0.1")]


def test_strangers_are_refused_and_audited(stage: Stage) -> None:
    stolen = stage.headers(b"node", "A") | {KEY_HEADER: b64encode(b"thief").decode()}
    assert stage.check(stolen) == door.BAD_PASS
    assert stage.check(stage.headers(b"node", "A", signer="B")) == door.BAD_PASS
    assert stage.check(stage.headers(b"node", "D")) == door.NOT_ON_ROSTER
    assert stage.check({HEADER: "nonsense", KEY_HEADER: "!"}) == door.NO_PASS
    assert stage.check(stage.headers(b"x", None) | {HEADER: "nonsense"}) == door.BAD_PASS
    late = stage.headers(b"node", "A")
    stage.now += 301
    assert stage.check(late) == door.CLOCK
    assert [entry[:2] for entry in stage.audited] == [
        ("bad-pass", "A"),
        ("bad-pass", "A"),
        ("not-on-roster", "D"),
        ("no-pass", ""),
        ("bad-pass", ""),
        ("clock", "A"),
    ]
    assert stage.keeper.platform_of(b"node") is None


def test_who_is_expelled_is_out_at_once(stage: Stage) -> None:
    assert stage.check(stage.headers(b"node", "C")) is None
    stage.roster = _roster("ABD")
    assert stage.check(stage.headers(b"node", None)) == door.NO_PASS
    assert stage.check(stage.headers(b"node", "C")) == door.NOT_ON_ROSTER


def test_a_flood_without_a_key_is_slowed_down_and_nobody_else(stage: Stage) -> None:
    assert stage.check(stage.headers(b"node", "A"), "10.0.0.9") is None
    answers = [stage.check(stage.headers(b"x", None), "10.0.0.9") for _ in range(int(BURST) + 50)]
    assert answers.count(door.TOO_MANY) == 51  # the platform's own first request counted, too
    assert stage.check(stage.headers(b"node", None), "10.0.0.9") is None
    assert stage.check(stage.headers(b"other", "B"), "10.0.0.2") is None
    stage.now += 1.0
    answers = [stage.check(stage.headers(b"x", None), "10.0.0.9") for _ in range(50)]
    assert answers.count(door.NO_PASS) == int(RATE_PER_S)


def test_a_platform_can_not_fill_the_memory_with_sessions(stage: Stage) -> None:
    for number in range(3 * SESSIONS):
        assert stage.check(stage.headers(bytes([number]), "A")) is None
    known = [n for n in range(3 * SESSIONS) if stage.keeper.platform_of(bytes([n]))]
    assert known == list(range(2 * SESSIONS, 3 * SESSIONS))
    for number in range(5000):
        stage.keeper.strangers_turn(f"10.1.{number // 256}.{number % 256}")
    assert len(stage.keeper._buckets) == 4096


def test_a_session_of_a_key_that_was_exchanged_is_out_at_once(stage: Stage) -> None:
    stolen = stage.headers(b"thief", "C")
    assert stage.check(stolen) is None
    anew = Member("C", KEYS["D"].public)
    members = (*stage.roster.members[:2], anew)
    stage.roster = replace(stage.roster, version=2, members=members)
    assert stage.keeper.platform_of(b"thief") is None
    assert stage.check(stolen) == door.BAD_PASS
    assert stage.check(stage.headers(b"node", "C", signer="D")) is None


def test_who_is_expelled_speaks_for_nobody(stage: Stage) -> None:
    assert stage.check(stage.headers(b"node", "C")) is None
    stage.roster = _roster("ABD")
    assert stage.keeper.platform_of(b"node") is None


def test_a_session_in_use_is_not_pushed_out_by_later_ones(stage: Stage) -> None:
    assert stage.check(stage.headers(b"node", "A")) is None
    stage.now += 1000
    for number in range(3 * SESSIONS):
        assert stage.check(stage.headers(bytes([number]), "A")) is None
        assert stage.check(stage.headers(b"node", None)) is None


def test_strangers_are_not_told_who_is_on_the_roster(stage: Stage) -> None:
    thief = IdentityKey.generate(SystemRandomness())
    told = set()
    for claimed in ("A", "D", "Z"):
        federation, now = federation_of(stage.roster), int(stage.now)
        given = NodePass.issue(claimed, thief, federation, b"x", now)
        refusal = stage.check(stage.headers(b"x", None) | {HEADER: given.to_header()})
        assert refusal is not None
        told.add((refusal.status, refusal.told))
    assert told == {(401, "not-admitted")}
    assert [entry[0] for entry in stage.audited] == ["bad-pass", "not-on-roster", "not-on-roster"]


def test_a_network_of_ipv6_is_one_address(stage: Stage) -> None:
    for number in range(int(BURST)):
        assert stage.keeper.strangers_turn(f"2001:db8::{number:x}") is None
    assert stage.keeper.strangers_turn("2001:db8::ffff:1") == door.TOO_MANY
    assert stage.keeper.strangers_turn("2001:db8:0:1::1") is None
    assert stage.keeper.strangers_turn("::ffff:10.0.0.1") is None
    assert stage.keeper.strangers_turn("::ffff:10.0.0.2") is None
    assert len(stage.keeper._buckets) == 4
