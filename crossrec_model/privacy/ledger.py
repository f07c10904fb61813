"""The ledger of what a platform has spent of its users' privacy: check, then write, then release.

One append-only file of JSON lines, one charge a line. Each line carries the SHA-256 of the line before
it and its own, so that a line that was changed, lost or moved shows. A charge is on the disk before
`Ledger.charge` returns, and only then may what it pays for be computed and sent: wherever the process
is killed, the file holds at least what was released. Nothing is ever taken back, not even for a round
that failed: the noise is drawn anew the next time.

What the file can't show is that whole lines are missing at its end, or that it was exchanged for an
earlier copy of itself: keep backups out of its place.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from crossrec_model.durable import flush
from crossrec_model.errors import CrossrecError
from crossrec_model.privacy.events import Budget, Event, Record
from crossrec_model.privacy.pricing import Prices, epsilon, prices

__all__ = [
    "LEDGER",
    "Budget",
    "BudgetExceededError",
    "Charge",
    "History",
    "Ledger",
    "LedgerError",
    "Record",
    "Remaining",
    "read_history",
]

LEDGER: Final = "ledger.jsonl"


class LedgerError(CrossrecError):
    """A ledger that can't be trusted, read or written; nothing may be released."""


class BudgetExceededError(CrossrecError):
    """A charge that would overspend; nothing was written.

    `spent` is the epsilon without it, `asked` the epsilon with it, `limit` what is allowed.
    """

    def __init__(self, message: str, *, spent: float, asked: float, limit: float) -> None:
        super().__init__(message)
        self.spent, self.asked, self.limit = spent, asked, limit


@dataclass(frozen=True, kw_only=True)
class Charge:
    """A charge that is on the disk, and the epsilon of its run and of all runs with it."""

    record: Record
    run_epsilon: float
    life_epsilon: float


@dataclass(frozen=True, kw_only=True)
class Remaining:
    """What limit and price differ by, at least 0; prices don't add up, so it is a rough guide."""

    run: float
    life: float


class History:
    """What was charged, in order; `note` tells the operator of a line that was never finished."""

    def __init__(self, records: Iterable[Record] = (), note: str = "") -> None:
        self._records = list(records)
        self.note: Final = note

    @property
    def records(self) -> tuple[Record, ...]:
        """All records, the oldest first."""
        return tuple(self._records)

    def spent(self, delta: float, run: bytes | None = None) -> float:
        """Return epsilon at `delta` of one run, or of all; see `pricing.epsilon` against whom."""
        return epsilon(self._events(run), delta)

    def prices(self, delta: float, run: bytes | None = None) -> Prices:
        """Return epsilon at `delta` of one run, or of all, against either observer."""
        return prices(self._events(run), delta)

    def remaining(self, budget: Budget, run: bytes) -> Remaining:
        """Return what is left of a budget for a run, and for the platform's whole life."""
        return Remaining(
            run=max(0.0, budget.epsilon - self.spent(budget.delta, run)),
            life=max(0.0, budget.life_epsilon - self.spent(budget.delta)),
        )

    def _events(self, run: bytes | None) -> list[Event]:
        return [r.event for r in self._records if run is None or r.run == run]


