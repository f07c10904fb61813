"""Which sums a platform has opened, and over whom, durably: `opened.json` in its folder."""

from __future__ import annotations

import os
import re
import threading
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from clients.keys import write_file
from crossrec_model.errors import StateError
from crossrec_model.keyfile import read_small
from crossrec_model.secagg.errors import (
    OldRoundError,
    OtherListError,
    SecureSumError,
    SurvivorsError,
)
from crossrec_model.secagg.identity import FORMAT, canonical, check_exact, fields, parse
from crossrec_model.secagg.roster import MOST
from crossrec_model.wire.messages import PLATFORM_ID

OPENED: Final = "opened.json"
#: Runs whose opened sums are remembered: the latest ones.
RUNS: Final = 64
RUN_BYTES: Final = 16
#: Kinds of sum; with the bounds of a roster they keep `opened.json` within its own bound.
KINDS: Final = 16
_MAX_OPENED: Final = 1 << 23
_OPENED: Final = {"format": int, "opened": list, "sha256": str}
_RECORD: Final = {"kind": int, "round": int, "run": str, "survivors": list}


@dataclass(frozen=True, kw_only=True)
class Opening:
    """The latest round of a kind that was opened in a run, and over whom."""

    run: bytes
    kind: int
    round: int
    survivors: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.run) != RUN_BYTES:
            raise ValueError(f"run has {len(self.run)} bytes; {RUN_BYTES} are needed")
        if not 0 <= self.kind < KINDS or not 1 <= self.round < 2**32:
            raise ValueError(f"kind {self.kind} or round {self.round} is out of bounds")
        names = self.survivors
        if not 1 <= len(names) <= MOST or list(names) != sorted(set(names)):
            raise SurvivorsError(
                f"a list of {len(names)} survivors is empty, longer than {MOST}, or names one twice"
            )
        if not all(re.fullmatch(PLATFORM_ID, name) for name in names):
            raise SurvivorsError("a survivor's id is not a platform id")

    def check_after(self, before: Opening) -> None:
        """Raise unless this may be opened after the latest round of the same run and kind."""
        where = f"run {self.run.hex()[:8]}, kind {self.kind}, round {self.round}"
        if self.round < before.round:
            raise OldRoundError(f"{where} was left behind: round {before.round} was opened")
        if self.round == before.round and self.survivors != before.survivors:
            raise OtherListError(
                f"{where} was opened over {', '.join(before.survivors)}, and is now asked for over "
                f"{', '.join(self.survivors)}: the difference would show single platforms"
            )


class Opened:
    """What was opened, durably: for each run and kind the latest round, and its survivors.

    Two sums of one round over different platforms would show a platform by their difference. So that
    no restart forgets, a list counts as opened from the moment it is written. The last 64 runs are kept.

    Raises:
        StateError: if the file is damaged or can't be read or written, here and in `check_and_record`.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / OPENED
        self._lock = threading.Lock()
        # Written at once: a folder that can't be written shows now, not in the midst of a round.
        if not os.path.lexists(self._path):
            self._store([])
        self._load()

    def check_and_record(
        self, run: bytes, kind: int, round: int, survivors: tuple[str, ...]
    ) -> None:
        """Record that a sum is opened over `survivors` (in any order); the same again is fine.

        It is on the disk when this returns.

        Raises:
            OldRoundError: if a later round of this run and kind was opened.
            OtherListError: if this round was opened over other survivors.
            SurvivorsError: for an empty list, an id twice, or more than a roster can have.
        """
        asked = Opening(run=run, kind=kind, round=round, survivors=tuple(sorted(survivors)))
        with self._lock:
            # Read anew each time: a file that was exchanged or lost meanwhile must show.
            records = self._load()
            for record in records:
                if (record.run, record.kind) == (run, kind):
                    asked.check_after(record)
            kept = [r for r in records if (r.run, r.kind) != (run, kind)]
            self._store(_latest_runs([*kept, asked]))

    def _load(self) -> list[Opening]:
        try:
            return _records(read_small(self._path, _MAX_OPENED))
        except OSError as error:
            raise StateError(
                f"{self._path} can't be read: {error.strerror}; without it no sum may be opened"
            ) from None
        except (ValueError, TypeError, SecureSumError):
            raise StateError(
                f"{self._path} is damaged, so what was opened before is not known; restore it, or "
                "move it away once the coordinator has begun a new run"
            ) from None

    def _store(self, records: list[Opening]) -> None:
        write_file(self._path, _document(records))


def _latest_runs(records: list[Opening]) -> list[Opening]:
    """Keep the records of the last runs; the latest record stands last."""
    latest = dict.fromkeys(record.run for record in reversed(records))
    kept = set(list(latest)[:RUNS])
    return [record for record in records if record.run in kept]


def _document(records: list[Opening]) -> bytes:
    entries = [asdict(record) | {"run": record.run.hex()} for record in records]
    content: dict[str, Any] = {"format": FORMAT, "opened": entries}
    return canonical(content | {"sha256": sha256(canonical(content)).hexdigest()})


def _records(data: bytes) -> list[Opening]:
    """Read `_document` back; any error means damage."""
    found = fields(parse(data, OPENED, most=_MAX_OPENED), OPENED, _OPENED)
    records = []
    for value in found["opened"]:
        entry = fields(value, OPENED, _RECORD)
        run, names = bytes.fromhex(entry.pop("run")), tuple(entry.pop("survivors"))
        records.append(Opening(run=run, survivors=names, **entry))
    check_exact(_document(records), data, OPENED)
    return records
