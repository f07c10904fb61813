"""The audit log: what was acknowledged stays, what was changed shows, a flood stays small."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from crossrec_model.errors import ConfigError, FederationError
from server import audit
from server.audit import AUDIT, TORN, AuditLog, checkup, verify
from server.flood import MOST_ALIKE, MOST_OF_A_KIND, NOT_WRITTEN

ROOT = Path(__file__).parent.parent.parent
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
KILLS = 15


class Clock:
    """Stands still until told."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / AUDIT


def _filled(path: Path, count: int = 3) -> list[bytes]:
    with AuditLog.open(path, clock=Clock()) as log:
        for number in range(1, count + 1):
            assert log.record("round-finished", round=number, platforms="A B C")
    return path.read_bytes().splitlines()


def _events(path: Path) -> list[tuple[str, dict[str, object]]]:
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    return [(line["event"], line["fields"]) for line in lines]


def test_a_line_is_canonical_json_chained_to_the_one_before(path: Path) -> None:
    first, second, _ = _filled(path)
    document = json.loads(first)
    digest = document.pop("sha256")
    assert document == {
        "event": "round-finished",
        "fields": {"platforms": "A B C", "round": 1},
        "format": 1,
        "previous": "0" * 64,
        "sequence": 1,
        "time": "2026-01-02T12:00:00Z",
    }
    # Computed from the text, not with what wrote it.
    unsigned = first.replace(f'"sha256":"{digest}",'.encode(), b"")
    assert unsigned != first
    assert hashlib.sha256(unsigned).hexdigest() == digest
    assert json.loads(second)["previous"] == digest
    assert json.loads(second)["sequence"] == 2
    assert path.stat().st_mode & 0o077 == 0


def test_the_log_goes_on_where_it_ended(path: Path) -> None:
    _filled(path)
    with AuditLog.open(path) as log:
        assert log.head.sequence == 3
        log.record("started")
        assert verify(path).head == log.head
    assert verify(path).head.sequence == 4


def test_times_are_in_utc_whatever_the_clocks_zone(path: Path) -> None:
    east = datetime.fromisoformat("2026-01-02T12:00:00+09:00")
    with AuditLog.open(path, clock=lambda: east) as log:
        log.record("started")
    assert json.loads(path.read_bytes())["time"] == "2026-01-02T03:00:00Z"


@pytest.mark.parametrize(
    ("event", "fields"),
    [
        ("Started", {}),
        ("", {}),
        ("a b", {}),
        ("a\n", {}),
        ("ok", {"Reason": "x"}),
        ("ok", {"x": 1.5}),
        ("ok", {"x": None}),
        ("ok", {"x": True}),
        ("ok", {"x": b"y"}),
        ("ok", {"x": 2**63}),
        ("ok", {NOT_WRITTEN: 3}),
        ("ok", {f"x{n}": n for n in range(17)}),
    ],
)
def test_what_no_line_can_hold_is_refused_and_not_written(
    path: Path, event: str, fields: dict[str, object]
) -> None:
    with AuditLog.open(path) as log:
        with pytest.raises(ConfigError):
            log.record(event, **fields)  # type: ignore[arg-type]
    assert path.read_bytes() == b""


@pytest.mark.parametrize("text", ["x" * 10**6, "\n{", "\x00\ud800\u2028", "\U0001f600" * 500])
def test_any_text_fits_into_its_one_line(path: Path, text: str) -> None:
    with AuditLog.open(path) as log:
        for _ in range(2):
            log.record("refused", **{f"field{n}": text for n in range(16)})
    assert len(path.read_bytes().splitlines()) == 2
    assert verify(path).head.sequence == 2
    kept = _events(path)[0][1]["field0"]
    assert kept == (text if len(text) <= 200 else f"{text[:199]}…")


