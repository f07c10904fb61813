"""The end of a session: which own elements the other side has too, and the id that both derive for each."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from crossrec_model.linkage.blinding import Blinding
from crossrec_model.linkage.errors import MadeUpError, RepeatedElementError
from crossrec_model.linkage.group import Rows

#: What is kept of a doubly blinded element: 16 bytes tell 2^24 apart but for a chance of 2^-80.
MARK_BYTES: Final = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Compared:
    """The end: the own elements that both have (int64 [m]), and for each the id that both derive.

    `links` are uint8 [m, 16], different in every session and for every pair of platforms.
    """

    elements: npt.NDArray[np.int64]
    links: Rows
    their_size: int


def compare_marks(own_marks: Rows, their_marks: Rows, blinding: Blinding, key: bytes) -> Compared:
    """Compare doubly blinded elements uint8 [n, 16] with the other side's uint8 [m, 16].

    `blinding` knows whose place is whose; `key` is the session's secret for link ids.

    Raises:
        RepeatedElementError: if an element stands twice, in whatever blocks.
        MadeUpError: if padding is common, which nobody else can have.
    """
    theirs = np.sort(_comparable(their_marks))
    own = _comparable(own_marks)
    for what, marks in (("set", theirs), ("answers", np.sort(own))):
        if (marks[1:] == marks[:-1]).any():
            raise RepeatedElementError(f"the other side's {what} hold an element twice; it cheats")
    places = np.minimum(np.searchsorted(theirs, own), len(theirs) - 1)
    found = np.flatnonzero(theirs[places] == own)
    elements = blinding.order[found]
    if (elements >= blinding.elements).any():
        raise MadeUpError(
            "the other side's answers claim to know what nobody else can have; it cheats"
        )
    links = _links(key, own_marks[found])
    return Compared(elements=elements.astype(np.int64), links=links, their_size=len(their_marks))


def _comparable(marks: Rows) -> npt.NDArray[np.bytes_]:
    return np.ascontiguousarray(marks).view(f"S{MARK_BYTES}")[:, 0]


def _links(key: bytes, marks: Rows) -> Rows:
    """Derive the id of every linked element uint8 [m, 16]: HKDF's expansion under the session's key."""
    raw, made = marks.tobytes(), bytearray()
    for at in range(0, len(raw), MARK_BYTES):
        made += hmac.digest(key, raw[at : at + MARK_BYTES] + b"\x01", "sha256")[:MARK_BYTES]
    return np.frombuffer(bytes(made), dtype=np.uint8).reshape(-1, MARK_BYTES)
