"""What one user can change in what a platform computes in a private run, on small real platforms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from clients import noisy_training
from clients.dataset import Dataset
from clients.membership import Member
from clients.noisy_training import (
    PrivateBatches,
    noised_training,
    pair_sum,
    summed_gradient,
    summed_popularity,
)
from clients.training import TrainingData, catalogue_rows
from clients.updates import private_update
from crossrec_model.config import Plan, PrivacyConfig
from crossrec_model.data.histories import Histories
from crossrec_model.data.sampling import BlockSampler
from crossrec_model.data.users import USER_NUMBERS, HistoryIndex
from crossrec_model.network import Network
from crossrec_model.parameters import Layout, Vector, initial_vector
from crossrec_model.privacy.per_user import TABLE
from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.grid import Grid
from crossrec_model.statistics import (
    Statistics,
    measure,
    public_moments,
    shared_log_popularity,
)

PRIVACY = PrivacyConfig(
    noise="local",
    multiplier=1.0,
    statistics_multiplier=1.0,
    rate=1.0,
    steps=2,
    population=50,
    clip=0.3,
    negatives=6,
)


class Even:
    """A generator whose draws are the same for every user, whoever else is drawn."""

    def __init__(self, value: float) -> None:
        self._value = value

    def random(self, size: int | tuple[int, int]) -> np.ndarray:
        if isinstance(size, tuple):
            return np.broadcast_to((np.arange(size[1]) * 0.37 + self._value) % 1.0, size)
        return np.full(size, self._value)

    def exponential(self, scale: float = 1.0, size: int = 1) -> np.ndarray:
        return np.full(size, -scale * np.log(self._value))


def without(histories: Histories, gone: int, *, keep_place: bool = False) -> Histories:
    """The same platform if a user had never been there, or (`keep_place`) only her events."""
    events = histories.user_of_event() != gone
    counts = np.diff(histories.offsets)
    if keep_place:
        counts[gone] = 0
        users = histories.user_ids
    else:
        counts = np.delete(counts, gone)
        users = histories.user_ids[:gone] + histories.user_ids[gone + 1 :]
    arrays = {
        name: value[events]
        for name, value in vars(histories).items()
        if name not in {"user_ids", "offsets"}
    }
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Histories(user_ids=users, offsets=offsets, **arrays)


def changed(histories: Histories, user: int) -> Histories:
    """The same platform if a user had taken other things at other times, in any amount."""
    mine = slice(histories.offsets[user], histories.offsets[user + 1])
    arrays = {name: value.copy() for name, value in vars(histories).items() if name != "user_ids"}
    arrays["item"][mine] = arrays["item"][mine][::-1] * 7 % 30
    arrays["day"][mine] = np.sort(arrays["day"][mine] * 0.999)
    arrays["spend"][mine] = 3e38
    arrays["bought"][mine] = False
    arrays["context"][mine] = 9
    return Histories(user_ids=histories.user_ids, **arrays)


def data_of(dataset: Dataset, histories: Histories | None = None) -> TrainingData:
    """Training data whose end is public: it stays where it is, whoever is left out."""
    data = dataset.training
    return data if histories is None else replace(data, index=HistoryIndex(histories))


@pytest.fixture(scope="module")
def private(plan: Plan) -> Plan:
    return replace(plan, privacy=PRIVACY, aggregation=replace(plan.aggregation, max_weight=1.0))


@pytest.fixture(scope="module")
def released(datasets: dict[str, Dataset], plan: Plan) -> Statistics:
    """Statistics of another platform, as if they had been received."""
    other = datasets["B"]
    found = measure(other.index, other.items, other.split.validation, plan.model.sketch_width)
    mean, square = public_moments()
    return replace(found, mean=mean, square=square)


def network_of(plan: Plan, scale: float) -> Network:
    network = Network(plan.model)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) * scale)
        network.items.weight[0] = 0.0
    return network


def batches(data: TrainingData, plan: Plan, released: Statistics) -> PrivateBatches:
    return PrivateBatches(data=data, plan=plan, statistics=released, randomness=SystemRandomness())


def member_of(dataset: Dataset, plan: Plan) -> Member:
    return Member(
        honest=2,
        plan=plan,
        layout=Layout(plan.model),
        dataset=dataset,
        check=None,  # type: ignore[arg-type]
        sealer=None,  # type: ignore[arg-type]
        received=None,
    )


# What one user can change.


@pytest.mark.parametrize("value", [0.05, 0.5, 0.93])
@pytest.mark.parametrize("how", ["removed", "emptied", "changed"])
def test_a_users_block_is_her_own_whoever_else_is_there(
    datasets, private, released, value, how
) -> None:
    """History, weights, numbers, context, moment, positives: bit for bit, but for padding."""
    data = data_of(datasets["A"])
    popularity = shared_log_popularity(released, data.items)
    histories = data.index.histories

    def drawn(index: HistoryIndex, users: np.ndarray) -> dict[str, torch.Tensor]:
        sampler = BlockSampler(
            index, private.training, items=len(data.items), end=data.end, reach_days=270.0
        )
        return vars(sampler.draw(users, popularity, Even(value)))  # type: ignore[arg-type]

    users = np.arange(len(histories))
    whole = drawn(data.index, users)
    assert float(whole["mask"].sum()) > 0
    for gone in range(0, len(users), 3):
        others = users[users != gone]
        if how == "changed":
            index, theirs = HistoryIndex(changed(histories, gone)), others
        else:
            keep = how == "emptied"
            index = HistoryIndex(without(histories, gone, keep_place=keep))
            theirs = others if keep else users[:-1]
        rest = drawn(index, theirs)
        for name, found in rest.items():
            expected = whole[name][others]
            if name in {"history", "weights"}:
                wide = max(found.shape[1], expected.shape[1])
                pad = [0, 0] * (found.dim() - 2)
                found, expected = (
                    torch.nn.functional.pad(x, (*pad, 0, wide - x.shape[1]))
                    for x in (found, expected)
                )
            if name == "numbers":
                # Running totals over all users' events: equal to the last digits only.
                torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
            else:
                assert torch.equal(found, expected), (gone, name)


def test_one_users_endless_spend_does_not_reach_other_users_numbers(datasets) -> None:
    """A price of 1e39 is finite, float32 makes it infinite, and all later users are refused."""
    histories = datasets["A"].histories
    spend = histories.spend.copy()
    spend[0] = np.inf
    index = HistoryIndex(replace(histories, spend=spend))
    later = np.arange(1, len(histories))
    found = index.numbers(later, np.full(len(later), 1e6), np.zeros(len(datasets["A"].items)))
    assert np.isfinite(found[:, USER_NUMBERS.index("spend_per_event")]).all()


@pytest.mark.parametrize("scale", [0.3, 300.0])
@pytest.mark.parametrize("micro_batch", [7, 256])
def test_no_user_moves_the_gradients_sum_by_more_than_the_clip(
    datasets, private, released, monkeypatch, scale, micro_batch
) -> None:
    """End to end, every user of the platform, from her rows to the sum over the whole vector."""
    monkeypatch.setattr(noisy_training, "MICRO_BATCH", micro_batch)
    monkeypatch.setattr(noisy_training, "unseeded_generator", lambda _randomness: Even(0.4))
    layout, network = Layout(private.model), network_of(private, scale)
    data = data_of(datasets["A"])
    histories = data.index.histories

    def summed(data: TrainingData) -> np.ndarray:
        found, _loss = summed_gradient(network, batches(data, private, released), layout)
        assert found.sensitivity == PRIVACY.clip / PRIVACY.population
        return found.values

    whole, moved = summed(data), []
    step = 1 if micro_batch == 256 else 5
    for gone in range(0, len(histories), step):
        rest = summed(data_of(datasets["A"], without(histories, gone)))
        moved.append(float(np.linalg.norm(whole - rest)))
    limit = PRIVACY.clip / PRIVACY.population
    assert max(moved) <= limit
    assert max(moved) > 0.99 * limit  # the bound is reached


def cancelling(plan: Plan) -> Network:
    """Two ways to one logit that differ by nothing but rounding, times 10^8: last digits decide."""
    network, d = network_of(plan, 0.3), plan.model.dimension
    first, second, last = network._dense()
    with torch.no_grad():
        network.output.weight.zero_()
        network.output.weight[0, 3 * d :] = 1e8
        for layer in (first, second, last):
            layer.weight.zero_()
            layer.bias.zero_()
        first.weight[0, :d], first.weight[1, :d] = 1.0, -1.0
        second.weight[0, 0] = second.weight[1, 1] = 1.0
        last.weight[0, 0], last.weight[0, 1] = -1e8, 1e8
    return network


@pytest.mark.parametrize("micro_batch", [17, 256])
def test_other_users_last_digits_do_not_depend_on_a_user(
    datasets, plan, private, released, monkeypatch, micro_batch
) -> None:
    """Matrix products treat left-over rows by other kernels: no user may decide whose they are."""
    monkeypatch.setattr(noisy_training, "MICRO_BATCH", micro_batch)
    monkeypatch.setattr(noisy_training, "unseeded_generator", lambda _randomness: Even(0.4))
    model = replace(plan.model, dimension=64, tower=(128, 2, 2, 1))
    plan = replace(private, model=model, training=replace(plan.training, positives=4))
    plan = replace(plan, privacy=replace(plan.privacy, negatives=1))
    layout, network = Layout(model), cancelling(plan)
    dataset = datasets["A"]

    def summed(data: TrainingData) -> np.ndarray:
        return summed_gradient(network, batches(data, plan, released), layout)[0].values

    whole, limit = summed(data_of(dataset)), PRIVACY.clip / PRIVACY.population
    for gone in range(0, len(dataset.histories), 3):
        rest = summed(data_of(dataset, without(dataset.histories, gone)))
        assert np.linalg.norm(whole - rest) <= limit, gone


def test_no_user_moves_the_popularity_by_more_than_its_sensitivity(datasets, private) -> None:
    dataset, limit = datasets["A"], 1 / PRIVACY.population
    histories, moved = dataset.histories, []
    for day in (dataset.split.validation, dataset.split.test):
        whole = summed_popularity(data_of(dataset), day, private)
        assert whole.sensitivity == limit
        for gone in range(len(histories)):
            rest = summed_popularity(data_of(dataset, without(histories, gone)), day, private)
            moved.append(float(np.linalg.norm(whole.values - rest.values)))
    assert max(moved) <= limit * (1 + 1e-12)
    assert max(moved) > 0.99 * limit


def test_cells_that_a_users_items_share_count_within_her_norm(datasets, private) -> None:
    """All items in one cell: a user of many items still moves it by no more than her bound."""
    dataset = datasets["A"]
    sketch = dataset.items.sketch.copy()
    sketch[:, 0], sketch[:, 1] = 3, private.model.sketch_width + 5
    data = replace(data_of(dataset), items=replace(dataset.items, sketch=sketch))
    limit = 1 / PRIVACY.population
    whole = summed_popularity(data, dataset.split.test, private).values
    assert np.flatnonzero(whole).tolist() == [3, private.model.sketch_width + 5]
    for gone in range(len(dataset.histories)):
        index = HistoryIndex(without(dataset.histories, gone))
        rest = summed_popularity(replace(data, index=index), dataset.split.test, private).values
        assert np.linalg.norm(whole - rest) <= limit * (1 + 1e-12)


def test_items_without_a_shared_id_are_in_no_popularity(datasets, private) -> None:
    dataset = datasets["A"]
    none = replace(dataset.items, sketch=np.full_like(dataset.items.sketch, -1))
    data = replace(data_of(dataset), items=none)
    found = summed_popularity(data, dataset.split.test, private)
    assert not found.values.any()
    nobody = summed_popularity(data_of(dataset), -1e6, private)
    assert not nobody.values.any()


def test_popularity_adds_up_over_users(datasets, private) -> None:
    """Written out: each user's faded cells, scaled to a norm of at most 1."""
    dataset, day = datasets["A"], datasets["A"].split.test
    histories, total = dataset.histories, np.zeros(2 * private.model.sketch_width)
    for user in range(len(histories)):
        cells = np.zeros_like(total)
        last: dict[int, float] = {}
        for event in range(histories.offsets[user], histories.offsets[user + 1]):
            if histories.day[event] < day:
                last[int(histories.item[event])] = histories.day[event]
        for item, at in last.items():
            cells[dataset.items.sketch[item]] += np.exp(-(day - at) / 30.0)
        total += cells / max(1.0, float(np.linalg.norm(cells)))
    found = summed_popularity(data_of(dataset), day, private)
    np.testing.assert_allclose(found.values, total / PRIVACY.population, rtol=1e-9, atol=1e-15)


