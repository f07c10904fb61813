"""Clipped sums over users against plain autograd, and against what stock Opacus does silently wrong."""

from __future__ import annotations

import inspect
import itertools
from dataclasses import replace
from typing import get_args

import opacus
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.utils import register_grad_sampler
from small_users import Case, Shape, alone, case, clipped, dense, difference, norm, some
from torch import Tensor, nn

from crossrec_model.config import Activation, Objective
from crossrec_model.data.sampling import UserBlock
from crossrec_model.network import GraphConvolution, Network, Shift
from crossrec_model.privacy import per_user
from crossrec_model.privacy.per_user import (
    TABLE,
    PerUserGradients,
    UserBatch,
    inputs_of,
    per_user_losses,
)

#: Rounding in float32, with the 1e-5 that clipped norms stay below the clip.
TOLERANCE = 2e-5


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


#: Of Opacus' hooks on layers whose inputs need no gradient; it is right, only not wanted.
NO_INPUT_GRADIENTS = pytest.mark.filterwarnings("ignore:Full backward hook is firing")
SHAPES = st.builds(
    Shape,
    users=st.integers(0, 6),
    history=st.integers(1, 5),
    positives=st.integers(1, 4),
    negatives=st.integers(1, 5),
    items=st.integers(1, 9),
    features=st.integers(1, 4),
    neighbours=st.integers(1, 3),
    relations=st.sampled_from(
        [("self", "category"), ("category", "self", "brand"), ("brand",), ("brand", "category")]
    ),
    graph_layers=st.integers(0, 2),
    vector_size=st.sampled_from([0, 3]),
    dimension=st.sampled_from([2, 3]),
    buckets=st.sampled_from([20, 2**16, 2**16 + 9]),
    activation=st.sampled_from(get_args(Activation)),
    used=st.sampled_from([0.0, 0.6, 1.0]),
    seed=st.integers(0, 10**6),
)
OBJECTIVES = st.sampled_from(get_args(Objective))
CASE = Shape()


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, objective=OBJECTIVES, clip=st.sampled_from([1e-3, 0.3, 1e3]))
@example(shape=Shape(buckets=2**16 + 9, users=3), objective="bce", clip=0.3)
@example(shape=Shape(graph_layers=2, relations=("brand",)), objective="softmax", clip=0.3)
@example(shape=Shape(users=0), objective="mse", clip=0.3)
@example(shape=Shape(users=1, history=1, items=1, features=1), objective="bce", clip=1e3)
def test_the_clipped_sum_is_that_of_each_users_own_gradient(shape, objective, clip) -> None:
    made = case(shape)
    whole = alone(made, objective)
    each = [clipped(g, clip) for g in whole]
    # What cancels within a user's gradient leaves last digits behind, scaled as she is.
    sizes = [norm(g) for g in whole]
    lost = sum((1e-6 * size + 5e-7) * min(1.0, clip / max(size, 1e-300)) for size in sizes)
    total = made.clipped(clip, objective)
    found = dense(total, made.network)
    assert found.keys() == dict(made.network.named_parameters()).keys()
    assert total.refused == 0
    for name, value in found.items():
        expected = sum((g[name] for g in each), torch.zeros_like(value))
        part = sum(float(g[name].norm()) for g in each)
        assert float((value - expected).norm()) <= TOLERANCE * part + lost, name


def test_losses_are_those_of_the_path_without_privacy() -> None:
    made = case(replace(CASE, graph_layers=2, vector_size=3))
    total = made.clipped(objective="softmax")
    for user in range(len(made.batch)):
        one = made.kept([user]).clipped(objective="softmax").losses
        torch.testing.assert_close(one, total.losses[user : user + 1])


@pytest.mark.parametrize(
    "shape",
    [
        Shape(relations=("self",)),
        Shape(neighbours=0),
    ],
)
def test_a_graph_without_neighbours(shape: Shape) -> None:
    made = case(shape)
    each = [clipped(g, 0.5) for g in alone(made, "bce")]
    expected = {name: sum(g[name] for g in each) for name in each[0]}
    assert difference(dense(made.clipped(), made.network), expected) <= 1e-4


