"""Rosters: one form, one signer, and thresholds under which two sums share an honest platform."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import FrozenInstanceError, replace
from fractions import Fraction
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossrec_model.errors import ConfigError
from crossrec_model.secagg.derive import domain
from crossrec_model.secagg.errors import (
    IdentityError,
    RosterError,
    SecureSumError,
    SignatureError,
)
from crossrec_model.secagg.identity import MAX_BYTES, IdentityKey, Member
from crossrec_model.secagg.roster import Roster, SignedRoster, sign


def _key(number: int) -> IdentityKey:
    return IdentityKey.from_bytes(number.to_bytes(32, "little"))


SIGNER = _key(1000)


def _members(count: int) -> tuple[Member, ...]:
    return tuple(Member(f"P{i:03}", _key(i).public) for i in range(count))


def _roster(count: int = 3, version: int = 1, *, allow_two: bool = False) -> Roster:
    return Roster(
        federation="shops of the north",
        version=version,
        members=_members(count),
        signer=SIGNER.public,
        allow_two=allow_two,
    )


def _refused(error: type[Exception], make: object, *arguments: object, **named: object) -> str:
    with pytest.raises(error) as caught:
        make(*arguments, **named)  # type: ignore[operator]
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


ROSTER = _roster()
SIGNED = sign(ROSTER, SIGNER)


def test_a_roster_is_a_value() -> None:
    assert _roster() == ROSTER
    assert hash(_roster()) == hash(ROSTER)
    with pytest.raises(FrozenInstanceError):
        ROSTER.version = 2  # type: ignore[misc]
    assert ROSTER.platforms == ("P000", "P001", "P002")
    assert ROSTER.public("P001") == _key(1).public
    assert "'P003' is not on the roster" in _refused(RosterError, ROSTER.public, "P003")


def test_how_many_members_there_may_be() -> None:
    for count in (0, 1, 101, 300):
        assert f"{count} platforms" in _refused(RosterError, _roster, count)
        _refused(RosterError, _roster, count, allow_two=True)
    assert "shows each the other's update" in _refused(RosterError, _roster, 2)
    assert len(_roster(2, allow_two=True).members) == 2
    for count in (3, 100):
        assert len(_roster(count).members) == count


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": 0}, "version 0"),
        ({"version": -1}, "version -1"),
        ({"version": 2**32}, "version 4294967296"),
        ({"federation": ""}, "federation name ''"),
        ({"federation": " north"}, "federation name"),
        ({"federation": "north "}, "federation name"),
        ({"federation": "north\n"}, "federation name"),
        ({"federation": "\x1b[2J"}, "federation name"),
        ({"federation": "n" * 65}, "federation name"),
        ({"members": _members(4)[::-1]}, "not sorted"),
        (
            {"members": (*_members(3), Member("P002", _key(7).public))},
            "P002 is on the roster twice",
        ),
        (
            {"members": (*_members(3), Member("P9", _key(1).public))},
            "P001 and P9 have the same key",
        ),
    ],
)
def test_what_no_roster_may_say(change: dict[str, object], reason: str) -> None:
    assert reason in _refused(RosterError, replace, ROSTER, **change)


@pytest.mark.parametrize("platform", ["", ".", "a b", "../b", "é", "a" * 65, "P0\n"])
def test_ids_that_no_message_can_carry(platform: str) -> None:
    assert "platform id" in _refused(RosterError, Member, platform, _key(1).public)


def test_the_written_form_is_fixed() -> None:
    keys = [_key(i).public.raw.hex() for i in range(3)]
    text = (
        '{"federation":"shops of the north","format":1,"members":['
        + ",".join(f'{{"platform":"P00{i}","public":"{key}"}}' for i, key in enumerate(keys))
        + f'],"signer":"{SIGNER.public.raw.hex()}","version":1}}'
    )
    assert ROSTER.to_json() == text.encode()
    assert ROSTER.digest == sha256(domain("roster digest", text.encode())).digest()
    assert ROSTER.digest.hex() == (
        "2324b524ab5e6ca562c99fc231fb3f971d21b34b72a5bd92d9e11eae85b833f0"
    )
    whole = f'{{"format":1,"roster":{text},"signature":"{SIGNED.signature.hex()}"}}'
    assert SIGNED.to_json() == whole.encode()
    SIGNER.public.verify("roster", text.encode(), SIGNED.signature)


@given(st.integers(3, 100), st.integers(1, 2**32 - 1))
def test_rosters_come_back(count: int, version: int) -> None:
    roster = _roster(count, version)
    assert Roster.from_json(roster.to_json()) == roster
    signed = sign(roster, SIGNER)
    assert SignedRoster.from_json(signed.to_json()) == signed
    assert len(signed.to_json()) < MAX_BYTES


def test_the_largest_roster_can_be_read() -> None:
    members = (Member(f"{i:03}" + "x" * 61, _key(i).public) for i in range(100))
    roster = replace(ROSTER, federation="f" * 64, version=2**32 - 1, members=tuple(members))
    data = sign(roster, SIGNER).to_json()
    assert SignedRoster.from_json(data).roster == roster


def test_two_are_read_only_where_they_are_allowed() -> None:
    two = _roster(2, allow_two=True)
    data = sign(two, SIGNER).to_json()
    assert SignedRoster.from_json(data, allow_two=True).roster == two
    assert Roster.from_json(two.to_json(), allow_two=True) == two
    assert "a sum over two" in _refused(RosterError, SignedRoster.from_json, data)
    assert "a sum over two" in _refused(RosterError, Roster.from_json, two.to_json())


def test_every_part_changes_the_digest() -> None:
    others = [
        replace(ROSTER, federation="south"),
        replace(ROSTER, version=2),
        replace(ROSTER, signer=_key(5).public),
        _roster(4),
        replace(ROSTER, members=(*_members(2), Member("P002", _key(9).public))),
        replace(ROSTER, members=(*_members(2), Member("P003", _key(2).public))),
    ]
    assert len({roster.digest for roster in (ROSTER, *others)}) == 7
    assert all(len(roster.digest) == 32 for roster in others)


def test_only_the_named_signer_can_sign() -> None:
    assert "sign with the named key" in _refused(IdentityError, sign, ROSTER, _key(1))
    _refused(SignatureError, SignedRoster, ROSTER, _key(1).sign("roster", ROSTER.to_json()))
    _refused(SignatureError, SignedRoster, ROSTER, SIGNER.sign("card", ROSTER.to_json()))
    _refused(SignatureError, SignedRoster, ROSTER, b"")
    _refused(SignatureError, SignedRoster, replace(ROSTER, version=2), SIGNED.signature)


def test_no_byte_of_a_signed_roster_can_be_changed() -> None:
    data = SIGNED.to_json()
    for place in range(len(data)):
        for other in (data[place] ^ 1, data[place] ^ 0x20):
            _refused(
                SecureSumError,
                SignedRoster.from_json,
                data[:place] + bytes((other,)) + data[place + 1 :],
            )
        _refused(SecureSumError, SignedRoster.from_json, data[:place])


def _changed(**changes: object) -> bytes:
    document = json.loads(ROSTER.to_json()) | changes
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return text.encode()


ENTRY = {"platform": "P000", "public": _key(0).public.hex}
WRITTEN = ROSTER.to_json()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no valid JSON"),
        (b"{}", "'federation' is missing"),
        (WRITTEN + b" ", "canonical"),
        (WRITTEN[:-1] + b',"version":1}', "a key twice"),
        (WRITTEN.replace(b'"P000"', b'"P000","platform":"P000"'), "a key twice"),
        (WRITTEN.replace(b'"P000"', b'"P\\u0030\\u0030\\u0030"'), "canonical"),
        (WRITTEN.replace(b'"version":1', b'"version":1e0'), "'version' is no int"),
        (WRITTEN.replace(b'"version":1', b'"version":-0'), "version 0"),
        (WRITTEN.replace(b'"version":1', b'"version":' + b"9" * 4000), "version 9999"),
        (WRITTEN.replace(b'"version":1', b'"version":Infinity'), "no valid JSON"),
        (_changed(version=True), "'version' is no int"),
        (_changed(version="1"), "'version' is no int"),
        (_changed(format=2), "of format 2"),
        (_changed(more=None), "'more' is unknown"),
        (_changed(federation=None), "'federation' is no str"),
        (_changed(signer=SIGNER.public.hex.upper()), "public key"),
        (_changed(signer="00" * 32), "small order"),
        (_changed(signer=5), "'signer' is no str"),
        (_changed(members={}), "'members' is no list"),
        (_changed(members=[]), "0 platforms"),
        (_changed(members=["P000"] * 3), "no JSON object"),
        (_changed(members=[ENTRY] * 3), "twice"),
        (_changed(members=[ENTRY | {"x": 1}] * 3), "'x' is unknown"),
        (_changed(members=[{"platform": "P000"}] * 3), "'public' is missing"),
        (_changed(members=[ENTRY | {"public": "ff" * 32}] * 3), "not canonical"),
        (_changed(members=[ENTRY] * 10_000), "10000 platforms"),
        (b" " * (MAX_BYTES + 1), "at most 1048576"),
    ],
)
def test_a_damaged_roster_is_told_in_one_line(data: bytes, reason: str) -> None:
    assert reason in _refused(SecureSumError, Roster.from_json, data)


def test_a_signed_roster_nests_nothing_odd() -> None:
    signature = SIGNED.signature.hex()
    for roster in ("{}", "[]", '{"a":' * 50 + "1" + "}" * 50, '{"version":1e999}'):
        data = f'{{"format":1,"roster":{roster},"signature":"{signature}"}}'.encode()
        _refused(RosterError, SignedRoster.from_json, data)
    data = SIGNED.to_json()
    for wrong in (signature.upper(), signature[:-2], signature + "00"):
        _refused(
            SecureSumError, SignedRoster.from_json, data.replace(signature.encode(), wrong.encode())
        )


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_by_name(data: bytes) -> None:
    for read in (Roster.from_json, SignedRoster.from_json):
        with pytest.raises(SecureSumError):
            read(data)


def test_changes_in_words() -> None:
    later = replace(
        _roster(5),
        members=(
            *_members(1),
            Member("P001", _key(50).public),
            Member("P010", _key(10).public),
            Member("P011", _key(11).public),
        ),
    )
    told = later.changes_since(ROSTER)
    assert told == "added P010, P011; removed P002; changed the key of P001"
    assert ROSTER.changes_since(later) == "added P002; removed P010, P011; changed the key of P001"
    assert ROSTER.changes_since(replace(ROSTER, version=9)) == ""


def test_which_roster_may_follow() -> None:
    second = _roster(4, version=2)
    second.check_follows(ROSTER)
    _roster(3, version=7).check_follows(second)
    assert "older than" in _refused(RosterError, ROSTER.check_follows, second)
    same = _roster(4, version=1)
    assert "added P003" in _refused(RosterError, same.check_follows, ROSTER)
    other = replace(second, signer=_key(5).public)
    message = _refused(RosterError, other.check_follows, ROSTER)
    assert SIGNER.public.fingerprint in message
    assert other.signer.fingerprint in message
    moved = replace(second, federation="south")
    assert "federation south" in _refused(RosterError, moved.check_follows, ROSTER)


# Thresholds: c = max(0, ceil(share N) - 1), t = max(3, floor((N + c) / 2) + 1).


@pytest.mark.parametrize(
    ("count", "share", "colluding", "threshold"),
    [
        (3, 1 / 3, 0, 3),
        (4, 1 / 3, 1, 3),
        (5, 1 / 3, 1, 4),
        (6, 1 / 3, 1, 4),
        (7, 1 / 3, 2, 5),
        (10, 1 / 3, 3, 7),
        (30, 1 / 3, 9, 20),
        (99, 1 / 3, 32, 66),
        (100, 1 / 3, 33, 67),
        (6, 5 / 6, 4, 6),
        (10, 0.0, 0, 6),
        (10, 1.0, 9, 10),
        (100, 0.07, 6, 54),
        (100, 0.29, 28, 65),
        (3, 0.333334, 1, 3),
    ],
)
def test_thresholds_by_hand(count: int, share: float, colluding: int, threshold: int) -> None:
    roster = _roster(count)
    assert (roster.colluding(share), roster.threshold(share)) == (colluding, threshold)


def test_a_third_is_the_default() -> None:
    assert (_roster(100).colluding(), _roster(100).threshold()) == (33, 67)


@pytest.mark.parametrize(
    ("count", "share", "known_to_nobody_else"),
    [(2, 1 / 3, 1), (3, 1 / 3, 2), (3, 0.0, 2), (4, 1 / 3, 2), (7, 1 / 3, 3), (100, 1 / 3, 34)],
)
def test_a_reader_of_the_model_knows_her_own_share_of_the_noise(
    count: int, share: float, known_to_nobody_else: int
) -> None:
    assert _roster(count, allow_two=count == 2).honest(share) == known_to_nobody_else


def test_two_need_both() -> None:
    two = _roster(2, allow_two=True)
    for share in (0.0, 1 / 3, 0.9, 1.0):
        assert two.threshold(share) == 2


SHARES = st.one_of(
    st.floats(0, 1),
    st.integers(1, 100).flatmap(lambda d: st.integers(0, d).map(lambda n: n / d)),
)


@given(st.integers(3, 100), SHARES)
def test_two_quorums_share_an_honest_platform(count: int, share: float) -> None:
    roster = _roster(count)
    c, t = roster.colluding(share), roster.threshold(share)
    assert 3 <= t <= count
    assert c < t
    # By inclusion and exclusion, the fewest members that two sets of t of N have in common.
    assert 2 * t - count > c


@given(st.integers(3, 100), st.integers(1, 100), st.data())
def test_fewer_than_the_share_collude(count: int, below: int, data: st.DataObject) -> None:
    above = data.draw(st.integers(0, below))
    c = _roster(count).colluding(above / below)
    # The largest whole number below share x N, or none.
    exact = Fraction(above, below) * count
    assert c == max(0, math.ceil(exact) - 1)
    assert c == 0 or c < exact <= c + 1


@pytest.mark.parametrize("count", [3, 4, 5, 6, 7])
def test_quorums_one_by_one(count: int) -> None:
    roster = _roster(count)
    for share in (0.0, 0.2, 1 / 3, 0.5, 0.75, 1.0):
        c, t = roster.colluding(share), roster.threshold(share)
        quorums = [set(q) for q in itertools.combinations(range(count), t)]
        assert min(len(a & b) for a in quorums for b in quorums) > c
        if t > 3:
            # No lower threshold would do.
            lower = [set(q) for q in itertools.combinations(range(count), t - 1)]
            assert min(len(a & b) for a in lower for b in lower) <= c


@pytest.mark.parametrize("share", [-0.01, 1.01, math.nan, math.inf, -math.inf])
def test_shares_outside_their_bounds(share: float) -> None:
    assert "colluding_share" in _refused(ConfigError, ROSTER.colluding, share)
    _refused(ConfigError, ROSTER.threshold, share)