def test_no_user_moves_the_pairs_by_more_than_their_sensitivity(datasets, private) -> None:
    model = replace(private.model, pair_items=8, pair_norm=2.0)
    plan, dataset = replace(private, model=model), datasets["A"]
    day, width = dataset.split.validation, model.sketch_width
    shared = measure(dataset.index, dataset.items, day, width)
    whole, limit, moved = pair_sum(dataset, plan, shared, day), 2.0 / PRIVACY.population, []
    assert whole.sensitivity == limit
    for gone in range(len(dataset.histories)):
        rest = replace(dataset, histories=without(dataset.histories, gone))
        moved.append(np.linalg.norm(whole.values - pair_sum(rest, plan, shared, day).values))
    assert max(moved) <= limit * (1 + 1e-12)
    assert max(moved) > 0.7 * limit


@pytest.mark.parametrize("noise", ["local", "distributed"])
def test_a_private_rounds_pairs_carry_their_noise(datasets, private, noise: str) -> None:
    model = replace(private.model, pair_items=8, pair_norm=2.0)
    privacy = replace(private.privacy, noise=noise, statistics_multiplier=1.0, rate=1.0, steps=1)
    federation = replace(private.federation, rounds=6)
    plan = replace(private, model=model, privacy=privacy, federation=federation)
    member = replace(member_of(datasets["A"], private), plan=plan, layout=Layout(model))
    layout, before = member.layout, initial_vector(plan)
    before[layout.measured] = layout.popularity(
        measure(datasets["A"].index, datasets["A"].items, 1e9, model.sketch_width)
    )
    update, said = private_update(member, 2, before, 2)
    assert said == "measured noised pairs"
    assert not update[: layout.pairs.start].any()
    day = datasets["A"].split.validation
    true = pair_sum(datasets["A"], plan, layout.statistics(before), day).values
    found = (update + before)[layout.pairs] - true
    deviation = 2.0 / PRIVACY.population / (2**0.5 if noise == "distributed" else 1)
    assert 0.6 * deviation < found.std() < 1.6 * deviation


