"""All figures of a comparison, worked out once, and what they say in plain words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from crossrec_model.errors import DataError
from crossrec_model.evaluation.comparison import (
    AVERAGE,
    BootstrapConfig,
    Estimate,
    Estimates,
    estimates,
    totals,
)
from crossrec_model.evaluation.results import ALL_PURCHASES, FIRST_TIME, Group, Result

POPULARITY: Final = "popularity"
OWN_FREQUENCIES: Final = "own frequencies"
ITEM_KNN: Final = "item-kNN"
EASE: Final = "EASE"
LOCAL: Final = "local"
FEDERATED: Final = "federated"
POOLED: Final = "pooled"

#: The order of the table; other rows follow the plain ones. Pooled is the ceiling, not a contender.
ROW_ORDER: Final = (POPULARITY, OWN_FREQUENCIES, ITEM_KNN, EASE, LOCAL, FEDERATED, POOLED)


class Place(NamedTuple):
    """Which part of the figures."""

    view: str
    row: str
    group: Group


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that a report shows, as numbers.

    `differences` holds `FEDERATED` minus the named row, user by user.
    """

    metric: str  # the figure that decides, such as "ndcg@10"
    level: float
    resamples: int
    views: tuple[str, ...]  # the deciding one first
    rows: tuple[str, ...]
    platforms: tuple[str, ...]
    seeds: tuple[int, ...]
    figures: dict[Place, Estimates]
    differences: dict[Place, Estimates]
    totals: dict[tuple[str, str], dict[str, dict[str, float]]]  # (view, row) → name → platform

    @property
    def columns(self) -> tuple[str, ...]:
        """The platforms, then their average."""
        return (*self.platforms, AVERAGE)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all per-user metrics."""
        return tuple(next(iter(self.figures.values())))

    def estimate(
        self, view: str, row: str, column: str, metric: str = "", group: Group = Group.ALL
    ) -> Estimate:
        """One figure of the table; the deciding metric unless another is named."""
        return self.figures[Place(view, row, group)][metric or self.metric][column]

    def gain(
        self, view: str, against: str, column: str = AVERAGE, group: Group = Group.ALL
    ) -> Estimate | None:
        """Federated minus `against` in the deciding metric; None where either row is missing."""
        place = Place(view, against, group)
        return self.differences[place][self.metric][column] if place in self.differences else None

    def best(self, view: str, column: str, metric: str = "", group: Group = Group.ALL) -> set[str]:
        """The rows with the highest value in a column, the ceiling apart."""
        values = {
            row: self.estimate(view, row, column, metric, group).value
            for row in self.rows
            if row != POOLED
        }
        known = [value for value in values.values() if not math.isnan(value)]
        return {row for row, value in values.items() if known and value == max(known)}


def find(
    results: Sequence[Result],
    *,
    generator: np.random.Generator,
    metric: str = "ndcg@10",
    config: BootstrapConfig | None = None,
) -> Findings:
    """Work out every mean, difference and interval.

    Every row must have been measured on the same users of the same platforms in every view.

    Raises:
        DataError: no results, an unknown metric, or rows that don't pair.
    """
    if not results:
        raise DataError("there are no results to report; measure at least one row")
    settings = config or BootstrapConfig()
    views, rows = _views(results), _rows(results)
    figures: dict[Place, Estimates] = {}
    differences: dict[Place, Estimates] = {}
    coverages = {}
    for view in views:
        for row in rows:
            coverages[view, row] = totals(results, row=row, view=view)
            for group in Group:
                place = Place(view, row, group)
                figures[place] = estimates(
                    results, row=row, view=view, group=group, generator=generator, config=settings
                )
                if FEDERATED in rows and row != FEDERATED:
                    differences[place] = estimates(
                        results,
                        row=FEDERATED,
                        against=row,
                        view=view,
                        group=group,
                        generator=generator,
                        config=settings,
                    )
    _refuse_uneven(figures, metric)
    return Findings(
        metric=metric,
        level=settings.level,
        resamples=settings.resamples,
        views=views,
        rows=rows,
        platforms=tuple(sorted({result.platform for result in results})),
        seeds=tuple(sorted({result.seed for result in results})),
        figures=figures,
        differences=differences,
        totals=coverages,
    )


def _refuse_uneven(figures: dict[Place, Estimates], metric: str) -> None:
    """Every row needs the same metrics and platforms, or the table would have holes."""
    places = iter(figures.items())
    first, model = next(places)
    if metric not in model:
        known = ", ".join(model) or "none"
        raise DataError(f"metric '{metric}' was not measured; measured: {known}")
    for place, table in places:
        if table.keys() != model.keys() or table[metric].keys() != model[metric].keys():
            raise DataError(
                f"row '{place.row}' in view '{place.view}' has other metrics or platforms than row "
                f"'{first.row}'; measure all rows alike"
            )


def _views(results: Sequence[Result]) -> tuple[str, ...]:
    """First-time purchases decide where they were measured; what is bought anyway says little."""
    found = dict.fromkeys(result.view for result in results)
    known = [view for view in (FIRST_TIME, ALL_PURCHASES) if view in found]
    return (*known, *(view for view in found if view not in known))


def _rows(results: Sequence[Result]) -> tuple[str, ...]:
    found = list(dict.fromkeys(result.row for result in results))
    others = [row for row in found if row not in ROW_ORDER]
    split = ROW_ORDER.index(LOCAL)
    order = [*ROW_ORDER[:split], *others, *ROW_ORDER[split:]]
    return tuple(row for row in order if row in found)
