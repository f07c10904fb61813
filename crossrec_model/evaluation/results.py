"""What is asked of a row (`View`) and what came out (`Result`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from crossrec_model.errors import ConfigError, DataError
from crossrec_model.evaluation.metrics import (
    Floats,
    accuracy,
    auc,
    binary,
    hits,
    top_items,
)
from crossrec_model.evaluation.variety import coverage, diversity, novelty

#: A user with at most so many interactions in the history is cold.
COLD_LIMIT: Final = 5

ALL_PURCHASES: Final = "all purchases"
FIRST_TIME: Final = "first-time purchases"


class Group(StrEnum):
    """Which users a figure is about."""

    ALL = "all"
    COLD = "cold"
    WARM = "warm"


@dataclass(frozen=True, kw_only=True)
class View:
    """The test users of one platform, what they should be shown and what not.

    All matrices have the same users in the same order; items are the platform's catalogue.
    """

    platform: str
    name: str
    users: NDArray[np.int64]  # [users], the platform's user numbers; they pair two rows
    relevant: Any  # sparse [users, items]
    excluded: Any  # sparse [users, items]
    warm: NDArray[np.bool_]  # [users]
    item_features: Any  # [items, features], for diversity
    buyers: NDArray[np.int64]  # [items], users who bought the item in the history
    population: int  # users in the history

    def __post_init__(self) -> None:
        users, items = self.relevant.shape
        shapes = {
            "users": (self.users.shape, (users,)),
            "excluded": (self.excluded.shape, (users, items)),
            "warm": (self.warm.shape, (users,)),
            "item_features": (self.item_features.shape[:1], (items,)),
            "buyers": (self.buyers.shape, (items,)),
        }
        for name, (found, needed) in shapes.items():
            if found != needed:
                raise DataError(
                    f"view '{self.name}' of platform {self.platform}: {name} has shape {found}; "
                    f"with relevant {(users, items)} it must be {needed}"
                )
        if len(np.unique(self.users)) != users:
            raise DataError(f"view '{self.name}' of platform {self.platform}: a user stands twice")


def purchase_views(
    *,
    platform: str,
    users: NDArray[np.int64],
    history: Any,
    purchases: Any,
    item_features: Any,
    buyers: NDArray[np.int64],
    population: int,
) -> tuple[View, View]:
    """The two views of the same purchases: all of them, and first-time purchases only.

    Args:
        platform: the platform's name.
        users: `[users]`, numbers of the users who bought something in the test period.
        history: sparse `[users, items]`, how often each of them bought an item before.
        purchases: sparse `[users, items]`, non-zero for what she bought in the test period.
        item_features: `[items, features]`, such as `category_features`.
        buyers: `[items]`, users of the whole platform who bought the item in the history.
        population: users of the whole platform in the history.

    Returns:
        (all purchases, nothing excluded; first-time purchases, the user's history excluded). A user
        who bought only known items stays in the second view, with an empty set, hence NaN.
    """
    before, bought = binary(history), binary(purchases)
    # Counts, not distinct items: five visits for the same milk are five interactions.
    warm = np.asarray(np.asarray(history.sum(axis=1)).ravel() > COLD_LIMIT)
    first = (bought.astype(np.int8) - bought.multiply(before).astype(np.int8)).astype(bool)
    nothing = binary(0 * bought.astype(np.int8))

    def view(name: str, relevant: Any, excluded: Any) -> View:
        return View(
            platform=platform,
            name=name,
            users=users,
            relevant=binary(relevant),
            excluded=excluded,
            warm=warm,
            item_features=item_features,
            buyers=buyers,
            population=population,
        )

    return view(ALL_PURCHASES, bought, nothing), view(FIRST_TIME, first, before)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One row of the table on one platform, in one view, trained with one seed."""

    row: str
    platform: str
    view: str
    seed: int
    users: NDArray[np.int64]  # [users]
    warm: NDArray[np.bool_]  # [users]
    metrics: Mapping[str, Floats]  # each [users]; NaN where a user has no such figure
    totals: Mapping[str, float] = field(default_factory=dict)  # over all lists, such as coverage

    def __post_init__(self) -> None:
        where = f"result of row '{self.row}' on platform {self.platform}"
        for name, values in self.metrics.items():
            if values.shape != self.users.shape:
                raise DataError(
                    f"{where}: {name} has shape {values.shape}; need {self.users.shape}"
                )
            if np.isinf(values).any():
                raise DataError(f"{where}: {name} holds infinity; figures must be finite or NaN")
        if self.warm.shape != self.users.shape:
            raise DataError(f"{where}: warm has shape {self.warm.shape}; need {self.users.shape}")

    def members(self, group: Group) -> NDArray[np.bool_]:
        """Boolean `[users]`: who belongs to the group."""
        if group is Group.ALL:
            return np.ones(len(self.users), dtype=bool)
        return self.warm if group is Group.WARM else ~self.warm


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """Cut-offs of the metrics, and how many users are measured at a time."""

    cutoffs: tuple[int, ...] = (10, 50)
    chunk_users: int = 256  # 256 users × 16,000 items take about 150 MB while they are ranked

    def __post_init__(self) -> None:
        if not self.cutoffs or min(self.cutoffs) < 1:
            raise ConfigError(f"cut-offs {self.cutoffs} must be one or more numbers ≥ 1")
        if self.chunk_users < 1:
            raise ConfigError(f"chunk_users is {self.chunk_users}; it must be ≥ 1")


def measure(
    scores: NDArray[Any],
    view: View,
    *,
    row: str,
    seed: int = 0,
    config: MeasureConfig | None = None,
) -> Result:
    """Rank every user's items by `scores` `[users, items]` and measure the lists.

    Raises:
        DataError: NaN or +∞ among the scores, shapes that differ, or an item that is both relevant
            and excluded.
    """
    settings = config or MeasureConfig()
    users, items = view.relevant.shape
    if scores.shape != (users, items):
        raise DataError(
            f"row '{row}' on platform {view.platform}: scores have shape {scores.shape}, the view "
            f"'{view.name}' needs {(users, items)}"
        )
    relevant, excluded = binary(view.relevant), binary(view.excluded)
    pieces: list[dict[str, Floats]] = []
    lists = []
    for start in range(0, max(users, 1), settings.chunk_users):  # no users: one empty chunk
        part = slice(start, min(start + settings.chunk_users, users))
        ranked = top_items(scores[part], excluded[part], max(settings.cutoffs))
        wanted = relevant[part]
        found, size = hits(ranked, wanted), np.diff(wanted.indptr)
        piece = {"auc": auc(scores[part], wanted, excluded[part])}
        for k in settings.cutoffs:
            piece |= accuracy(found, size, k)
            piece[f"diversity@{k}"] = diversity(ranked[:, :k], view.item_features)
            piece[f"novelty@{k}"] = novelty(ranked[:, :k], view.buyers, view.population)
        pieces.append(piece)
        lists.append(ranked)
    return Result(
        row=row,
        platform=view.platform,
        view=view.name,
        seed=seed,
        users=view.users,
        warm=view.warm,
        metrics={name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]},
        totals={
            f"coverage@{k}": coverage(np.concatenate(lists)[:, :k], items) for k in settings.cutoffs
        },
    )