# Sampling.


def test_users_are_drawn_with_the_plans_rate_and_anew_each_step(
    datasets, private, released
) -> None:
    """A Poisson sample: its size varies, and nothing is divided by it."""
    plan = replace(private, privacy=replace(PRIVACY, rate=0.3))
    data, network = data_of(datasets["A"]), network_of(private, 0.1)
    made = batches(data, plan, released)
    source = noisy_training.NoiseSource(SystemRandomness())
    sizes = [sum(i.users for i in made.sample(network, source)) for _ in range(40)]
    users = len(data.index.histories)
    assert len(set(sizes)) > 3
    assert abs(np.mean(sizes) - 0.3 * users) < 8 * np.sqrt(0.21 * users / 40)


def test_moments_and_negatives_differ_from_draw_to_draw(datasets, private, released) -> None:
    made = batches(data_of(datasets["A"]), private, released)
    source = noisy_training.NoiseSource(SystemRandomness())
    one, other = (next(iter(made.sample(network_of(private, 0.1), source))) for _ in range(2))
    assert not torch.equal(one.batch.negatives, other.batch.negatives)
    assert not torch.equal(one.batch.numbers, other.batch.numbers)
    assert len({tuple(row) for row in one.batch.negatives.tolist()}) > 50


def test_negatives_follow_the_released_popularity(datasets, private, released) -> None:
    items = datasets["A"].items
    popularity = shared_log_popularity(released, items)
    cumulative = np.cumsum(np.exp(popularity))
    uniform = (np.arange(200_000).reshape(100, -1) + 0.5) / 200_000
    found = np.bincount(catalogue_rows(cumulative, uniform).ravel(), minlength=len(items))
    np.testing.assert_allclose(found / 200_000, np.exp(popularity), atol=2e-5)
    ends = catalogue_rows(cumulative, np.array([[0.0, 1 - 2.0**-53]]))
    assert ends.tolist() == [[0, len(items) - 1]]