@settings(max_examples=25, deadline=None)
@given(
    shape=SHAPES.filter(lambda s: s.users > 0),
    objective=OBJECTIVES,
    scale=st.sampled_from([0.3, 300.0]),
)
def test_leaving_out_any_user_moves_the_sum_by_at_most_the_clip(shape, objective, scale) -> None:
    """Also where weights are so large that the other users' last digits would decide.

    Of layers as wide as they are in use: for rows of a few numbers, last digits depend on the place.
    """
    clip = 0.1
    made = case(replace(shape, dimension=16, hidden=16), scale=scale)
    whole = dense(made.clipped(clip, objective), made.network)
    for user in range(shape.users):
        rest = made.kept([other for other in range(shape.users) if other != user])
        moved = difference(whole, dense(rest.clipped(clip, objective), made.network))
        assert moved <= clip


def test_many_small_squares_are_not_lost_beside_a_large_one() -> None:
    """Added in float32, 10^5 of 3e-8 vanish beside 1: the norm would be 0.15% too small."""
    row = torch.full((1, 100_001), 1.7e-4)
    row[0, 0] = 1.0
    expected = float(row.double().square().sum())
    assert float(per_user._squares([row])[0]) == pytest.approx(expected, rel=8e-6)
    b, o = 1, 30_001
    gradient = torch.full((b, o, 1), 1.7e-4)
    gradient[0, 0] = 1.0
    buckets = torch.arange(1, o + 1).view(b, o, 1)
    pairs = per_user._pairs(buckets, gradient)
    square = torch.zeros(1, dtype=torch.float64)
    square.index_add_(0, pairs.users, per_user._squares([pairs.values]))
    assert float(square[0]) == pytest.approx(float(gradient.double().square().sum()), rel=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_user_whose_gradient_is_not_finite_adds_nothing(value: float) -> None:
    made = case(CASE)
    made.batch.numbers[1, 0] = value
    total = made.clipped()
    assert total.refused == 1
    found = dense(total, made.network)
    rest = made.kept([0, 2, 3]).clipped()
    assert rest.refused == 0
    assert difference(found, dense(rest, made.network)) <= 1e-6


def test_users_whose_gradients_overflow_move_the_sum_by_at_most_the_clip() -> None:
    made = case(replace(CASE, activation="identity"))
    made.batch.numbers[1:3, 0] = torch.tensor([1e20, 3e38])
    total = made.clipped()
    assert 1 <= total.refused <= 2
    rest = made.kept([0, 3]).clipped()
    moved = difference(dense(total, made.network), dense(rest, made.network))
    assert moved <= 0.5 * (2 - total.refused) + 1e-6


def test_users_whose_padding_is_another_users_doing_are_not_refused() -> None:
    """Padding reads no item: the vector of item 0 may overflow a ReLU, and 0 times that is NaN."""
    made = case(Shape(activation="relu", vector_size=1, history=6, used=1.0, items=5))
    made.items.vectors.zero_()
    made.items.vectors[0] = 10.0
    with torch.no_grad():
        made.network.project.weight.fill_(3e38)
    block = made.batch.block
    for name in ("history", "positives"):
        vars(block)[name].clamp_(min=1)
    made.batch.negatives.clamp_(min=1)
    made.items.neighbours.clamp_(min=1)
    block.history[1:, 2:] = 0  # only user 0 has a long history
    block.weights[1:, 2:] = 0.0
    whole = made.clipped()
    assert whole.refused == 0
    rest = made.kept([1, 2, 3])
    short = replace(
        rest.batch.block,
        history=rest.batch.block.history[:, :2],
        weights=rest.batch.block.weights[:, :2],
    )
    rest = replace(rest, batch=replace(rest.batch, block=short))
    moved = difference(dense(whole, made.network), dense(rest.clipped(), made.network))
    assert moved <= 0.5


def test_received_padding_rows_that_are_not_zero_count_nothing() -> None:
    made = case(replace(CASE, used=0.5))
    before = dense(made.clipped(), made.network)
    with torch.no_grad():
        made.network.items.weight[0] = 1e30
    after = made.clipped()
    assert after.refused == 0
    assert difference(before, dense(after, made.network)) == 0.0
    assert float(dense(after, made.network)[TABLE][0].norm()) == 0.0


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(6)), cuts=st.sets(st.integers(1, 5)))
def test_any_micro_batches_give_the_same_sum(order: list[int], cuts: set[int]) -> None:
    made = case(replace(CASE, users=6))
    whole = dense(made.clipped(), made.network)
    bounds = [0, *sorted(cuts), 6]
    total = {name: torch.zeros_like(v) for name, v in whole.items()}
    with PerUserGradients(made.network, made.items, clip=0.5, objective="bce") as gradients:
        for start, end in itertools.pairwise(bounds):
            part = some(made.batch, order[start:end])
            found = gradients.clipped_sum(inputs_of(made.network, made.items, part))
            for name, value in dense(found, made.network).items():
                total[name] += value
    assert difference(total, whole) <= 1e-5


