"""A pass holds for one transport key, one federation, one platform, and for a short time."""

from __future__ import annotations

import base64
import json

import pytest

from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.errors import RosterError, SecureSumError, SignatureError
from crossrec_model.secagg.identity import IdentityKey, Member, canonical
from crossrec_model.secagg.node_pass import (
    TOLERANCE_S,
    NodePass,
    PassExpiredError,
    federation_of,
)
from crossrec_model.secagg.roster import Roster

NOW = 1_800_000_000
NODE = b"a transport key"
KEYS = {name: IdentityKey.generate(SystemRandomness()) for name in "ABC"}
SIGNER = IdentityKey.generate(SystemRandomness())


def _roster(federation: str = "north", *, signer: IdentityKey = SIGNER, version: int = 1) -> Roster:
    members = tuple(Member(name, key.public) for name, key in KEYS.items())
    return Roster(federation=federation, version=version, members=members, signer=signer.public)


ROSTER = _roster()
GIVEN = NodePass.issue("A", KEYS["A"], federation_of(ROSTER), NODE, NOW)


def test_a_pass_comes_back_from_its_header_and_holds() -> None:
    back = NodePass.from_header(GIVEN.to_header())
    assert back == GIVEN
    for late in (0, TOLERANCE_S, -TOLERANCE_S):
        back.check(ROSTER, NODE, NOW + late)
    # A later roster of the same federation needs no new one.
    back.check(_roster(version=7), NODE, NOW)


def test_it_is_worth_nothing_elsewhere() -> None:
    with pytest.raises(RosterError, match="another transport key"):
        GIVEN.check(ROSTER, b"another key", NOW)
    with pytest.raises(SignatureError):
        GIVEN.check(_roster("south"), NODE, NOW)
    other = IdentityKey.generate(SystemRandomness())
    with pytest.raises(SignatureError):
        GIVEN.check(_roster(signer=other), NODE, NOW)
    for late in (TOLERANCE_S + 1, -TOLERANCE_S - 1):
        with pytest.raises(PassExpiredError, match=f"{TOLERANCE_S + 1} s apart"):
            GIVEN.check(ROSTER, NODE, NOW + late)


def test_nobody_makes_one_for_another_platform() -> None:
    forged = NodePass.issue("B", KEYS["A"], federation_of(ROSTER), NODE, NOW)
    with pytest.raises(SignatureError):
        forged.check(ROSTER, NODE, NOW)
    stranger = NodePass.issue("Z", KEYS["A"], federation_of(ROSTER), NODE, NOW)
    with pytest.raises(RosterError, match="'Z' is not on the roster"):
        stranger.check(ROSTER, NODE, NOW)
    for field, value in (("platform", "B"), ("time", NOW + 1), ("node", "00" * 32)):
        document = json.loads(base64.b64decode(GIVEN.to_header())) | {field: value}
        changed = NodePass.from_header(base64.b64encode(canonical(document)).decode())
        with pytest.raises(SecureSumError):
            changed.check(ROSTER, NODE, NOW)


def _header(**changes: object) -> str:
    document = json.loads(base64.b64decode(GIVEN.to_header())) | changes
    return base64.b64encode(json.dumps(document).encode()).decode()


def _exact(**changes: object) -> str:
    document = json.loads(base64.b64decode(GIVEN.to_header())) | changes
    return base64.b64encode(canonical(document)).decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "!",
        "é",
        "A" * 3000,
        base64.b64encode(b"[]").decode(),
        base64.b64encode(b"{}").decode(),
        _header(),  # spaces: not canonical
        _header(time=-1),
        _header(time=2**60),
        _header(time=True),
        _header(node="zz"),
        _header(signature="00"),
        _header(format=2),
        _header(more=1),
        _exact(platform="\ud800"),
        _exact(platform="a\x1b[8m"),
        _exact(platform="A" * 65),
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(SecureSumError):
        NodePass.from_header(text)
