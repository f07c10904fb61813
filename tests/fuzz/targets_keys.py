"""What is signed: identities, cards, rosters, plans, notices, invitations, node passes, key files.

A changed document rarely has a signature that holds, so these targets sign it anew, with a key that
the reader trusts, before they read it: a signer may be careless or malicious. The changed bytes
themselves are read first.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

from targets import OF_JSON, OF_TEXT, Check, Cost, Target, judge, same

from crossrec_model.config import Plan
from crossrec_model.errors import WireError
from crossrec_model.secagg import derive, node_pass
from crossrec_model.secagg.identity import (
    CARD,
    Card,
    IdentityKey,
    Member,
    PublicIdentity,
    canonical,
)
from crossrec_model.secagg.invitation import Invitation, Notice, SignedPlan
from crossrec_model.secagg.node_pass import NodePass
from crossrec_model.secagg.roster import ROSTER, Roster, SignedRoster, sign

ADDRESS: Final = "127.0.0.1:9092"
NODE_KEY: Final = b"a transport key"
NOW: Final = 1_700_000_000
_PEM_LABELS: Final = ("PRIVATE KEY", "EC PRIVATE KEY", "CERTIFICATE", "ENCRYPTED PRIVATE KEY")


@cache
def key(name: str) -> IdentityKey:
    """The same key for the same name."""
    return IdentityKey.from_bytes(derive.digest("fuzz key", name))


@cache
def authority() -> str:
    """A certificate in PEM, not the product's own work: any bytes of that form will do."""
    body = base64.encodebytes(bytes(range(200))).decode("ascii")
    return f"-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n"


@cache
def signed_roster(count: int = 3) -> SignedRoster:
    """The roster of platforms A, B, C and so on."""
    members = tuple(Member(name, key(name).public) for name in "ABCDEFG"[:count])
    roster = Roster(
        federation="demo",
        version=2,
        members=members,
        signer=key("signer").public,
        allow_two=count == 2,
    )
    return sign(roster, key("signer"))


def signed_plan(plan: Plan | None = None) -> SignedPlan:
    """A plan of that roster's federation."""
    return SignedPlan.sign(signed_roster().roster, 3, plan or Plan(), key("signer"))


def notice() -> Notice:
    """Roster and plan."""
    return Notice(signed_roster(), signed_plan())


def invitation() -> Invitation:
    """The invitation of platform A."""
    return Invitation.sign("A", address=ADDRESS, ca=authority(), notice=notice(), key=key("signer"))


def parsed(data: bytes) -> dict[str, Any] | None:
    """The JSON object in `data`, None if there is none."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def written(document: dict[str, Any]) -> bytes | None:
    """The document in canonical form, None if it has none."""
    try:
        return canonical(document)
    except (ValueError, RecursionError):
        return None


def _signature(purpose: str, message: bytes | None, by: str) -> str:
    return key(by).sign(purpose, message or b"").hex()


def sealed_card(document: dict[str, Any]) -> dict[str, Any]:
    """Sign a card's document anew by platform A's key."""
    unsigned = {k: v for k, v in document.items() if k != "signature"}
    return unsigned | {"signature": _signature(CARD, written(unsigned), "A")}


def sealed_roster(document: dict[str, Any]) -> dict[str, Any]:
    """Sign a roster's document anew."""
    roster = document.get("roster")
    message = written(roster) if isinstance(roster, dict) else None
    return document | {"signature": _signature(ROSTER, message, "signer")}


def sealed_plan(document: dict[str, Any]) -> dict[str, Any]:
    """Sign a plan's document anew."""
    try:
        message = derive.digest(
            "signed plan", document["federation"], document["version"], document["plan"].encode()
        )
    except (KeyError, ValueError, AttributeError, TypeError, OverflowError):
        return document
    return document | {"signature": _signature("plan", message, "signer")}


def sealed_invitation(document: dict[str, Any]) -> dict[str, Any]:
    """Sign an invitation's document anew."""
    try:
        parts = [document[name] for name in ("platform", "address", "ca")]
        message = derive.digest("signed invitation", *parts, document["notice"].encode())
    except (KeyError, ValueError, AttributeError, TypeError, OverflowError):
        return document
    return document | {"signature": _signature("invitation", message, "signer")}


