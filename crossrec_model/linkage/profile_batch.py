"""Profiles of one sender and period as bytes: what travels sealed, and what lies on the receiver's disk.

Layout: 4 bytes (length of the head, little-endian), the head as canonical JSON, the basis and the vectors
as little-endian float32, SHA-256 of all before. The head names the format, sender, period, the day before
which everything in a profile happened, the terms, the cells of the popularity sketch that the space is
made of, and each vector's link id in ascending order.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from crossrec_model.errors import ConfigError, DataError
from crossrec_model.linkage.profile import (
    Floats,
    ProfileTerms,
    check_basis,
    from_document,
    to_document,
)

FORMAT: Final = 1
MOST_LINKS: Final = 1 << 24
MOST_CELLS: Final = 16_384
_MOST_CELL: Final = 1 << 24
_LENGTH: Final = 4
_DIGEST: Final = 32
_MOST_HEAD: Final = 1 << 30
_LINK: Final = re.compile(r"[0-9a-f]{32}")
_PERIOD: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,30}[A-Za-z0-9])?")
_SENDER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_HEAD: Final = {"format", "sender", "period", "day", "terms", "cells", "links"}


def check_period(period: str) -> None:
    """Raise ConfigError for a name that is not 1 to 32 letters, digits, dots or dashes."""
    if not isinstance(period, str) or not _PERIOD.fullmatch(period) or ".." in period:
        raise ConfigError(
            f"period {period!r:.80} is not 1 to 32 letters, digits, dots or dashes; e.g. 2026-10"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ProfileBatch:
    """`vectors` float32 [n, D] of `links` in `basis` float32 [`cells`, D], of events before `day`.

    Raises:
        DataError: for anything that does not belong together, or is not finite.
    """

    sender: str
    period: str
    day: float
    terms: ProfileTerms
    cells: tuple[int, ...]
    basis: Floats
    links: tuple[str, ...]
    vectors: Floats

    def __post_init__(self) -> None:
        try:
            check_period(self.period)
        except ConfigError as error:
            raise DataError(f"profiles of an unusable period: {error}") from None
        if not isinstance(self.sender, str) or not _SENDER.fullmatch(self.sender):
            raise DataError(f"profiles of a sender {self.sender!r:.80} that is no platform's id")
        if not isinstance(self.day, float) or not math.isfinite(self.day):
            raise DataError(f"profiles of {self.sender} end on no day")
        if len(self.links) > MOST_LINKS or not all(_LINK.fullmatch(link) for link in self.links):
            raise DataError(f"profiles of {self.sender} have unusable link ids; link again")
        if any(a >= b for a, b in zip(self.links, self.links[1:], strict=False)):
            raise DataError(f"profiles of {self.sender} stand out of order, or twice for a link")
        width = self.terms.dimension
        if self.basis.shape != (len(self.cells), width) or len(self.cells) > MOST_CELLS:
            raise DataError(
                f"the basis of {self.sender} has shape {self.basis.shape}, not {len(self.cells), width}"
            )
        if any(type(cell) is not int or not 0 <= cell < _MOST_CELL for cell in self.cells):
            raise DataError(f"the cells of {self.sender} are no numbers of a sketch's cells")
        if len(set(self.cells)) != len(self.cells):
            raise DataError(f"a cell of {self.sender} stands twice")
        check_basis(self.basis)
        if self.vectors.shape != (len(self.links), width) or not np.isfinite(self.vectors).all():
            raise DataError(f"profiles of {self.sender} are not {len(self.links)} finite vectors")

    def without(self, links: Iterable[str]) -> ProfileBatch:
        """The same batch without these links."""
        gone = set(links)
        kept = [number for number, link in enumerate(self.links) if link not in gone]
        names = tuple(self.links[number] for number in kept)
        return replace(self, links=names, vectors=self.vectors[kept])

    def to_bytes(self) -> bytes:
        """The batch as it travels and is kept."""
        head = {
            "format": FORMAT,
            "sender": self.sender,
            "period": self.period,
            "day": self.day,
            "terms": to_document(self.terms),
            "cells": list(self.cells),
            "links": list(self.links),
        }
        text = _canonical(head)
        arrays = [
            np.ascontiguousarray(a, dtype="<f4").tobytes() for a in (self.basis, self.vectors)
        ]
        whole = b"".join([len(text).to_bytes(_LENGTH, "little"), text, *arrays])
        return whole + hashlib.sha256(whole).digest()

    @classmethod
    def from_bytes(cls, data: bytes) -> ProfileBatch:
        """Read `to_bytes` back; raises DataError for anything else."""
        whole, digest = data[:-_DIGEST], data[-_DIGEST:]
        if len(data) < _LENGTH + _DIGEST or hashlib.sha256(whole).digest() != digest:
            raise DataError("profiles are damaged (checksum); have them sent again")
        size = int.from_bytes(whole[:_LENGTH], "little")
        text, rest = whole[_LENGTH : _LENGTH + size], whole[_LENGTH + size :]
        if size > _MOST_HEAD or len(text) != size:
            raise DataError("profiles are damaged (length of the head); have them sent again")
        head = _parsed(text)
        try:
            terms = from_document(head["terms"])
        except ConfigError as error:
            raise DataError(f"profiles have unusable terms: {error}") from None
        cells, links = head["cells"], head["links"]
        split = len(cells) * terms.dimension * 4
        if len(rest) != split + len(links) * terms.dimension * 4:
            raise DataError("profiles are damaged (length of the vectors); have them sent again")
        numbers = [np.frombuffer(part, dtype="<f4") for part in (rest[:split], rest[split:])]
        basis, vectors = (n.reshape(-1, terms.dimension).astype(np.float32) for n in numbers)
        return cls(
            sender=head["sender"],
            period=head["period"],
            day=head["day"],
            terms=terms,
            cells=tuple(cells),
            basis=basis,
            links=tuple(links),
            vectors=vectors,
        )


def _parsed(text: bytes) -> dict[str, Any]:
    """The head, in its one form; raises DataError."""
    try:
        head = json.loads(text)
        canonical = _canonical(head) == text
    except (ValueError, RecursionError):
        raise DataError("profiles are damaged (the head is not JSON)") from None
    if not isinstance(head, dict) or set(head) != _HEAD or not canonical:
        raise DataError("profiles have a head of another form; both sides need the same version")
    if head["format"] != FORMAT:
        raise DataError(f"profiles are of format {head['format']!r:.40}, not {FORMAT}")
    if not isinstance(head["cells"], list):
        raise DataError("profiles name no cells; have them sent again")
    if not isinstance(head["links"], list) or not all(isinstance(x, str) for x in head["links"]):
        raise DataError("profiles have unusable link ids; link again")
    return head


def _canonical(head: object) -> bytes:
    return json.dumps(head, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
