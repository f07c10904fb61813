"""An unfinished session on disk, so that an interruption costs nothing: `session.json` and two arrays.

It holds the session's secrets: it is for the owner's eyes only and is deleted at the end.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np

from clients.keys import write_file
from crossrec_model.errors import StateError
from crossrec_model.keyfile import read_small
from crossrec_model.linkage.channel import Channel, Parties
from crossrec_model.linkage.compared import MARK_BYTES
from crossrec_model.linkage.group import Rows
from crossrec_model.linkage.intersection import Counters
from crossrec_model.linkage.messages import MAX_BATCH, MAX_ELEMENTS, Purpose
from crossrec_model.linkage.post import ANY_THREAD
from crossrec_model.secagg.errors import SecureSumError
from crossrec_model.secagg.identity import canonical, check_exact, fields, parse

SESSION: Final = "session.json"
_FORMAT: Final = 1
_TEXTS: Final = (
    *("phase", "initiator", "responder", "purpose"),
    *("federation", "partner", "seed", "secret", "offer", "root", "session", "thread", "elements"),
)
_NUMBERS: Final = (
    *("format", "time", "their_size", "sent_blocks", "returned", "taken_blocks"),
    *("sent", "taken"),
)
_FIELDS: Final = {**dict.fromkeys(_TEXTS, str), **dict.fromkeys(_NUMBERS, int), "sha256": str}


class Phase(StrEnum):
    """Which state of `linkage.intersection` the session is in."""

    NEW = "new"
    OFFERED = "offered"
    ACCEPTED = "accepted"
    OPENING = "opening"
    EXCHANGING = "exchanging"


@dataclass(frozen=True, kw_only=True)
class Kept:
    """All that a session needs to go on, but for the elements, which are read again.

    `partner` is the pinned key of then, `elements` their digest; `secret` and `offer` are the
    initiator's until its offer is accepted. Where profiles are carried, the elements are the own batch,
    `their_size` is in bytes, and there is no seed and no counter but `sent` and `taken`.
    """

    phase: Phase = Phase.NEW
    parties: Parties
    partner: bytes
    time: int
    elements: bytes
    seed: bytes = field(repr=False)
    secret: bytes = field(default=b"", repr=False)
    offer: bytes = b""
    root: bytes = field(default=b"", repr=False)
    session: bytes = b""
    thread: bytes = ANY_THREAD
    their_size: int = 0
    counters: Counters = field(default_factory=Counters)
    #: Frames sent and received.
    sent: int = 0
    taken: int = 0

    def channel(self, own: str) -> Channel:
        """The channel that was opened."""
        initiates = self.parties.initiator == own
        return Channel(
            parties=self.parties, session=self.session, initiates=initiates, root=self.root
        )

    def with_channel(self, channel: Channel, phase: Phase) -> Kept:
        """The same with an open channel."""
        return replace(self, phase=phase, root=channel.root, session=channel.session)

    def to_json(self) -> bytes:
        """The file."""
        parties, counters = self.parties, self.counters
        content: dict[str, Any] = {
            "format": _FORMAT,
            "phase": str(self.phase),
            "initiator": parties.initiator,
            "responder": parties.responder,
            "purpose": parties.purpose.name.lower(),
            "federation": parties.federation.hex(),
            "time": self.time,
            "their_size": self.their_size,
            "sent_blocks": counters.sent,
            "returned": counters.returned,
            "taken_blocks": counters.taken,
            "sent": self.sent,
            "taken": self.taken,
        }
        secret = ("partner", "elements", "seed", "secret", "offer", "root", "session", "thread")
        content |= {name: getattr(self, name).hex() for name in secret}
        return canonical(content | {"sha256": sha256(canonical(content)).hexdigest()})

    @classmethod
    def from_json(cls, data: bytes) -> Kept:
        """Read `to_json` back; raises StateError for anything else."""
        try:
            found = fields(parse(data, SESSION), SESSION, _FIELDS)
            if not all(0 <= found[name] < 2**53 for name in _NUMBERS):
                raise StateError(f"{SESSION} is damaged (a number); begin anew with --restart")
            raw = {name: bytes.fromhex(found[name]) for name in _TEXTS[4:]}
            kept = cls(
                phase=Phase(found["phase"]),
                parties=Parties(
                    federation=raw.pop("federation"),
                    initiator=found["initiator"],
                    responder=found["responder"],
                    purpose=Purpose[found["purpose"].upper()],
                ),
                time=found["time"],
                their_size=found["their_size"],
                counters=Counters(
                    sent=found["sent_blocks"],
                    returned=found["returned"],
                    taken=found["taken_blocks"],
                ),
                sent=found["sent"],
                taken=found["taken"],
                **raw,
            )
            check_exact(kept.to_json(), data, SESSION)
        except (SecureSumError, ValueError, KeyError):
            raise StateError(f"{SESSION} is damaged; begin anew with --restart") from None
        most = MAX_BATCH if kept.parties.purpose is Purpose.PROFILES else MAX_ELEMENTS
        if kept.their_size > most:
            raise StateError(f"{SESSION} is damaged (a size); begin anew with --restart")
        return kept


def load_kept(folder: Path) -> Kept | None:
    """Read an unfinished session; None if there is none. Raises StateError for a damaged one."""
    try:
        return Kept.from_json(read_small(folder / SESSION))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"{folder / SESSION} can't be read: {error.strerror}") from None


def save_kept(folder: Path, kept: Kept) -> None:
    """Replace the session's file durably."""
    write_file(folder / SESSION, kept.to_json())


def on_disk(folder: Path) -> tuple[Callable[[str, int], Rows], Callable[[], None]]:
    """Return the storage of a session's arrays, and what flushes them to the disk."""
    arrays: list[np.memmap[Any, Any]] = []

    def storage(name: str, rows: int) -> Rows:
        path, size = folder / f"{name}.marks", rows * MARK_BYTES
        try:
            if not path.exists():
                write_file(path, b"")
            with path.open("r+b") as stream:
                stream.truncate(size)
                # A full disk is noticed here, not by a signal in the midst of a block.
                os.posix_fallocate(stream.fileno(), 0, size)
            array = np.memmap(path, dtype=np.uint8, mode="r+", shape=(rows, MARK_BYTES))
        except OSError as error:
            raise StateError(f"{path} can't be written: {error.strerror}; make room") from None
        arrays.append(array)
        return array

    def flush() -> None:
        for array in arrays:
            array.flush()

    return storage, flush