def _inner(seal: Callable[[dict[str, Any]], dict[str, Any]], text: object) -> object:
    """Seal a document that is written as text inside another one."""
    found = parsed(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else None
    raw = None if found is None else written(seal(found))
    return text if raw is None else raw.decode()


def sealed_notice(document: dict[str, Any]) -> dict[str, Any]:
    """Sign the roster and the plan in a notice's document anew."""
    seals = {"roster": sealed_roster, "plan": sealed_plan}
    return {k: _inner(seals[k], v) if k in seals else v for k, v in document.items()}


def sealed_all(document: dict[str, Any]) -> dict[str, Any]:
    """Sign an invitation's document anew, with all that is in it."""
    inside = document | {"notice": _inner(sealed_notice, document.get("notice"))}
    return sealed_invitation(inside)


def both(read: Check, seal: Callable[[dict[str, Any]], dict[str, Any]]) -> Check:
    """Read the bytes as they are, then the same document sealed anew; the second decides."""

    def check(data: bytes) -> None:
        judge(read, data)
        document = parsed(data)
        raw = None if document is None else written(seal(document))
        read(data if raw is None else raw)

    return check


def _card(data: bytes) -> None:
    same(Card.from_json(data).to_json(), data, "card")


def _roster(data: bytes) -> None:
    found = SignedRoster.from_json(data)
    same(found.to_json(), data, "roster")
    same(Roster.from_json(found.roster.to_json()), found.roster, "roster")


def _plan(data: bytes) -> None:
    found = SignedPlan.from_json(data)
    found.check(signed_roster().roster)
    same(found.to_json(), data, "plan")


def _notice(data: bytes) -> None:
    same(Notice.from_json(data).to_json(), data, "notice")


def _invitation(data: bytes) -> None:
    same(Invitation.from_json(data).to_json(), data, "invitation")


def _sealed_pass(document: dict[str, Any]) -> dict[str, Any]:
    roster = signed_roster().roster
    try:
        message = derive.digest(
            "node pass",
            node_pass.federation_of(roster),
            document["platform"],
            bytes.fromhex(document["node"]),
            document["time"],
        )
    except (KeyError, ValueError, AttributeError, TypeError, OverflowError):
        return document
    return document | {"signature": _signature("node pass", message, "A")}


def _pass(data: bytes) -> None:
    """The pass in a header, which arrives as any text of Latin-1."""
    text = base64.b64encode(data).decode("ascii")
    found = NodePass.from_header(text)
    same(found.to_header(), text, "node pass")
    found.check(signed_roster().roster, NODE_KEY, NOW)


def _header(data: bytes) -> None:
    found = NodePass.from_header(data.decode("latin-1"))
    same(found.to_header(), data.decode("latin-1"), "node pass")


def _made_pass() -> NodePass:
    federation = node_pass.federation_of(signed_roster().roster)
    return NodePass.issue("A", key("A"), federation, NODE_KEY, NOW)


def _pem(data: bytes) -> None:
    same(IdentityKey.from_pem(data).to_pem(), data, "key")


def _public(data: bytes) -> None:
    """32 bytes of a key, then a signature."""
    if len(data) < 32:
        raise WireError("no key")
    found = PublicIdentity(data[:32])
    same(PublicIdentity.from_hex(found.hex), found, "key")
    found.verify("fuzz", b"message", data[32:])


def _public_seeds() -> list[bytes]:
    return [key(n).public.raw + key(n).sign("fuzz", b"message") for n in ("A", "B")]


def _plain(check: Check) -> Callable[[Path], Check]:
    return lambda _folder: check


TARGETS: Final = (
    Target(
        name="identity.card",
        seeds=lambda: [Card.of("A", key("A")).to_json(), Card.of("shop-1.x", key("A")).to_json()],
        check=_plain(both(_card, sealed_card)),
        changes=OF_JSON,
    ),
    Target(
        name="identity.key_file",
        seeds=lambda: [key("A").to_pem()],
        check=_plain(_pem),
        changes=OF_TEXT,
        bombs=lambda: [
            f"-----BEGIN {label}-----\n{'MIIB' * 30_000}\n-----END {label}-----\n".encode()
            for label in _PEM_LABELS
        ],
    ),
    Target(name="identity.public_key", seeds=_public_seeds, check=_plain(_public)),
    Target(
        name="roster.signed",
        seeds=lambda: [signed_roster(n).to_json() for n in (3, 7)],
        check=_plain(both(_roster, sealed_roster)),
        changes=OF_JSON,
    ),
    Target(
        name="invitation.plan",
        seeds=lambda: [signed_plan().to_json()],
        check=_plain(both(_plan, sealed_plan)),
        changes=OF_JSON,
    ),
    Target(
        name="invitation.notice",
        seeds=lambda: [notice().to_json()],
        check=_plain(both(_notice, sealed_notice)),
        changes=OF_JSON,
        cost=Cost.MEDIUM,
    ),
    Target(
        name="invitation.invitation",
        seeds=lambda: [invitation().to_json()],
        check=_plain(both(_invitation, sealed_all)),
        changes=OF_JSON,
        cost=Cost.MEDIUM,
    ),
    Target(
        name="node_pass.document",
        seeds=lambda: [canonical(_made_pass()._document())],
        check=_plain(both(_pass, _sealed_pass)),
        changes=OF_JSON,
    ),
    Target(
        name="node_pass.header",
        seeds=lambda: [_made_pass().to_header().encode("latin-1")],
        check=_plain(_header),
    ),
)
