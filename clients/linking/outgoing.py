"""What goes to a linked platform: the profiles of the users linked with it, charged and noised."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Final

import numpy as np

from clients.dataset import Dataset
from clients.profiles import ProfileReleases
from crossrec_model.config import Plan
from crossrec_model.data.users import Int
from crossrec_model.errors import ConfigError
from crossrec_model.linkage.profile import (
    Floats,
    ProfileTerms,
    cell_rows,
    profiles,
    shared_basis,
)
from crossrec_model.linkage.profile_batch import ProfileBatch
from crossrec_model.pairs import as_matrix, places, popular_cells
from crossrec_model.statistics import Statistics

NO_SPACE: Final = (
    "the federation's plan has summed no pairs (model.pair_items): there is no common space for "
    "profiles; ask the coordinator's operator for a plan with pairs"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Space:
    """The federation's directions: `basis` float32 [cells, D] over cells of the popularity sketch."""

    cells: Int
    basis: Floats

    @classmethod
    def of(cls, plan: Plan, statistics: Statistics, dimension: int) -> Space:
        """The strongest directions of the released pairs.

        Raises:
            ConfigError: if the plan has no pairs.
            DataError: if more directions are asked than there are cells.
        """
        items = plan.model.pair_items
        if not items or not statistics.pairs.any():
            raise ConfigError(NO_SPACE)
        cells = popular_cells(statistics, plan.model.sketch_width, items)
        # Pairs of cells that nobody took are mere noise.
        known = as_matrix(statistics.pairs, items)[: len(cells), : len(cells)]
        pairs = known[np.triu_indices(len(cells))]
        return cls(cells=cells, basis=shared_basis(pairs, len(cells), dimension))


def batch_for(
    dataset: Dataset,
    space: Space,
    releases: ProfileReleases,
    *,
    sender: str,
    period: str,
    terms: ProfileTerms,
    day: float,
    width: int,
    links: Mapping[str, str],
    revoked: Set[str],
) -> ProfileBatch:
    """The batch of the users linked with one partner; each is charged and noised once a period.

    Args:
        day: everything in a profile happened before it.
        width: of the plan's popularity sketch.
        links: link id → own user id.
        revoked: users who have revoked; what was released of them is forgotten.

    Raises:
        BudgetExceededError: if the period would overspend; nothing is released.
        ConfigError: if the period began with other terms or another shared model.
    """
    releases.withdraw(revoked)
    histories = dataset.histories
    begun = np.diff(histories.before(day).offsets) > 0
    row = {user: number for number, user in enumerate(histories.user_ids) if begun[number]}
    owner = {link: user for link, user in links.items() if user in row and user not in revoked}
    users = sorted(owner.values())
    place = places(dataset.items, space.cells, width)
    counted = cell_rows(histories, place, day, len(space.cells))
    vectors = profiles(counted[[row[user] for user in users]], space.basis, terms.clip)
    if users:
        released, vectors = releases.release(period, terms, space.basis, users, vectors)
    else:
        released = ()  # of nobody nothing is charged
    at = {user: number for number, user in enumerate(released)}
    sent = sorted(link for link, user in owner.items() if user in at)
    return ProfileBatch(
        sender=sender,
        period=period,
        day=day,
        terms=terms,
        cells=tuple(int(cell) for cell in space.cells),
        basis=space.basis,
        links=tuple(sent),
        vectors=vectors[[at[owner[link]] for link in sent]],
    )
