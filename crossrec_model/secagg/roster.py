"""The signed roster: which platforms take part, by which keys, and how many of them a sum needs."""

from __future__ import annotations

import math
import re
from dataclasses import InitVar, dataclass
from fractions import Fraction
from typing import Any, Final

from crossrec_model.errors import ConfigError
from crossrec_model.secagg.derive import digest
from crossrec_model.secagg.errors import IdentityError, RosterError
from crossrec_model.secagg.identity import (
    FORMAT,
    IdentityKey,
    Member,
    PublicIdentity,
    canonical,
    check_exact,
    fields,
    parse,
    signature_of,
)

MAX_VERSION: Final = 2**32 - 1
FEWEST: Final = 3
MOST: Final = 100
#: The share of the platforms that may collude with the coordinator, where a plan says nothing else.
COLLUDING_SHARE: Final = 1 / 3
#: Said wherever two platforms alone are allowed.
OF_TWO: Final = (
    "two platforms alone: each can subtract its own update from the sum and so sees the other's; only "
    "the noise of differential privacy protects the users"
)
#: What a roster's signature is for.
ROSTER: Final = "roster"
_NAME: Final = r"[A-Za-z0-9](?:[A-Za-z0-9 ._-]{0,62}[A-Za-z0-9._-])?"
_SIGNED: Final = {"format": int, "roster": dict, "signature": str}
_ROSTER: Final = {"federation": str, "format": int, "members": list, "signer": str, "version": int}
_MEMBER: Final = {"platform": str, "public": str}


@dataclass(frozen=True, kw_only=True)
class Roster:
    """The members of a federation, sorted by id, as its signer lists them in one version.

    There are 3 to 100 of them; two only with `allow_two`, since a sum over two shows each the other's
    update.

    Raises:
        RosterError: for a name, version or list of members outside these bounds, an id or a key twice.
    """

    federation: str
    version: int
    members: tuple[Member, ...]
    signer: PublicIdentity
    allow_two: InitVar[bool] = False

    def __post_init__(self, allow_two: bool) -> None:
        check_name(self.federation)
        if not 1 <= self.version <= MAX_VERSION:
            raise RosterError(
                f"roster version {str(self.version)[:20]} is outside 1 to {MAX_VERSION}; "
                "choose one inside"
            )
        _check_count(len(self.members), allow_two)
        ids = self.platforms
        if len(set(ids)) < len(ids):
            twice = next(name for name in ids if ids.count(name) > 1)
            raise RosterError(f"platform {twice} is on the roster twice; list it once")
        if list(ids) != sorted(ids):
            raise RosterError("the roster's members are not sorted by platform id; sort them")
        owners: dict[PublicIdentity, str] = {}
        for member in self.members:
            other = owners.setdefault(member.public, member.platform)
            if other != member.platform:
                raise RosterError(
                    f"platforms {other} and {member.platform} have the same key; "
                    "each must make its own"
                )

    @property
    def platforms(self) -> tuple[str, ...]:
        """The members' ids, sorted."""
        return tuple(member.platform for member in self.members)

    def public(self, platform: str) -> PublicIdentity:
        """The pinned key of a platform; raises RosterError if it is not a member."""
        for member in self.members:
            if member.platform == platform:
                return member.public
        raise RosterError(
            f"platform {platform[:80]!r} is not on the roster of {self.federation}, version "
            f"{self.version}; send its card to the coordinator's operator"
        )

    def check_member(self, platform: str, public: PublicIdentity) -> None:
        """Raise RosterError unless this platform is a member with this key."""
        if self.public(platform) != public:
            raise RosterError(
                f"the roster has another key for platform {platform}; send this platform's card to "
                "the coordinator's operator again"
            )

    def colluding(self, share: float = COLLUDING_SHARE) -> int:
        """c: how many of the members may collude with the coordinator, see `colluding`."""
        return colluding(len(self.members), share)

    def threshold(self, share: float = COLLUDING_SHARE) -> int:
        """t: how many members every sum needs, see `threshold`."""
        return threshold(len(self.members), share)

    def honest(self, share: float = COLLUDING_SHARE) -> int:
        """How many members' noise stays unknown in any sum, see `honest`."""
        return honest(len(self.members), share)

    @property
    def digest(self) -> bytes:
        """32 bytes that stand for all of this roster."""
        return digest("roster digest", self.to_json())

    def changes_since(self, before: Roster) -> str:
        """Say in words which members differ from an earlier roster's; empty if none do."""
        old = {member.platform: member.public for member in before.members}
        new = {member.platform: member.public for member in self.members}
        changed = (name for name in new.keys() & old.keys() if new[name] != old[name])
        parts = {
            "added": new.keys() - old.keys(),
            "removed": old.keys() - new.keys(),
            "changed the key of": set(changed),
        }
        return "; ".join(
            f"{verb} {', '.join(sorted(names))}" for verb, names in parts.items() if names
        )

    def check_follows(self, pinned: Roster) -> None:
        """Raise RosterError unless this is a later version by the pinned roster's signer."""
        remedy = (
            "ask the coordinator's operator by phone, and only then remove the pinned roster.json "
            "by hand"
        )
        if self.signer != pinned.signer:
            raise RosterError(
                f"the roster is signed by {self.signer.fingerprint}, the pinned one by "
                f"{pinned.signer.fingerprint}; {remedy}"
            )
        if self.federation != pinned.federation:
            raise RosterError(
                f"the roster is of federation {self.federation}, the pinned one of "
                f"{pinned.federation}; {remedy}"
            )
        if self.version < pinned.version:
            raise RosterError(
                f"roster version {self.version} is older than the pinned version "
                f"{pinned.version}; the coordinator must use its latest roster.json"
            )
        if self.version == pinned.version:
            raise RosterError(
                f"two rosters of version {self.version} by one signer, against the pinned one: "
                f"{self.changes_since(pinned) or 'no change'}; {remedy}"
            )

    def to_json(self) -> bytes:
        """The roster without a signature."""
        return canonical(self._document())

    @classmethod
    def from_json(cls, data: bytes, *, allow_two: bool = False) -> Roster:
        """Read `to_json` back.

        Raises:
            SecureSumError: RosterError or IdentityError, for anything else.
        """
        roster = cls._read(parse(data, "the roster"), allow_two=allow_two)
        check_exact(roster.to_json(), data, "the roster")
        return roster

    def _document(self) -> dict[str, Any]:
        return {
            "federation": self.federation,
            "format": FORMAT,
            "members": [
                {"platform": member.platform, "public": member.public.hex}
                for member in self.members
            ],
            "signer": self.signer.hex,
            "version": self.version,
        }

    @classmethod
    def _read(cls, value: object, *, allow_two: bool) -> Roster:
        found = fields(value, "the roster", _ROSTER)
        _check_count(len(found["members"]), allow_two)
        members = (fields(entry, "the roster's member", _MEMBER) for entry in found["members"])
        return cls(
            federation=found["federation"],
            version=found["version"],
            members=tuple(
                Member(entry["platform"], PublicIdentity.from_hex(entry["public"]))
                for entry in members
            ),
            signer=PublicIdentity.from_hex(found["signer"]),
            allow_two=allow_two,
        )


