"""How good the shared model alone is on a platform's validation weeks: the curve of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from clients.dataset import Dataset
from clients.graph import user_items
from clients.personal import validation_users
from clients.scoring import Moment, SharedModel
from crossrec_model.config import TrainingConfig
from crossrec_model.errors import DataError
from crossrec_model.evaluation.metrics import accuracy, hits, top_items

#: Enough for a curve; a round must not wait for it.
MOST_USERS: Final = 256
_CUT: Final = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class Validation:
    """Users [U] of the validation weeks, what they had before, what they took as new.

    `had` and `new` are sparse booleans [U, candidates] without a common entry.
    """

    moment: Moment
    users: npt.NDArray[np.int64]
    had: sp.csr_matrix
    new: sp.csr_matrix

    @classmethod
    def of(cls, dataset: Dataset, config: TrainingConfig) -> Validation:
        """Read them off a dataset.

        Raises:
            DataError: if nobody with a history took a candidate in the validation weeks.
        """
        split = dataset.split
        moment = Moment.at(dataset, config, split.validation)
        users = validation_users(dataset, moment, MOST_USERS)
        if len(users) == 0:
            raise DataError(
                "no user with a history took an item in the validation weeks; deliver a longer "
                "period or change --validation-weeks"
            )
        taken = dataset.taken(users, moment.candidates, split.validation, split.test)
        past = user_items(dataset.histories, len(dataset.items), split.validation)
        had = past[users][:, moment.candidates].toarray() > 0
        return cls(
            moment=moment, users=users, had=sp.csr_matrix(had), new=sp.csr_matrix(taken & ~had)
        )

    def ndcg(self, shared: SharedModel) -> float:
        """Mean nDCG@10 over the users with a first-time item; 0 where there is none."""
        parts = self.moment.shared_components(self.users, shared, None)
        scores = parts["shared model"] + parts["shared popularity"]  # [U, candidates]
        found = hits(top_items(scores, self.had, _CUT), self.new)
        sizes = np.asarray(self.new.sum(axis=1)).ravel()
        each = accuracy(found, sizes, _CUT)[f"ndcg@{_CUT}"]
        return float(np.nanmean(each)) if (sizes > 0).any() else 0.0