# Updates.


def vector_of(plan: Plan) -> Vector:
    return initial_vector(plan)


def distributed(plan: Plan) -> Plan:
    privacy = replace(plan.privacy, noise="distributed", steps=1, rate=1.0, population=2000)
    return replace(plan, privacy=privacy)


@pytest.mark.parametrize("noise", ["local", "distributed"])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_an_update_is_a_whole_vector_of_one_kind(datasets, private, noise, number) -> None:
    plan = private if noise == "local" else distributed(private)
    member, before = member_of(datasets["A"], plan), vector_of(plan)
    kept = before.copy()
    update, done = private_update(member, number, before, honest=3)
    layout = member.layout
    assert update.dtype == np.float32
    assert update.shape == (layout.size,)
    assert np.isfinite(update).all()
    assert np.array_equal(before, kept)
    trained, tail = update[: layout.trained], update[layout.trained :]
    training = number == 2
    assert trained.any() is np.bool_(training)
    assert tail.any() is np.bool_(not training)
    assert "user" not in done
    if noise == "distributed":
        step = plan.aggregation.bound / plan.aggregation.levels
        whole = update / np.float64(step)
        assert np.array_equal(whole, np.rint(whole))
        grid = Grid.of(plan.aggregation, ())
        chunks = grid.encode_into(update, 1.0, (), bits=32, randomness=SystemRandomness())
        raw = np.concatenate([chunk.copy() for chunk in chunks])[: len(update)].view(np.int32)
        assert np.array_equal(raw, whole)
    if not training:
        cells = 2 * plan.model.sketch_width
        moments = before[layout.trained + cells :] + tail[cells:]
        np.testing.assert_allclose(moments, layout.moments(*public_moments()), atol=1e-6)
    # Noise is in every coordinate, except for the padding row and the public moments.
    noised = trained if training else tail[: 2 * plan.model.sketch_width]
    zeros = plan.model.dimension if training and noise == "local" else 0
    assert int((noised == 0).sum()) <= zeros + 3


