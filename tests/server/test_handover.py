"""The end of a run: who gets the final model, who is waited for, and what is remembered of it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from clients.connection import Handler
from crossrec_model.config import FederationConfig, Plan
from crossrec_model.errors import FederationError
from crossrec_model.wire import messages as wire
from server.checkpoint import Checkpoint, RoundRecord
from server.courier import NodeId
from server.federation import Federation, RunOptions
from server.flower import GridCourier
from server.handover import Handover
from server.optimizer import FedAvg
from server.progress import PlainProgress
from simulations.grid import FIRST_NODE, InProcessGrid
from simulations.plain import PlainSum

PLAN = Plan(federation=FederationConfig(rounds=3, min_platforms=1))
FINISHED = Checkpoint(
    run=bytes(range(16)),
    plan=PLAN,
    round=3,
    parameters=np.arange(4, dtype=np.float32),
    optimizer=FedAvg(),
    history=(RoundRecord(round=3, platforms=("A", "B"), seconds=1.0, training={}, evaluation={}),),
)
NEVER = 10**9


def _platform(name: str, got: list[str]) -> Handler:
    def handle(payload: bytes) -> bytes:
        message = wire.decode(payload)
        reply: wire.Reply = wire.Ack()
        match message:
            case wire.Hello():
                reply = wire.HelloReply(
                    platform=name, protocol_version=wire.PROTOCOL_VERSION, software_version="1"
                )
            case wire.Welcome():
                reply = wire.WelcomeReply(
                    dimension=4, training_metrics=("loss",), evaluation_metrics=()
                )
            case wire.Finish():
                assert message.parameters.tolist() == [0, 1, 2, 3]
                got.append(name)
        return wire.encode(reply)

    return handle


class _Away(GridCourier):
    """Platforms that are not here at first: how many looks each stays away, by node."""

    def __init__(self, grid: InProcessGrid, away: Mapping[int, int]) -> None:
        super().__init__(grid)
        self._away, self._looks = away, 0

    def nodes(self) -> dict[NodeId, float]:
        self._looks += 1
        return {n: m for n, m in super().nodes().items() if self._looks > self._away.get(n, 0)}


def _finishing(
    away: Mapping[int, int], handover: Handover, *, wait_s: float = 20.0
) -> tuple[list[str], str]:
    """Resume a finished run of A and B; return who got the model, and what was said."""
    got: list[str] = []
    stream = io.StringIO()
    grid = InProcessGrid({name: _platform(name, got) for name in "AB"})
    courier = _Away(grid, away)
    try:
        Federation(
            courier,
            FINISHED,
            RunOptions(platforms=2, wait_s=wait_s),
            aggregation=PlainSum(courier, PLAN),
            save=lambda _: None,
            progress=PlainProgress(stream),
            handover=handover,
        ).run()
    finally:
        grid.close()
    return sorted(got), stream.getvalue()


def test_a_platform_that_is_away_at_the_end_is_waited_for() -> None:
    got, said = _finishing({FIRST_NODE + 1: 20}, Handover(FINISHED.run))
    assert got == ["A", "B"]
    assert "waiting to hand out the final model to B" in said
    assert "did not say" not in said


def test_a_platform_that_has_the_model_is_not_waited_for(tmp_path: Path) -> None:
    run = FINISHED.run
    Handover(run, tmp_path).add("A")
    again = Handover(run, tmp_path)
    assert again.confirmed == {"A"}
    assert Handover(bytes(16), tmp_path).confirmed == frozenset()
    assert _finishing({FIRST_NODE: NEVER}, again)[0] == ["B"]
    assert Handover(run, tmp_path).confirmed == {"A", "B"}


def test_a_platform_that_never_comes_for_the_model_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("server.handover.FINISH_TIMEOUT_S", 0.3)
    got, said = _finishing({FIRST_NODE + 1: NEVER}, Handover(FINISHED.run))
    assert got == ["A"]
    assert "B did not say to have the final model; start again with --resume" in said
    both = {FIRST_NODE: NEVER, FIRST_NODE + 1: NEVER}
    with pytest.raises(FederationError, match=r"no platform came for the final model within 0.5 s"):
        _finishing(both, Handover(FINISHED.run), wait_s=0.5)
    (tmp_path / "handed-out.json").write_text("{}")
    with pytest.raises(FederationError, match=r"is damaged .* remove it"):
        Handover(bytes(16), tmp_path)
