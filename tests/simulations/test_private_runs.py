"""Private runs through the real coordinator and the real secure sum."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from platform_rows import write_platform

from clients import updates
from clients.adapters import open_source
from clients.dataset import Dataset, load_dataset
from clients.guard import OpenGuard
from clients.round import PlatformRound
from crossrec_model.config import FederationConfig, ModelConfig, Plan, PrivacyConfig, TrainingConfig
from crossrec_model.data.prepared import prepare
from crossrec_model.parameters import Layout, initial_vector
from crossrec_model.privacy.ledger import BudgetExceededError
from crossrec_model.privacy.planning import private_plan
from server.federation import Federation, RunOptions, fresh_start
from server.flower import GridCourier
from simulations.grid import InProcessGrid
from simulations.sums import Sums, secure_sums

PLAN = Plan(
    model=ModelConfig(buckets=128, dimension=4, neighbours=2, sketch_width=64, tower=(8, 4, 1)),
    training=TrainingConfig(history=8, positives=4),
    federation=FederationConfig(rounds=4, min_platforms=3, round_timeout_s=60.0),
    privacy=PrivacyConfig(rate=0.5, steps=2, population=60, negatives=4),
)


class _Lines:
    """Keeps what the coordinator says."""

    def round_repeated(self, number, reason) -> None:
        self.note(reason)

    def left_out(self, platform, reason) -> None:
        self.note(f"platform {platform} was left out: {reason}")

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)

    def waiting(self, here, needed) -> None: ...

    def round_started(self, number, rounds, platforms) -> None: ...

    def round_finished(self, record, rounds) -> None:
        self.said.append(f"round {record.round} {record.platforms} {record.training}")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    home = tmp_path_factory.mktemp("rows")

    def read(name: str, seed: int) -> Dataset:
        rows = write_platform(home / name, seed)
        data = prepare(
            open_source(str(rows), name), into=home / f"{name}-data", now=datetime.now(UTC)
        )
        return load_dataset(data, PLAN.model, device=torch.device("cpu"))

    return {name: read(name, seed) for seed, name in enumerate("ABCD")}


def _run(plan: Plan, sums: Sums, datasets, guards, lines: _Lines):
    handlers = {
        name: PlatformRound(
            name,
            lambda _model, own=datasets[name]: own,
            sealer,
            guard=guards.get(name, OpenGuard()),
        )
        for name, sealer in sums.sealers.items()
    }
    with closing(InProcessGrid(handlers, at_once=1)) as grid:
        courier = GridCourier(grid)
        return Federation(
            courier,
            fresh_start(plan, initial_vector(plan)),
            RunOptions(platforms=len(handlers), evaluate_every=1, wait_s=30.0),
            aggregation=sums.aggregation(courier, plan, lines.note),
            save=lambda checkpoint: None,
            progress=lines,
        ).run()


def test_with_local_noise_a_run_ends_and_tells_no_metric(datasets) -> None:
    plan = private_plan(PLAN, noise="local", epsilon=8.0, delta=1e-5, honest=1)
    lines = _Lines()
    end = _run(plan, secure_sums("ABC"), datasets, {}, lines)
    assert end.round == 4
    assert not np.array_equal(end.parameters, initial_vector(plan))
    assert all(record.training == record.evaluation == {} for record in end.history)


def test_shares_of_noise_pass_the_secure_sum_unrounded(datasets, monkeypatch) -> None:
    """The model moves by exactly the mean of what the platforms put on the grid."""
    sums = secure_sums("ABC")
    plan = private_plan(PLAN, noise="distributed", epsilon=50.0, delta=1e-5, honest=3)
    given: dict[int, list[np.ndarray]] = {}
    made = updates.private_update

    def keeping(member, number, parameters, honest):
        update, done = made(member, number, parameters, honest)
        assert honest == 3
        given.setdefault(number, []).append(update.astype(np.float64))
        return update, done

    monkeypatch.setattr("clients.round.private_update", keeping)
    guards = dict.fromkeys("ABC", OpenGuard(3))
    end = _run(plan, sums, datasets, guards, _Lines())
    step = plan.aggregation.bound / plan.aggregation.levels
    vector = initial_vector(plan)
    for number in sorted(given):
        for update in given[number]:
            np.testing.assert_array_equal(update / step, np.rint(update / step))
        vector = (vector.astype(np.float64) + np.mean(given[number], axis=0)).astype(np.float32)
    np.testing.assert_allclose(end.parameters, vector, rtol=0, atol=1e-7)
    moved = (
        end.parameters[: Layout(plan.model).trained]
        - initial_vector(plan)[: Layout(plan.model).trained]
    )
    assert float(np.abs(moved).max()) > 0


class _Spent(OpenGuard):
    """A platform whose budget is gone after the second round."""

    def charge(self, plan: Plan, run: bytes, number: int, honest: int) -> None:
        if number > 2:
            raise BudgetExceededError("spent", spent=8.0, asked=9.0, limit=8.0)


def test_the_federation_goes_on_without_a_platform_that_has_spent_its_budget(datasets) -> None:
    plan = private_plan(PLAN, noise="local", epsilon=8.0, delta=1e-5, honest=1)
    plan = replace(plan, federation=replace(plan.federation, round_timeout_s=20.0))
    lines = _Lines()
    end = _run(plan, secure_sums("ABCD"), datasets, {"D": _Spent()}, lines)
    assert [record.platforms for record in end.history] == [
        *[("A", "B", "C", "D")] * 2,
        *[("A", "B", "C")] * 2,
    ]
    assert "platform D was left out: the platform failed with code BUDGET_SPENT" in lines.said