def test_no_two_updates_have_the_same_noise(datasets, private) -> None:
    member = member_of(datasets["A"], private)
    for number in (1, 2):
        one, other = (private_update(member, number, vector_of(private), 1)[0] for _ in range(2))
        assert float((one == other)[one != 0].mean()) < 0.2


@pytest.mark.parametrize("noise", ["local", "distributed"])
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_received_numbers_of_any_finite_size_change_nothing_about_an_updates_form(
    datasets, private, noise, number
) -> None:
    """A refusal or a NaN could tell about the data: there is neither, users are refused inside."""
    plan = private if noise == "local" else distributed(private)
    member, most = member_of(datasets["A"], plan), np.finfo(np.float32).max
    trained = member.layout.trained
    draw = np.random.default_rng(0)
    for part in (slice(0, trained), slice(trained, None), slice(None)):
        before = vector_of(plan)
        before[part] = draw.choice([-most, most, 0.0], len(before[part]))
        update, _done = private_update(member, number, before, 3)
        assert np.isfinite(update).all()


@pytest.mark.parametrize("noise", ["local", "distributed"])
def test_a_table_that_is_not_trained_stays_bit_for_bit(datasets, private, noise) -> None:
    plan = private if noise == "local" else distributed(private)
    plan = replace(plan, privacy=replace(plan.privacy, train_table=False))
    member, before = member_of(datasets["A"], plan), vector_of(plan)
    update, _done = private_update(member, 2, before, 3)
    place = member.layout.places()[TABLE]
    if noise == "local":
        assert not update[place].any()
        assert update[: member.layout.trained].any()
    else:
        network, statistics = member.layout.unpack(before, torch.device("cpu"))
        found, _loss = summed_gradient(
            network, batches(data_of(datasets["A"]), plan, statistics), member.layout
        )
        assert not found.values[place].any()
        assert found.values.any()