# Silent violations of stock Opacus.


class Flat(nn.Module):
    """A layer that reads [users x positions, d]."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(0, 1)).view(x.shape[0], -1).sum(1)


@NO_INPUT_GRADIENTS
def test_positions_of_a_user_are_clipped_together() -> None:
    """Stock: a flattened input makes each position a sample, so a user has many times the clip."""
    stock = GradSampleModule(Flat(), loss_reduction="sum")
    stock(torch.ones(2, 20, 3)).sum().backward()
    assert len(stock._module.layer.weight.grad_sample) == 2 * 20  # not users
    made = case(replace(CASE, users=1, positives=4, negatives=20, used=1.0))
    found = dense(made.clipped(1e-2), made.network)
    assert 0.99e-2 < norm(found) <= 1e-2


@NO_INPUT_GRADIENTS
def test_repeated_ids_in_a_bag_count_as_often_as_they_stand_there() -> None:
    """Stock: a table's gradient is wrong for an id that stands twice in one bag."""
    bag = nn.EmbeddingBag(4, 2, mode="sum")
    stock = GradSampleModule(bag, loss_reduction="sum")
    ids, target = torch.tensor([1, 1, 1, 2]), torch.tensor([0.0, 1.0])
    (stock(ids, torch.tensor([0])) * target).sum().backward()
    assert torch.equal(bag.weight.grad[1], 3 * target)
    assert not torch.equal(bag.weight.grad_sample[0, 1], 3 * target)
    made = case(CASE)
    made.items.buckets[:] = made.items.buckets[:, :1]
    made.batch.block.context[:] = 5
    each = [clipped(g, 0.5)[TABLE] for g in alone(made, "bce")]
    torch.testing.assert_close(
        dense(made.clipped(), made.network)[TABLE], sum(each), rtol=1e-4, atol=1e-6
    )


class Tied(nn.Module):
    """A table that is read at the start and at the end of the way."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return (self.table(ids) @ self.table.weight.T).sum((1, 2))


@NO_INPUT_GRADIENTS
def test_all_places_where_the_table_is_read_count() -> None:
    """Stock: a use outside of the layer's own call is missing from the gradient per sample."""
    tied = Tied()
    loss = GradSampleModule(tied, loss_reduction="sum")(torch.tensor([[0, 1]])).sum()
    loss.backward()
    assert not torch.allclose(tied.table.weight.grad_sample[0], tied.table.weight.grad)
    made = case(replace(CASE, users=1, used=1.0))
    # One bucket for everything: history, positives, negatives, neighbours and context.
    made.items.buckets[:] = 3
    made.batch.block.context[:] = 3
    (one,) = alone(made, "bce")
    assert float(one[TABLE][3].norm()) > 0
    found = dense(made.clipped(1e6), made.network)[TABLE]
    torch.testing.assert_close(found, one[TABLE], rtol=1e-5, atol=1e-7)


def test_every_layer_is_called_once_a_forward_with_users_first() -> None:
    """Stock: a layer called twice or in mixed ranks reuses a stale norm; ours are called once."""
    made = case(replace(CASE, graph_layers=2, vector_size=3))
    calls: dict[str, list[int]] = {}
    handles = [
        layer.register_forward_hook(
            lambda _m, given, _out, name=name: calls.setdefault(name, []).append(len(given[0]))
        )
        for name, layer in made.network.named_modules()
        if name and list(layer.parameters(recurse=False))
    ]
    inputs = inputs_of(made.network, made.items, made.batch)
    sums = made.network.look_up(inputs.buckets)
    calls.clear()
    per_user_losses(made.network, made.items, inputs, sums.detach(), "bce")
    for handle in handles:
        handle.remove()
    layers = {n.rpartition(".")[0] for n, _ in made.network.named_parameters()} - {"items"}
    assert calls == {name: [len(inputs.batch)] for name in layers}
    assert (inputs.users, len(inputs.batch)) == (4, 16)


