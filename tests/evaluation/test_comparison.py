from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats

from crossrec_model.errors import ConfigError, DataError
from crossrec_model.evaluation.comparison import AVERAGE, BootstrapConfig, estimates, totals
from crossrec_model.evaluation.results import Group, Result

VIEW = "first-time purchases"


def result(
    row: str,
    values: list[float] | np.ndarray,
    *,
    platform: str = "A",
    seed: int = 0,
    warm: list[bool] | None = None,
    coverage: float = 0.5,
) -> Result:
    return Result(
        row=row,
        platform=platform,
        view=VIEW,
        seed=seed,
        users=np.arange(len(values)),
        warm=np.array(warm if warm is not None else [True] * len(values), dtype=bool),
        metrics={"m": np.array(values, dtype=np.float64)},
        totals={"coverage@10": coverage},
    )


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def figure(results: list[Result], platform: str = AVERAGE, **asked: object):
    asked = {"row": "x", "view": VIEW, "generator": rng(), **asked}
    return estimates(results, **asked)["m"][platform]


def test_mean_and_percentile_interval_agree_with_scipy() -> None:
    values = rng().gamma(0.5, 1.0, 150)
    got = figure([result("x", values)], "A", config=BootstrapConfig(resamples=20_000))
    reference = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert got.value == pytest.approx(values.mean())
    assert got.low == pytest.approx(reference.low, abs=0.01)
    assert got.high == pytest.approx(reference.high, abs=0.01)


def test_difference_is_paired() -> None:
    base = rng().normal(size=400)
    results = [result("x", base + 0.01), result("y", base)]
    got = figure(results, "A", against="y")
    # Unpaired, the interval would be about ±0.14 wide.
    assert (got.low, got.value, got.high) == pytest.approx((0.01, 0.01, 0.01))


def test_average_weighs_platforms_not_users_and_is_stratified() -> None:
    small, large = rng().normal(1.0, 1.0, 40), rng().normal(3.0, 1.0, 4000)
    results = [result("x", small), result("x", large, platform="B")]
    got = figure(results, config=BootstrapConfig(resamples=8000))
    assert got.value == pytest.approx((small.mean() + large.mean()) / 2)
    assert got.users == 4040
    error = np.sqrt(small.var() / 40 + large.var() / 4000) / 2
    assert got.high - got.low == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(11)
    covered = 0
    for _ in range(200):
        sample = [result("x", generator.normal(0.3, 1.0, 60)), result("y", np.zeros(60))]
        got = figure(
            sample, "A", against="y", generator=generator, config=BootstrapConfig(resamples=400)
        )
        covered += got.low <= 0.3 <= got.high
    assert 0.89 <= covered / 200 <= 0.98


def test_seeds_are_averaged_first_and_their_spread_told() -> None:
    results = [
        result("x", [0.0, 2.0]),
        result("x", [1.0, 3.0], seed=1),
        result("x", [5, 7], seed=2),
    ]
    got = figure(results, "A")
    assert got.value == pytest.approx(3.0)
    assert got.seeds == 3
    assert got.seed_sd == pytest.approx(np.std([1.0, 2.0, 6.0], ddof=1))
    # A user's mean over seeds is 2 or 4, so no resample leaves that range.
    assert 2 <= got.low <= got.high <= 4
    assert figure([result("x", [0.0, 2.0])], "A").seed_sd is None


def test_seeds_of_a_difference_are_paired_or_one_stands_against_all() -> None:
    results = [
        *(result("x", [s, s + 1.0], seed=s) for s in (0, 1, 2)),
        *(result("y", [s, s + 0.5], seed=s) for s in (0, 1, 2)),
        result("z", [0.0, 1.0]),
        *(result("w", [0.0, 1.0], seed=s) for s in (5, 6)),
    ]
    assert figure(results, "A", against="y").seed_sd == pytest.approx(0)
    assert figure(results, "A", against="z").seed_sd == pytest.approx(1)
    assert figure(results, "A", row="z", against="x").value == pytest.approx(-1)
    with pytest.raises(DataError, match="different seeds"):
        figure(results, "A", against="w")


def test_users_without_the_figure_are_left_out_of_every_draw() -> None:
    values = [np.nan] * 50 + [1.0]
    got = figure([result("x", values)], "A")
    assert (got.value, got.low, got.high, got.users) == (1.0, 1.0, 1.0, 1)


def test_cold_and_warm_apart_and_a_platform_without_cold_users_left_out() -> None:
    results = [
        result("x", [0.0, 1.0, 1.0], warm=[False, True, True]),
        result("x", [0.5, 0.5], platform="B", warm=[True, True]),
    ]
    cold = estimates(results, row="x", view=VIEW, generator=rng(), group=Group.COLD)["m"]
    assert cold["A"].value == 0
    assert np.isnan(cold["B"].value)
    assert cold["B"].users == 0
    assert (cold[AVERAGE].value, cold[AVERAGE].users) == (0.0, 1)
    assert figure(results, group=Group.WARM).value == pytest.approx(0.75)


def test_nobody_in_the_group_gives_nan_not_a_warning() -> None:
    got = figure([result("x", [1.0])], group=Group.COLD)
    assert np.isnan([got.value, got.low, got.high]).all()
    assert (got.users, got.seed_sd) == (0, None)
    assert np.isnan(figure([result("x", [])]).value)


def test_same_generator_state_gives_the_same_interval() -> None:
    results = [result("x", rng().normal(size=30))]
    assert figure(results) == figure(results)
    assert figure(results) != figure(results, generator=np.random.default_rng(8))


def test_many_users_are_drawn_in_steps() -> None:
    got = figure([result("x", rng().normal(size=50_000))], config=BootstrapConfig(resamples=100))
    assert got.low < got.value < got.high
    assert got.high - got.low == pytest.approx(2 * 1.96 / np.sqrt(50_000), rel=0.3)


def test_rows_that_do_not_pair_are_refused() -> None:
    x, y = result("x", [0.0, 1.0]), result("y", [0.0, 1.0])
    strangers = dataclasses.replace(y, users=np.array([0, 9]))
    with pytest.raises(DataError, match="different users"):
        figure([x, strangers], against="y")
    with pytest.raises(DataError, match="same platforms"):
        figure([x, result("y", [0.0], platform="B")], against="y")
    with pytest.raises(DataError, match="no row 'y'"):
        figure([x], against="y")
    with pytest.raises(DataError, match="once on every platform"):
        figure([x, x])
    with pytest.raises(DataError, match="once on every platform"):
        figure([x, result("x", [0.0], platform="B", seed=1)])
    with pytest.raises(DataError, match="rename"):
        figure([dataclasses.replace(x, platform=AVERAGE)])


@pytest.mark.parametrize("bad", [{"resamples": 99}, {"level": 1.0}, {"level": float("nan")}])
def test_impossible_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        BootstrapConfig(**bad)


def test_totals_are_means_over_seeds_then_platforms() -> None:
    results = [
        result("x", [0.0], coverage=0.1),
        result("x", [0.0], coverage=0.3, seed=1),
        result("x", [0.0], platform="B", coverage=0.6),
        result("x", [0.0], platform="B", coverage=0.6, seed=1),
    ]
    got = totals(results, row="x", view=VIEW)["coverage@10"]
    assert got == pytest.approx({"A": 0.2, "B": 0.6, AVERAGE: 0.4})
