"""A platform's identity and pins on disk, beside what `clients.state` keeps in the same folder.

    identity.key    the long-term private key (PKCS #8 in PEM, mode 0600); made once, never replaced
    ID.platform     the public card, for the coordinator's operator
    roster.json     the roster that this platform trusts, see `pin`
    opened.json     which sums were opened over which platforms, see `Opened`
    identity.lock   held while an identity is made

Each file is replaced as a whole or not at all.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from crossrec_model.durable import flush, write_durably
from crossrec_model.errors import StateError
from crossrec_model.keyfile import alone, read_key, read_small
from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.errors import (
    RosterError,
    SecureSumError,
)
from crossrec_model.secagg.identity import (
    Card,
    IdentityKey,
)
from crossrec_model.secagg.roster import SignedRoster

IDENTITY: Final = "identity.key"
ROSTER: Final = "roster.json"


def load_identity(folder: Path) -> IdentityKey:
    """Read the platform's identity.

    Raises:
        StateError: if there is none, or the file or folder is damaged or not this user's alone.
    """
    path = folder / IDENTITY
    try:
        return read_key(path, what="identity", folder="state folder", refusal=StateError)
    except FileNotFoundError:
        raise StateError(
            f"identity {path} does not exist; make it with: python -m clients.platform init --id …"
        ) from None


def make_identity(folder: Path, randomness: SystemRandomness) -> tuple[IdentityKey, bool]:
    """Return the platform's identity and whether it was made now; an existing one is never replaced.

    Raises:
        StateError: as `load_identity`, or if the folder can't be written.
    """
    path = folder / IDENTITY
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.path.lexists(path):
            return load_identity(folder), False
        folder.chmod(0o700)
        with alone(folder / "identity.lock"):
            new = not os.path.lexists(path)
            if new:
                write_durably(path, IdentityKey.generate(randomness).to_pem(), mode=0o600)
            return load_identity(folder), new
    except OSError as error:
        raise StateError(
            f"state folder {folder} can't be used: {error.strerror}; give another --state"
        ) from None


def put_identity_aside(folder: Path) -> Path:
    """Rename the identity so that a new one can be made; return its new place.

    Raises:
        StateError: if there is none, or it can't be moved.
    """
    load_identity(folder)
    path = folder / IDENTITY
    number = 1
    while (target := folder / f"{IDENTITY}.old-{number}").exists():
        number += 1
    try:
        path.rename(target)
        flush(folder)
    except OSError as error:
        raise StateError(f"identity {path} can't be put aside: {error.strerror}") from None
    return target


def write_card(path: Path, platform: str, key: IdentityKey) -> None:
    """Write a platform's card, in place of an earlier one of the same platform and of nothing else.

    Raises:
        StateError: if `path` holds anything else, or can't be written.
        RosterError: for a platform id that no message can carry.
    """
    card = Card.of(platform, key)
    check_card_place(path, platform)
    try:
        write_durably(path, card.to_json(), mode=0o644)
    except OSError as error:
        raise StateError(
            f"card {path} can't be written: {error.strerror}; give another --out"
        ) from None


def check_card_place(path: Path, platform: str) -> None:
    """Raise StateError unless a card of `platform` may be written to `path`."""
    if not path.parent.is_dir():
        raise StateError(f"folder {path.parent} does not exist; make it or give another --out")
    if not os.path.lexists(path):
        return
    try:
        # A link could lead to the private key.
        if path.is_symlink() or not path.is_file():
            raise StateError(f"{path} is no plain file; give another --out")
        earlier = Card.from_json(read_small(path))
    except (OSError, SecureSumError):
        raise StateError(f"{path} exists and is no card; give another --out") from None
    if earlier.member.platform != platform:
        raise StateError(
            f"{path} is the card of platform {earlier.member.platform}; give another --out"
        )


def load_roster(folder: Path) -> SignedRoster | None:
    """Read the pinned roster, of two platforms too; None if none was pinned.

    Raises:
        StateError: if the file is damaged or can't be read.
    """
    path = folder / ROSTER
    try:
        return SignedRoster.from_json(read_small(path), allow_two=True)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"{path} can't be read: {error.strerror}; check who owns it") from None
    except SecureSumError as error:
        raise StateError(
            f"pinned roster {path} can't be trusted ({error}); move it away and compare the "
            "signer's fingerprint by phone again"
        ) from None


def read_roster(path: Path, *, allow_two: bool = False) -> SignedRoster:
    """Read a roster file that an operator sent; raises RosterError if it can't be used."""
    try:
        return SignedRoster.from_json(read_small(path), allow_two=allow_two)
    except FileNotFoundError:
        raise RosterError(
            f"roster {path} does not exist; get it from the coordinator's operator"
        ) from None
    except OSError as error:
        raise RosterError(f"roster {path} can't be read: {error.strerror}") from None
    except SecureSumError as error:
        raise RosterError(f"roster {path} can't be used: {error}") from None


def pin(folder: Path, signed: SignedRoster, *, accept: bool) -> str:
    """Trust a roster from now on, if it follows the one that is pinned; return a note, or "".

    The first one is pinned as it is. After that only a higher version by the same signer is taken,
    and only with `accept`: whoever made it could have put in a platform of his own.

    Raises:
        RosterError: for another signer or federation, an older version, a second roster of the same
            version, or a newer one without `accept`.
        StateError: if the pinned one is damaged, or the folder can't be written.
    """
    before, roster = load_roster(folder), signed.roster
    signer = f"signed by {roster.signer.fingerprint}"
    named = f"roster of {roster.federation}, version {roster.version}"
    if before is None:
        note = (
            f"pinned the {named} ({', '.join(roster.platforms)}), {signer}; "
            "compare this by phone with the coordinator's operator and the other platforms"
        )
    elif before.roster == roster:
        return ""
    else:
        roster.check_follows(before.roster)
        changes = roster.changes_since(before.roster) or "no platform changed"
        if not accept:
            raise RosterError(
                f"the {named} is newer than the pinned version {before.roster.version}: {changes}; "
                "ask the coordinator's operator by phone, then add --accept-roster"
            )
        note = f"accepted the {named}: {changes}"
    write_file(folder / ROSTER, signed.to_json())
    return note


def write_file(path: Path, content: bytes) -> None:
    """Replace a file of the owner's alone durably; raises StateError if it can't be written."""
    try:
        write_durably(path, content, mode=0o600)
    except OSError as error:
        raise StateError(
            f"{path} can't be written: {error.strerror}; make room or give another --state"
        ) from None
