"""What linkages leave in a platform's folder, all of it for its owner's eyes only.

    linkage/PARTNER.users.links     own id → link id, see `linkage.links`; replaced by each linkage
    linkage/PARTNER.users.past      when linkages began, and marks of their sets, for as long as they count
    linkage/revoked.json            users who have revoked
    linkage/derived/LINK/           whatever was derived for a link; goes with it
    linkage/PARTNER.users/          an unfinished session, with its secrets
    linkage/PARTNER.profiles/       unfinished profiles, with their secrets

For items, `items` stands in the place of `users`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

from clients.keys import write_file
from crossrec_model.durable import flush
from crossrec_model.errors import DataError, StateError
from crossrec_model.keyfile import alone, read_small
from crossrec_model.linkage.links import Links
from crossrec_model.linkage.messages import Purpose
from crossrec_model.linkage.policy import Past
from crossrec_model.secagg.errors import SecureSumError
from crossrec_model.secagg.identity import canonical, check_exact, fields, parse

LINKAGE: Final = "linkage"
REVOKED: Final = "revoked.json"
DERIVED: Final = "derived"
#: Profiles that linked platforms sent, beside the folder of linkages: `clients.linked_store.FOLDER`.
RECEIVED: Final = "linked"
#: Profiles that were released here: `clients.profiles.FOLDER`.
RELEASED: Final = "profiles"
#: A links file of 2^24 lines of about 64 bytes.
_MOST_LINKS: Final = 2 << 30
_MOST_REVOKED: Final = 1 << 26
#: Some sets of 2^24 marks.
_MOST_PAST: Final = 1 << 30
_FORMAT: Final = 1
_REVOKED_FIELDS: Final = {"format": int, "users": list}
_PAST_FIELDS: Final = {"format": int, "sizes": list, "times": list}


def read_links(path: Path) -> dict[str, str]:
    """Read a links file: own id → link id.

    Raises:
        DataError: if it is damaged.
        StateError: if it can't be read.
    """
    return dict(_links(path).pairs)


class LinkageFolder:
    """The linkages of one platform; also the `policy.Memory` that outlives its sessions."""

    def __init__(self, platform_folder: Path) -> None:
        self.path = platform_folder / LINKAGE

    @contextmanager
    def held(self, what: str = "") -> Iterator[None]:
        """Make the folder and hold `what` of it, a session or (by default) the links; others wait.

        Raises:
            StateError: if it can't be used.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            with alone(self.path / f"{what}.lock"):
                yield
        except OSError as error:
            raise StateError(f"{self.path} can't be used: {error.strerror}") from None

    def links_path(self, partner: str, purpose: Purpose) -> Path:
        """Where the links with a partner lie."""
        return self.path / f"{_name(partner, purpose)}.links"

    def session_path(self, partner: str, purpose: Purpose) -> Path:
        """Where an unfinished session lies."""
        return self.path / _name(partner, purpose)

    def all_links(self) -> list[Links]:
        """Every links file, sorted by name."""
        return [_links(path) for path in sorted(self.path.glob("*.links"))]

    def linked_users(self) -> dict[str, dict[str, str]]:
        """For each partner, link id → own user id: whose profile is whose."""
        return {
            links.partner: {link: own for own, link in links.pairs.items()}
            for links in self.all_links()
            if links.purpose is Purpose.USERS
        }

    def write_links(self, links: Links) -> None:
        """Replace the links with a partner; what was derived for links that are gone goes first.

        So nothing derived is left without a link by which it would be found and deleted later. Who has
        revoked since the linkage began is left out. The links must be held.
        """
        if links.purpose is Purpose.USERS:
            links = links.without(self.revoked())
        path = self.links_path(links.partner, links.purpose)
        new, kept = set(links.pairs.values()), set[str]()
        for other in self.path.glob("*.links"):
            if other != path:
                kept.update(_links(other).pairs.values())
        if path.exists():
            # A damaged file says nothing; what nobody lists is deleted in any case.
            with suppress(DataError):
                kept.difference_update(_links(path).pairs.values())
        self._forget_all_but(kept | new)
        if links.purpose is Purpose.USERS:
            # Profiles under way are of links that may be gone, on either side.
            self.clear_session(links.partner, Purpose.PROFILES)
        write_file(path, links.to_bytes())

    def revoked(self) -> frozenset[str]:
        """Users who have revoked; they take part in no linkage."""
        path = self.path / REVOKED
        try:
            data = read_small(path, _MOST_REVOKED)
            found = fields(parse(data, REVOKED, most=_MOST_REVOKED), REVOKED, _REVOKED_FIELDS)
            users = found["users"]
            if not all(isinstance(user, str) for user in users):
                raise StateError(f"{path} is damaged (a user); restore it")
            check_exact(_revoked(users), data, REVOKED)
        except FileNotFoundError:
            return frozenset()
        except OSError as error:
            raise StateError(f"{path} can't be read: {error.strerror}") from None
        except (SecureSumError, UnicodeError) as error:
            raise StateError(f"{path} is damaged ({error}); restore it") from None
        return frozenset(users)

    def revoke(self, users: Iterable[str]) -> int:
        """Let users take part in no linkage from now on, and delete what was derived of them.

        The revocation is on the disk before anything is deleted. Returns how many links went.
        """
        gone = set(users)
        write_file(self.path / REVOKED, _revoked(sorted(self.revoked() | gone)))
        if (self.path.parent / RELEASED).exists():
            from clients.profiles import ReleasedProfiles

            ReleasedProfiles(self.path.parent).withdraw(gone)
        count = 0
        for links in self.all_links():
            if links.purpose is Purpose.USERS and not gone.isdisjoint(links.pairs):
                left = links.without(gone)
                count += len(links.pairs) - len(left.pairs)
                self.write_links(left)
        return count

    def allow_again(self, users: Iterable[str]) -> None:
        """Take revocations back, since users have consented anew."""
        write_file(self.path / REVOKED, _revoked(sorted(self.revoked().difference(users))))

    def derived(self, link: str) -> Path:
        """The folder for what is derived for a link; it is deleted with the link."""
        if not re.fullmatch(r"[0-9a-f]{32}", link):
            raise DataError("a link id is 32 hexadecimal digits")
        return self.path / DERIVED / link

    def _forget_all_but(self, links: Set[str]) -> None:
        if (self.path.parent / RECEIVED).exists():
            # Its readers know the model; a linkage by itself does not load it.
            from clients.linked_store import ReceivedProfiles

            ReceivedProfiles(self.path.parent).keep_only(links)
        path = self.path / DERIVED
        try:
            for each in path.iterdir() if path.exists() else ():
                if each.name not in links:
                    shutil.rmtree(each)
        except OSError as error:
            raise StateError(
                f"{error.filename} can't be deleted: {error.strerror}; what was derived of a user "
                "is still there: delete it, then try again"
            ) from None

    def past(self, partner: str, purpose: Purpose) -> Past:
        """See `policy.Memory`; raises StateError for a damaged file."""
        path = self.path / f"{_name(partner, purpose)}.past"
        try:
            data = read_small(path, _MOST_PAST)
        except FileNotFoundError:
            return Past()
        except OSError as error:
            raise StateError(f"{path} can't be read: {error.strerror}") from None
        head, _, body = data.partition(b"\n")
        try:
            found = fields(parse(head, path.name), path.name, _PAST_FIELDS)
            times, sizes = found["times"], found["sizes"]
            numbers = all(type(n) is int and 0 <= n < 2**53 for n in (*times, *sizes))
            if not numbers or len(times) != len(sizes) or 8 * sum(sizes) != len(body):
                raise StateError(f"{path} is damaged; restore it")
            check_exact(_past_head(times, sizes), head, path.name)
        except SecureSumError as error:
            raise StateError(f"{path} is damaged ({error}); restore it") from None
        ends = np.cumsum([0, *sizes]).tolist()
        marks = np.frombuffer(body, dtype="<u8")
        sets = tuple(marks[a:b] for a, b in pairwise(ends))
        if any((one[1:] <= one[:-1]).any() for one in sets):
            raise StateError(f"{path} is damaged (marks out of order); restore it")
        return Past(times=tuple(times), sets=sets)

    def record(self, partner: str, purpose: Purpose, past: Past) -> None:
        """See `policy.Memory`."""
        head = _past_head(list(past.times), [len(one) for one in past.sets])
        body = b"".join(np.ascontiguousarray(one, dtype="<u8").tobytes() for one in past.sets)
        write_file(self.path / f"{_name(partner, purpose)}.past", head + b"\n" + body)

    def clear_session(self, partner: str, purpose: Purpose) -> None:
        """Delete an unfinished session and its secrets."""
        path = self.session_path(partner, purpose)
        if os.path.lexists(path):
            shutil.rmtree(path)
            flush(self.path)


def _name(partner: str, purpose: Purpose) -> str:
    return f"{partner}.{purpose.name.lower()}"


def _past_head(times: list[int], sizes: list[int]) -> bytes:
    return canonical({"format": _FORMAT, "sizes": sizes, "times": times})


def _revoked(users: list[str]) -> bytes:
    content: dict[str, Any] = {"format": _FORMAT, "users": users}
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")


def _links(path: Path) -> Links:
    try:
        return Links.from_bytes(read_small(path, _MOST_LINKS))
    except OSError as error:
        raise StateError(f"{path} can't be read: {error.strerror}; link again") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
