"""Means and differences of rows, with paired bootstrap intervals over users.

Users are resampled inside each platform, and the average weighs every platform the same. A row
that was trained with several seeds enters as the mean over its seeds of each user's metric, so the
interval is about users; how much training luck moves the figure is `Estimate.seed_sd`, apart from
it. A person who shops on two platforms counts as two users.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from crossrec_model.errors import ConfigError, DataError
from crossrec_model.evaluation.metrics import Floats
from crossrec_model.evaluation.results import Group, Result

#: Stands for the mean of the platforms' figures where a platform's name would stand.
AVERAGE: Final = "average"


@dataclass(frozen=True, kw_only=True)
class BootstrapConfig:
    """Percentile bootstrap (Efron and Tibshirani 1993, chapter 13)."""

    resamples: int = 2000
    level: float = 0.95

    def __post_init__(self) -> None:
        if self.resamples < 100:
            raise ConfigError(f"resamples is {self.resamples}; an interval needs at least 100")
        if not 0 < self.level < 1:
            raise ConfigError(f"level is {self.level}; it must lie between 0 and 1, such as 0.95")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its interval.

    `seed_sd` is the standard deviation of the figure between seeds, None with one seed. `users` is
    how many users count; with 0 users, value and bounds are NaN.
    """

    value: float
    low: float
    high: float
    users: int
    seeds: int
    seed_sd: float | None


Estimates = dict[str, dict[str, Estimate]]  # metric → platform or AVERAGE → figure


def estimates(
    results: Sequence[Result],
    *,
    row: str,
    view: str,
    generator: np.random.Generator,
    against: str | None = None,
    group: Group = Group.ALL,
    config: BootstrapConfig | None = None,
) -> Estimates:
    """Every metric of `row`, or `row` minus `against` user by user, with intervals.

    Args:
        results: all rows, platforms, views and seeds; only those asked for are used.
        row: the row's name.
        view: the view's name.
        generator: where the resamples are drawn from; the same state gives the same intervals.
        against: the row to take away, on the same users. None gives plain means.
        group: cold or warm users only. A platform without such users doesn't enter the average.
        config: number of resamples and level.

    Returns:
        metric → platform → estimate, platforms in alphabetical order, then `AVERAGE`.

    Raises:
        DataError: a row is missing on a platform, its users or seeds differ, or it stands twice.
    """
    settings = config or BootstrapConfig()
    first = _by_platform(results, row, view)
    second = None if against is None else _by_platform(results, against, view)
    if second is not None and first.keys() != second.keys():
        raise DataError(
            f"row '{row}' was measured on {', '.join(first)}, row '{against}' on "
            f"{', '.join(second)}; measure both on the same platforms"
        )
    names = _common_metrics([*first.values(), *(second or {}).values()])
    tensors, draws = {}, {}
    for platform, runs in first.items():
        other = None if second is None else second[platform]
        values = _difference(runs, other, names)  # [seeds, users, metrics]
        values = values[:, runs[0].members(group)]
        tensors[platform] = values
        draws[platform] = _resample(_mean(values, 0), generator, settings.resamples)
    return {
        name: _figures(
            {platform: tensors[platform][:, :, m] for platform in tensors},
            {platform: draws[platform][:, m] for platform in draws},
            settings,
        )
        for m, name in enumerate(names)
    }


def totals(results: Sequence[Result], *, row: str, view: str) -> dict[str, dict[str, float]]:
    """Figures over whole lists (coverage), mean of seeds: name → platform or `AVERAGE` → value."""
    chosen = _by_platform(results, row, view)
    names = sorted(set.intersection(*(set(run.totals) for runs in chosen.values() for run in runs)))
    table: dict[str, dict[str, float]] = {}
    for name in names:
        cells = {
            platform: float(np.mean([run.totals[name] for run in runs]))
            for platform, runs in chosen.items()
        }
        table[name] = {**cells, AVERAGE: float(np.mean(list(cells.values())))}
    return table


def _by_platform(results: Sequence[Result], row: str, view: str) -> dict[str, list[Result]]:
    """The runs of a row on each platform, by seed; same users, and all seeds everywhere."""
    chosen: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda r: (r.platform, r.seed)):
        if result.row == row and result.view == view:
            chosen.setdefault(result.platform, []).append(result)
    if not chosen:
        rows = ", ".join(sorted({r.row for r in results if r.view == view})) or "none"
        raise DataError(f"there is no row '{row}' in the view '{view}'; rows there: {rows}")
    seeds = {platform: [run.seed for run in runs] for platform, runs in chosen.items()}
    expected = next(iter(seeds.values()))
    for platform, runs in chosen.items():
        if platform == AVERAGE:
            raise DataError(f"a platform can't be called '{AVERAGE}'; rename it")
        if seeds[platform] != expected or len(set(expected)) != len(expected):
            raise DataError(
                f"row '{row}' has seeds {seeds[platform]} on platform {platform}; need each of "
                f"{sorted(set(expected))} once on every platform"
            )
        _same_users(runs, runs[0])
    return chosen


