"""Local training: users are independent, candidates are public, nothing depends on chance alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from clients import training
from clients.dataset import Dataset
from clients.training import Step, losses, optimizer_for, rows_in_use, steps, train, train_steps
from crossrec_model.config import Plan, TrainingConfig
from crossrec_model.data.sampling import UserBlock
from crossrec_model.encoding import encode_items, encode_users
from crossrec_model.errors import ConfigError
from crossrec_model.network import Network
from crossrec_model.objective import user_losses
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


def test_an_epoch_has_a_step_for_so_many_active_users(datasets, plan) -> None:
    dataset = datasets["A"]
    users = active_users(dataset.index, dataset.split.validation)
    found = _steps(dataset, plan)
    assert len(found) == round(len(users) / plan.training.users_per_step)
    assert 0 < sum(len(step.numbers) for step in found) <= len(users)
    assert all((step.block.mask.sum(1) > 0).all() for step in found)
    assert all(len(step.negatives) == plan.training.negatives for step in found)
    few = replace(plan, training=replace(plan.training, users_per_step=1000))
    assert len(_steps(dataset, few)) == 1
    least = replace(few, training=replace(few.training, least_steps=4))
    assert len(_steps(dataset, least)) == 4


def test_many_users_are_drawn_a_part_at_a_time(datasets, plan, monkeypatch) -> None:
    monkeypatch.setattr(training, "_DRAWN_TOGETHER", 1)
    one = _steps(datasets["A"], plan)
    assert len(one) == len(_steps(datasets["A"], plan))
    assert all(len(step.negatives) == plan.training.negatives for step in one)
    assert all((step.block.mask.sum(1) > 0).all() for step in one)


def _plain_losses(network: Network, step: Step, plan: Plan) -> torch.Tensor:
    """One user at a time, one item at a time, straight from the network's definition."""
    found = []
    everything = encode_items(network, step.tensors, torch.arange(len(step.tensors.buckets)))
    users = encode_users(network, step.tensors, step.block, step.numbers)
    for row, u in enumerate(users):

        def logits(items: torch.Tensor, u: torch.Tensor = u) -> torch.Tensor:
            pairs = [
                network.pair_logits(everything.h[None, [i]], everything.e[None, [i]], u[None])
                for i in items.tolist()
            ]
            return torch.cat(pairs, dim=1)

        mine = step.negatives if step.negatives.dim() == 1 else step.negatives[row]
        positives = logits(step.block.positives[row])
        mask = step.block.mask[row][None]
        found.append(user_losses(plan.training.objective, positives, mask, logits(mine)))
    return torch.cat(found)


@pytest.mark.parametrize("objective", ["bce", "softmax", "mse"])
@pytest.mark.parametrize("a_user", [0, 5])
def test_losses_and_gradients_are_those_of_the_definition(
    datasets, plan, objective, a_user
) -> None:
    config = replace(plan.training, objective=objective, negatives_a_user=a_user)
    plan = replace(plan, training=config)
    step = _steps(datasets["A"], plan)[0]
    network = initial_network(plan.model, STREAM)
    each, plain = losses(network, step, plan), _plain_losses(network, step, plan)
    torch.testing.assert_close(each, plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        _gradients(network, each.sum()), _gradients(network, plain.sum()), rtol=1e-4, atol=1e-6
    )


def test_each_users_negatives_are_a_stretch_of_the_steps(datasets, plan) -> None:
    plan = replace(plan, training=replace(plan.training, negatives_a_user=5))
    for step in _steps(datasets["A"], plan):
        assert step.negatives.shape == (len(step.numbers), 5)
    with pytest.raises(ConfigError, match="negatives_a_user"):
        replace(plan.training, negatives_a_user=plan.training.negatives + 1)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_rows_in_use_train_as_the_whole_table(datasets, plan, optimizer) -> None:
    plan = replace(plan, training=replace(plan.training, optimizer=optimizer))
    dataset = datasets["A"]
    at = dataset.split.validation
    statistics = measure(dataset.index, dataset.items, at, plan.model.sketch_width)
    popularity = shared_log_popularity(statistics, dataset.items)
    part, whole = (initial_network(plan.model, STREAM) for _ in range(2))
    streams = [STREAM.child("epoch", 1), STREAM.child("epoch", 2)]
    loss = train(part, dataset.training, plan, statistics, popularity, streams)
    solver, expected = optimizer_for(whole, plan.training), 0.0
    for stream in streams:
        epoch = steps(dataset.training, plan, statistics, popularity, stream)
        expected = train_steps(whole, solver, epoch, plan)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert len(rows_in_use(part, [dataset.training])) < plan.model.buckets
    for new, old in zip(part.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(new, old, rtol=1e-5, atol=1e-6)
    assert float(part.items.weight.detach()[0].abs().max()) == 0.0


def test_training_twice_gives_the_same_bits(datasets, plan) -> None:
    plan = replace(plan, training=replace(plan.training, negatives_a_user=5))
    dataset = datasets["A"]
    at = dataset.split.validation
    statistics = measure(dataset.index, dataset.items, at, plan.model.sketch_width)
    popularity = shared_log_popularity(statistics, dataset.items)
    one, two = (initial_network(plan.model, STREAM) for _ in range(2))
    for network in (one, two):
        train(network, dataset.training, plan, statistics, popularity, [STREAM])
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("a_user", [0, 5])
def test_a_step_in_which_nobody_speaks_has_no_loss(datasets, plan, a_user) -> None:
    plan = replace(plan, training=replace(plan.training, negatives_a_user=a_user))
    step = _steps(datasets["A"], plan)[0]
    silent = _without(step, list(range(len(step.numbers))))
    if a_user:
        silent = replace(silent, negatives=step.negatives[:0])
    network = initial_network(plan.model, STREAM)
    assert losses(network, silent, plan).shape == (0,)
    before = [p.detach().clone() for p in network.parameters()]
    assert train_steps(network, optimizer_for(network, plan.training), iter([silent]), plan) == 0.0
    for old, new in zip(before, network.parameters(), strict=True):
        assert torch.equal(old, new)


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
