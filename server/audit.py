"""The coordinator's audit log: who was admitted, refused, expelled, and what each run did.

One append-only file of JSON lines. Each line carries the SHA-256 of the line before it and its own,
so that a line that was changed, lost or moved shows. A record is on the disk before `record` returns,
but for refusals beyond `flood`'s bounds, of which a later line tells the number.

What the file can't show is that whole lines are missing at its end: note `AuditLog.head` elsewhere
from time to time, or copy the file away.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from crossrec_model.durable import flush
from crossrec_model.errors import FederationError
from server.audit_lines import MOST_LINE, Head, event_of, head_of, line_of, spoilt
from server.flood import Event, Flood

AUDIT: Final = "audit.jsonl"
#: What a write that was cut off left behind goes there.
TORN: Final = ".torn"
#: A line is written in milliseconds; whoever holds the log for so long is stuck.
PATIENCE_S: Final = 10.0


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What `verify` found: the last line, and bytes after it of a write that was cut off."""

    head: Head
    torn_bytes: int


class AuditLog:
    """An audit log that any number of processes and threads may append to; made by `open`."""

    def __init__(self, path: Path, file: int, clock: Callable[[], datetime]) -> None:
        self._path, self._clock = path, clock
        self._file: int | None = file
        self._head, self._size = Head(), -1
        self._flood, self._lock = Flood(), threading.Lock()

    @classmethod
    def open(cls, path: Path, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Self:
        """Open or make the log at `path`; `clock` gives aware times.

        Raises:
            FederationError: if it can't be read or written, others may write to it, or its last line
                is damaged; it is then left as it is.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        file = -1
        try:
            file = os.open(path, flags, 0o600)
            _check_file(file, path)
            log = cls(path, file, clock)
            with log._held() as held:
                log._catch_up(held)
            flush(path.parent)
            return log
        except BaseException as error:
            if file >= 0:
                os.close(file)
            if isinstance(error, OSError):
                raise _unusable(path, error) from None
            raise

    @property
    def head(self) -> Head:
        """The last line that this process knows of."""
        with self._lock:
            return self._head

    def record(self, event: str, **fields: str | int) -> bool:
        """Write a line durably; False if it was only counted, which happens to refusals alone.

        Texts are cut after 200 characters. The counts of a minute that is over are written too.

        Raises:
            ConfigError: for a name or value that no line can hold; nothing is written.
            FederationError: if it can't be written, or the log was exchanged or damaged.
        """
        happened = event_of(event, fields)
        now = self._clock()
        with self._lock:
            counts = self._flood.due(now)
            admitted = self._flood.admits(happened, now)
            self._append([*counts, happened] if admitted else counts, now)
        return admitted

    def settle(self) -> None:
        """Write the counts of a minute that is over, if any; raises FederationError."""
        now = self._clock()
        with self._lock:
            self._append(self._flood.due(now), now)

    def close(self) -> None:
        """Write all counts and let go of the file; harmless when closed. Raises FederationError."""
        with self._lock:
            if self._file is None:
                return
            try:
                now = self._clock()
                self._append(self._flood.due(now, all=True), now)
            finally:
                file, self._file = self._file, None
                os.close(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _append(self, events: list[Event], now: datetime) -> None:
        if not events:
            return
        try:
            with self._held() as file:
                self._catch_up(file)
                head, lines = self._head, b""
                for event in events:
                    line, head = line_of(event, head, now)
                    lines += line + b"\n"
                self._write(file, lines)
                self._head = head
        except OSError as error:
            raise _unusable(self._path, error) from None

    @contextmanager
    def _held(self) -> Iterator[int]:
        """The file, with every other process kept out; raises OSError and FederationError."""
        if self._file is None:
            raise FederationError(f"audit log {self._path} is closed; open it again to go on")
        with _locked(self._file, self._path, fcntl.LOCK_EX):
            in_place = os.stat(self._path, follow_symlinks=False)
            if not os.path.samestat(os.fstat(self._file), in_place):
                raise FederationError(
                    f"audit log {self._path} was exchanged while it was open; put it back and "
                    "start again"
                )
            yield self._file

    def _catch_up(self, file: int) -> None:
        """Learn the last line, wherever it came from; set aside what a cut-off write left."""
        size = os.fstat(file).st_size
        if size == self._size:
            return
        start = max(0, size - 2 * MOST_LINE)
        lines, newline, rest = os.pread(file, size - start, start).rpartition(b"\n")
        if len(rest) > MOST_LINE:
            raise _damaged(self._path, "its end")
        head = head_of(lines.rpartition(b"\n")[2]) if newline else Head()
        if head is None or (rest and spoilt(rest, head)):
            raise _damaged(self._path, "its last line")
        self._head, self._size = head, size - len(rest)
        if rest and (finished := head_of(rest, head)) is not None:
            # Only the end of the line is missing.
            self._write(file, b"\n", after=size)
            self._head = finished
        elif rest:
            self._set_aside(file, rest)

    def _set_aside(self, file: int, rest: bytes) -> None:
        aside = self._path.with_name(self._path.name + TORN)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        torn = os.open(aside, flags, 0o600)
        try:
            os.write(torn, rest + b"\n")
            os.fsync(torn)
        finally:
            os.close(torn)
        flush(aside.parent)
        os.ftruncate(file, self._size)
        line, head = line_of(Event("torn", {"bytes": len(rest)}), self._head, self._clock())
        self._write(file, line + b"\n")
        self._head = head

    def _write(self, file: int, lines: bytes, *, after: int | None = None) -> None:
        """Append durably, after so many bytes; cut away what was written of it if that fails."""
        before, self._size = self._size if after is None else after, -1
        try:
            # One write: what a crash cuts off can only be the end.
            written = os.write(file, lines)
            os.fsync(file)
        except OSError:
            os.ftruncate(file, before)
            raise
        if written != len(lines):
            os.ftruncate(file, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size = before + len(lines)


def verify(path: Path) -> Verified:
    """Read a whole log without changing it; a last line that was cut off is no damage.

    Raises:
        FederationError: naming the first bad line, or why the file can't be read.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _unusable(path, error) from None
    try:
        with os.fdopen(file, "rb") as stream:
            _check_file(file, path)
            with _locked(file, path, fcntl.LOCK_SH):
                # No writer is in the midst of a line; what is added from here on is left for later.
                left = os.fstat(file).st_size
            head = Head()
            while line := stream.readline(min(MOST_LINE, left)):
                left -= len(line)
                following = head_of(line.removesuffix(b"\n"), head)
                if following is None:
                    if line.endswith(b"\n") or left or spoilt(line, head):
                        raise _damaged(path, f"line {head.sequence + 1}")
                    return Verified(head=head, torn_bytes=len(line))
                head = following
            return Verified(head=head, torn_bytes=0)
    except OSError as error:
        raise _unusable(path, error) from None


def checkup(folder: Path) -> str:
    """Say whether a federation's audit log is whole; raises FederationError if not."""
    path = folder / AUDIT
    if not path.exists():
        return "no audit log yet"
    found = verify(path)
    torn = (
        f", after them {found.torn_bytes} bytes of one that was cut off" if found.torn_bytes else ""
    )
    return f"{found.head.sequence} lines, each chained to the one before{torn}"


@contextmanager
def _locked(file: int, path: Path, how: int) -> Iterator[None]:
    """Hold the file's lock; a process that was stopped in the midst of a line is not waited for."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > end:
                raise FederationError(
                    f"audit log {path} was held for {PATIENCE_S:g} s by another process; end it"
                ) from None
            time.sleep(0.002)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def _check_file(file: int, path: Path) -> None:
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        raise FederationError(f"audit log {path} is no plain file; move it away")
    if status.st_mode & 0o022:
        mode = stat.S_IMODE(status.st_mode)
        raise FederationError(
            f"audit log {path} may be written by others (mode {mode:04o}); make it so: chmod 600"
        )


def _damaged(path: Path, where: str) -> FederationError:
    return FederationError(
        f"audit log {path} is damaged in {where}; keep it as evidence: move it away and start again"
    )


def _unusable(path: Path, error: OSError) -> FederationError:
    link = error.errno == errno.ELOOP
    reason = "it is a symbolic link" if link else error.strerror or str(error)
    return FederationError(f"audit log {path} can't be used: {reason}; make room or mend it")
