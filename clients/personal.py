"""What a platform does with the shared model: fit its mixing weights on its own validation users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from clients.dataset import Dataset
from clients.private import PrivateModel
from clients.scoring import FEDERATED, LOCAL, Moment, SharedModel
from crossrec_model.config import TrainingConfig
from crossrec_model.ranking import Components, Mixture, fit_mixture
from crossrec_model.statistics import active_users

Int = npt.NDArray[np.int64]

#: Enough users for a dozen weights; bounds memory to users x candidates x features.
MOST_VALIDATION_USERS: Final = 400


@dataclass(frozen=True, kw_only=True)
class Mixtures:
    """Weights without and with the federation's components."""

    local: Mixture
    federated: Mixture


def validation_users(dataset: Dataset, moment: Moment, most: int = MOST_VALIDATION_USERS) -> Int:
    """Users with a history who took a candidate in the validation weeks, evenly thinned to `most`."""
    users = active_users(dataset.index, moment.day)
    taken = dataset.taken(users, moment.candidates, dataset.split.validation, dataset.split.test)
    users = users[taken.any(axis=1)]
    if len(users) > most:
        users = users[np.linspace(0, len(users) - 1, most).round().astype(np.int64)]
    return users


@dataclass(frozen=True, kw_only=True, eq=False)
class ValidationWeeks:
    """The users that mixing weights are fitted on, and what they took, `taken` bool [users, candidates]."""

    moment: Moment
    users: Int
    taken: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, dataset: Dataset, config: TrainingConfig) -> ValidationWeeks:
        """Read them off a dataset."""
        split = dataset.split
        moment = Moment.at(dataset, config, split.validation)
        users = validation_users(dataset, moment)
        taken = dataset.taken(users, moment.candidates, split.validation, split.test)
        return cls(moment=moment, users=users, taken=taken)


def validation_components(
    dataset: Dataset, config: TrainingConfig, private: PrivateModel, shared: SharedModel
) -> tuple[Components, npt.NDArray[np.bool_]]:
    """All components at the start of the validation weeks, and what was taken within them."""
    weeks = ValidationWeeks.of(dataset, config)
    moment, users = weeks.moment, weeks.users
    parts = moment.own_components(users, private) | moment.shared_components(users, shared)
    return moment.components(users, parts), weeks.taken


def fit_mixtures(components: Components, taken: npt.NDArray[np.bool_]) -> Mixtures:
    """Fit both mixtures on the same users."""
    return Mixtures(
        local=fit_mixture(components.select(LOCAL), taken),
        federated=fit_mixture(components.select(FEDERATED), taken),
    )