def _same_users(runs: Sequence[Result], model: Result) -> None:
    for run in runs:
        if not np.array_equal(run.users, model.users) or not np.array_equal(run.warm, model.warm):
            raise DataError(
                f"rows '{model.row}' (seed {model.seed}) and '{run.row}' (seed {run.seed}) have "
                f"different users on platform {run.platform}; measure both on the same view"
            )


def _common_metrics(groups: Sequence[Sequence[Result]]) -> list[str]:
    runs = [run for group in groups for run in group]
    return [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]


def _difference(
    runs: Sequence[Result], others: Sequence[Result] | None, names: Sequence[str]
) -> Floats:
    """`[seeds, users, metrics]`; seeds are paired where both rows have the same ones."""
    values = _stack(runs, names)
    if others is None:
        return values
    _same_users(others, runs[0])
    minus = _stack(others, names)
    if [run.seed for run in runs] == [run.seed for run in others]:
        return values - minus
    if len(others) > 1 and len(runs) > 1:
        raise DataError(
            f"rows '{runs[0].row}' and '{others[0].row}' have different seeds on platform "
            f"{runs[0].platform}; give both the same seeds, or one of them a single run"
        )
    return values - minus  # the single run stands against each seed of the other


def _stack(runs: Sequence[Result], names: Sequence[str]) -> Floats:
    stacked = [
        np.stack([run.metrics[name] for name in names], axis=1)
        if names
        else np.empty((len(run.users), 0))
        for run in runs
    ]
    return np.stack(stacked)


def _mean(values: Floats, axis: int) -> Floats:
    """Mean of what is not NaN; NaN (and no warning) where nothing is left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        mean: Floats = np.nanmean(values, axis=axis)
    return mean


def _resample(values: Floats, generator: np.random.Generator, resamples: int) -> Floats:
    """Means `[resamples, metrics]` of users `[users, metrics]` drawn with replacement.

    A metric is resampled among the users who have it, so that NaN users can't thin a draw out.
    Metrics with the same users share their draws.
    """
    means = np.full((resamples, values.shape[1]), np.nan)
    known = ~np.isnan(values)
    patterns = {column.tobytes(): column for column in known.T}
    for pattern in patterns.values():
        columns = np.flatnonzero((known == pattern[:, None]).all(axis=0))
        sample = values[np.ix_(pattern, columns)]  # [users, metrics]
        users = len(sample)
        step = max(1, 4_000_000 // max(users, 1))  # bounds the weights at 32 MB
        for start in range(0, resamples if users else 0, step):
            count = min(step, resamples - start)
            drawn = generator.integers(users, size=(count, users))
            drawn += users * np.arange(count)[:, None]
            weights = np.bincount(drawn.ravel(), minlength=count * users).reshape(count, users)
            means[start : start + count, columns] = weights.astype(np.float64) @ sample / users
    return means


def _figures(
    values: dict[str, Floats], draws: dict[str, NDArray[np.float64]], config: BootstrapConfig
) -> dict[str, Estimate]:
    """Estimates of one metric on each platform (`[seeds, users]`) and of the average."""
    figures, seed_means, used = {}, [], []
    for platform, matrix in values.items():
        by_seed = _mean(matrix, 1)  # [seeds]
        users = int((~np.isnan(_mean(matrix, 0))).sum())
        mean = float(_mean(_mean(matrix, 0), 0)) if users else float("nan")
        figures[platform] = _estimate(mean, draws[platform], by_seed, users, config)
        if users:
            seed_means.append(by_seed)
            used.append(platform)
    if used:
        mean = float(np.mean([figures[platform].value for platform in used]))
        together = np.mean([draws[platform] for platform in used], axis=0)
        total = sum(figures[platform].users for platform in used)
        average = _estimate(mean, together, np.mean(seed_means, axis=0), total, config)
    else:
        seeds = next(iter(figures.values())).seeds
        nan = float("nan")
        average = Estimate(value=nan, low=nan, high=nan, users=0, seeds=seeds, seed_sd=None)
    return {**figures, AVERAGE: average}


def _estimate(
    value: float, draws: Floats, by_seed: Floats, users: int, config: BootstrapConfig
) -> Estimate:
    tail = (1 - config.level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail]) if users else (np.nan, np.nan)
    spread = float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 and users else None
    return Estimate(
        value=value,
        low=float(low),
        high=float(high),
        users=users,
        seeds=len(by_seed),
        seed_sd=spread,
    )
