"""What differential privacy costs: quality at each epsilon beside local, federated and pooled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from crossrec_model.config import Noise
from crossrec_model.evaluation.comparison import (
    AVERAGE,
    BootstrapConfig,
    Estimate,
    estimates,
)
from crossrec_model.evaluation.findings import FEDERATED, LOCAL, POOLED
from crossrec_model.evaluation.results import FIRST_TIME, Result

#: Column (a platform or `AVERAGE`) → figure.
Line = dict[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class PrivateRow:
    """A federated run with noise: `noise` is local or distributed, `epsilon` of each user at `delta`."""

    noise: Noise
    epsilon: float
    delta: float

    @property
    def name(self) -> str:
        """The row's name in every table."""
        return f"{self.noise} noise, ε = {self.epsilon:g}"


@dataclass(frozen=True, kw_only=True)
class PrivacyCost:
    """Levels of every row, and of all but local what it gains over local, in one metric and view."""

    metric: str
    view: str
    rows: tuple[PrivateRow, ...]
    levels: dict[str, Line]
    gains: dict[str, Line]

    @property
    def columns(self) -> tuple[str, ...]:
        """The platforms, then their average."""
        return tuple(self.levels[LOCAL])

    @property
    def delta(self) -> float:
        """Of all rows; the largest where they differ."""
        return max(row.delta for row in self.rows)

    def series(self) -> Iterator[tuple[str, list[tuple[float, Estimate]]]]:
        """For each kind of noise its points (epsilon, average), from the largest epsilon down."""
        for noise in dict.fromkeys(row.noise for row in self.rows):
            kept = sorted((r for r in self.rows if r.noise == noise), key=lambda r: -r.epsilon)
            yield noise, [(row.epsilon, self.levels[row.name][AVERAGE]) for row in kept]

    def worst(self) -> tuple[float, Estimate]:
        """Over all private rows and columns: the lowest gain over local, and that of lowest upper end."""
        found = [gain for row in self.rows for gain in self.gains[row.name].values()]
        return min(gain.value for gain in found), min(found, key=lambda gain: gain.high)


def privacy_cost(
    results: Sequence[Result],
    rows: Sequence[PrivateRow],
    *,
    generator: np.random.Generator,
    metric: str = "ndcg@10",
    view: str = FIRST_TIME,
    config: BootstrapConfig | None = None,
) -> PrivacyCost:
    """Work out levels and gains over local of the private rows and of those that stand beside them.

    Raises:
        DataError: for a row that was not measured; local, federated and pooled must have been.
    """
    settings = config or BootstrapConfig()
    names = (LOCAL, FEDERATED, *(row.name for row in rows), POOLED)

    def line(name: str, against: str | None) -> Line:
        return estimates(
            results, row=name, view=view, generator=generator, against=against, config=settings
        )[metric]

    return PrivacyCost(
        metric=metric,
        view=view,
        rows=tuple(rows),
        levels={name: line(name, None) for name in names},
        gains={name: line(name, LOCAL) for name in names if name != LOCAL},
    )
