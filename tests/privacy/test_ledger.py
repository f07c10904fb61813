"""The ledger on a real disk: what is charged stays charged, and nothing is released before."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from crossrec_model.errors import ConfigError, CrossrecError
from crossrec_model.privacy import ledger as ledger_file
from crossrec_model.privacy.events import (
    DistributedGaussian,
    GaussianRelease,
    SampledGaussian,
)
from crossrec_model.privacy.ledger import (
    LEDGER,
    Budget,
    BudgetExceededError,
    Ledger,
    LedgerError,
    read_history,
)
from crossrec_model.privacy.pricing import epsilon

RUN, OTHER = bytes(range(16)), bytes(16)
BUDGET = Budget(epsilon=4.0, delta=1e-5, life_epsilon=6.0)
STEPS = SampledGaussian(multiplier=1.0, rate=0.01, steps=100)
RELEASE = GaussianRelease(multiplier=20.0)
SHARED = DistributedGaussian(multiplier=20.0, honest=3)


def _charge(ledger: Ledger, event: Any = RELEASE, **values: Any) -> ledger_file.Charge:
    good = {"run": RUN, "round": 1, "what": "statistics", "budget": BUDGET} | values
    return ledger.charge(event, **good)


def _refused(act: Callable[[], object], error: type[CrossrecError] = LedgerError) -> str:
    with pytest.raises(error) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / LEDGER


@pytest.fixture
def written(path: Path) -> Path:
    """A ledger of three charges, closed."""
    with Ledger.open(path) as ledger:
        _charge(ledger)
        _charge(ledger, STEPS, round=2, what="training steps")
        _charge(ledger, SHARED, round=3, run=OTHER)
    return path


def test_charges_come_back(written: Path) -> None:
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    with Ledger.open(written) as ledger:
        assert [r.event for r in ledger.records] == [RELEASE, STEPS, SHARED]
        assert [r.sequence for r in ledger.records] == [1, 2, 3]
        assert [r.run for r in ledger.records] == [RUN, RUN, OTHER]
        assert {r.budget for r in ledger.records} == {BUDGET}
        assert ledger.note == ""
        assert ledger.spent(1e-5) == epsilon([RELEASE, STEPS, SHARED], 1e-5)
        assert ledger.spent(1e-5, RUN) == epsilon([RELEASE, STEPS], 1e-5)
        assert ledger.spent(1e-5, bytes(15) + b"x") == 0.0
        assert ledger.prices(1e-5, RUN).everyone == ledger.spent(1e-5, RUN)
        assert ledger.prices(1e-5).everyone == float("inf")
        assert ledger.prices(1e-5).sums == ledger.spent(1e-5)
        left = ledger.remaining(BUDGET, RUN)
        assert left.run == 4.0 - ledger.spent(1e-5, RUN)
        assert left.life == 6.0 - ledger.spent(1e-5)
        small = Budget(epsilon=1e-3, delta=1e-5, life_epsilon=1e-3)
        assert ledger.remaining(small, RUN) == ledger_file.Remaining(run=0.0, life=0.0)
    assert read_history(written).records == ledger.records


def test_a_charge_tells_what_it_came_to(path: Path) -> None:
    clock = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    with Ledger.open(path, clock=lambda: clock) as ledger:
        _charge(ledger, STEPS, run=OTHER)
        charge = _charge(ledger)
        assert charge.record == ledger.records[-1]
        assert charge.record.time == "2026-01-02T03:04:05Z"
        assert charge.run_epsilon == epsilon([RELEASE], 1e-5)
        assert charge.life_epsilon == epsilon([RELEASE, STEPS], 1e-5)


def test_a_round_that_is_done_again_is_charged_again(path: Path) -> None:
    with Ledger.open(path) as ledger:
        assert _charge(ledger).run_epsilon < _charge(ledger).run_epsilon


@pytest.mark.parametrize(
    ("budget", "run", "whose"),
    [
        (Budget(epsilon=1.0, delta=1e-5, life_epsilon=9.0), RUN, "run 00010203"),
        (Budget(epsilon=1.0, delta=1e-5, life_epsilon=1.0), OTHER, "all runs together"),
    ],
)
def test_overspending_is_refused_and_writes_nothing(
    path: Path, budget: Budget, run: bytes, whose: str
) -> None:
    with Ledger.open(path) as ledger:
        _charge(ledger, STEPS)
        before = path.read_bytes()
        with pytest.raises(BudgetExceededError, match=whose) as caught:
            _charge(ledger, GaussianRelease(multiplier=4.5), run=run, budget=budget)
        error = caught.value
        assert error.spent < error.asked
        assert error.limit == 1.0 < error.asked
        assert "nothing was released" in str(error)
        assert path.read_bytes() == before
        assert len(ledger.records) == 1
        # The ledger goes on.
        _charge(ledger)
    assert len(read_history(path).records) == 2


def test_the_budget_can_be_spent_to_its_end_and_no_further(path: Path) -> None:
    one = GaussianRelease(multiplier=10.0)
    limit = epsilon([one] * 3, 1e-5)
    budget = Budget(epsilon=limit, delta=1e-5, life_epsilon=limit)
    with Ledger.open(path) as ledger:
        for _ in range(3):
            charge = _charge(ledger, one, budget=budget)
        assert charge.run_epsilon == limit
        _refused(lambda: _charge(ledger, one, budget=budget), BudgetExceededError)
        # Hardly any cost, yet above the limit.
        faint = GaussianRelease(multiplier=200.0)
        _refused(lambda: _charge(ledger, faint, budget=budget), BudgetExceededError)
    assert len(read_history(path).records) == 3


@pytest.mark.parametrize("values", [{"run": b"x"}, {"round": -1}, {"what": "a\nb"}])
def test_charges_that_make_no_record(path: Path, values: dict[str, Any]) -> None:
    with Ledger.open(path) as ledger:
        _refused(lambda: _charge(ledger, **values), ConfigError)
        assert path.read_bytes() == b""
        _charge(ledger)


def test_the_line_is_on_the_disk_before_the_charge_returns(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, object]] = []
    write, sync = os.write, os.fsync

    def noted_write(file: int, data: bytes) -> int:
        calls.append(("write", data))
        return write(file, data)

    def noted_sync(file: int) -> None:
        folder = stat.S_ISDIR(os.fstat(file).st_mode)
        calls.append(("fsync", "folder" if folder else path.read_bytes()))
        sync(file)

    monkeypatch.setattr(os, "write", noted_write)
    monkeypatch.setattr(os, "fsync", noted_sync)
    with Ledger.open(path) as ledger:
        # The name is durable before anything is charged to it.
        assert calls[-1] == ("fsync", "folder")
        calls.clear()
        _charge(ledger)
        line = ledger.records[0].line + b"\n"
        assert calls == [("write", line), ("fsync", line)]


@pytest.mark.parametrize("broken", ["write", "part", "fsync", "interrupt"])
def test_a_full_disk_closes_the_ledger(
    written: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    write, before = os.write, written.read_bytes()

    def full(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def part(file: int, data: bytes) -> int:
        return write(file, data[:40])

    def interrupt(_file: int) -> None:
        raise KeyboardInterrupt

    ledger = Ledger.open(written)
    with monkeypatch.context() as patch:
        name = "write" if broken in {"write", "part"} else "fsync"
        change = {"part": part, "interrupt": interrupt}.get(broken, full)
        patch.setattr(os, name, change)
        if broken == "interrupt":
            with pytest.raises(KeyboardInterrupt):
                _charge(ledger)
        else:
            assert "can't be used: " in _refused(lambda: _charge(ledger))
    assert len(ledger.records) == 3
    assert "is closed" in _refused(lambda: _charge(ledger))
    assert written.read_bytes().startswith(before)
    # What was wholly written counts, whether or not it was flushed.
    kept = 3 if broken in {"write", "part"} else 4
    with Ledger.open(written) as again:
        assert len(again.records) == kept
        assert ("not finished" in again.note) == (broken == "part")
        _charge(again)
    assert len(read_history(written).records) == kept + 1


def test_a_last_line_cut_off_at_any_byte(written: Path) -> None:
    good = written.read_bytes()
    start = good.rindex(b"\n", 0, -1) + 1
    for length in range(start, len(good) + 1):
        written.write_bytes(good[:length])
        whole = length >= len(good) - 1
        history = read_history(written)
        assert written.read_bytes() == good[:length]
        with Ledger.open(written) as ledger:
            assert ledger.records == history.records
            assert len(ledger.records) == (3 if whole else 2)
            assert ledger.note == history.note
            assert ("line 3 was not finished" in ledger.note) == (start < length < len(good))
            assert written.read_bytes() == (good if whole else good[:start])
            if length % 40 == 0 or whole:
                _charge(ledger, SHARED, round=4)
                assert len(read_history(written).records) == len(ledger.records)


def test_zeros_after_a_power_cut_are_set_aside(written: Path) -> None:
    good = written.read_bytes()
    written.write_bytes(good + bytes(300))
    with Ledger.open(written) as ledger:
        assert len(ledger.records) == 3
        assert "line 4 was not finished" in ledger.note
    assert written.read_bytes() == good


def test_every_changed_byte_shows(written: Path) -> None:
    good = written.read_bytes()
    for place in range(len(good)):
        spoilt = bytearray(good)
        spoilt[place] ^= 0x01 if place % 2 else 0x20
        written.write_bytes(spoilt)
        line = good.count(b"\n", 0, place) + 1
        message = _refused(lambda: Ledger.open(written))
        assert f"is damaged in line {line}, " in message
        assert written.read_bytes() == bytes(spoilt)


def test_lines_that_are_missing_twice_or_moved_show(written: Path) -> None:
    a, b, c = written.read_bytes().splitlines(keepends=True)
    for spoilt, line in (
        (b + c, 1),
        (a + c, 2),
        (a + b + b, 3),
        (b + a + c, 1),
        (a + b"\n" + b + c, 2),
        (b"\n", 1),
        (a + b"{}\n" + b, 2),
        (a + b[:-1] + b" \n" + c, 2),
        (a + b + b"[" * 4000 + b"\n", 3),
        (a + b + b"9" * 5000 + b"\n", 3),
        (a + b + c[:-1] + b"}", 3),
    ):
        written.write_bytes(spoilt)
        for act in (lambda: Ledger.open(written), lambda: read_history(written)):
            assert f"is damaged in line {line}, " in _refused(act)
        assert written.read_bytes() == spoilt


def test_only_one_process_at_a_time_can_charge(written: Path) -> None:
    with Ledger.open(written) as ledger:
        assert "in use by another process" in _refused(lambda: Ledger.open(written))
        assert len(read_history(written).records) == 3
        _charge(ledger)
    with Ledger.open(written) as ledger:
        assert len(ledger.records) == 4
    ledger.close()


def test_a_file_changed_or_exchanged_under_us(written: Path) -> None:
    good = written.read_bytes()

    def shorten() -> None:
        os.truncate(written, good.rindex(b"\n", 0, -1) + 1)

    def exchange() -> None:
        written.rename(written.with_name("old"))
        written.write_bytes(good)
        written.chmod(0o600)

    for change, reason in (
        (shorten, "changed by another hand"),
        (exchange, "was exchanged"),
        (written.unlink, "can't be used: No such file"),
    ):
        written.write_bytes(good)
        written.chmod(0o600)
        ledger = Ledger.open(written)
        change()
        assert reason in _refused(lambda ledger=ledger: _charge(ledger))
        ledger.close()


def test_files_that_are_no_ledger_of_ours(written: Path, tmp_path: Path) -> None:
    written.chmod(0o640)
    assert "chmod 600" in _refused(lambda: Ledger.open(written))
    assert "chmod 600" in _refused(lambda: read_history(written))
    written.chmod(0o600)
    (tmp_path / "link").symlink_to(written)
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "folder").mkdir()
    for name, reason in (
        ("link", "symbolic link"),
        ("pipe", "no plain file"),
        ("folder", ""),
        ("none/ledger.jsonl", "No such file"),
    ):
        assert reason in _refused(lambda name=name: Ledger.open(tmp_path / name))
    assert "symbolic link" in _refused(lambda: read_history(tmp_path / "link"))
    assert read_history(tmp_path / "absent").records == ()


def test_a_refused_ledger_can_be_opened_later(written: Path) -> None:
    good = written.read_bytes()
    written.write_bytes(good.replace(b'"round":2', b'"round":1'))
    _refused(lambda: Ledger.open(written))
    written.write_bytes(good)
    # The one that was refused holds no lock.
    Ledger.open(written).close()
