"""The suite finds what it looks for: exceptions, unclear refusals, hangs, dead processes, memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import watchdog
import worker
from board import TRYING, Board
from targets import RoundTripError, Target, UnclearRefusalError, judge, same

from crossrec_model.errors import CrossrecError, WireError

FAULTY = Path(__file__).with_name("faulty.py")


def _refuse(_data: bytes) -> None:
    raise WireError("three bytes are too few; send four")


class _Rude(CrossrecError):
    def __str__(self) -> str:
        return str(self.args[0])


@pytest.mark.parametrize("message", ["", "a\nb", "\x1b[2J", "\ud800", "\u2028", "x" * 3000])
def test_a_refusal_is_one_printable_line(message: str) -> None:
    def check(_data: bytes) -> None:
        raise _Rude(message)

    assert judge(_refuse, b"") is False
    with pytest.raises(UnclearRefusalError):
        judge(check, b"")


def test_what_is_not_refused_by_name_is_a_defect() -> None:
    with pytest.raises(KeyError):
        judge(lambda data: {}[data], b"x")
    with pytest.raises(RoundTripError, match="frame"):
        judge(lambda data: same(data, b"y", "frame"), b"x")


def test_the_same_job_has_the_same_inputs() -> None:
    target = Target(name="t", seeds=lambda: [b"abcdefgh", b"12345"], check=lambda _: _refuse)
    one, two, other = (
        list(worker._inputs(target, {"seed": seed, "count": 50}, [])) for seed in ("a", "a", "b")
    )
    assert one == two != other
    assert len(set(one)) > 30


def _run_faulty(monkeypatch: pytest.MonkeyPatch, kind: str, folder: Path) -> worker.Outcome:
    """Let a worker meet one bad input, the third of a job, and go on behind it."""
    monkeypatch.setattr(watchdog, "_WORKER", FAULTY)
    monkeypatch.setattr(watchdog, "LIMIT_S", 1.0)
    monkeypatch.setattr(watchdog, "WAIT_S", 5.0)
    outcomes = watchdog.run([{"target": kind, "seed": "s", "count": 5}], folder, processes=1)
    assert sum(outcome.inputs for outcome in outcomes) == 5
    defects = [defect for outcome in outcomes for defect in outcome.defects]
    assert len(defects) == 1, defects
    assert Path(defects[0].file).read_bytes() == b"bad"
    return worker.Outcome(target=kind, defects=defects)


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("exception", "KeyError"),
        ("hang", "hang"),
        ("loop", "hang"),
        ("death", "ended by signal"),
        ("memory", "MemoryTakenError"),
        ("huge", "MemoryError"),
        ("warning", "UserWarning"),
    ],
)
def test_a_bad_input_is_found_and_saved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, found: str
) -> None:
    outcome = _run_faulty(monkeypatch, kind, tmp_path)
    assert outcome.defects[0].kind.startswith(found)


def test_a_worker_that_breaks_before_any_input_is_no_success(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(watchdog, "_WORKER", FAULTY)
    with pytest.raises(RuntimeError, match="refuses its seed"):
        watchdog.run([{"target": "seed", "seed": "s", "count": 5}], tmp_path, processes=1)


def test_the_board_tells_the_input_that_is_tried(tmp_path: Path) -> None:
    mine = Board(tmp_path / "board", create=True)
    theirs = Board(tmp_path / "board")
    theirs.show(TRYING, 3, 7, b"input")
    place = mine.read()
    assert (place.state, place.job, place.count, place.data) == (TRYING, 3, 7, b"input")
    theirs.show(TRYING, 3, 8, b"")
    assert mine.read().ticks > place.ticks
    mine.close()
    theirs.close()


def test_outcomes_survive_their_way_through_json() -> None:
    defect = worker.Defect(target="t", kind="hang", text="hang", file="x")
    outcome = worker.Outcome(target="t", inputs=3, defects=[defect])
    line = json.dumps(worker.asdict(outcome))
    assert watchdog._outcome(line) == outcome
