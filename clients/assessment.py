"""How good a platform's rankings are on held-out weeks: every row of the table, same users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from clients.dataset import Dataset
from clients.graph import user_items
from clients.personal import Weighing
from clients.private import PrivateModel
from clients.scoring import Moment, SharedModel
from crossrec_model.config import TrainingConfig
from crossrec_model.evaluation.baselines import (
    Baseline,
    Ease,
    ItemKnn,
    Popularity,
    choose,
)
from crossrec_model.evaluation.results import Result, View, measure, purchase_views
from crossrec_model.evaluation.variety import category_features
from crossrec_model.statistics import active_users

Int = npt.NDArray[np.int64]

KNN_GRID: Final[tuple[Baseline, ...]] = tuple(
    ItemKnn(shrink=shrink, neighbours=count) for shrink in (10.0, 100.0) for count in (200, None)
)
EASE_GRID: Final[tuple[Baseline, ...]] = tuple(Ease(l2=l2) for l2 in (200.0, 500.0, 1000.0))


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """Test or validation users of a platform with what they took in start ≤ day < end.

    `history` csr [all users, candidates] counts takings before `start`; `views` are those of all
    purchases and of first-time purchases.
    """

    moment: Moment
    users: Int
    history: sp.csr_matrix
    views: tuple[View, View]

    @property
    def served(self) -> sp.csr_matrix:
        """History rows of the held-out users."""
        return self.history[self.users]


def held_out(
    dataset: Dataset, config: TrainingConfig, platform: str, start: float, end: float
) -> HeldOut:
    """Users with a history before `start` who took a candidate in start ≤ day < end."""
    moment = Moment.at(dataset, config, start)
    users = active_users(dataset.index, start)
    taken = dataset.taken(users, moment.candidates, start, end)
    users, taken = users[taken.any(axis=1)], taken[taken.any(axis=1)]
    history = user_items(dataset.histories, len(dataset.items), start)[:, moment.candidates].tocsr()
    paths = dataset.items.catalogue["category"].to_list()
    views = purchase_views(
        platform=platform,
        users=users,
        history=history[users],
        purchases=sp.csr_matrix(taken),
        item_features=category_features([paths[row] for row in moment.candidates]),
        buyers=np.asarray((history > 0).sum(axis=0)).ravel().astype(np.int64),
        population=int((np.diff(history.indptr) > 0).sum()),
    )
    return HeldOut(moment=moment, users=users, history=history, views=views)


def baseline_results(dataset: Dataset, config: TrainingConfig, platform: str) -> list[Result]:
    """Popularity, own frequencies, item-kNN and EASE of one platform's own rows on its test weeks.

    The settings of kNN and EASE are chosen on the validation weeks' first-time purchases; the chosen
    ones are fitted again on everything before the test weeks.
    """
    split = dataset.split
    validation = held_out(dataset, config, platform, split.validation, split.test)
    test = held_out(dataset, config, platform, split.test, split.end)

    def chosen(grid: Sequence[Baseline]) -> Baseline:
        return choose(
            grid,
            history=validation.history,
            served=validation.served,
            validation=validation.views[1],
        ).baseline

    rows: dict[str, Baseline] = {
        "popularity": Popularity(),
        "own frequencies": Popularity(own_first=True),
        "item-kNN": chosen(KNN_GRID),
        "EASE": chosen(EASE_GRID),
    }
    results = []
    for row, baseline in rows.items():
        scores = baseline.fit(test.history).scores(test.served)
        results += _both_views(scores, test, row, seed=0)
    return results


@dataclass(frozen=True, kw_only=True, eq=False)
class Rival:
    """A shared model under the name of its row, with its statistics for both moments."""

    row: str
    at_validation: SharedModel
    at_test: SharedModel


class Assessment:
    """One platform's row `local`, and the rivals that are tried against it.

    Mixing weights, and whether a shared model is served at all, come from the validation weeks; the test
    weeks are only ever measured. Without a private model the row is the same for every seed.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: TrainingConfig,
        platform: str,
        private: PrivateModel | None = None,
    ) -> None:
        self._weighing = Weighing(dataset, config, private)
        self._test = held_out(dataset, config, platform, dataset.split.test, dataset.split.end)
        moment, users = self._test.moment, self._test.users
        self._served = moment.components(users, moment.own_components(users, private))
        scores = self._weighing.local.scores(self._served)
        self._local = _both_views(scores, self._test, "local", seed=0)

    def results(self, rivals: Sequence[Rival], seed: int) -> list[Result]:
        """The row `local` and one row a rival, each as it would be served."""
        local = [replace(result, seed=seed) for result in self._local]
        results = list(local)
        for rival in rivals:
            mixtures = self._weighing.against(rival.at_validation)
            if not mixtures.trial.passed:
                results += [replace(result, row=rival.row) for result in local]
                continue
            moment = self._test.moment
            graph = moment.shared_graph(rival.at_test)
            shared = moment.shared_components(self._test.users, rival.at_test, graph)
            scores = mixtures.federated.scores(self._served.joined(shared))
            results += _both_views(scores, self._test, rival.row, seed)
        return results


def _both_views(scores: npt.NDArray[Any], test: HeldOut, row: str, seed: int) -> list[Result]:
    return [measure(scores, view, row=row, seed=seed) for view in test.views]