def test_a_parameter_that_is_used_twice_is_refused(monkeypatch) -> None:
    made = case(CASE)
    with PerUserGradients(made.network, made.items, clip=0.5, objective="bce") as gradients:
        inputs = inputs_of(made.network, made.items, made.batch)
        gradients._backward(inputs)
        with pytest.raises(TypeError, match="more than one backward"):
            gradients.clipped_sum(inputs)
        # And nothing is left of it.
        again = dense(gradients.clipped_sum(inputs), made.network)
    assert difference(again, dense(made.clipped(), made.network)) == 0.0


def test_an_empty_batch_is_a_sum_of_zeros() -> None:
    """Stock: ghost clipping and functorch fail on an empty Poisson batch."""
    made = case(replace(CASE, users=0, vector_size=3))
    for table in (True, False):
        total = made.clipped(table=table)
        assert norm(dense(total, made.network)) == 0.0
        assert (total.refused, len(total.losses)) == (0, 0)
        assert (total.table is None) is not table


def test_a_sum_knows_no_number_of_users() -> None:
    """Stock: the mean over len(batch) or a rate of 1 / len(loader) would make the size public.

    Two same users are twice one user: nothing is divided by a count.
    """
    made = case(replace(CASE, users=1))
    one = dense(made.clipped(), made.network)
    two = dense(made.kept([0, 0]).clipped(), made.network)
    assert difference(two, {name: 2 * value for name, value in one.items()}) <= 1e-6


@pytest.mark.parametrize("where", ["forward", "backward", "between"])
def test_a_call_that_is_broken_off_leaves_nothing(monkeypatch, where: str) -> None:
    """Stock: BatchMemoryManager keeps a skip queue and a pending sum."""
    made = case(replace(CASE, vector_size=3))
    expected = dense(made.clipped(), made.network)
    other = made.kept([0, 3])

    def stopped(*_args: object) -> None:
        raise KeyboardInterrupt

    with PerUserGradients(made.network, made.items, clip=0.5, objective="bce") as gradients:
        inputs = [inputs_of(c.network, c.items, c.batch) for c in (other, made)]
        with monkeypatch.context() as patch:
            if where == "forward":
                patch.setattr(per_user, "user_losses", stopped)
            elif where == "backward":
                kept = per_user.GradSampleModule.capture_backprops_hook
                layers: list[str] = []

                def third(self, module, *args: object, **more: object) -> object:
                    layers.append(type(module).__name__)
                    return kept(self, module, *args, **more) if len(layers) < 3 else stopped()

                patch.setattr(per_user.GradSampleModule, "capture_backprops_hook", third)
                gradients._unwrap()
                gradients._wrap()
            else:
                patch.setattr(per_user, "_pairs", stopped)
            with pytest.raises(KeyboardInterrupt):
                gradients.clipped_sum(inputs[0])
        if where == "backward":
            gradients._unwrap()
            gradients._wrap()
        for _ in range(2):
            found = dense(gradients.clipped_sum(inputs[1]), made.network)
            assert difference(found, expected) <= 1e-6
    assert difference(dense(made.clipped(), made.network), expected) <= 1e-6


def test_one_network_serves_several_contexts_and_is_left_as_it_was() -> None:
    """Stock: make_private twice on one module raises."""
    made = case(CASE)
    weights = {name: p.detach().clone() for name, p in made.network.named_parameters()}
    names = {name: set(vars(layer)) for name, layer in made.network.named_modules()}
    one, two = dense(made.clipped(), made.network), dense(made.clipped(), made.network)
    assert difference(one, two) == 0.0
    for name, p in made.network.named_parameters():
        assert torch.equal(p, weights[name])
        assert p.grad is None
        assert not hasattr(p, "grad_sample")
    for name, layer in made.network.named_modules():
        assert set(vars(layer)) <= names[name]
        assert not layer._forward_hooks
        assert not layer._backward_hooks
    gradients = PerUserGradients(made.network, made.items, clip=0.5, objective="bce")
    with pytest.raises(RuntimeError, match="within the context"):
        gradients.clipped_sum(inputs_of(made.network, made.items, made.batch))


