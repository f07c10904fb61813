"""Dataset, scoring, private model and mixture of one platform."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from clients.dataset import LEAST_BUYERS, Dataset, load_dataset
from clients.graph import bought_together, user_items
from clients.noisy_training import pair_sum
from clients.personal import Gain, Trial, Weighing, quality, validation_users
from clients.private import PrivateModel, private_config, restore_private, train_private
from clients.scoring import OWN, OWN_MODEL, SHARED, Moment, SharedModel
from clients.validation import Validation
from crossrec_model.config import Plan
from crossrec_model.errors import DataError
from crossrec_model.parameters import initial_network
from crossrec_model.randomness import ExperimentRandomness
from crossrec_model.ranking import Components, fit_mixture, surprises
from crossrec_model.statistics import active_users, measure

STREAM = ExperimentRandomness(2, "scoring")


@pytest.fixture(scope="module")
def private(datasets: dict[str, Dataset], plan: Plan) -> PrivateModel:
    return train_private(datasets["A"], plan, STREAM, epochs=2)


@pytest.fixture(scope="module")
def shared(datasets: dict[str, Dataset], plan: Plan) -> SharedModel:
    dataset, plan = datasets["B"], replace(plan, model=replace(plan.model, pair_items=12))
    day, width = dataset.split.validation, plan.model.sketch_width
    network = initial_network(plan.model, STREAM)
    statistics = measure(dataset.index, dataset.items, day, width)
    pairs = pair_sum(dataset, plan, statistics, day).values.astype(np.float32)
    return SharedModel(plan=plan, network=network, statistics=replace(statistics, pairs=pairs))


def _parts(
    moment: Moment, users: np.ndarray, private: PrivateModel | None, shared: SharedModel
) -> dict[str, np.ndarray]:
    """Everything that users can be scored by."""
    graph = moment.shared_graph(shared)
    assert graph is not None
    return moment.own_components(users, private) | moment.shared_components(users, shared, graph)


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
        parts = _parts(moment, users, private, shared)
        found.append(moment.components(users, parts))
    assert [name for name in (*OWN, *SHARED) if name in found[0].names] == list(found[0].names)
    assert set(SHARED) < set(found[0].names)
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
    everyone = _parts(moment, users, private, shared)
    for place in (0, 7, 39):
        one = users[[place]]
        alone = _parts(moment, one, private, shared)
        for name in everyone:
            np.testing.assert_allclose(
                alone[name][0], everyone[name][place], rtol=1e-4, atol=1e-5, err_msg=name
            )


def test_own_takings_and_affinities_equal_loops(datasets, plan, private) -> None:
    dataset = datasets["A"]
    moment = Moment.at(dataset, plan.training, dataset.split.validation)
    histories, users = dataset.histories, np.array([2, 5])
    parts = moment.own_components(users, private)
    components = moment.components(users, parts)
    assert components.names == tuple(parts)
    assert OWN_MODEL in parts
    assert OWN_MODEL not in moment.own_components(users, None)
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
    everyone = validation_users(dataset, moment, 10_000)
    taken = dataset.taken(everyone, moment.candidates, moment.day, dataset.split.test)
    assert taken.any(axis=1).all()
    few = validation_users(dataset, moment, 10)
    assert len(few) == 10
    assert set(few.tolist()) <= set(everyone.tolist())
    assert (few[0], few[-1]) == (everyone[0], everyone[-1])


def test_mixtures_rank_validation_users_better_than_popularity(
    datasets, plan, private, shared
) -> None:
    dataset = datasets["A"]
    weighing = Weighing(dataset, plan.training, private)
    mixtures = weighing.against(shared)
    assert set(mixtures.local.names) <= set(OWN)
    assert mixtures.federated.names == (*mixtures.local.names, *SHARED)
    moment, users = Moment.at(dataset, plan.training, dataset.split.validation), weighing.users
    parts = _parts(moment, users, private, shared)
    components = moment.components(users, parts)
    taken = dataset.taken(users, moment.candidates, dataset.split.validation, dataset.split.test)

    def surprise(scores: np.ndarray) -> float:
        log = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        return float(-(log * taken).sum(axis=1).mean() / taken.sum(axis=1).mean())

    fitted = surprise(mixtures.federated.scores(components.select(mixtures.federated.names)))
    assert fitted < surprise(components.values[components.names.index("own popularity")])


def test_each_half_tries_the_weights_of_the_other(datasets, plan, private, shared) -> None:
    dataset = datasets["A"]
    weighing = Weighing(dataset, plan.training, private)
    mixtures, users = weighing.against(shared), weighing.users
    moment = Moment.at(dataset, plan.training, dataset.split.validation)
    parts = _parts(moment, users, private, shared)
    components = moment.components(users, parts)
    taken = dataset.taken(users, moment.candidates, dataset.split.validation, dataset.split.test)
    assert len(users) > 20
    local, federated = mixtures.local.names, mixtures.federated.names
    gains, weights = np.empty((2, len(users))), {local: [], federated: []}
    for half in (0, 1):
        fitted, tried = np.arange(half, len(users), 2), np.arange(1 - half, len(users), 2)
        part, reached = components.users(tried), {}
        for names in (local, federated):
            mixture = fit_mixture(components.users(fitted).select(names), taken[fitted])
            weights[names].append(mixture.weights)
            scores = mixture.scores(part.select(names))
            surprise = surprises(scores, part, taken[tried])
            reached[names] = np.stack([-surprise, quality(scores, part, taken[tried])])
        gains[:, tried] = reached[federated] - reached[local]
    trial = mixtures.trial
    assert trial.users == len(users)
    for found, each in zip((trial.fit, trial.ndcg), gains, strict=True):
        assert found.mean == pytest.approx(each.mean(), abs=1e-6)
        assert found.error == pytest.approx(each.std(ddof=1) / len(each) ** 0.5, abs=1e-6)
    for names, mixture in ((local, mixtures.local), (federated, mixtures.federated)):
        np.testing.assert_allclose(mixture.weights, np.mean(weights[names], axis=0), rtol=1e-4)


def test_the_federation_is_served_only_where_it_clearly_helps(
    datasets, plan, private, shared
) -> None:
    weighing = Weighing(datasets["A"], plan.training, private)
    mixtures = weighing.against(shared)

    noise = replace(plan.privacy, noise="local", multiplier=1.0, statistics_multiplier=1.0)
    by_chance = weighing.against(replace(shared, plan=replace(shared.plan, privacy=noise)))
    assert (mixtures.trial.least, by_chance.trial.least) == (2.0, 3.0)

    def served(fit: tuple[float, float], ndcg: tuple[float, float]) -> bool:
        gains = [Gain(mean=mean, error=error) for mean, error in (fit, ndcg)]
        trial = Trial(users=50, fit=gains[0], ndcg=gains[1], least=3.0)
        found = replace(mixtures, trial=trial).served
        assert found is mixtures.federated or found is mixtures.local
        return found is mixtures.federated

    assert served((0.31, 0.1), (0.02, 0.01))
    assert served((0.31, 0.1), (-0.01, 0.01))
    assert not served((0.31, 0.1), (-0.011, 0.01))
    assert not served((0.29, 0.1), (0.02, 0.01))
    assert not served((0.0, 0.0), (0.0, 0.0))
    nothing = Gain.of(np.array([0.7]))
    assert nothing == Gain.of(np.empty(0)) == Gain(mean=0.0, error=0.0)
    few = Gain.of(np.array([0.1, 0.3]))
    assert (few.mean, few.error) == (pytest.approx(0.2), pytest.approx(0.1))


def test_noise_for_a_shared_model_fails_its_trial(datasets, plan, private, shared) -> None:
    """What the federation sends has no say on a platform that it does not help."""
    weighing = Weighing(datasets["A"], plan.training, private)
    generator = np.random.default_rng(5)
    passed = 0
    for _ in range(10):
        noise = copy.deepcopy(shared.network)
        with torch.no_grad():
            for parameter in noise.parameters():
                size = tuple(parameter.shape)
                parameter.copy_(torch.from_numpy(generator.normal(size=size)).float())
        passed += weighing.against(replace(shared, network=noise)).trial.passed
    assert passed <= 1  # ten of ten without the trial


def test_quality_is_the_mean_of_both_views() -> None:
    count = np.array([[1, 0, 0], [1, 0, 0]], dtype=np.float32)
    components = Components(
        names=("a",), values=np.zeros((1, 2, 3), np.float32), count=count, age=count
    )
    scores = np.array([[3, 2, 1], [3, 2, 1]], dtype=np.float32)
    taken = np.array([[True, False, True], [True, False, False]])
    found = quality(scores, components, taken)
    ideal = 1 + 1 / np.log2(3)
    both = (1 + 0.5) / ideal  # places 1 and 3
    new = 1 / np.log2(3)  # behind item 1, once item 0 is left out
    np.testing.assert_allclose(found, [(both + new) / 2, 1.0])


def test_the_curve_of_a_run_is_the_mean_ndcg_over_first_time_items(datasets, plan, shared) -> None:
    dataset = datasets["A"]
    check = Validation.of(dataset, plan.training)
    parts = check.moment.shared_components(check.users, shared, None)
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
