"""A node's pass: with it a platform's identity vouches for the key of one connection.

Every session has a transport key of its own, with which each request is signed. The pass says, signed
by the identity that the roster lists, which platform that key speaks for, in which federation and
since when. It travels in a header; whoever does not hold the transport key can speak in no session with
it, and at most read the notice, which is signed and no secret among members.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Any, Final

from crossrec_model.secagg.derive import digest
from crossrec_model.secagg.errors import RosterError
from crossrec_model.secagg.identity import (
    FORMAT,
    IdentityKey,
    canonical,
    check_exact,
    fields,
    parse,
    signature_of,
)
from crossrec_model.secagg.roster import Roster
from crossrec_model.wire.messages import PLATFORM_ID

HEADER: Final = "crossrec-pass"
#: Longest header that is looked at, in characters.
MOST_TEXT: Final = 2048
#: How far two clocks may be apart, in seconds; the transport's own signatures allow as much.
TOLERANCE_S: Final = 300
_PURPOSE: Final = "node pass"
_DOCUMENT: Final = {"format": int, "platform": str, "node": str, "time": int, "signature": str}


class PassExpiredError(RosterError):
    """The pass was made at another time than now: a clock is wrong, or it is an old one."""


@dataclass(frozen=True)
class NodePass:
    """Platform `platform` speaks with the transport key whose digest is `node`, since `time` (Unix s)."""

    platform: str
    node: bytes
    time: int
    signature: bytes

    @classmethod
    def issue(
        cls, platform: str, key: IdentityKey, federation: bytes, node_key: bytes, now: int
    ) -> NodePass:
        """Sign a pass for a transport key; `federation` is `federation_of` the pinned roster."""
        node = node_digest(node_key)
        signed = _signed(platform, node, now, federation)
        return cls(platform, node, now, key.sign(_PURPOSE, signed))

    def to_header(self) -> str:
        """The pass as the value of `HEADER`."""
        return base64.b64encode(canonical(self._document())).decode("ascii")

    @classmethod
    def from_header(cls, text: str) -> NodePass:
        """Read `to_header` back.

        Raises:
            SecureSumError: RosterError or SignatureError, for anything else.
        """
        what = "the node pass"
        try:
            data = base64.b64decode(text[: MOST_TEXT + 1], validate=True)
        except (ValueError, binascii.Error):
            data = b""
        if not data or len(text) > MOST_TEXT:
            raise RosterError(f"{what} is no base64 of at most {MOST_TEXT} characters")
        found = fields(parse(data, what), what, _DOCUMENT)
        try:
            node = bytes.fromhex(found["node"])
        except ValueError:
            node = b""
        named = re.fullmatch(PLATFORM_ID, found["platform"])
        if not named or len(node) != 32 or not 0 <= found["time"] < 2**53:
            raise RosterError(f"{what} is damaged (platform, node or time); connect anew")
        made = cls(found["platform"], node, found["time"], signature_of(found["signature"], what))
        # The header itself: base64 has several texts for the same bytes.
        check_exact(made.to_header().encode(), text.encode(), what)
        return made

    def check(self, roster: Roster, node_key: bytes, now: float) -> None:
        """Return if this pass is for this transport key, by a member of the roster, and of now.

        Raises:
            RosterError: for another key, or a platform that is not on the roster.
            PassExpiredError: if its time is further from `now` than `TOLERANCE_S`.
            SignatureError: if the member did not sign it.
        """
        if node_digest(node_key) != self.node:
            raise RosterError("the node pass is for another transport key; connect anew")
        signed = _signed(self.platform, self.node, self.time, federation_of(roster))
        roster.public(self.platform).verify(_PURPOSE, signed, self.signature)
        if abs(now - self.time) > TOLERANCE_S:
            raise PassExpiredError(
                f"the clocks are {abs(now - self.time):.0f} s apart, at most {TOLERANCE_S} are "
                "allowed; set them by NTP"
            )

    def _document(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "node": self.node.hex(),
            "platform": self.platform,
            "signature": self.signature.hex(),
            "time": self.time,
        }


def federation_of(roster: Roster) -> bytes:
    """32 bytes that name a federation through all versions of its roster: its name and signer."""
    return digest("federation", roster.federation, roster.signer.raw)


def node_digest(node_key: bytes) -> bytes:
    """32 bytes that stand for a transport key."""
    return digest("node key", node_key)


def _signed(platform: str, node: bytes, now: int, federation: bytes) -> bytes:
    return digest("node pass", federation, platform, node, now)
