"""What the coordinator's operator signs for platforms: the plan, the notice, the invitation.

The plan is public and versioned like the roster: what a platform accepted once is what it follows, until
it accepts a later version. A notice is a roster with its plan, as they stand now. An invitation is all
that a new platform needs, in one file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from crossrec_model.config import Plan
from crossrec_model.errors import ConfigError
from crossrec_model.secagg.derive import digest
from crossrec_model.secagg.errors import RosterError
from crossrec_model.secagg.identity import (
    FORMAT,
    IdentityKey,
    PublicIdentity,
    canonical,
    check_exact,
    fields,
    parse,
    signature_of,
)
from crossrec_model.secagg.roster import MAX_VERSION, Roster, SignedRoster, check_name

_PLAN: Final = "plan"
_INVITATION: Final = "invitation"
_SIGNED_PLAN: Final = {
    "federation": str,
    "format": int,
    "plan": str,
    "signature": str,
    "version": int,
}
_NOTICE: Final = {"format": int, "plan": str, "roster": str}
_INVITED: Final = {
    "address": str,
    "ca": str,
    "format": int,
    "notice": str,
    "platform": str,
    "signature": str,
}
_ADDRESS: Final = re.compile(r"[!-.0-?A-~]{1,253}:[0-9]{1,5}")
_CERTIFICATE: Final = "-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]+-----END CERTIFICATE-----\n"
_CA: Final = re.compile(f"(?:{_CERTIFICATE})+")


@dataclass(frozen=True)
class SignedPlan:
    """A plan in one version, signed by the roster's signer for one federation."""

    federation: str
    version: int
    plan: Plan
    signature: bytes

    @classmethod
    def sign(cls, roster: Roster, version: int, plan: Plan, key: IdentityKey) -> SignedPlan:
        """Sign a plan for the roster's federation.

        Raises:
            RosterError: for a version outside its bounds, or a key that is not the roster's signer's.
        """
        if not 1 <= version <= MAX_VERSION:
            raise RosterError(f"plan version {version} is outside 1 to {MAX_VERSION}")
        if key.public != roster.signer:
            raise RosterError("a plan must be signed by the roster's own signer")
        made = cls(roster.federation, version, plan, b"")
        return cls(roster.federation, version, plan, key.sign(_PLAN, made._signed()))

    def check(self, roster: Roster) -> None:
        """Return if this plan is of the roster's federation and signer.

        Raises:
            RosterError: for another federation.
            SignatureError: for another signer, or a changed plan.
        """
        if self.federation != roster.federation:
            raise RosterError(
                f"the plan is of federation {self.federation}, the roster of {roster.federation}; "
                "ask the coordinator's operator for an invitation"
            )
        self.verify(roster.signer)

    def verify(self, signer: PublicIdentity) -> None:
        """Raise SignatureError unless `signer` signed exactly this."""
        signer.verify(_PLAN, self._signed(), self.signature)

    def to_json(self) -> bytes:
        """The plan's file."""
        return canonical(
            {
                "federation": self.federation,
                "format": FORMAT,
                "plan": self.plan.to_json().decode(),
                "signature": self.signature.hex(),
                "version": self.version,
            }
        )

    @classmethod
    def from_json(cls, data: bytes) -> SignedPlan:
        """Read `to_json` back; its signature is `check`'s to verify.

        Raises:
            SecureSumError: RosterError or SignatureError, for anything else.
        """
        what = "the signed plan"
        found = fields(parse(data, what), what, _SIGNED_PLAN)
        check_name(found["federation"])
        if not 1 <= found["version"] <= MAX_VERSION:
            raise RosterError(f"{what} has a version outside 1 to {MAX_VERSION}; get it anew")
        try:
            plan = Plan.from_json(_ascii(found["plan"], what))
        except ConfigError as error:
            raise RosterError(f"{what} can't be followed here: {error}") from None
        _ascii(found["federation"], what)
        signature = signature_of(found["signature"], what)
        made = cls(found["federation"], found["version"], plan, signature)
        check_exact(made.to_json(), data, what)
        return made

    def _signed(self) -> bytes:
        return digest("signed plan", self.federation, self.version, self.plan.to_json())


