"""Whole runs on the in-process grid: waiting, refusals, resuming, losses, progress."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from crossrec_model.config import FederationConfig, ModelConfig, Plan
from crossrec_model.errors import ConnectionRefusedByPeerError, DataError, FederationError
from crossrec_model.wire import messages as wire
from crossrec_model.wire.codec import Vector
from crossrec_model.wire.contribution import Contribution
from server.checkpoint import Checkpoint, CheckpointStore
from server.courier import NodeId
from server.federation import Federation, RunOptions, fresh_start, starting_point
from server.flower import GridCourier
from server.progress import BarProgress, PlainProgress, Progress
from simulations.grid import InProcessGrid
from simulations.plain import PlainSum, pack

Handle = Callable[[bytes], bytes]
D = 4
PLAN = Plan(federation=FederationConfig(rounds=3, min_platforms=1, round_timeout_s=5.0))


def _zeros(_plan: Plan) -> np.ndarray:
    return np.zeros(D, dtype=np.float32)


def _body(update: np.ndarray, metric: float) -> tuple[bytes | memoryview, ...]:
    part = Contribution(update=update.astype(np.float32), weight=2.0, metrics=(metric,))
    return Vector("contribution").pieces(pack(part))


def _federation(
    grid: InProcessGrid | GridCourier,
    start: Checkpoint,
    options: RunOptions,
    *,
    save: Callable[[Checkpoint], object] = lambda _: None,
    progress: Progress,
) -> Federation:
    """The loop over a sum without protection: what is tested here does not depend on it."""
    courier = grid if isinstance(grid, GridCourier) else GridCourier(grid)
    aggregation = PlainSum(courier, start.plan)
    return Federation(
        courier, start, options, aggregation=aggregation, save=save, progress=progress
    )


def _platform(name: str, *, metric: str = "loss", dimension: int = D) -> Handle:
    """A platform whose update is always 1 in every coordinate."""

    def handle(payload: bytes) -> bytes:
        message = wire.decode(payload)
        reply: wire.Reply = wire.Ack()
        if isinstance(message, wire.Hello):
            reply = wire.HelloReply(
                platform=name, protocol_version=wire.PROTOCOL_VERSION, software_version="1"
            )
        elif isinstance(message, wire.Welcome):
            assert Plan.from_json(message.plan).federation.min_platforms >= 1
            reply = wire.WelcomeReply(
                dimension=dimension, training_metrics=(metric,), evaluation_metrics=("ndcg@10",)
            )
        elif isinstance(message, wire.TrainRequest):
            body = _body(np.ones(D), 0.5)
            reply = wire.SumReply(run=message.run, round=message.round, body=body)
        elif isinstance(message, wire.EvaluateRequest):
            body = _body(np.zeros(0), float(message.parameters[0]))
            reply = wire.SumReply(run=message.run, round=message.round, body=body)
        return wire.encode(reply)

    return handle


def _run(
    handlers: dict[str, Handle],
    *,
    start: Checkpoint | None = None,
    options: RunOptions | None = None,
    save: Callable[[Checkpoint], object] = lambda _: None,
) -> tuple[Checkpoint, str]:
    grid, stream = InProcessGrid(handlers, at_once=2), io.StringIO()
    try:
        end = _federation(
            grid,
            start or fresh_start(PLAN, _zeros(PLAN)),
            options or RunOptions(platforms=len(handlers)),
            save=save,
            progress=PlainProgress(stream),
        ).run()
    finally:
        grid.close()
    return end, stream.getvalue()


def test_a_run_saves_every_round_and_finishes_with_the_platforms() -> None:
    saved: list[int] = []
    finals: list[wire.Finish] = []

    def last(payload: bytes) -> bytes:
        if isinstance(message := wire.decode(payload), wire.Finish):
            finals.append(message)
        return _platform("A")(payload)

    end, shown = _run({"A": last, "B": _platform("B")}, save=lambda c: saved.append(c.round))
    assert saved == [0, 1, 2, 3]
    assert (end.parameters == 3).all()
    assert [record.platforms for record in end.history] == [("A", "B")] * 3
    assert [record.evaluation for record in end.history] == [{"ndcg@10": n} for n in (1, 2, 3)]
    assert [final.parameters.tolist() for final in finals] == [[3.0] * D]
    lines = shown.splitlines()
    assert lines[:2] == ["platform A joined", "platform B joined"]
    assert lines[2].startswith("round 1/3  loss 0.5000  ndcg@10 1.0000  platforms A, B  ")


def test_evaluation_can_be_rare_or_off() -> None:
    for every, expected in ((2, [False, True, True]), (0, [False] * 3)):
        options = RunOptions(platforms=1, evaluate_every=every)
        end, _ = _run({"A": _platform("A")}, options=options)
        assert [bool(record.evaluation) for record in end.history] == expected


def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)

    class StopError(Exception):
        pass

    def stop_after_two(checkpoint: Checkpoint) -> None:
        store.save(checkpoint)
        if checkpoint.round == 2:
            raise StopError

    start = starting_point(store, PLAN, initial=_zeros, resume=False)
    with pytest.raises(StopError):
        _run({"A": _platform("A")}, start=start, save=stop_after_two)
    longer = starting_point(store, None, initial=_zeros, resume=True, rounds=5)
    assert longer.plan.federation.rounds == 5
    again = starting_point(store, None, initial=_zeros, resume=True)
    assert (again.round, again.run, again.plan) == (2, start.run, PLAN)
    end, _ = _run({"A": _platform("A")}, start=again, save=store.save)
    assert (end.parameters == 3).all()
    assert [record.round for record in end.history] == [1, 2, 3]
    # Its statistics have seen the held-out weeks: nothing may be trained on them.
    with pytest.raises(FederationError, match="finished after 3 rounds and can't get 5"):
        starting_point(store, None, initial=_zeros, resume=True, rounds=5)


def test_a_run_stopped_before_its_end_waits_to_hand_out_the_model(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    end, _ = _run({"A": _platform("A")}, save=store.save)
    finals: list[wire.Finish] = []

    def last(payload: bytes) -> bytes:
        if isinstance(message := wire.decode(payload), wire.Finish):
            finals.append(message)
        return _platform("A")(payload)

    class Late(GridCourier):
        """Nobody is here at first, as after a restart."""

        looks = 0

        def owner(self, node: NodeId) -> str | None:
            return None

        def nodes(self) -> dict[NodeId, float]:
            self.looks += 1
            return {} if self.looks < 5 else super().nodes()

    grid = InProcessGrid({"A": last})
    again = starting_point(store, None, initial=_zeros, resume=True)
    _federation(
        Late(grid),
        again,
        RunOptions(platforms=1, wait_s=20),
        save=store.save,
        progress=PlainProgress(io.StringIO()),
    ).run()
    grid.close()
    assert [final.parameters.tolist() for final in finals] == [end.parameters.tolist()]


def test_a_state_folder_is_not_mixed_up(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with pytest.raises(FederationError, match="no run to resume"):
        starting_point(store, PLAN, initial=_zeros, resume=True)
    store.save(fresh_start(PLAN, _zeros(PLAN)))
    with pytest.raises(FederationError, match="holds a run with 0 rounds done; add --resume"):
        starting_point(store, PLAN, initial=_zeros, resume=False)
    other = Plan(federation=PLAN.federation, seed=9)
    with pytest.raises(FederationError, match="the plan differs"):
        starting_point(store, other, initial=_zeros, resume=True)
    assert starting_point(store, PLAN, initial=_zeros, resume=True).round == 0


def test_waiting_ends_with_who_is_here() -> None:
    with pytest.raises(FederationError, match=r"1 of 3 platforms came within 0.2 s \(here: A\)"):
        _run({"A": _platform("A")}, options=RunOptions(platforms=3, wait_s=0.2))


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (_platform("A"), "platform id A is taken"),
        (_platform("B", dimension=5), "its model has 5 shared parameters, the plan's has 4"),
        (_platform("B", metric="auc"), "its metrics differ from the others'"),
    ],
)
def test_a_platform_that_does_not_fit_is_refused(other: Handle, reason: str) -> None:
    with pytest.raises(ConnectionRefusedByPeerError, match=f"the coordinator refused: {reason}"):
        _run({"one": _platform("A"), "two": other}, options=RunOptions(platforms=2, wait_s=5))


def test_a_platforms_own_mistake_ends_the_simulation_with_its_line() -> None:
    def broken(payload: bytes) -> bytes:
        if isinstance(wire.decode(payload), wire.TrainRequest):
            raise DataError("no users with a purchase; give more data")
        return _platform("B")(payload)

    with pytest.raises(DataError, match="no users with a purchase"):
        _run({"A": _platform("A"), "B": broken}, options=RunOptions(platforms=2, wait_s=5))


def test_a_platform_that_fails_once_is_left_out_once() -> None:
    calls: list[int] = []

    def flaky(payload: bytes) -> bytes:
        if isinstance(message := wire.decode(payload), wire.TrainRequest):
            calls.append(message.round)
            if len(calls) == 1:
                raise ZeroDivisionError
        return _platform("B")(payload)

    end, shown = _run({"A": _platform("A"), "B": flaky})
    cohorts = [record.platforms for record in end.history]
    assert cohorts == [("A",), ("A", "B"), ("A", "B")]
    assert "platform B was left out: the platform failed with code INTERNAL" in shown


def test_a_round_without_enough_answers_is_repeated() -> None:
    calls: list[int] = []

    def flaky(payload: bytes) -> bytes:
        if isinstance(message := wire.decode(payload), wire.TrainRequest):
            calls.append(message.round)
            if len(calls) == 1:
                raise ZeroDivisionError
        return _platform("A")(payload)

    end, shown = _run({"A": flaky})
    assert calls == [1, 1, 2, 3]
    assert "round 1 is repeated: 0 platforms answered, at least 1 are needed" in shown
    assert (end.parameters == 3).all()


def test_bars_on_a_terminal_show_the_same_lines() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120)
    grid = InProcessGrid({"A": _platform("A")})
    with BarProgress(console) as progress:
        _federation(
            grid,
            fresh_start(PLAN, _zeros(PLAN)),
            RunOptions(platforms=1),
            save=lambda _: None,
            progress=progress,
        ).run()
        progress.waiting(("A",), 2)
    grid.close()
    assert "round 3/3  loss 0.5000" in stream.getvalue()
    assert "platform A joined" in stream.getvalue()


def test_options_outside_their_bounds_are_refused() -> None:
    for wrong in (
        {"platforms": 0},
        {"platforms": 1, "evaluate_every": -1},
        {"platforms": 1, "wait_s": 0.0},
    ):
        with pytest.raises(FederationError):
            RunOptions(**wrong)  # type: ignore[arg-type]


def test_the_plan_reaches_the_platform_unchanged() -> None:
    plans: list[bytes] = []

    def curious(payload: bytes) -> bytes:
        if isinstance(message := wire.decode(payload), wire.Welcome):
            plans.append(message.plan)
        return _platform("A")(payload)

    plan = Plan(model=ModelConfig(buckets=64), federation=PLAN.federation, seed=11)
    _run({"A": curious}, start=fresh_start(plan, _zeros(plan)))
    assert [Plan.from_json(p) for p in plans] == [plan]
