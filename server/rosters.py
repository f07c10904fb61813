"""The coordinator's roster: platforms' cards in, one signed list of their keys out.

    roster.key     the signing key (PKCS #8 in PEM, mode 0600); made once, never replaced
    roster.json    the signed roster, for every platform
    roster.lock    held while either is made

Each file is replaced as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from crossrec_model.durable import write_durably
from crossrec_model.keyfile import alone, read_key, read_small
from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.errors import IdentityError, RosterError, SecureSumError
from crossrec_model.secagg.identity import (
    Card,
    IdentityKey,
    Member,
    PublicIdentity,
)
from crossrec_model.secagg.roster import FEWEST, OF_TWO, Roster, SignedRoster, sign

KEY: Final = "roster.key"
ROSTER: Final = "roster.json"


@dataclass(frozen=True, kw_only=True)
class Listed:
    """The roster that stands now, where its file is, and what differs from the one before.

    `changes` is None if nothing was written.
    """

    signed: SignedRoster
    path: Path
    changes: str | None

    def lines(self) -> list[str]:
        """Say it to the coordinator's operator."""
        roster = self.signed.roster
        needed, count = roster.threshold(), len(roster.members)
        width = max(map(len, roster.platforms))
        state = "unchanged" if self.changes is None else self.changes
        return [
            *([f"warning: {OF_TWO}"] if count < FEWEST else []),
            f"roster of {roster.federation}, version {roster.version}: {state}",
            f"signed by {roster.signer.fingerprint}",
            *(f"  {m.platform:{width}}  {m.public.fingerprint}" for m in roster.members),
            f"every sum needs {needed} of the {count} platforms: {count - needed} may be missing "
            "(with the default colluding_share)",
            f"give every platform {self.path}, and compare the fingerprints by phone",
        ]


@dataclass(frozen=True, kw_only=True)
class _Change:
    """What the operator asks for: platforms to list by these keys, and ids to take off."""

    federation: str | None
    given: Mapping[str, PublicIdentity]
    expel: frozenset[str]
    allow_two: bool

    def applied(self, before: Roster | None, signer: PublicIdentity) -> Roster:
        """Return the roster after the change: `before` itself if nothing differs."""
        known = {m.platform: m.public for m in before.members} if before else {}
        if unknown := self.expel - known.keys():
            raise RosterError(f"platform {min(unknown)} is not on the roster; check --expel")
        if both := self.expel & self.given.keys():
            raise RosterError(f"platform {min(both)} is both listed and expelled; do one of them")
        listed = {p: key for p, key in known.items() if p not in self.expel} | dict(self.given)
        if before is not None and listed == known:
            self._name(before)
            return before
        return Roster(
            federation=self._name(before),
            version=before.version + 1 if before else 1,
            members=tuple(Member(platform, listed[platform]) for platform in sorted(listed)),
            signer=signer,
            allow_two=self.allow_two,
        )

    def _name(self, before: Roster | None) -> str:
        if before is None:
            if self.federation is None:
                raise RosterError("the federation has no name yet; give it one with --name")
            return self.federation
        if self.federation not in {None, before.federation}:
            raise RosterError(
                f"the roster is of federation {before.federation}, not {self.federation}; "
                "give another --out for another federation"
            )
        return before.federation


