"""What linked profiles are worth to one platform: chosen on validation users, tested once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import scipy.sparse as sp

from clients.dataset import Dataset
from clients.linked import LinkedEvidence, Profiles
from clients.linked_trial import LinkedWeights, cold_scores, linked_components, weigh_linked
from clients.personal import Weighing
from clients.scoring import Moment
from crossrec_model.config import Plan
from crossrec_model.evaluation.metrics import accuracy, hits, top_items
from crossrec_model.evaluation.results import ALL_PURCHASES, FIRST_TIME, Result
from crossrec_model.linkage.profile import (
    ProfileTerms,
    cell_rows,
    noised,
    profiles,
    shared_basis,
)
from crossrec_model.pairs import places, popular_cells
from crossrec_model.privacy.noise import NoiseSource
from crossrec_model.randomness import SystemRandomness
from crossrec_model.statistics import Statistics

Scores = np.ndarray
CHUNK = 300
DELTA = 1e-5


@dataclass(frozen=True, kw_only=True)
class Space:
    """The common space at one moment: released statistics, and until when profiles are made."""

    plan: Plan
    statistics: Statistics
    day: Callable[[Dataset], float]
    _bases: dict[int, Scores] = field(default_factory=dict, init=False)

    def basis(self, dimension: int) -> Scores:
        """The first directions, worked out once for the most that were asked for."""
        items = self.plan.model.pair_items
        if dimension not in self._bases:
            self._bases[dimension] = shared_basis(self.statistics.pairs, items, dimension)
        return self._bases[dimension]

    def place(self, dataset: Dataset) -> Scores:
        """Each item's cell, -1 = none."""
        model = self.plan.model
        cells = popular_cells(self.statistics, model.sketch_width, model.pair_items)
        return places(dataset.items, cells, model.sketch_width)

    def received(
        self, platform: str, datasets: Mapping[str, Dataset], terms: ProfileTerms
    ) -> Profiles:
        """What a platform receives from all others about its own users, where ids are the links."""
        own = datasets[platform]
        row = {user: number for number, user in enumerate(own.histories.user_ids)}
        basis, items = self.basis(terms.dimension), self.plan.model.pair_items
        total = np.zeros((len(row), terms.dimension), dtype=np.float32)
        senders = np.zeros(len(row))
        source = NoiseSource(SystemRandomness())
        for name, dataset in datasets.items():
            if name == platform:
                continue
            day = self.day(dataset)
            rows = cell_rows(dataset.histories, self.place(dataset), day, items)
            known = np.diff(dataset.histories.before(day).offsets) > 0
            here = np.array([row.get(user, -1) for user in dataset.histories.user_ids])
            linked = np.flatnonzero(known & (here >= 0))
            vectors = profiles(rows[linked], basis, terms.clip)
            total[here[linked]] += noised(vectors, terms, source)
            senders[here[linked]] += 1
        users = np.flatnonzero(senders)
        return Profiles(
            users=users,
            vectors=total[users],
            basis=basis,
            place=self.place(own),
            variance=terms.deviation**2 * float(senders[users].mean()),
        )


class Platform:
    """One platform's unlinked scores at both moments, each worked out once."""

    def __init__(self, name: str, datasets: Mapping[str, Dataset], plan: Plan) -> None:
        self.name, self.datasets, self.data = name, datasets, datasets[name]
        self.weighing = Weighing(self.data, plan.training, None)
        self.validation = self.weighing._moment
        self.test = Moment.at(self.data, plan.training, self.data.split.test)
        self._kept: dict[tuple[float, int], Scores] = {}

    def base(self, moment: Moment, users: Scores) -> Scores:
        """The scores served without a profile; kept, since every setting asks for the same users."""
        missing = [u for u in users.tolist() if (moment.day, u) not in self._kept]
        for start in range(0, len(missing), CHUNK):
            part = np.array(missing[start : start + CHUNK])
            components = moment.components(part, moment.own_components(part, None))
            for user, scores in zip(
                part.tolist(), self.weighing.local.scores(components), strict=True
            ):
                self._kept[moment.day, user] = scores
        return np.stack([self._kept[moment.day, u] for u in users.tolist()])

    def weights(self, evidence: LinkedEvidence) -> LinkedWeights:
        """Fitted and tried on validation users."""
        moment = self.validation
        return weigh_linked(evidence, lambda users: self.base(moment, users))


def test_users(platform: Platform, profiles: Profiles) -> tuple[Scores, Scores]:
    """(rows of the linked users who took a candidate in the test weeks, what they took)."""
    data, moment = platform.data, platform.test
    taken = data.taken(profiles.users, moment.candidates, data.split.test, data.split.end)
    rows = np.flatnonzero(taken.any(axis=1))
    return rows, taken[rows]


def measured(
    platform: Platform, received: Profiles, weights: LinkedWeights, row: str, seed: int
) -> list[Result]:
    """Rows of the test: linked users with `row`, and as newcomers; each in both views."""
    evidence = LinkedEvidence(platform.test, received, weights.middle)
    rows, taken = test_users(platform, evidence.profiles)
    users = evidence.profiles.users[rows]
    wide = np.repeat(cold_scores(platform.test), len(rows), axis=0)
    had = np.zeros(taken.shape, dtype=bool)
    scores: dict[str, list[Scores]] = {}
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        known = linked_components(evidence, rows[part])
        had[part] = known.count > 0
        base = platform.base(platform.test, users[part])
        new = linked_components(evidence, rows[part], newcomers=True)
        lists = {
            row: weights.known.scores(base, known),
            f"newcomer, {row}": weights.newcomer.scores(wide[part], new),
            "unlinked": base,
            "newcomer, cold-start list": wide[part],
        }
        for name, found in lists.items():
            scores.setdefault(name, []).append(ranked(found, taken[part], had[part]))
    results = []
    for name, parts in scores.items():
        values = np.concatenate(parts, axis=1)
        for view, ndcg in zip((ALL_PURCHASES, FIRST_TIME), values, strict=True):
            results.append(
                Result(
                    row=name,
                    platform=platform.name,
                    view=view,
                    seed=seed,
                    users=users,
                    warm=np.ones(len(users), dtype=bool),
                    metrics={"ndcg@10": ndcg},
                )
            )
    return results


def ranked(scores: Scores, taken: Scores, had: Scores) -> Scores:
    """nDCG@10 [2, users]: of all that was taken, and of what was taken for the first time."""
    views = []
    for excluded in (np.zeros_like(had), had):
        wanted = taken & ~excluded
        found = hits(top_items(scores, sp.csr_matrix(excluded), 10), sp.csr_matrix(wanted))
        views.append(accuracy(found, wanted.sum(axis=1), 10)["ndcg@10"])
    return np.stack(views)


def shuffled(received: Profiles) -> Profiles:
    """Everybody with the profile of another linked user: what weights fitted anew gain by themselves."""
    return replace(received, vectors=np.roll(received.vectors, 1, axis=0))


def terms_of(epsilon: float, dimension: int, clip: float) -> ProfileTerms:
    """Terms at the benchmark's delta; without noise nothing is clipped."""
    if epsilon == math.inf:
        return ProfileTerms(dimension=dimension, clip=1e6)
    return ProfileTerms.for_epsilon(epsilon, DELTA, dimension=dimension, clip=clip)
