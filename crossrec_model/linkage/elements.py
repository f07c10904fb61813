"""From rows to the set that is linked: 32-byte digests, whose they are, and what was left out and why.

No object is kept for a row: a million users are arrays of 48 MB.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from crossrec_model.linkage.group import Rows
from crossrec_model.linkage.identifiers import IdentifierError, Rules, gtin
from crossrec_model.linkage.messages import PROTOCOL, VERSION
from crossrec_model.secagg.derive import digest

OWNER_BYTES: Final = 16
#: Who an element belongs to: digests of user ids or item ids, S16 [n].
Owners = npt.NDArray[np.bytes_]


class LeftOut(StrEnum):
    """Why a row or an identifier does not take part."""

    NO_CONSENT = "no consent"
    REVOKED = "revoked"
    NO_IDENTIFIER = "no identifier"
    BAD_EMAIL = "unusable e-mail address"
    BAD_PHONE = "unusable telephone number"
    BAD_GTIN = "unusable item code"
    DUPLICATE = "same identifier of the same owner again"
    CONFLICT = "identifier of two owners: links neither"


@dataclass(frozen=True, kw_only=True)
class Person:
    """One row of the users' file."""

    user: str
    email: str
    phone: str
    consent: bool


@dataclass(frozen=True, kw_only=True)
class Article:
    """One row of the items' file."""

    item: str
    code: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Elements:
    """The set: `digests` uint8 [n, 32], each once; `owners` S16 [n]; `first` whether it comes first.

    A user may have two elements; she is linked by her address where both could. `left_out` counts rows
    and identifiers by reason.
    """

    digests: Rows
    owners: Owners
    first: npt.NDArray[np.bool_]
    left_out: dict[LeftOut, int]

    def __repr__(self) -> str:
        return f"Elements({len(self.digests)}, left out {self.left_out})"


def people(rows: Iterable[Person], rules: Rules, revoked: frozenset[str] = frozenset()) -> Elements:
    """Return the set of the consenting users who have not revoked.

    A user who says no in any of her rows has not consented. What she shares with somebody who does
    consent links neither: it would go out in spite of her no.
    """
    gathered = _Gathered()
    denied = bytearray()
    for row in rows:
        owner = owner_of(row.user)
        asked = row.consent and row.user not in revoked
        if not asked:
            gathered.count(LeftOut.REVOKED if row.user in revoked else LeftOut.NO_CONSENT)
            denied += owner
        elif not (row.email or row.phone):
            gathered.count(LeftOut.NO_IDENTIFIER)
        if row.email:
            gathered.take("email", rules.email, row.email, owner, LeftOut.BAD_EMAIL, asked)
        if row.phone:
            gathered.take("phone", rules.phone, row.phone, owner, LeftOut.BAD_PHONE, asked)
    return gathered.elements(denied)


def articles(rows: Iterable[Article]) -> Elements:
    """Return the set of a catalogue's item codes."""
    gathered = _Gathered()
    for row in rows:
        if row.code:
            gathered.take("gtin", gtin, row.code, owner_of(row.item), LeftOut.BAD_GTIN)
        else:
            gathered.count(LeftOut.NO_IDENTIFIER)
    return gathered.elements(b"")


def owner_of(name: str) -> bytes:
    """Return what stands for a user or item in memory: 16 bytes without a zero at the end."""
    made = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=OWNER_BYTES).digest()
    # NumPy's texts lose zeros at their end.
    return made[:-1] + bytes((made[-1] | 1,))


class _Gathered:
    def __init__(self) -> None:
        self._digests, self._owners, self._first = bytearray(), bytearray(), bytearray()
        self._asked = bytearray()
        self._counts: Counter[LeftOut] = Counter()

    def count(self, reason: LeftOut, times: int = 1) -> None:
        if times:
            self._counts[reason] += times

    def take(
        self,
        kind: str,
        form: Callable[[str], str],
        text: str,
        owner: bytes,
        reason: LeftOut,
        asked: bool = True,
    ) -> None:
        """Take an identifier; one that is not `asked` for only stands in others' way."""
        try:
            value = form(text)
        except IdentifierError:
            self.count(reason, int(asked))
            return
        self._digests += digest("linkage identifier", PROTOCOL, VERSION, kind, value)
        self._owners += owner
        self._first.append(kind != "phone")
        self._asked.append(asked)

    def elements(self, denied: bytes | bytearray) -> Elements:
        """Leave out who denied, duplicates and conflicts; keep the order."""
        digests = np.frombuffer(bytes(self._digests), dtype=np.uint8).reshape(-1, 32)
        owners = np.frombuffer(bytes(self._owners), dtype=f"S{OWNER_BYTES}")
        first = np.frombuffer(bytes(self._first), dtype=np.bool_)
        asked = np.frombuffer(bytes(self._asked), dtype=np.bool_)
        allowed = ~np.isin(owners, np.frombuffer(bytes(denied), dtype=owners.dtype))
        self.count(LeftOut.NO_CONSENT, int(np.count_nonzero(~allowed & asked)))
        kept = self._kept(digests, owners, allowed)
        return Elements(
            digests=digests[kept],
            owners=owners[kept],
            first=first[kept],
            left_out=dict(sorted(self._counts.items())),
        )

    def _kept(
        self, digests: Rows, owners: Owners, allowed: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.int64]:
        """Return the places of elements that stand once, and of the first of those that repeat.

        Conflicts are with everybody; only what is allowed is counted and kept.
        """
        # 16 bytes of a digest tell elements apart.
        marks = np.ascontiguousarray(digests[:, :16]).view("<u8")
        order = np.lexsort((marks[:, 1], marks[:, 0]))
        ordered = marks[order]
        begins = np.ones(len(order), dtype=np.bool_)
        begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
        group = np.cumsum(begins) - 1
        leaders = order[begins]
        same = owners[order] == owners[leaders][group]
        fine = np.ones(len(leaders), dtype=np.bool_)
        fine[group[~same]] = False
        counted = allowed[order]
        self.count(LeftOut.CONFLICT, int(np.count_nonzero(~fine[group] & counted)))
        self.count(LeftOut.DUPLICATE, int(np.count_nonzero(~begins & fine[group] & counted)))
        kept: npt.NDArray[np.int64] = np.sort(leaders[fine & allowed[leaders]])
        return kept
