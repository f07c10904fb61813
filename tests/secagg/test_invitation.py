"""Signed plans, notices and invitations: one form, one signer, nothing that was changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from crossrec_model.config import FederationConfig, Plan
from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg import invitation, node_pass
from crossrec_model.secagg.errors import RosterError, SecureSumError, SignatureError
from crossrec_model.secagg.identity import CARD, IdentityKey, Member, canonical
from crossrec_model.secagg.invitation import Invitation, Notice, SignedPlan
from crossrec_model.secagg.roster import ROSTER as ROSTER_PURPOSE
from crossrec_model.secagg.roster import Roster, SignedRoster, sign

KEYS = {name: IdentityKey.generate(SystemRandomness()) for name in "ABC"}
SIGNER, OTHER = (IdentityKey.generate(SystemRandomness()) for _ in range(2))
PLAN = Plan(federation=FederationConfig(rounds=5))
CA = "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\n"


def _roster(
    federation: str = "north", *, signer: IdentityKey = SIGNER, version: int = 1
) -> SignedRoster:
    members = tuple(Member(name, key.public) for name, key in KEYS.items())
    roster = Roster(federation=federation, version=version, members=members, signer=signer.public)
    return sign(roster, signer)


ROSTER = _roster()
SIGNED = SignedPlan.sign(ROSTER.roster, 3, PLAN, SIGNER)
NOTICE = Notice(ROSTER, SIGNED)
INVITATION = Invitation.sign("A", address="example.org:9092", ca=CA, notice=NOTICE, key=SIGNER)


def test_all_come_back_from_their_files() -> None:
    assert SignedPlan.from_json(SIGNED.to_json()) == SIGNED
    assert Notice.from_json(NOTICE.to_json()) == NOTICE
    back = Invitation.from_json(INVITATION.to_json())
    assert back == INVITATION
    assert (back.signer, back.roster, back.notice.plan.plan) == (
        SIGNER.public,
        ROSTER.roster,
        PLAN,
    )


def test_a_plan_holds_for_its_federation_and_signer_in_every_version_of_the_roster() -> None:
    SIGNED.check(_roster(version=9).roster)
    with pytest.raises(RosterError, match="of federation north, the roster of south"):
        SIGNED.check(_roster("south").roster)
    with pytest.raises(SignatureError):
        SIGNED.check(_roster(signer=OTHER).roster)
    with pytest.raises(RosterError, match="own signer"):
        SignedPlan.sign(ROSTER.roster, 1, PLAN, OTHER)
    for version in (0, 2**32):
        with pytest.raises(RosterError, match="outside 1"):
            SignedPlan.sign(ROSTER.roster, version, PLAN, SIGNER)


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: replace(plan, version=4),
        lambda plan: replace(plan, plan=replace(PLAN, seed=1)),
        lambda plan: replace(plan, signature=bytes(64)),
    ],
)
def test_a_changed_plan_shows(change: Callable[[SignedPlan], SignedPlan]) -> None:
    with pytest.raises(SignatureError):
        change(SIGNED).check(ROSTER.roster)
    with pytest.raises(SignatureError):
        Notice(ROSTER, change(SIGNED))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("address", "example.com:9092"),
        ("address", "example.org"),
        ("address", "user@example.org:1"),
        ("address", "b\u00fccher.example:1"),
        ("address", "a\x1b[8m:1"),
        ("address", "\ud800:1"),
        ("ca", "\ud800"),
        ("ca", "\x1b[2J" + CA),
        ("ca", CA + "\u00fc"),
        ("notice", "\ud800"),
        ("platform", "\ud800"),
        ("ca", CA.replace("abc", "abd")),
        ("platform", "B"),
        ("platform", "Z"),
        ("signature", "00" * 64),
        ("notice", Notice(_roster(version=2), SIGNED).to_json().decode()),
        ("notice", "{}"),
        ("format", 2),
        ("more", 1),
    ],
)
def test_a_changed_invitation_is_refused(field: str, value: object) -> None:
    document = json.loads(INVITATION.to_json()) | {field: value}
    with pytest.raises(SecureSumError):
        Invitation.from_json(canonical(document))


def test_an_invitation_by_another_signer_than_the_rosters_is_refused() -> None:
    with pytest.raises(SignatureError):
        Invitation.sign("A", address="example.org:9092", ca=CA, notice=NOTICE, key=OTHER)


def test_a_plan_that_this_version_can_not_follow_is_named() -> None:
    document = json.loads(SIGNED.to_json())
    document["plan"] = document["plan"].replace('"rounds":5', '"rounds":0')
    with pytest.raises(RosterError, match=r"federation.rounds = 0 is outside"):
        SignedPlan.from_json(canonical(document))


def test_a_signed_invitation_still_has_to_make_sense() -> None:
    """Whoever has a key can sign; what is shown beside the fingerprint must not hide it."""
    signed = {"notice": NOTICE, "key": SIGNER}
    for address in ("b\u00fccher.example:1", "one.org:1\x1b[1A", "\ud800:1", "one.org\x7f:1"):
        with pytest.raises(RosterError, match="is not HOST:PORT"):
            Invitation.sign("A", address=address, ca=CA, **signed)
    for ca in ("", "\u00fc", "\ud800", CA + "\x1b[2J", "-----BEGIN PRIVATE KEY-----\nabc\n"):
        with pytest.raises(RosterError, match="holds no certificate"):
            Invitation.sign("A", address="one.org:1", ca=ca, **signed)
    Invitation.sign("A", address="[2001:db8::1]:9092", ca=CA + CA, **signed)


@pytest.mark.parametrize("field", ["plan", "federation", "signature"])
def test_text_that_no_file_can_hold_is_refused_by_name(field: str) -> None:
    document = json.loads(SIGNED.to_json()) | {field: "\ud800"}
    with pytest.raises(SecureSumError):
        SignedPlan.from_json(canonical(document))
    for part in ("plan", "roster"):
        notice = json.loads(NOTICE.to_json()) | {part: "\ud800"}
        with pytest.raises(SecureSumError):
            Notice.from_json(canonical(notice))


def test_no_signature_counts_for_two_purposes() -> None:
    purposes = (
        *(CARD, ROSTER_PURPOSE, "keys"),
        *(invitation._PLAN, invitation._INVITATION, node_pass._PURPOSE),
    )
    assert len(set(purposes)) == len(purposes)
    message = bytes(32)
    for purpose in purposes:
        signature = SIGNER.sign(purpose, message)
        for other in set(purposes) - {purpose}:
            with pytest.raises(SignatureError):
                SIGNER.public.verify(other, message, signature)