def list_platforms(
    folder: Path,
    *,
    federation: str | None,
    cards: Sequence[Path],
    expel: Sequence[str],
    allow_two: bool = False,
) -> Listed:
    """Put platforms on the folder's roster or take them off it; sign a new version if it changed.

    Args:
        folder: made if absent; only this user may be able to read it.
        federation: its name, needed for the first roster; later it can't change.
        cards: files from platforms; one of a known platform replaces its key.
        expel: ids to take off.
        allow_two: sign a roster of two platforms, too.

    Raises:
        IdentityError: if the signing key is missing beside a roster, damaged, or not this user's
            alone.
        RosterError: for a card that can't be used, an id to expel that is not listed, a roster
            outside its bounds, or a folder that can't be written. The roster then stands as it was.
    """
    change = _Change(
        federation=federation,
        given=_members(cards),
        expel=frozenset(expel),
        allow_two=allow_two,
    )
    new = IdentityKey.generate(SystemRandomness())
    # Once before anything is made, and once more when no other command can come between.
    _roster_after(folder, change, new)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with alone(folder / "roster.lock"):
            key, before, roster = _roster_after(folder, change, new)
            if key is new:
                write_durably(folder / KEY, new.to_pem(), mode=0o600)
            signed, path = sign(roster, key), folder / ROSTER
            if roster == before:
                return Listed(signed=signed, path=path, changes=None)
            write_durably(path, signed.to_json(), mode=0o644)
    except OSError as error:
        raise RosterError(
            f"folder {folder} can't be written: {error.strerror}; give another --out"
        ) from None
    changes = roster.changes_since(before) if before else "new"
    return Listed(signed=signed, path=path, changes=changes)


def read_roster(path: Path, *, allow_two: bool = False) -> Roster:
    """Read a signed roster file of at least three platforms, or two; raises RosterError otherwise."""
    try:
        return SignedRoster.from_json(read_small(path), allow_two=allow_two).roster
    except FileNotFoundError:
        raise RosterError(
            f"roster {path} does not exist; make it with: python -m server roster --out …"
        ) from None
    except OSError as error:
        raise RosterError(f"roster {path} can't be read: {error.strerror}") from None
    except SecureSumError as error:
        raise RosterError(f"roster {path} can't be used: {error}") from None


def _roster_after(
    folder: Path, change: _Change, new: IdentityKey
) -> tuple[IdentityKey, Roster | None, Roster]:
    """Return the signing key (`new` if the folder has none), the roster before and the one after."""
    before, key = _load_roster(folder / ROSTER), _load_key(folder)
    if before is not None and (key is None or key.public != before.signer):
        state = "is missing" if key is None else f"is another one, {key.public.fingerprint}"
        raise IdentityError(
            f"signing key {folder / KEY} {state}, {ROSTER} is signed by "
            f"{before.signer.fingerprint}; restore that key, since platforms trust no other"
        )
    key = key or new
    return key, before, change.applied(before, key.public)


def _members(cards: Sequence[Path]) -> dict[str, PublicIdentity]:
    """Read platforms' cards: ids and keys."""
    found: dict[str, PublicIdentity] = {}
    for path in cards:
        try:
            member = Card.from_json(read_small(path)).member
        except OSError as error:
            raise RosterError(
                f"card {path} can't be read: {error.strerror}; check its place"
            ) from None
        except SecureSumError as error:
            raise RosterError(f"card {path} can't be used: {error}") from None
        if found.setdefault(member.platform, member.public) != member.public:
            raise RosterError(
                f"card {path} is of platform {member.platform}, as another card with another key; "
                "ask the platform by phone which fingerprint is right"
            )
    return found


def _load_roster(path: Path) -> Roster | None:
    try:
        return SignedRoster.from_json(read_small(path), allow_two=True).roster
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RosterError(f"roster {path} can't be read: {error.strerror}; check it") from None
    except SecureSumError as error:
        raise RosterError(f"roster {path} can't be used ({error}); restore it") from None


def _load_key(folder: Path) -> IdentityKey | None:
    """Read the signing key; None if the folder holds none, IdentityError if it can't be used."""
    try:
        return read_key(folder / KEY, what="signing key", folder="folder", refusal=IdentityError)
    except FileNotFoundError:
        return None


def signing_key(folder: Path) -> IdentityKey:
    """Read the folder's signing key; raises IdentityError if there is none or it can't be used."""
    key = _load_key(folder)
    if key is None:
        raise IdentityError(f"signing key {folder / KEY} is missing; restore it from a backup")
    return key