def read_history(path: Path) -> History:
    """Read a ledger without holding or changing it; empty if there is no file.

    Raises:
        LedgerError: as `Ledger.open`, but not for a ledger that another process holds.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return History()
    except OSError as error:
        raise _unusable(path, error) from None
    try:
        records, _whole, note = _parse(_read_all(file, path), path)
        return History(records, note)
    except OSError as error:
        raise _unusable(path, error) from None
    finally:
        os.close(file)


class Ledger(History):
    """A ledger that this process alone can charge to; made by `open`, used by any of its threads."""

    def __init__(
        self, path: Path, file: int, history: History, clock: Callable[[], datetime]
    ) -> None:
        super().__init__(history.records, history.note)
        self._path, self._clock = path, clock
        self._file: int | None = file
        self._size = os.fstat(file).st_size
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Self:
        """Open or make the ledger at `path`, hold it, and read and verify all of it.

        A last line without its end is of a write that was cut off, so that nothing was released for
        it: a whole record counts as charged, anything else is cut away; `note` says so.

        Raises:
            LedgerError: if any line is damaged, the file is open to others, held by another process,
                or can't be read or written; it is then left as it is.
        """
        file = -1
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            file = os.open(path, flags, 0o600)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _check_in_place(file, path)
            data = _read_all(file, path)
            records, whole, note = _parse(data, path)
            _mend(file, data, whole)
            flush(path.parent)
            return cls(path, file, History(records, note), clock)
        except BaseException as error:
            if file >= 0:
                os.close(file)
            if isinstance(error, OSError):
                raise _unusable(path, error) from None
            raise

    def charge(self, event: Event, *, run: bytes, round: int, what: str, budget: Budget) -> Charge:
        """Record `event` durably if it fits into the budget; release nothing before this returns.

        Args:
            run: 16 bytes.
            what: a few words for the operator, e.g. "training".

        Raises:
            BudgetExceededError: if the run, or all runs, would come to more; nothing is written.
            LedgerError: if it can't be written, or the file changed under us. The ledger is then
                closed and must be opened anew, which finds what the file holds.
            ConfigError: for a run, round or `what` outside its bounds.
        """
        with self._lock:
            file = self._held()
            record = Record.following(
                self._records[-1] if self._records else None,
                time=self._clock(),
                run=run,
                round=round,
                what=what,
                event=event,
                budget=budget,
            )
            in_run = self._check(record, run, budget.epsilon, f"run {run.hex()[:8]}")
            in_life = self._check(record, None, budget.life_epsilon, "all runs together")
            try:
                self._append(file, record)
            except OSError as error:
                self._close()
                raise _unusable(self._path, error) from None
            except BaseException:
                self._close()
                raise
            return Charge(record=record, run_epsilon=in_run, life_epsilon=in_life)

    def close(self) -> None:
        """Let other processes charge; nothing can be charged here any more. Harmless when closed."""
        with self._lock:
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _check(self, record: Record, run: bytes | None, limit: float, of: str) -> float:
        before, delta = self._events(run), record.budget.delta
        asked = epsilon([*before, record.event], delta)
        if asked <= limit:  # NaN is above every limit
            return asked
        spent = epsilon(before, delta)
        raise BudgetExceededError(
            f"{record.what} in round {record.round} would bring {of} from epsilon = {spent:.4g} to "
            f"{asked:.4g} at delta = {delta:g}, above {limit:g}; nothing was released: raise the "
            "budget, or take no further part",
            spent=spent,
            asked=asked,
            limit=limit,
        )

    def _append(self, file: int, record: Record) -> None:
        line = record.line + b"\n"
        # One write, at the end wherever that is: what is cut off can only be this line's end.
        if os.write(file, line) != len(line):
            raise OSError(errno.ENOSPC, "only a part of the line was written")
        os.fsync(file)
        self._size += len(line)
        self._records.append(record)

    def _held(self) -> int:
        if self._file is None:
            raise LedgerError(f"ledger {self._path} is closed; open it again to go on")
        try:
            _check_in_place(self._file, self._path)
            size = os.fstat(self._file).st_size
        except OSError as error:
            self._close()
            raise _unusable(self._path, error) from None
        if size != self._size:
            self._close()
            raise LedgerError(
                f"ledger {self._path} has {size} bytes, not {self._size}: it was changed by another "
                "hand; nothing was charged, start again to have it verified"
            )
        return self._file

    def _close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            os.close(file)


def _parse(data: bytes, path: Path) -> tuple[list[Record], int, str]:
    """Return the records, how many bytes of `data` they are, and a note on an unfinished line."""
    *lines, tail = data.split(b"\n")
    records: list[Record] = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(Record.from_line(line, records[-1] if records else None))
        except (CrossrecError, ValueError):
            raise _damaged(path, number) from None
    after = records[-1] if records else None
    if not tail:
        return records, len(data), ""
    where = f"ledger {path}: line {len(lines) + 1} was not finished, so nothing was released for it"
    if record := _whole_record(tail, after):
        return [*records, record], len(data), f"{where}; it counts as charged all the same"
    if _whole_record(tail[:-1], after):
        # No write that was cut off ends like this.
        raise _damaged(path, len(lines) + 1)
    return records, len(data) - len(tail), f"{where}; it does not count"


def _whole_record(line: bytes, after: Record | None) -> Record | None:
    try:
        return Record.from_line(line, after)
    except (CrossrecError, ValueError):
        return None


def _mend(file: int, data: bytes, whole: int) -> None:
    """Give the file a last line that ends, durably; raises OSError."""
    if whole < len(data):
        os.ftruncate(file, whole)
    elif data and not data.endswith(b"\n"):
        os.write(file, b"\n")
    # Also what an earlier process wrote and did not flush before it was killed.
    os.fsync(file)


def _read_all(file: int, path: Path) -> bytes:
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        raise LedgerError(f"ledger {path} is no plain file; move it away")
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise LedgerError(
            f"ledger {path} is not this user's alone (mode {stat.S_IMODE(status.st_mode):04o}, "
            f"user {status.st_uid}); make it so: chmod 600"
        )
    with os.fdopen(os.dup(file), "rb") as stream:
        return stream.read()


def _check_in_place(file: int, path: Path) -> None:
    """Raise LedgerError unless `path` still leads to the open file; raises OSError too."""
    if not os.path.samestat(os.fstat(file), os.stat(path, follow_symlinks=False)):
        raise LedgerError(f"ledger {path} was exchanged while it was open; nothing was charged")


def _damaged(path: Path, line: int) -> LedgerError:
    return LedgerError(
        f"ledger {path} is damaged in line {line}, so what was spent is not known; restore the "
        "file as it was last: until then nothing is charged and nothing may be released"
    )


def _unusable(path: Path, error: OSError) -> LedgerError:
    if isinstance(error, BlockingIOError):
        return LedgerError(f"ledger {path} is in use by another process of this platform; stop it")
    link = error.errno == errno.ELOOP
    reason = "it is a symbolic link" if link else error.strerror or str(error)
    return LedgerError(
        f"ledger {path} can't be used: {reason}; nothing is released: make room or mend it, then "
        "start again"
    )