def test_a_flood_of_one_refusal_is_a_few_lines_and_a_number(path: Path) -> None:
    clock = Clock()
    refusal = {"reason": "no-pass", "address": "192.0.2.1"}
    with AuditLog.open(path, clock=clock) as log:
        written = [log.record("refused", **refusal) for _ in range(1000)]
        assert written == [True] * MOST_ALIKE + [False] * (1000 - MOST_ALIKE)
        assert log.record("round-finished", round=1)
        assert len(_events(path)) == MOST_ALIKE + 1
        clock.now += timedelta(minutes=1)
        log.settle()
        assert _events(path)[-1] == ("refused", {**refusal, NOT_WRITTEN: 1000 - MOST_ALIKE})
        # Counted again from here on, and told when the log is closed.
        for _ in range(10):
            log.record("refused", **refusal)
    assert _events(path)[-1] == ("refused", {**refusal, NOT_WRITTEN: 10 - MOST_ALIKE})
    assert verify(path).head.sequence == 2 * MOST_ALIKE + 3


def test_a_flood_of_many_addresses_does_not_fill_the_disk(path: Path) -> None:
    clock = Clock()
    with AuditLog.open(path, clock=clock) as log:
        for minute in range(3):
            for number in range(2000):
                log.record("refused", reason="no-pass", address=f"{minute}.{number}")
            clock.now += timedelta(minutes=1)
    assert len(_events(path)) == 3 * (MOST_OF_A_KIND + 1)


def _dropped(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[2]]


def _swapped(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[2], lines[1]]


def _twice(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1], lines[1], lines[2]]


@pytest.mark.parametrize(
    ("change", "bad"),
    [
        (_dropped, 2),
        (_swapped, 2),
        (_twice, 3),
        (lambda lines: lines[1:], 1),
        (lambda lines: [lines[0], b"", *lines[1:]], 2),
        (lambda lines: [lines[0], lines[1].replace(b"A B C", b"A B D"), lines[2]], 2),
        (lambda lines: [*lines[:2], lines[2].replace(b'"round":3', b'"round":4')], 3),
        (lambda lines: [lines[0], b" " + lines[1], lines[2]], 2),
        (lambda lines: [lines[0], b"[" * 60_000, lines[2]], 2),
        (lambda lines: [lines[0], b"x" * 300_000, lines[2]], 2),
        (lambda lines: [lines[0], b"\xff" + lines[1], lines[2]], 2),
    ],
)
def test_the_first_bad_line_is_named(
    path: Path, change: Callable[[list[bytes]], list[bytes]], bad: int
) -> None:
    lines = _filled(path)
    path.write_bytes(b"\n".join(change(lines)) + b"\n")
    with pytest.raises(FederationError, match=rf"audit.jsonl is damaged in line {bad}; keep it"):
        verify(path)


def test_every_flipped_bit_shows(path: Path) -> None:
    _filled(path)
    whole = path.read_bytes()
    # The last byte too: a line that does not end is never taken for one that was cut off.
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        bad = whole.count(b"\n", 0, at) + 1
        with pytest.raises(FederationError, match=rf"damaged in line {bad};"):
            verify(path)


def test_a_damaged_end_is_not_appended_to(path: Path) -> None:
    lines = _filled(path)
    for end in (
        lines[2].replace(b'"round":3', b'"round":4') + b"\n",
        lines[2] + b"x",
        b"\n",
        b"x" * 100_000,
        b"x" * 100_000 + b"\n",
    ):
        path.write_bytes(content := b"\n".join(lines[:2]) + b"\n" + end)
        with pytest.raises(FederationError, match=r"audit.jsonl is damaged in its"):
            AuditLog.open(path)
        assert path.read_bytes() == content


def test_wherever_a_write_was_cut_off_nothing_before_it_is_lost(path: Path, tmp_path: Path) -> None:
    lines = _filled(path)
    whole = path.read_bytes()
    start = len(whole) - len(lines[2]) - 1
    aside = tmp_path / f"{AUDIT}{TORN}"
    # Every place is like its neighbours, but for the ends.
    for cut in sorted(
        {*range(start, len(whole), 9), start + 1, *range(len(whole) - 3, len(whole) + 1)}
    ):
        path.write_bytes(whole[:cut])
        aside.unlink(missing_ok=True)
        torn = whole[start:cut]
        finished = torn.rstrip(b"\n") == lines[2]
        assert verify(path).torn_bytes == (0 if finished else len(torn))
        with AuditLog.open(path, clock=Clock()) as log:
            log.record("started")
        expected = _events_of(lines[:2])
        if finished:
            expected += _events_of(lines[2:])
        elif torn:
            expected.append(("torn", {"bytes": len(torn)}))
            assert aside.read_bytes() == torn + b"\n"
        assert aside.exists() == (bool(torn) and not finished)
        assert _events(path) == [*expected, ("started", {})]
        assert verify(path).head.sequence == len(expected) + 1


