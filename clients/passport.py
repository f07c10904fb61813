"""How a platform shows to the coordinator who it is, and what a refusal of it means."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from crossrec_model.secagg.identity import IdentityKey
from crossrec_model.secagg.node_pass import HEADER, NodePass, federation_of
from crossrec_model.secagg.roster import Roster

_REASONS: Final = {
    # Both are one word on the network, so that strangers can't ask who is a member.
    "not-admitted": (
        "this platform is not, or no longer, on its roster, or there with another key; send its join "
        "request to the coordinator's operator again and ask to admit it"
    ),
    "no-pass": "it expects platforms to show who they are; install the coordinator's version of crossrec",
    "clock": "its clock and this machine's differ by more than 5 minutes; set both by NTP",
    "too-many-requests": "too many attempts came from this address; wait a minute",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Passport:
    """Vouches for the key of each session with the platform's identity."""

    platform: str
    identity: IdentityKey
    roster: Callable[[], Roster]
    #: Gets the federation's signed roster and plan at every connection, before anything else.
    notice: Callable[[bytes], object] | None = None
    clock: Callable[[], float] = time.time

    def headers(self, node_key: bytes) -> dict[str, str]:
        """Return the header that a session with this transport key sends with each request."""
        federation, now = federation_of(self.roster()), int(self.clock())
        made = NodePass.issue(self.platform, self.identity, federation, node_key, now)
        return {HEADER: made.to_header()}

    def introduction(self) -> dict[str, str]:
        """Return headers for a single question, outside a session."""
        once = os.urandom(32)
        return self.headers(once) | {"flwr-public-key": base64.b64encode(once).decode("ascii")}


def refusal(address: str, reason: str) -> str:
    """Say what a refusal means: `reason` is the coordinator's word, or an HTTP status."""
    meaning = _REASONS.get(
        reason, f"it answered {reason}; install the coordinator's version of crossrec"
    )
    return f"the coordinator at {address} refused this platform: {meaning}"