@dataclass(frozen=True)
class SignedRoster:
    """A roster with its signer's signature, verified when made; raises SignatureError otherwise."""

    roster: Roster
    signature: bytes

    def __post_init__(self) -> None:
        self.roster.signer.verify(ROSTER, self.roster.to_json(), self.signature)

    @classmethod
    def from_json(cls, data: bytes, *, allow_two: bool = False) -> SignedRoster:
        """Read `to_json` back and verify the signature.

        Raises:
            SecureSumError: RosterError, IdentityError or SignatureError, for anything else.
        """
        what = "the signed roster"
        found = fields(parse(data, what), what, _SIGNED)
        roster = Roster._read(found["roster"], allow_two=allow_two)
        signed = cls(roster, signature_of(found["signature"], what))
        check_exact(signed.to_json(), data, what)
        return signed

    def to_json(self) -> bytes:
        """The roster's file."""
        document = {"format": FORMAT, "roster": self.roster._document()}
        return canonical(document | {"signature": self.signature.hex()})


def sign(roster: Roster, key: IdentityKey) -> SignedRoster:
    """Sign a roster; raises IdentityError unless `key` is the one that the roster names."""
    if key.public != roster.signer:
        raise IdentityError(
            f"the roster names the signer {roster.signer.fingerprint}, the key is "
            f"{key.public.fingerprint}; sign with the named key"
        )
    return SignedRoster(roster, key.sign(ROSTER, roster.to_json()))


def colluding(members: int, share: float = COLLUDING_SHARE) -> int:
    """c: how many of so many members may collude with the coordinator, fewer than `share` of them.

    Raises:
        ConfigError: unless `share` is within [0, 1].
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"colluding_share = {share} is outside [0, 1]; choose e.g. 0.33")
    # A third of 6 must be 2 on every machine, whatever the float before it is.
    exact = Fraction(share).limit_denominator(10**9)
    return max(0, math.ceil(exact * members) - 1)


def threshold(members: int, share: float = COLLUDING_SHARE) -> int:
    """t: how many of so many members every sum needs.

    Any two quorums of t have more than c members in common, so at least one honest platform that
    knows of both (t > (N + c) / 2). Never fewer than 3, but for a roster of two.
    """
    least = min(FEWEST, members)
    return max(least, (members + colluding(members, share)) // 2 + 1)


def honest(members: int, share: float = COLLUDING_SHARE) -> int:
    """Return t - max(c, 1): the fewest members in any sum whose noise nobody else knows.

    Even where nobody colludes, a platform that reads the model knows the noise it added itself.
    """
    return threshold(members, share) - max(colluding(members, share), 1)


def check_name(federation: str) -> None:
    """Raise RosterError for a name that no federation can have."""
    if not re.fullmatch(_NAME, federation):
        raise RosterError(
            f"federation name {federation[:80]!r} is not 1 to 64 letters, digits, spaces, dots, "
            "dashes or underscores that start with a letter or digit; choose another"
        )


def _check_count(count: int, allow_two: bool) -> None:
    least = FEWEST - 1 if allow_two else FEWEST
    if count == FEWEST - 1 and not allow_two:
        raise RosterError(
            "a roster of 2 platforms is refused: a sum over two shows each the other's update; "
            f"list at least {FEWEST}, or add --allow-two, which leaves that to differential privacy"
        )
    if not least <= count <= MOST:
        raise RosterError(
            f"a roster of {count} platforms is outside {least} to {MOST}; list fewer or more"
        )