def _events_of(lines: list[bytes]) -> list[tuple[str, dict[str, object]]]:
    return [(d["event"], d["fields"]) for d in map(json.loads, lines)]


def test_a_first_line_that_was_cut_off_is_set_aside(path: Path) -> None:
    first = _filled(path)[0]
    for torn in (first[:1], first[:-1], b"\0" * 500):
        path.write_bytes(torn)
        with AuditLog.open(path) as log:
            assert log.head.sequence == 1
        assert _events(path) == [("torn", {"bytes": len(torn)})]


def test_another_process_that_died_in_the_midst_is_mended_while_open(path: Path) -> None:
    with AuditLog.open(path) as log:
        log.record("started")
        with path.open("ab") as other:
            other.write(b'{"event":"sta')
        log.record("stopped")
    assert [event for event, _ in _events(path)] == ["started", "torn", "stopped"]
    verify(path)


def test_a_full_disk_is_one_line_and_leaves_no_half_of_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with AuditLog.open(path) as log:
        log.record("started")
        before = path.read_bytes()
        real = os.write

        def short(file: int, data: bytes) -> int:
            return real(file, data[:20])

        def failing(_file: int) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(audit.os, "write", short)
            with pytest.raises(FederationError, match=r"audit.jsonl can't be used: No space left"):
                log.record("stopped")
        assert path.read_bytes() == before
        with monkeypatch.context() as patch:
            patch.setattr(audit.os, "fsync", failing)
            with pytest.raises(FederationError, match=r"can't be used: Input/output error"):
                log.record("stopped")
        assert path.read_bytes() == before
        log.record("stopped")
    assert verify(path).head.sequence == 2


