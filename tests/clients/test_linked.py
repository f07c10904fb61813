"""Received profiles: what they say, whom they are for, and that nobody without one notices."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clients.dataset import Dataset
from clients.linked import LINKED, LinkedEvidence, Profiles
from clients.linked_serving import WEIGHTS, LinkedServing, learn_linked, load_weights
from clients.linked_store import ReceivedProfiles, joined
from clients.linked_trial import Added, cold_scores, linked_components, weigh_linked
from clients.linking.folder import LinkageFolder
from clients.personal import Gain, Trial
from clients.scoring import Moment
from crossrec_model.config import Plan
from crossrec_model.errors import DataError
from crossrec_model.linkage.links import Links
from crossrec_model.linkage.messages import Purpose
from crossrec_model.linkage.profile import ProfileTerms
from crossrec_model.linkage.profile_batch import ProfileBatch
from crossrec_model.ranking import Mixture

WIDTH = 4


@pytest.fixture(scope="module")
def moment(datasets: dict[str, Dataset], plan: Plan) -> Moment:
    dataset = datasets["A"]
    return Moment.at(dataset, plan.training, dataset.split.validation)


@pytest.fixture(scope="module")
def cells(moment: Moment) -> tuple[int, ...]:
    """Cells of ten different items."""
    found = dict.fromkeys(moment.dataset.items.sketch[:, 0].tolist())
    return tuple(found)[:10]


@pytest.fixture(scope="module")
def basis(cells: tuple[int, ...]) -> np.ndarray:
    random = np.random.default_rng(3)
    return np.linalg.qr(random.normal(size=(len(cells), WIDTH)))[0].astype(np.float32)


def _profiles(
    moment: Moment, basis: np.ndarray, vectors: np.ndarray, users: np.ndarray
) -> Profiles:
    place = np.full(len(moment.dataset.items), -1)
    place[: len(basis)] = np.arange(len(basis))
    return Profiles(
        users=users, vectors=vectors.astype(np.float32), basis=basis, place=place, variance=0.0
    )


@pytest.fixture(scope="module")
def evidence(moment: Moment, basis: np.ndarray) -> LinkedEvidence:
    users = np.arange(5, 45)
    vectors = np.random.default_rng(1).normal(size=(len(users), WIDTH))
    return LinkedEvidence(moment, _profiles(moment, basis, vectors, users))


def test_who_is_linked_is_left_out_of_what_speaks_about_her(
    evidence: LinkedEvidence, moment: Moment
) -> None:
    row = 7
    found = evidence.of_linked(np.array([row]))
    vectors = evidence.profiles.vectors.astype(np.float64)
    own = moment.taken[evidence.profiles.users][:, moment.candidates].toarray()
    square = vectors.T @ vectors
    ridge = 0.3 * np.trace(square) / WIDTH
    others = np.arange(len(vectors)) != row
    left = vectors[others]
    weights = np.linalg.solve(left.T @ left + ridge * np.eye(WIDTH), left.T @ own[others])
    taste = np.log(np.maximum(vectors[row] @ weights, 0) + 0.01)
    assert tuple(found) == LINKED
    assert found["linked taste"][0] == pytest.approx(taste, rel=1e-3, abs=1e-3)


def test_a_profile_names_the_shared_items_again(moment: Moment, basis: np.ndarray) -> None:
    item = int(moment.candidates[moment.candidates < len(basis)][0])
    vectors = np.repeat(basis[item][None], 3, axis=0)
    evidence = LinkedEvidence(moment, _profiles(moment, basis, vectors, np.array([1, 2, 3])))
    told = evidence.of_linked(np.array([0]))["linked items, wide"][0]
    column = int(np.flatnonzero(moment.candidates == item)[0])
    assert told[column] == pytest.approx(float(basis[item] @ basis[item]), rel=1e-4)
    assert not told[moment.candidates >= len(basis)].any()


def test_noise_is_drawn_to_the_mean(moment: Moment, basis: np.ndarray) -> None:
    random = np.random.default_rng(5)
    users = np.arange(60)
    clean = np.zeros((60, WIDTH))
    clean[:, 0] = 3 * random.normal(size=60)
    noisy = replace(
        _profiles(moment, basis, clean + random.normal(size=clean.shape), users), variance=1.0
    )
    mean, shrinkage = noisy.shrinkage()
    guess = mean + (noisy.vectors - mean) @ shrinkage
    before, after = (np.square(x - clean).mean() for x in (noisy.vectors, guess))
    assert after < 0.6 * before
    still = replace(noisy, variance=0.0).shrinkage()
    assert np.array_equal(still[1], np.eye(WIDTH))


def test_users_without_a_profile_are_not_found(evidence: LinkedEvidence) -> None:
    assert evidence.rows(np.array([4, 5, 44, 45, 59])).tolist() == [-1, 0, 39, -1, -1]


def _telling(moment: Moment, basis: np.ndarray) -> Profiles:
    """Profiles that hold, of all things, which kind of item each user takes."""
    users = np.arange(60)
    names = moment.dataset.histories.user_ids
    kind = np.eye(WIDTH)[[int(name[1:]) % 3 for name in names]] * 3
    return _profiles(
        moment, basis, kind + 0.01 * np.random.default_rng(0).normal(size=kind.shape), users
    )


def _had(moment: Moment, users: np.ndarray) -> np.ndarray:
    return moment.taken[users][:, moment.candidates].toarray()


def _flat(moment: Moment):
    return lambda users: np.zeros((len(users), len(moment.candidates)), dtype=np.float32)


def test_what_tells_something_is_served_and_what_tells_nothing_is_not(
    moment: Moment, basis: np.ndarray
) -> None:
    telling = _telling(moment, basis)
    weights = weigh_linked(LinkedEvidence(moment, telling), _flat(moment))
    assert weights.known.trial.passed
    assert weights.newcomer.trial.passed
    random = np.random.default_rng(2).normal(size=telling.vectors.shape)
    useless = LinkedEvidence(moment, replace(telling, vectors=random.astype(np.float32)))
    refused = weigh_linked(
        useless, lambda users: np.log(moment.taken[users][:, moment.candidates].toarray() + 0.5)
    )
    base = np.random.default_rng(3).normal(size=(2, len(moment.candidates))).astype(np.float32)
    assert not refused.known.trial.passed
    assert refused.known.scores(base, linked_components(useless, np.array([0, 1]))) is base


def test_what_is_served_without_its_trial_is_the_base_itself(evidence: LinkedEvidence) -> None:
    components = linked_components(evidence, np.array([0, 1]))
    base = np.random.default_rng(1).normal(size=components.count.shape).astype(np.float32)
    weights = (1.0,) * (2 * len(LINKED) + 3)
    bad = Trial(users=9, fit=Gain(mean=1, error=0.1), ndcg=Gain(mean=-1, error=0.1), least=2.0)
    added = Added(mixture=Mixture(names=LINKED, weights=weights), trial=bad)
    assert added.scores(base, components) is base


def _batch(basis, cells, links, vectors, **values) -> ProfileBatch:
    good = {
        "sender": "B",
        "period": "2024-06",
        "day": 19_800.0,
        "terms": ProfileTerms(dimension=WIDTH, clip=5.0),
        "cells": cells,
        "basis": basis,
        "links": tuple(links),
        "vectors": np.asarray(vectors, dtype=np.float32),
    }
    return ProfileBatch(**(good | values))


def _links(users: list[str], salt: int) -> dict[str, str]:
    """Link id → own user id, in the order of the link ids."""
    return {f"{salt:016x}{number:016x}": user for number, user in enumerate(users)}


def test_who_revokes_takes_the_profiles_with_her(tmp_path: Path, basis, cells) -> None:
    store, linkages = ReceivedProfiles(tmp_path), LinkageFolder(tmp_path)
    linkages.path.mkdir()
    pairs = {"u1": "1" * 32, "u2": "2" * 32}
    linkages.write_links(Links(partner="B", purpose=Purpose.USERS, session=b"s" * 16, pairs=pairs))
    names = sorted(pairs.values())
    store.take(_batch(basis, cells, names, np.ones((2, WIDTH))).to_bytes(), sender="B", links=names)
    assert linkages.linked_users() == {"B": {link: user for user, link in pairs.items()}}
    linkages.revoke(["u1"])
    assert store.batches(19_900)["B"].links == (pairs["u2"],)
    assert linkages.linked_users() == {"B": {pairs["u2"]: "u2"}}


def test_received_profiles_are_kept_by_period_and_deleted_with_their_link(
    tmp_path: Path, basis, cells
) -> None:
    store = ReceivedProfiles(tmp_path)
    names = sorted(_links(["u1", "u2", "u3"], 1))
    early = _batch(basis, cells, names, np.ones((3, WIDTH)))
    late = replace(early, period="2024-07", day=19_830.0, vectors=2 * early.vectors)
    for batch in (early, late):
        store.take(batch.to_bytes(), sender="B", links=names[:2])
    assert store.batches(19_900)["B"].period == "2024-07"
    assert store.batches(19_820)["B"].period == "2024-06"
    assert not store.batches(19_000)
    # Of a link that is not ours nothing is kept.
    assert store.batches(19_900)["B"].links == tuple(names[:2])
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0
    with pytest.raises(DataError, match="say they are of B"):
        store.take(early.to_bytes(), sender="C", links=names)
    store.forget(names[:1])
    assert store.batches(19_900)["B"].links == store.batches(19_820)["B"].links == (names[1],)
    assert not any(names[0].encode() in path.read_bytes() for path in tmp_path.rglob("*.profiles"))
    store.forget_sender("B")
    assert not store.batches(19_900)
    path = tmp_path / "linked" / "B"
    (path / "x.profiles").write_bytes(b"no profiles")
    with pytest.raises(DataError, match="damaged"):
        store.batches(19_900)


def test_several_senders_vectors_are_added_up_in_one_basis(moment: Moment, basis, cells) -> None:
    users = moment.dataset.histories.user_ids
    rows = {user: row for row, user in enumerate(users)}
    mine = {"B": _links([users[3], "stranger", users[1]], 1), "C": _links([users[3]], 2)}
    vectors = np.arange(3 * WIDTH).reshape(3, WIDTH)
    first = _batch(basis, cells, sorted(mine["B"]), vectors)
    turned = basis[:, ::-1] * -1
    second = _batch(turned, cells, sorted(mine["C"]), np.ones((1, WIDTH)), sender="C")
    found, new = joined(
        {"B": first, "C": second}, mine, rows=rows, items=moment.dataset.items, width=64
    )
    assert found.users.tolist() == [1, 3]
    # C's batch is the later by name, so that its basis is the common one.
    assert found.vectors[0] == pytest.approx(-vectors[2][::-1], abs=1e-4)
    assert found.vectors[1] == pytest.approx(1 - vectors[0][::-1], abs=1e-4)
    assert new["stranger"] == pytest.approx(-vectors[1][::-1], abs=1e-4)
    other = replace(second, cells=tuple(c + 1 for c in cells), day=19_000.0)
    alone, _ = joined(
        {"B": first, "C": other}, mine, rows=rows, items=moment.dataset.items, width=64
    )
    assert alone.vectors[1] == pytest.approx(vectors[0], abs=1e-4)
    with pytest.raises(DataError, match="no profiles"):
        joined({}, mine, rows=rows, items=moment.dataset.items, width=64)


def test_profiles_are_learnt_kept_and_served(tmp_path: Path, moment: Moment, basis, cells) -> None:
    users = moment.dataset.histories.user_ids
    telling = _telling(moment, basis)
    mine = _links([*users[:-1], "stranger"], 1)
    batch = _batch(basis, cells, sorted(mine), telling.vectors, day=moment.day - 1)
    ReceivedProfiles(tmp_path).take(batch.to_bytes(), sender="B", links=mine)
    opened = {"links": {"B": mine}, "width": 64}
    assert LinkedServing.opened(tmp_path, moment, **opened) is None  # nothing was learnt yet
    weights = learn_linked(tmp_path, moment, base=_flat(moment), **opened)
    assert load_weights(tmp_path) == weights
    serving = LinkedServing.opened(tmp_path, moment, **opened)
    assert serving is not None
    assert LinkedServing.opened(tmp_path, moment, links=None, width=64) is None
    # The last user has no profile: nothing at all is added for her.
    assert serving.of_known(len(users) - 1) is None
    known, new = serving.of_known(0), serving.of_newcomer("stranger")
    assert known is not None
    assert new is not None
    assert serving.of_newcomer("nobody") is None
    cold = cold_scores(moment)
    assert new.added.scores(cold, new.components).shape == cold.shape
    ReceivedProfiles(tmp_path).forget(mine)
    assert LinkedServing.opened(tmp_path, moment, **opened) is None


def test_damaged_weights_are_noticed(tmp_path: Path, moment: Moment, basis) -> None:
    (tmp_path / "linked").mkdir()
    path = tmp_path / "linked" / WEIGHTS
    for text in ("", "[]", "{}", json.dumps({"format": 9, "known": 1, "newcomer": 1, "middle": 1})):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match="damaged"):
            load_weights(tmp_path)
