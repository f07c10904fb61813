"""What a platform does with the shared model: weigh it, try it, and serve it only where it helps.

Everything here happens on the platform's own validation users and never leaves it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from clients.dataset import Dataset
from clients.private import PrivateModel
from clients.scoring import Moment, SharedModel
from crossrec_model.config import TrainingConfig
from crossrec_model.evaluation.metrics import accuracy, hits, top_items
from crossrec_model.ranking import Components, Mixture, fit_mixture, surprises
from crossrec_model.statistics import active_users

Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

#: Of users x candidates that are weighed at once: bounds memory to a dozen times as many numbers.
MOST_CELLS: Final = 4_000_000
#: More would change the weights and the decision little.
MOST_VALIDATION_USERS: Final = 2000
#: A model that was trained with noise may follow it by chance, on every platform and after every run.
LEAST_NOISED: Final = 3.0
LEAST: Final = 2.0
_CUT: Final = 10


@dataclass(frozen=True, kw_only=True)
class Gain:
    """A mean over users and its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, each: Floats) -> Gain:
        """From every user's gain, [users]; fewer than two say nothing."""
        if len(each) < 2:
            return cls(mean=0.0, error=0.0)
        return cls(mean=float(each.mean()), error=float(each.std(ddof=1)) / len(each) ** 0.5)

    def __str__(self) -> str:
        return f"{self.mean:+.4f} ± {self.error:.4f}"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What the federation adds on users whose takings no weight was fitted on.

    `fit` is in nats of `ranking.surprises`, which moves with every item and so shows small effects;
    `ndcg` is nDCG@10, which is what users see of it. `least` is how many standard errors the fit must
    gain more than: `LEAST`, or for a noised model `LEAST_NOISED`.
    """

    users: int
    fit: Gain
    ndcg: Gain
    least: float

    @property
    def passed(self) -> bool:
        """Whether the federation is served.

        Its fit must be better beyond doubt, and the tops of the lists not worse within a standard error.
        """
        return self.fit.mean > self.least * self.fit.error and self.ndcg.mean >= -self.ndcg.error


@dataclass(frozen=True, kw_only=True)
class Mixtures:
    """Weights without and with the federation's components, and how the second did against the first."""

    local: Mixture
    federated: Mixture
    trial: Trial

    @property
    def served(self) -> Mixture:
        """The federated weights if they passed their trial: nobody is worse off by joining."""
        return self.federated if self.trial.passed else self.local


def validation_users(dataset: Dataset, moment: Moment, most: int) -> Int:
    """Users with a history who took a candidate in the validation weeks, evenly thinned to `most`."""
    users = active_users(dataset.index, moment.day)
    taken = dataset.taken(users, moment.candidates, dataset.split.validation, dataset.split.test)
    users = users[taken.any(axis=1)]
    if len(users) > most:
        users = users[np.linspace(0, len(users) - 1, most).round().astype(np.int64)]
    return users


def quality(scores: npt.NDArray[np.float32], components: Components, taken: Bool) -> Floats:
    """nDCG@10 of each user, [U]: the mean of what she took and of what she took for the first time.

    `scores` and `taken` are [U, C]. A user who took nothing new counts with the first alone.
    """
    had = components.count > 0
    views = []
    for excluded in (np.zeros_like(had), had):
        wanted = taken & ~excluded
        found = hits(top_items(scores, sp.csr_matrix(excluded), _CUT), sp.csr_matrix(wanted))
        views.append(accuracy(found, wanted.sum(axis=1), _CUT)[f"ndcg@{_CUT}"])
    every, new = views
    return np.where(np.isnan(new), every, (every + new) / 2)


class Weighing:
    """One platform's decision between its own model and the federation's.

    Weights are fitted on either half of the validation users and tried on the other; what is served
    are their means. What does not depend on the shared model is worked out once.

    Raises:
        ValueError: if nobody took a candidate in the validation weeks.
    """

    def __init__(
        self, dataset: Dataset, config: TrainingConfig, private: PrivateModel | None
    ) -> None:
        split = dataset.split
        self._moment = moment = Moment.at(dataset, config, split.validation)
        most = min(MOST_VALIDATION_USERS, max(2, MOST_CELLS // len(moment.candidates)))
        self.users = validation_users(dataset, moment, most)
        self._taken = dataset.taken(self.users, moment.candidates, split.validation, split.test)
        self._own = moment.components(self.users, moment.own_components(self.users, private))
        self.local, self._without = self._fitted(self._own)

    def against(self, shared: SharedModel) -> Mixtures:
        """Fit the weights with the federation's components, and try them."""
        graph = self._moment.shared_graph(shared)
        components = self._own.joined(self._moment.shared_components(self.users, shared, graph))
        federated, with_it = self._fitted(components)
        fit, ndcg = with_it - self._without
        least = LEAST_NOISED if shared.plan.privacy.on else LEAST
        trial = Trial(users=len(fit), fit=Gain.of(fit), ndcg=Gain.of(ndcg), least=least)
        return Mixtures(local=self.local, federated=federated, trial=trial)

    def fare(self, shared: SharedModel | None = None, without: Collection[str] = ()) -> Floats:
        """nDCG@10 of each of `users` under weights fitted without her.

        From the own components and, where given, the federation's, less those named by `without`.
        """
        components = self._own
        if shared is not None:
            graph = self._moment.shared_graph(shared)
            more = self._moment.shared_components(self.users, shared, graph)
            components = components.joined(more)
        kept = tuple(name for name in components.names if name not in without)
        each: Floats = self._fitted(components.select(kept))[1][1]
        return each

    def alone(self, shared: SharedModel) -> Mixture:
        """Weights of the federation's components by themselves: what they are worth without any own."""
        graph = self._moment.shared_graph(shared)
        parts = self._moment.shared_components(self.users, shared, graph)
        return self._fitted(self._moment.components(self.users, parts))[0]

    def _fitted(self, components: Components) -> tuple[Mixture, Floats]:
        """The mean of both halves' weights, and how each user fares under the half without her.

        The second is [2, users]: minus her surprise, and her nDCG@10.
        """
        halves = np.arange(len(self.users)) % 2 == 1
        if len(halves) < 2:  # nobody to try on
            return fit_mixture(components, self._taken), np.empty((2, 0))
        mixtures, fares = [], np.empty((2, len(halves)))
        for half in (halves, ~halves):
            fitted, tried = np.flatnonzero(half), np.flatnonzero(~half)
            mixtures.append(fit_mixture(components.users(fitted), self._taken[fitted]))
            part, taken = components.users(tried), self._taken[tried]
            scores = mixtures[-1].scores(part)
            fares[0, tried] = -surprises(scores, part, taken)
            fares[1, tried] = quality(scores, part, taken)
        weights = np.mean([mixture.weights for mixture in mixtures], axis=0)
        mean = Mixture(names=components.names, weights=tuple(float(w) for w in weights))
        return mean, fares
