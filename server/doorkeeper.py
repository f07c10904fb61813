"""Who may speak to the coordinator: only nodes for which a platform of the roster vouches.

The transport signs every request with the session's key. Here that key is tied to a platform, by the
pass that comes with it, before the request reaches anything else. Strangers are slowed down.
"""

from __future__ import annotations

import binascii
import ipaddress
import time
from base64 import b64decode
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from crossrec_model.secagg.errors import SecureSumError
from crossrec_model.secagg.identity import Member
from crossrec_model.secagg.node_pass import HEADER, NodePass, PassExpiredError
from crossrec_model.secagg.roster import Roster

#: The transport's header with the session's public key, in base64.
KEY_HEADER: Final = "flwr-public-key"
#: Sessions remembered a platform: a platform that starts again has a new key each time.
SESSIONS: Final = 8
#: Requests without a known key: so many at once from one address, and so many a second later on.
BURST: Final = 200.0
RATE_PER_S: Final = 20.0
#: Addresses that are counted; beyond it the longest unseen is forgotten.
_ADDRESSES: Final = 4096

Audit = Callable[[str, str, str], None]


@dataclass(frozen=True)
class Refusal:
    """An HTTP status, and why: a word for the audit log, and the one that the network is told."""

    status: int
    reason: str
    said: str = ""

    @property
    def told(self) -> str:
        """The word for whoever asked."""
        return self.said or self.reason


NO_PASS: Final = Refusal(401, "no-pass")
# The next two look the same from outside, or strangers could ask who is a member.
BAD_PASS: Final = Refusal(401, "bad-pass", "not-admitted")
NOT_ON_ROSTER: Final = Refusal(401, "not-on-roster", "not-admitted")
CLOCK: Final = Refusal(401, "clock")
TOO_MANY: Final = Refusal(429, "too-many-requests")


class Doorkeeper:
    """Decides on every request by its headers; for one thread, but for `platform_of`.

    Args:
        roster: gives the roster that counts now.
        audit: gets (reason, platform or "", address) for every refusal.
        clock: Unix seconds.
    """

    def __init__(
        self,
        roster: Callable[[], Roster],
        *,
        audit: Audit = lambda reason, platform, address: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._roster, self._audit, self._clock = roster, audit, clock
        #: By transport key, who vouched for it and with which identity; the last used comes last.
        self._sessions: OrderedDict[bytes, Member] = OrderedDict()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def platform_of(self, node_key: bytes) -> str | None:
        """The platform that a transport key speaks for; None if it has shown no pass that counts."""
        member = self._sessions.get(node_key)
        return member.platform if member and self._stands(member) else None

    def check(self, headers: Mapping[str, str], address: str) -> Refusal | None:
        """Return why a request may not pass, None if it may. Header names are in lower case."""
        key = _decoded(headers.get(KEY_HEADER, ""))
        member = self._sessions.get(key)
        if member is not None and self._stands(member):
            self._sessions.move_to_end(key)
            return None
        if refusal := self.strangers_turn(address):
            return refusal
        refusal, claimed = self._introduced(headers.get(HEADER), key)
        if refusal is not None:
            self._sessions.pop(key, None)
            self._audit(refusal.reason, claimed, address)
        return refusal

    def vouched(self, headers: Mapping[str, str]) -> str | None:
        """The platform whose pass comes with this very request; None without one that counts now.

        For requests that the transport does not sign: here the pass is the proof, and it is short-lived.
        """
        key = _decoded(headers.get(KEY_HEADER, ""))
        refusal, platform = self._introduced(headers.get(HEADER), key)
        return platform if refusal is None else None

    def _stands(self, member: Member) -> bool:
        """Whether the roster that counts now has this platform with this very key."""
        return member in self._roster().members

    def strangers_turn(self, address: str) -> Refusal | None:
        """Count a request without a known key; refuse it where there were too many."""
        now, counted = self._clock(), _counted(address)
        left, since = self._buckets.pop(counted, (BURST, now))
        left = min(BURST, left + max(0.0, now - since) * RATE_PER_S)
        refused = left < 1.0
        self._buckets[counted] = (left if refused else left - 1.0, now)
        if len(self._buckets) > _ADDRESSES:
            self._buckets.popitem(last=False)
        if refused:
            self._audit(TOO_MANY.reason, "", address)
        return TOO_MANY if refused else None

    def _introduced(self, shown: str | None, key: bytes) -> tuple[Refusal | None, str]:
        """Take a node's pass, or say why not; also the platform that it claims."""
        if shown is None or not key:
            return NO_PASS, ""
        try:
            found = NodePass.from_header(shown)
        except SecureSumError:
            return BAD_PASS, ""
        roster, refusal = self._roster(), None
        listed = found.platform in roster.platforms
        try:
            # One signature is verified in any case: the time that it takes tells nothing either.
            known = found if listed else replace(found, platform=roster.platforms[0])
            known.check(roster, key, self._clock())
        except PassExpiredError:
            refusal = CLOCK
        except SecureSumError:
            refusal = BAD_PASS
        if not listed:
            refusal = NOT_ON_ROSTER
        if refusal is not None:
            return refusal, found.platform
        self._sessions[key] = Member(found.platform, roster.public(found.platform))
        own = [k for k, member in self._sessions.items() if member.platform == found.platform]
        for old in own[:-SESSIONS]:
            del self._sessions[old]
        return None, found.platform


def _counted(address: str) -> str:
    """What an address is counted as: of IPv6, everybody has a network of 2^64 addresses."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is None:
        return str(ipaddress.ip_network((int(found), 64), strict=False))
    return address


def _decoded(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return b""