def test_the_same_inputs_may_be_summed_twice() -> None:
    made = case(replace(CASE, vector_size=3))
    inputs = inputs_of(made.network, made.items, made.batch)
    with PerUserGradients(made.network, made.items, clip=0.5, objective="bce") as gradients:
        one, two = (dense(gradients.clipped_sum(inputs), made.network) for _ in range(2))
    assert difference(one, two) == 0.0


def test_dense_layers_agree_with_opacus_own_hooks_through_the_whole_network() -> None:
    made = case(replace(CASE, graph_layers=2, vector_size=3))

    class Whole(nn.Module):
        def __init__(self, inner: Network) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, sums: Tensor) -> Tensor:
            inputs = inputs_of(made.network, made.items, made.batch)
            inputs.vectors.requires_grad_()
            return per_user_losses(self.inner, made.items, inputs, sums, "softmax")

    inputs = inputs_of(made.network, made.items, made.batch)
    sums = made.network.look_up(inputs.buckets).detach().requires_grad_()
    stock = GradSampleModule(Whole(made.network), loss_reduction="sum")
    stock(sums).sum().backward()
    parameters = dict(made.network.named_parameters())
    hooks = {name: p.grad_sample for name, p in parameters.items() if name != TABLE}
    expected = {name: p.grad for name, p in parameters.items()}
    for name, each in hooks.items():
        torch.testing.assert_close(each.sum(0), expected[name], rtol=1e-4, atol=1e-6)
    stock.to_standard_module()
    made.network.zero_grad()
    total = made.clipped(1e6, "softmax")
    for name, each in hooks.items():
        torch.testing.assert_close(total.dense[name], each.sum(0), rtol=1e-4, atol=1e-6)


@NO_INPUT_GRADIENTS
def test_the_parts_of_opacus_that_are_used_are_as_they_were() -> None:
    """If this fails, read per_user.py against the new Opacus before anything is trained with it."""
    assert opacus.__version__.split(".")[:2] == ["1", "6"]
    given = inspect.signature(GradSampleModule.__init__).parameters
    assert {"m", "loss_reduction", "strict"} <= given.keys()
    assert list(inspect.signature(GradSampleModule.to_standard_module).parameters) == ["self"]
    assert "set_to_none" in inspect.signature(GradSampleModule.zero_grad).parameters
    for layer in (Shift, GraphConvolution):
        assert GradSampleModule.GRAD_SAMPLERS[layer].__module__ == per_user.__name__
    assert callable(register_grad_sampler(Shift))
    register_grad_sampler(Shift)(per_user._shift_gradients)
    layer = nn.Linear(2, 1)
    wrapped = GradSampleModule(layer, loss_reduction="sum", strict=True)
    assert layer.weight.grad_sample is None
    wrapped(torch.ones(3, 5, 2)).sum().backward()
    assert layer.weight.grad_sample.shape == (3, 1, 2)
    wrapped(torch.ones(3, 5, 2)).sum().backward()
    assert isinstance(layer.weight.grad_sample, list)
    wrapped.zero_grad(set_to_none=True)
    assert layer.weight.grad_sample is None
    wrapped(torch.ones(3, 5, 2))
    assert {*per_user._LEFT_ON_LAYERS[:1]} <= set(vars(layer))
    assert wrapped.to_standard_module() is layer
    assert not hasattr(layer.weight, "grad_sample")
    assert not layer._forward_hooks


def test_every_parameter_of_a_network_belongs_to_a_layer_with_a_sampler() -> None:
    network = case(replace(CASE, graph_layers=2, vector_size=3)).network
    for name, layer in network.named_modules():
        if name != "items" and list(layer.parameters(recurse=False)):
            assert type(layer) in GradSampleModule.GRAD_SAMPLERS, name


def test_a_user_without_positives_adds_nothing_and_is_not_refused() -> None:
    made = case(replace(CASE, used=0.0))
    total = made.clipped()
    assert total.refused == 0
    assert norm(dense(total, made.network)) == 0.0


def test_users_do_not_share_memory_in_a_batch() -> None:
    """Order of users does not matter, nor who stands beside whom."""
    made: Case = case(replace(CASE, users=5))
    turned = some(made.batch, [4, 3, 2, 1, 0])
    assert isinstance(turned.block, UserBlock)
    assert isinstance(turned, UserBatch)
    one = dense(made.clipped(), made.network)
    two = dense(replace(made, batch=turned).clipped(), made.network)
    assert difference(one, two) <= 1e-6
