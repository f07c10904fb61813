"""Local training: users are independent, candidates are public, nothing depends on chance alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from clients.dataset import Dataset
from clients.training import Step, losses, optimizer_for, steps, train_steps
from crossrec_model.config import Plan, TrainingConfig
from crossrec_model.data.sampling import UserBlock
from crossrec_model.network import Network
from crossrec_model.parameters import initial_network
from crossrec_model.randomness import ExperimentRandomness
from crossrec_model.statistics import active_users, measure, shared_log_popularity

STREAM = ExperimentRandomness(1, "training")


def _steps(dataset: Dataset, plan: Plan, stream: ExperimentRandomness = STREAM) -> list[Step]:
    statistics = measure(
        dataset.index, dataset.items, dataset.split.validation, plan.model.sketch_width
    )
    popularity = shared_log_popularity(statistics, dataset.items)
    return list(steps(dataset.training, plan, statistics, popularity, stream))


def _without(step: Step, rows: list[int]) -> Step:
    kept = [row for row in range(len(step.numbers)) if row not in rows]
    block = UserBlock(**{name: tensor[kept] for name, tensor in vars(step.block).items()})
    return replace(step, block=block, numbers=step.numbers[kept])


def _gradients(network: Network, loss: torch.Tensor) -> torch.Tensor:
    found = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
    return torch.cat([g.flatten() for g in found])


@pytest.mark.parametrize("objective", ["bce", "softmax", "mse"])
def test_leaving_a_user_out_changes_no_other_users_loss_or_gradient(
    datasets, plan, objective
) -> None:
    """The unit of training is a user: what DP-SGD will bound must not mix users."""
    plan = replace(plan, training=replace(plan.training, objective=objective))
    step = _steps(datasets["A"], plan)[0]
    network = initial_network(plan.model, STREAM)
    gone = [0, 3]
    fewer = _without(step, gone)
    whole, part = losses(network, step, plan), losses(network, fewer, plan)
    kept = [row for row in range(len(whole)) if row not in gone]
    torch.testing.assert_close(part, whole[kept], rtol=1e-5, atol=1e-6)
    some = [n for n, row in enumerate(kept) if float(whole[row].detach()) > 0][:5]
    assert some
    for number in some:
        torch.testing.assert_close(
            _gradients(network, part[number]),
            _gradients(network, whole[kept[number]]),
            rtol=1e-4,
            atol=1e-6,
        )


def test_another_users_history_does_not_reach_a_users_loss(datasets, plan) -> None:
    step = _steps(datasets["A"], plan)[0]
    network = initial_network(plan.model, STREAM)
    before = losses(network, step, plan).detach()
    history = step.block.history.clone()
    history[0] = (history[0] + 1) % len(datasets["A"].items)
    other = replace(step, block=replace(step.block, history=history))
    after = losses(network, other, plan).detach()
    assert float((after[0] - before[0]).abs()) > 0
    torch.testing.assert_close(after[1:], before[1:], rtol=1e-6, atol=1e-7)


def test_an_epoch_draws_every_active_user_once(datasets, plan) -> None:
    dataset = datasets["A"]
    users = active_users(dataset.index, dataset.split.validation)
    found = _steps(dataset, plan)
    assert sum(len(step.numbers) for step in found) == len(users)
    assert len(found) == round(len(users) / plan.training.users_per_step)
    assert all(len(step.negatives) == plan.training.negatives for step in found)
    few = replace(plan, training=replace(plan.training, users_per_step=1000))
    assert len(_steps(dataset, few)) == 1


def test_the_same_stream_gives_the_same_steps_and_another_other_ones(datasets, plan) -> None:
    one, two = _steps(datasets["A"], plan), _steps(datasets["A"], plan)
    other = _steps(datasets["A"], plan, STREAM.child("other"))
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.block.history, b.block.history)
        assert torch.equal(a.negatives, b.negatives)
    assert not torch.equal(one[0].negatives, other[0].negatives)


def test_negatives_follow_the_shared_popularity_alone(datasets, plan) -> None:
    dataset = datasets["A"]
    plan = replace(plan, training=replace(plan.training, negatives=20_000))
    shares = np.arange(1, len(dataset.items) + 1, dtype=np.float64)
    shares /= shares.sum()
    statistics = measure(
        dataset.index, dataset.items, dataset.split.validation, plan.model.sketch_width
    )
    step = next(steps(dataset.training, plan, statistics, np.log(shares), STREAM))
    found = np.bincount(step.negatives.numpy(), minlength=len(dataset.items)) / 20_000
    np.testing.assert_allclose(found, shares, atol=0.01)


def test_a_step_is_plain_gradient_descent_on_the_mean_over_users_with_a_positive(
    datasets, plan
) -> None:
    config = TrainingConfig(**{**vars(plan.training), "optimizer": "sgd", "learning_rate": 0.5})
    plan = replace(plan, training=config)
    step = _steps(datasets["A"], plan)[0]
    network, reference = (initial_network(plan.model, STREAM) for _ in range(2))
    loss = train_steps(network, optimizer_for(network, config), iter([step]), plan)
    each = losses(reference, step, plan)
    counted = int((step.block.mask.sum(1) > 0).sum())
    assert loss == pytest.approx(float(each.detach().sum()) / counted)
    (each.sum() / counted).backward()
    for new, old in zip(network.parameters(), reference.parameters(), strict=True):
        assert old.grad is not None
        torch.testing.assert_close(new, old - 0.5 * old.grad)


def test_training_makes_the_loss_smaller(datasets, plan) -> None:
    plan = replace(plan, training=replace(plan.training, learning_rate=0.02))
    network = initial_network(plan.model, STREAM)
    optimizer = optimizer_for(network, plan.training)
    found = [
        train_steps(network, optimizer, iter(_steps(datasets["A"], plan)), plan) for _ in range(25)
    ]
    assert found[-1] < 0.9 * found[0]