@dataclass(frozen=True)
class Notice:
    """The roster and the plan that belong together; both signatures hold, by one signer.

    Raises:
        SecureSumError: RosterError or SignatureError if the plan is not the roster's signer's.
    """

    roster: SignedRoster
    plan: SignedPlan

    def __post_init__(self) -> None:
        self.plan.check(self.roster.roster)

    def to_json(self) -> bytes:
        """The notice as it stands at the coordinator."""
        return canonical(
            {
                "format": FORMAT,
                "plan": self.plan.to_json().decode(),
                "roster": self.roster.to_json().decode(),
            }
        )

    @classmethod
    def from_json(cls, data: bytes) -> Notice:
        """Read `to_json` back, of a roster of two too.

        Raises:
            SecureSumError: for anything else.
        """
        what = "the notice"
        found = fields(parse(data, what), what, _NOTICE)
        roster = SignedRoster.from_json(_ascii(found["roster"], what), allow_two=True)
        made = cls(roster, SignedPlan.from_json(_ascii(found["plan"], what)))
        check_exact(made.to_json(), data, what)
        return made


@dataclass(frozen=True)
class Invitation:
    """Everything that one platform needs: notice, where the coordinator is, and who vouches for it.

    `ca` is the authority's certificate in PEM, `address` HOST:PORT. Signed by the roster's signer, whose
    fingerprint two people compare by phone.

    Raises:
        SecureSumError: RosterError for values that make no sense, SignatureError for a wrong signature.
    """

    platform: str
    address: str
    ca: str
    notice: Notice
    signature: bytes

    def __post_init__(self) -> None:
        self.roster.public(self.platform)
        _check_place(self.address, self.ca)
        self.signer.verify(_INVITATION, self._signed(), self.signature)

    @property
    def roster(self) -> Roster:
        """The roster in the notice."""
        return self.notice.roster.roster

    @property
    def signer(self) -> PublicIdentity:
        """Who signed everything in it."""
        return self.roster.signer

    @classmethod
    def sign(
        cls, platform: str, *, address: str, ca: str, notice: Notice, key: IdentityKey
    ) -> Invitation:
        """Make the invitation of a platform on the roster."""
        _check_place(address, ca)
        signed = _invited(platform, address, ca, notice)
        return cls(platform, address, ca, notice, key.sign(_INVITATION, signed))

    def to_json(self) -> bytes:
        """The invitation's file."""
        document: dict[str, Any] = {
            "address": self.address,
            "ca": self.ca,
            "format": FORMAT,
            "notice": self.notice.to_json().decode(),
            "platform": self.platform,
            "signature": self.signature.hex(),
        }
        return canonical(document)

    @classmethod
    def from_json(cls, data: bytes) -> Invitation:
        """Read `to_json` back.

        Raises:
            SecureSumError: for anything else.
        """
        what = "the invitation"
        found = fields(parse(data, what), what, _INVITED)
        made = cls(
            found["platform"],
            found["address"],
            found["ca"],
            Notice.from_json(_ascii(found["notice"], what)),
            signature_of(found["signature"], what),
        )
        check_exact(made.to_json(), data, what)
        return made

    def _signed(self) -> bytes:
        return _invited(self.platform, self.address, self.ca, self.notice)


def _ascii(text: str, what: str) -> bytes:
    """The bytes of a text that is part of a document in ASCII; raises RosterError for any other."""
    try:
        return text.encode("ascii")
    except UnicodeEncodeError:
        raise RosterError(f"{what} is damaged (a text that is not ASCII); get it anew") from None


def _check_place(address: str, ca: str) -> None:
    if not _ADDRESS.fullmatch(address):
        raise RosterError(f"the invitation's address {address[:80]!r} is not HOST:PORT")
    if not _CA.fullmatch(ca):
        raise RosterError("the invitation holds no certificate in PEM; ask for it anew")


def _invited(platform: str, address: str, ca: str, notice: Notice) -> bytes:
    return digest("signed invitation", platform, address, ca, notice.to_json())