def test_a_step_with_nobody_is_a_step_on_noise(datasets, private, released) -> None:
    plan = replace(private, privacy=replace(PRIVACY, rate=1e-6, steps=3, population=10**9))
    network = network_of(private, 0.1)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    loss = noised_training(network, batches(data_of(datasets["A"]), plan, released))
    assert loss == 0.0
    z = []
    deviation = 0.3 * 1.0 * 0.3 / (1e-6 * 10**9) * np.sqrt(3)
    for name, p in network.named_parameters():
        moved = (p.detach() - before[name])[1:] if name == TABLE else p.detach() - before[name]
        z.append(moved.numpy().ravel() / deviation)
    found = np.concatenate(z)
    assert abs(found.std() - 1) < 0.15
    assert float((found == 0).mean()) < 0.05
    assert float(network.items.weight.detach()[0].abs().max()) == 0.0


def test_a_platform_without_any_user_answers_as_all_do(datasets, private, released) -> None:
    dataset = datasets["A"]
    empty = dataset.histories.before(-1e6)
    empty = Histories(**{**vars(empty), "user_ids": (), "offsets": np.zeros(1, dtype=np.int64)})
    nobody = replace(dataset, histories=empty)
    for plan in (private, distributed(private)):
        for number in (1, 2):
            update, _done = private_update(member_of(nobody, plan), number, vector_of(plan), 3)
            assert np.isfinite(update).all()
            assert update.any()


def test_without_noise_the_steps_are_those_of_the_summed_gradient(
    datasets, private, released, monkeypatch
) -> None:
    """Both ways, local and distributed, sum the same users in the same manner."""
    monkeypatch.setattr(noisy_training, "unseeded_generator", lambda _randomness: Even(0.4))
    silent = replace(private, privacy=replace(PRIVACY, noise="none", multiplier=0.0, steps=1))
    layout, data = Layout(private.model), data_of(datasets["A"])
    network = network_of(private, 0.3)
    found, one_loss = summed_gradient(network, batches(data, silent, released), layout)
    before = np.concatenate([p.detach().numpy().ravel() for p in network.parameters()])
    loss = noised_training(network, batches(data, silent, released))
    after = np.concatenate([p.detach().numpy().ravel() for p in network.parameters()])
    assert loss == pytest.approx(one_loss)
    np.testing.assert_allclose(
        after - before, found.values * PRIVACY.learning_rate, rtol=1e-3, atol=2e-7
    )
