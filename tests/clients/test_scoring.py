"""Dataset, scoring, private model and mixture of one platform."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from clients.dataset import LEAST_BUYERS, Dataset, load_dataset
from clients.graph import bought_together, user_items
from clients.personal import fit_mixtures, validation_components, validation_users
from clients.private import PrivateModel, private_config, restore_private, train_private
from clients.scoring import FEDERATED, LOCAL, Moment, SharedModel
from clients.validation import Validation
from crossrec_model.config import Plan
from crossrec_model.errors import DataError
from crossrec_model.parameters import initial_network
from crossrec_model.randomness import ExperimentRandomness
from crossrec_model.statistics import active_users, measure

STREAM = ExperimentRandomness(2, "scoring")


@pytest.fixture(scope="module")
def private(datasets: dict[str, Dataset], plan: Plan) -> PrivateModel:
    return train_private(datasets["A"], plan, STREAM, epochs=2)


@pytest.fixture(scope="module")
def shared(datasets: dict[str, Dataset], plan: Plan) -> SharedModel:
    dataset = datasets["B"]
    day, width = dataset.split.validation, plan.model.sketch_width
    network = initial_network(plan.model, STREAM)
    return SharedModel(
        network=network, statistics=measure(dataset.index, dataset.items, day, width)
    )


def _changed_after(dataset: Dataset, day: float) -> Dataset:
    """The same past, another future."""
    histories = dataset.histories
    item = np.where(histories.day >= day, (histories.item + 7) % len(dataset.items), histories.item)
    other = type(histories)(**{**vars(histories), "item": item})
    return Dataset(items=dataset.items, histories=other, split=dataset.split, device=dataset.device)


def test_candidates_have_enough_users_before_the_day(datasets) -> None:
    dataset = datasets["A"]
    day = dataset.split.validation
    taken = user_items(dataset.histories, len(dataset.items), day).toarray() > 0
    expected = np.flatnonzero(taken.sum(axis=0) >= LEAST_BUYERS)
    assert len(expected) > 0
    np.testing.assert_array_equal(dataset.candidates(day), expected)
    # Where nothing has enough of them, everything known is ranked.
    early = float(np.sort(dataset.histories.day)[3]) + 1e-9
    np.testing.assert_array_equal(
        dataset.candidates(early), np.unique(dataset.histories.before(early).item)
    )


def test_what_users_took_equals_a_loop(datasets) -> None:
    dataset = datasets["A"]
    split, histories = dataset.split, dataset.histories
    candidates, users = dataset.candidates(split.validation), np.array([3, 1, 40])
    found = dataset.taken(users, candidates, split.validation, split.test)
    for row, user in enumerate(users.tolist()):
        mine = slice(*histories.offsets[user : user + 2])
        days, bought = histories.day[mine], histories.item[mine]
        within = set(bought[(days >= split.validation) & (days < split.test)].tolist())
        assert set(candidates[found[row]].tolist()) == within & set(candidates.tolist())


def test_too_few_users_stop_the_loading(prepared, plan) -> None:
    with pytest.raises(DataError, match="at least 61 are needed"):
        load_dataset(prepared["A"], plan.model, device=torch.device("cpu"), min_users=61)


def test_scores_do_not_know_what_happens_after_the_moment(datasets, plan, private, shared) -> None:
    dataset, day = datasets["A"], datasets["A"].split.validation
    other = _changed_after(dataset, day)
    assert not np.array_equal(dataset.histories.item, other.histories.item)
    users = np.arange(10)
    found = []
    for data in (dataset, other):
        moment = Moment.at(data, plan.training, day)
        parts = moment.own_components(users, private) | moment.shared_components(users, shared)
        found.append(moment.components(users, parts))
    assert found[0].names == FEDERATED
    np.testing.assert_array_equal(found[0].values, found[1].values)
    np.testing.assert_array_equal(found[0].count, found[1].count)
    np.testing.assert_array_equal(found[0].age, found[1].age)


def test_private_training_does_not_know_the_held_out_weeks(datasets, plan, private) -> None:
    other = _changed_after(datasets["A"], datasets["A"].split.validation)
    again = train_private(other, plan, STREAM, epochs=2)
    pairs = zip(private.network.parameters(), again.network.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert torch.equal(private.tensors.neighbours, again.tensors.neighbours)


def test_each_user_is_scored_alone(datasets, plan, private, shared) -> None:
    dataset = datasets["A"]
    moment = Moment.at(dataset, plan.training, dataset.split.validation)
    users = active_users(dataset.index, moment.day)[:40]
    everyone = moment.own_components(users, private) | moment.shared_components(users, shared)
    for place in (0, 7, 39):
        one = users[[place]]
        alone = moment.own_components(one, private) | moment.shared_components(one, shared)
        for name in FEDERATED:
            np.testing.assert_allclose(
                alone[name][0], everyone[name][place], rtol=1e-4, atol=1e-5, err_msg=name
            )


def test_own_takings_and_affinities_equal_loops(datasets, plan, private) -> None:
    dataset = datasets["A"]
    moment = Moment.at(dataset, plan.training, dataset.split.validation)
    histories, users = dataset.histories, np.array([2, 5])
    parts = moment.own_components(users, private)
    components = moment.components(users, parts)
    assert components.names == LOCAL
    graph = bought_together(user_items(histories, len(dataset.items), moment.day)).toarray()
    for row, user in enumerate(users.tolist()):
        mine = slice(*histories.offsets[user : user + 2])
        past = histories.day[mine] < moment.day
        item, day = histories.item[mine][past], histories.day[mine][past]
        for column, candidate in enumerate(moment.candidates.tolist()):
            assert components.count[row, column] == (item == candidate).sum()
            if (item == candidate).any():
                age = moment.day - day[item == candidate].max()
                assert components.age[row, column] == pytest.approx(age, rel=1e-5)
            affinity = sum(graph[k, candidate] for k in set(item.tolist()))
            found = parts["own neighbours"][row, column]
            assert found == pytest.approx(np.log1p(affinity), rel=1e-4, abs=1e-6)


def test_the_private_model_alone_reads_the_bought_together_graph(datasets, plan, private) -> None:
    config = private_config(plan.model)
    assert config.relations == (*plan.model.relations, "bought_together")
    assert private_config(config) == config
    assert private.tensors.neighbours.shape[1] == len(config.relations)
    assert datasets["A"].tensors.neighbours.shape[1] == len(plan.model.relations)
    assert (private.tensors.neighbours[:, -1] >= 0).any()


def test_a_private_model_comes_back_from_its_tensors(datasets, plan, private) -> None:
    dataset = datasets["A"]
    tensors = {n: p.detach().numpy() for n, p in private.network.named_parameters()}
    again = restore_private(
        dataset, plan, tensors, private.statistics, day=dataset.split.validation
    )
    moment = Moment.at(dataset, plan.training, dataset.split.validation)
    users = np.arange(5)
    one, two = moment.own_components(users, private), moment.own_components(users, again)
    np.testing.assert_array_equal(one["own model"], two["own model"])


def test_validation_users_took_a_candidate_and_are_thinned_evenly(datasets, plan) -> None:
    dataset = datasets["A"]
    moment = Moment.at(dataset, plan.training, dataset.split.validation)
    everyone = validation_users(dataset, moment)
    taken = dataset.taken(everyone, moment.candidates, moment.day, dataset.split.test)
    assert taken.any(axis=1).all()
    few = validation_users(dataset, moment, 10)
    assert len(few) == 10
    assert set(few.tolist()) <= set(everyone.tolist())
    assert (few[0], few[-1]) == (everyone[0], everyone[-1])


def test_mixtures_rank_validation_users_better_than_popularity(
    datasets, plan, private, shared
) -> None:
    components, taken = validation_components(datasets["A"], plan.training, private, shared)
    mixtures = fit_mixtures(components, taken)
    assert mixtures.local.names == LOCAL
    assert mixtures.federated.names == FEDERATED

    def surprise(scores: np.ndarray) -> float:
        log = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        return float(-(log * taken).sum(axis=1).mean() / taken.sum(axis=1).mean())

    fitted = surprise(mixtures.federated.scores(components.select(FEDERATED)))
    assert fitted < surprise(components.values[components.names.index("own popularity")])


def test_the_curve_of_a_run_is_the_mean_ndcg_over_first_time_items(datasets, plan, shared) -> None:
    dataset = datasets["A"]
    check = Validation.of(dataset, plan.training)
    parts = check.moment.shared_components(check.users, shared)
    scores = parts["shared model"] + parts["shared popularity"]
    had = dataset.taken(check.users, check.moment.candidates, 0.0, dataset.split.validation)
    taken = dataset.taken(
        check.users, check.moment.candidates, dataset.split.validation, dataset.split.test
    )
    expected = []
    for row in range(len(check.users)):
        new = set(np.flatnonzero(taken[row] & ~had[row]).tolist())
        if not new:
            continue
        order = [c for c in np.argsort(-scores[row], kind="stable").tolist() if not had[row, c]]
        gain = sum(1 / np.log2(n + 2) for n, c in enumerate(order[:10]) if c in new)
        expected.append(gain / sum(1 / np.log2(n + 2) for n in range(min(10, len(new)))))
    assert len(expected) > 5
    assert check.ndcg(shared) == pytest.approx(np.mean(expected), rel=1e-6)


def test_the_shared_model_reads_no_other_users_row(
    datasets: dict[str, Dataset], plan: Plan
) -> None:
    """With everybody else's events gone, a user's shared logits are the same."""
    whole, user = datasets["A"], 3
    histories = whole.histories
    keep = histories.user_of_event() == user
    counts = np.bincount(histories.user_of_event()[keep], minlength=len(histories))
    alone = Dataset(
        items=whole.items,
        histories=replace(
            histories,
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            **{
                name: getattr(histories, name)[keep]
                for name in ("item", "day", "weight", "bought", "spend", "context")
            },
        ),
        split=whole.split,
        device=whole.device,
    )
    day, rows = whole.split.validation, np.arange(len(whole.items))
    network = initial_network(plan.model, ExperimentRandomness(1))
    with torch.no_grad():
        for layer in network.layers():
            layer.weight += 0.5  # neighbours must matter, or the test could not fail
    statistics = measure(whole.index, whole.items, day, plan.model.sketch_width)
    found = [
        Moment(dataset=d, config=plan.training, day=day, candidates=rows).logits(
            network, statistics, d.tensors, np.zeros(len(rows)), np.array([user])
        )
        for d in (whole, alone)
    ]
    np.testing.assert_array_equal(found[0], found[1])
