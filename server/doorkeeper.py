"""Who may speak to the coordinator: only nodes for which a platform of the roster vouches.

The transport signs every request with the session's key. Here that key is tied to a platform, by the
pass that comes with it, before the request reaches anything else. Strangers are slowed down.
"""

from __future__ import annotations

import binascii
import time
from base64 import b64decode
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from crossrec_model.secagg.errors import SecureSumError
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
    """An HTTP status, and why: one word for the platform's message and the audit log."""

    status: int
    reason: str


NO_PASS: Final = Refusal(401, "no-pass")
BAD_PASS: Final = Refusal(401, "bad-pass")
CLOCK: Final = Refusal(401, "clock")
NOT_ON_ROSTER: Final = Refusal(403, "not-on-roster")
TOO_MANY: Final = Refusal(429, "too-many-requests")


class Doorkeeper:
    """Decides on every request by its headers; for one thread.

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
        self._platforms: OrderedDict[bytes, str] = OrderedDict()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def platform_of(self, node_key: bytes) -> str | None:
        """The platform that a transport key speaks for, None if it has shown no pass."""
        return self._platforms.get(node_key)

    def check(self, headers: Mapping[str, str], address: str) -> Refusal | None:
        """Return why a request may not pass, None if it may. Header names are in lower case."""
        key = _decoded(headers.get(KEY_HEADER, ""))
        platform = self._platforms.get(key)
        if platform is not None and platform in self._roster().platforms:
            return None
        if refusal := self.strangers_turn(address):
            return refusal
        refusal, claimed = self._introduced(headers.get(HEADER), key)
        if refusal is not None:
            self._platforms.pop(key, None)
            self._audit(refusal.reason, claimed, address)
        return refusal

    def strangers_turn(self, address: str) -> Refusal | None:
        """Count a request without a known key; refuse it where there were too many."""
        now = self._clock()
        left, since = self._buckets.pop(address, (BURST, now))
        left = min(BURST, left + max(0.0, now - since) * RATE_PER_S)
        refused = left < 1.0
        self._buckets[address] = (left if refused else left - 1.0, now)
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
        roster = self._roster()
        if found.platform not in roster.platforms:
            return NOT_ON_ROSTER, found.platform
        try:
            found.check(roster, key, self._clock())
        except PassExpiredError:
            return CLOCK, found.platform
        except SecureSumError:
            return BAD_PASS, found.platform
        self._platforms[key] = found.platform
        earlier = [k for k, p in self._platforms.items() if p == found.platform]
        for old in earlier[:-SESSIONS]:
            del self._platforms[old]
        return None, found.platform


def _decoded(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return b""