def test_a_record_is_flushed_before_it_is_acknowledged(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    real = os.fsync

    def fsync(file: int) -> None:
        flushed.append(os.fstat(file).st_size)
        real(file)

    with AuditLog.open(path) as log:
        monkeypatch.setattr(audit.os, "fsync", fsync)
        for _ in range(3):
            log.record("started")
            assert flushed[-1] == path.stat().st_size
    assert len(flushed) == 3


def test_a_log_that_is_exchanged_or_moved_away_is_noticed(path: Path) -> None:
    _filled(path)
    with AuditLog.open(path) as log:
        copy = path.read_bytes()
        path.unlink()
        path.write_bytes(copy)
        with pytest.raises(FederationError, match="exchanged while it was open"):
            log.record("started")
    assert path.read_bytes() == copy
    with AuditLog.open(path) as log:
        path.unlink()
        with pytest.raises(FederationError, match="can't be used: No such file"):
            log.record("started")


def test_a_file_that_is_not_ours_alone_to_write_is_refused(path: Path, tmp_path: Path) -> None:
    _filled(path)
    path.chmod(0o660)
    for attempt in (AuditLog.open, verify):
        with pytest.raises(FederationError, match=r"mode 0660.*chmod 600"):
            attempt(path)
    link = tmp_path / "link"
    link.symlink_to(path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for odd, why in (
        (link, "symbolic link"),
        (tmp_path / "pipe", "no plain file"),
        (tmp_path, "director"),
        (tmp_path / "none" / "x", "No such file"),
    ):
        for attempt in (AuditLog.open, verify):
            with pytest.raises(FederationError, match=why):
                attempt(odd)
    with pytest.raises(FederationError, match="No such file"):
        verify(tmp_path / "nothing")


def test_a_closed_log_takes_nothing(path: Path) -> None:
    log = AuditLog.open(path)
    log.close()
    log.close()
    with pytest.raises(FederationError, match="is closed"):
        log.record("started")


def test_a_process_that_is_stuck_does_not_hold_us_for_ever(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _filled(path)
    monkeypatch.setattr(audit, "PATIENCE_S", 0.05)
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for attempt in (AuditLog.open, verify):
            with pytest.raises(FederationError, match=r"held for 0.05 s by another process"):
                attempt(path)


def test_a_checkup_tells_what_is_there(path: Path) -> None:
    assert checkup(path.parent) == "no audit log yet"
    assert not path.exists()
    _filled(path)
    assert checkup(path.parent) == "3 lines, each chained to the one before"
    path.write_bytes(path.read_bytes() + b"{")
    assert checkup(path.parent).endswith("one before, after them 1 bytes of one that was cut off")
    path.write_bytes(b"{}\n")
    with pytest.raises(FederationError, match="damaged in line 1"):
        checkup(path.parent)


def test_threads_of_one_process_share_a_log(path: Path) -> None:
    with AuditLog.open(path) as log:

        def work(name: str) -> None:
            for number in range(40):
                log.record("step", thread=name, number=number)

        threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert verify(path).head.sequence == 160
    seen = [(fields["thread"], fields["number"]) for _, fields in _events(path)]
    for name in "abcd":
        assert [number for thread, number in seen if thread == name] == list(range(40))


#: Imports once, then forks a writer for every line that it is sent: a start of an interpreter each
#: would take most of the test's time.
FACTORY = """
import os, sys
from pathlib import Path
from server.audit import AuditLog

def writer(name):
    told = os.open(f"{sys.argv[2]}-{name}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with AuditLog.open(Path(sys.argv[1])) as log:
        for number in range(int(sys.argv[3])):
            log.record("step", writer=name, number=number, filling="x" * 150)
            # Acknowledged: whoever reads this must find the record.
            os.write(told, f"{number}\\n".encode())

print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        code = 1
        try:
            writer(line.strip())
            code = 0
        finally:
            os._exit(code)
    print(child, flush=True)
"""


class Factory:
    """Writers by name, ended by id."""

    def __init__(self, path: Path, told: Path, records: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", FACTORY, str(path), str(told), str(records)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._children: list[int] = []

    def __enter__(self) -> Factory:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        return self

    def start(self, name: str) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        self._children.append(int(self._process.stdout.readline()))
        return self._children[-1]

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            # Never waited for by its parent, so that its id is still its own.
            os.kill(child, signal.SIGKILL)
        self._process.kill()
        self._process.wait(10)
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()


def _acknowledged(told: Path, name: str) -> list[int]:
    path = told.with_name(f"{told.name}-{name}")
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def _numbers(path: Path, name: str) -> list[object]:
    return [f["number"] for event, f in _events(path) if event == "step" and f["writer"] == name]


def _until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.processes
def test_processes_append_to_one_log(path: Path, tmp_path: Path) -> None:
    told = tmp_path / "told"
    with Factory(path, told, 60) as factory:
        for name in "abcd":
            factory.start(name)
        _until(lambda: all(len(_acknowledged(told, name)) == 60 for name in "abcd"))
        assert verify(path).head.sequence == 240
    for name in "abcd":
        assert _numbers(path, name) == list(range(60))


@pytest.mark.processes
def test_a_kill_at_any_moment_loses_no_acknowledged_record(path: Path, tmp_path: Path) -> None:
    told, chance, before = tmp_path / "told", random.Random(5), b""
    with Factory(path, told, 10**6) as factory:
        for kill in range(KILLS):
            names = [f"{kill}a", f"{kill}b"]
            children = [factory.start(name) for name in names]
            _until(lambda names=names: all(_acknowledged(told, name) for name in names))
            time.sleep(chance.uniform(0.0, 0.05))
            for child in children:
                os.kill(child, signal.SIGKILL)
            # The lock of a killed process is free once it is gone.
            with AuditLog.open(path) as log:
                log.record("killed", number=kill)
            verify(path)
            # Nothing that was there has changed.
            now = path.read_bytes()
            assert now.startswith(before)
            before = now
    for kill in range(KILLS):
        for name in (f"{kill}a", f"{kill}b"):
            acknowledged = _acknowledged(told, name)
            written = _numbers(path, name)
            assert written == list(range(len(written)))
            assert len(acknowledged) <= len(written) <= len(acknowledged) + 1
