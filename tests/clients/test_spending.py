"""The command `privacy`: what was spent, on what, what is left, and what that means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clients.platform import main
from clients.spending import read_spending
from crossrec_model.privacy.events import (
    Budget,
    DistributedGaussian,
    Event,
    GaussianRelease,
    SampledGaussian,
)
from crossrec_model.privacy.ledger import LEDGER, Ledger
from crossrec_model.privacy.pricing import epsilon

FIRST, SECOND = bytes([10]) * 16, bytes([11]) * 16
STEPS = SampledGaussian(multiplier=1.0, rate=0.01, steps=100)
RELEASE = GaussianRelease(multiplier=20.0)
SHARED = DistributedGaussian(multiplier=20.0, honest=3)
BUDGET = Budget(epsilon=4.0, delta=1e-5, life_epsilon=8.0)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "A").mkdir(mode=0o700)
    return tmp_path


def _charged(state: Path, *charges: tuple[bytes, int, str, Event]) -> Path:
    path = state / "A" / LEDGER
    with Ledger.open(path) as ledger:
        for run, round, what, event in charges:
            ledger.charge(event, run=run, round=round, what=what, budget=BUDGET)
    return path


def _local(state: Path) -> list[Event]:
    charges = [
        (FIRST, 1, "statistics", RELEASE),
        (FIRST, 2, "training", STEPS),
        (FIRST, 3, "training", STEPS),
        (SECOND, 1, "statistics", RELEASE),
    ]
    _charged(state, *charges)
    return [event for *_, event in charges]


def _run(
    capsys: pytest.CaptureFixture[str], state: Path, *more: str, code: int = 0, platform: str = "A"
) -> str:
    assert main(["privacy", "--id", platform, "--state", str(state), *more]) == code
    shown = capsys.readouterr()
    if code:
        assert shown.out == ""
        assert shown.err.startswith("error: ")
        assert shown.err.count("\n") == 1
        return shown.err
    assert shown.err == ""
    return shown.out


def test_nothing_spent(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = _run(capsys, state)
    assert out == f"nothing was spent: platform A has no charge in {state / 'A' / LEDGER}\n"
    assert "nothing was spent: platform B" in _run(capsys, state, platform="B")
    document = json.loads(_run(capsys, state, "--json"))
    assert document["life"] == {"epsilon": 0.0, "epsilon_sums_only": 0.0}
    assert document["runs"] == document["purposes"] == document["meaning"] == []
    # Reading makes nothing.
    assert [p.name for p in state.rglob("*")] == ["A"]


def test_local_noise_in_plain_words(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = _local(state)
    life, run = epsilon(events, 1e-5), epsilon(events[:3], 1e-5)
    rows = [line.split() for line in _run(capsys, state).splitlines()]
    assert ["0a0a0a0a", "1-3", "3", f"{run:.4g}", f"{run:.4g}"] in rows
    assert ["life", "4", f"{life:.4g}", f"{life:.4g}"] in rows
    assert ["statistics", "2", "local", "20"] in rows
    assert ["training", "2", "local", "1", "0.01", "200"] in rows
    text = " ".join(word for row in rows for word in row)
    left = 4.0 - epsilon(events[3:], 1e-5)
    assert f"left: {left:.3g} for run 0b0b0b0b, {8.0 - life:.3g} for life" in text
    assert "Whoever sees everything that this platform has ever sent can tell" in text
    assert f"a factor of e^{life:.2f} = " in text
    assert "except with probability 0.00001 (delta)" in text
    assert "all 2 runs" in text
    assert "sums over platforms" not in text


def test_distributed_noise_holds_against_sums_only(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _charged(state, (FIRST, 1, "statistics", SHARED), (FIRST, 2, "training", STEPS))
    sums = epsilon([SHARED, STEPS], 1e-5)
    out = _run(capsys, state)
    rows = [line.split() for line in out.splitlines()]
    assert ["life", "2", "no", "bound", f"{sums:.4g}"] in rows
    assert ["statistics", "1", "distributed", "20", "3"] in rows
    assert "Whoever sees only sums over platforms" in out
    assert "at least 3 platforms of each sum" in out
    assert "the one run so far" in out
    assert "Against whoever sees this platform's own messages" in out
    assert "everything that this platform has ever sent" not in out
    document = json.loads(_run(capsys, state, "--json"))
    assert document["life"] == {"epsilon": "infinite", "epsilon_sums_only": sums}


def test_somebody_on_several_platforms(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = _local(state)
    assert "Somebody" not in _run(capsys, state)
    out = _run(capsys, state, "--platforms", "3")
    met = epsilon(events * 3, 1e-5)
    assert "Somebody who is a user of 3 platforms" in out
    assert f"a factor of e^{met:.2f} = " in out
    document = json.loads(_run(capsys, state, "--platforms", "3", "--json"))
    assert document["person"] == {"platforms": 3, "epsilon": met, "epsilon_sums_only": met}
    assert "outside [1, 100]" in _run(capsys, state, "--platforms", "0", code=2)


def test_json_holds_the_same(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = _local(state)
    document: dict[str, Any] = json.loads(_run(capsys, state, "--json"))
    assert document["delta"] == 1e-5
    assert document["life"]["epsilon"] == epsilon(events, 1e-5)
    assert [run["run"] for run in document["runs"]] == [FIRST.hex(), SECOND.hex()]
    assert document["runs"][0]["rounds"] == [1, 3]
    assert document["budget"] == {"epsilon": 4.0, "delta": 1e-5, "life_epsilon": 8.0}
    assert document["remaining"]["life"] == 8.0 - epsilon(events, 1e-5)
    kept = ["what", "charges", "noise", "multiplier", "rate", "steps", "honest"]
    assert [list(purpose) for purpose in document["purposes"]] == [kept] * 2
    assert len(document["meaning"]) == 1


def test_options_stand_before_what_was_recorded(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = _local(state)
    out = _run(capsys, state, "--delta", "1e-7", "--epsilon", "5", "--life-epsilon", "20")
    life = epsilon(events, 1e-7)
    assert "at delta = 0.0000001\n" in out
    assert "epsilon = 5 a run, 20 for life" in out
    assert f"{20 - life:.3g} for life" in out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--delta", "0"], "delta = 0.0"),
        (["--delta", "nan"], "delta = nan"),
        (["--delta", "x"], "--delta"),
        (["--epsilon", "-1"], "epsilon = -1.0"),
        (["--epsilon", "9"], "life_epsilon = 8.0 is below epsilon = 9.0"),
        (["--life-epsilon", "inf"], "life_epsilon = inf"),
        (["--id", "../A"], "platform id"),
    ],
)
def test_mistakes(
    state: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    _local(state)
    assert reason in _run(capsys, state, *arguments, code=2)


def test_a_damaged_ledger_is_one_line(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _local(state)
    path = state / "A" / LEDGER
    spoilt = path.read_bytes().replace(b'"steps":100', b'"steps":1', 1)
    path.write_bytes(spoilt)
    assert "is damaged in line 2, so what was spent is not known" in _run(capsys, state, code=2)
    assert path.read_bytes() == spoilt


def test_an_unfinished_line_is_told_and_left(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _local(state)
    path = state / "A" / LEDGER
    cut = path.read_bytes()[:-30]
    path.write_bytes(cut)
    out = _run(capsys, state)
    assert out.startswith(f"ledger {path}: line 4 was not finished")
    assert "it does not count" in out
    assert path.read_bytes() == cut


def test_a_platform_that_takes_part_can_be_looked_at(state: Path) -> None:
    path = state / "A" / LEDGER
    with Ledger.open(path) as ledger:
        ledger.charge(STEPS, run=FIRST, round=1, what="training", budget=BUDGET)
        spending = read_spending(path, "A")
    assert spending.life.everyone == epsilon([STEPS], 1e-5)
    assert spending.budget == BUDGET


def test_a_price_beyond_words(state: Path) -> None:
    path = state / "A" / LEDGER
    wide = Budget(epsilon=1e9, delta=1e-5, life_epsilon=1e9)
    with Ledger.open(path) as ledger:
        ledger.charge(GaussianRelease(multiplier=0.01), run=FIRST, round=1, what="all", budget=wide)
    assert "which protects nobody" in "\n".join(read_spending(path, "A").lines())
