"""The plan: canonical bytes, and one clear refusal for everything outside its bounds."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import pytest

from crossrec_model.config import (
    AggregationConfig,
    FederationConfig,
    ModelConfig,
    Plan,
    TrainingConfig,
    is_statistics_round,
)
from crossrec_model.errors import ConfigError
from crossrec_model.secagg.grid import Grid


def test_equal_plans_have_equal_bytes_and_come_back(tmp_path: Path) -> None:
    plan = Plan(training=TrainingConfig(epochs=3), federation=FederationConfig(rounds=7), seed=4)
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_json(plan.to_json()).to_json() == plan.to_json()
    assert Plan.from_json(b"{}") == Plan()
    path = tmp_path / "plan.toml"
    path.write_text("seed = 4\n[training]\nepochs = 3\n[federation]\nrounds = 7\n")
    assert Plan.from_toml(path) == plan


def test_the_terms_of_the_sum_are_part_of_the_plan(tmp_path: Path) -> None:
    aggregation = AggregationConfig(
        levels=1000,
        bound=2.0,
        clip_norm=3.0,
        max_weight=50.0,
        colluding_share=0.25,
        slots=7,
    )
    plan = Plan(aggregation=aggregation)
    assert Plan.from_json(plan.to_json()) == plan
    path = tmp_path / "plan.toml"
    # A whole number may stand for a broken one, so that nobody has to write 50.0.
    path.write_text(
        "[aggregation]\nlevels = 1000\nbound = 2\nclip_norm = 3\nmax_weight = 50\n"
        "colluding_share = 0.25\nslots = 7\n"
    )
    assert Plan.from_toml(path).to_json() == plan.to_json()
    # Each term changes the bytes that all platforms agree on.
    default = Plan().to_json()
    for name, value in dataclasses.asdict(aggregation).items():
        one = replace(Plan().aggregation, **{name: value})
        assert Plan(aggregation=one).to_json() != default
        assert json.loads(Plan(aggregation=one).to_json())["aggregation"][name] == value


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("levels", 2, (2**31) // 3),
        ("bound", 1e-6, 1e6),
        ("clip_norm", 1e-6, 1e9),
        ("max_weight", 1.0, 1e9),
        ("colluding_share", 0.0, 1.0),
        ("slots", 1, 1024),
    ],
)
def test_the_terms_of_the_sum_have_bounds(name, least, most) -> None:
    for value in (least, most):
        assert getattr(AggregationConfig(**{name: value}), name) == value
    outside = [least - 1, most + 1, float("nan"), float("inf"), float("-inf")]
    for value in outside:
        with pytest.raises(ConfigError, match=rf"aggregation.{name} = \S+ is outside") as caught:
            AggregationConfig(**{name: value})
        assert "\n" not in str(caught.value)


def test_three_platforms_always_fit_the_finest_grid() -> None:
    finest = AggregationConfig(levels=(1 << 31) // 3)
    assert Grid.of(finest, ()).bits(3) == 32
    # The largest bounds that a plan may state are possible on a grid, too.
    widest = AggregationConfig(bound=1e6, max_weight=1e9)
    assert Grid.of(widest, ("loss",)).metric_bounds == (64.0,)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"model": {"buckets": 15}}, r"model.buckets = 15 is outside \[16, "),
        ({"training": {"learning_rate": float("nan")}}, "learning_rate = nan is outside"),
        ({"training": {"objective": "hinge"}}, "'hinge' is unknown; choose one of softmax, bce"),
        ({"training": {"epochs": 1.5}}, "training.epochs = 1.5 must be of type int"),
        ({"training": {"epochs": True}}, "must be of type int"),
        ({"federation": {"rounds": 0}}, "federation.rounds = 0 is outside"),
        ({"model": {"relations": ["self", "friend"]}}, "'friend' is unknown"),
        ({"model": {"relations": []}}, "must name at least one relation"),
        ({"model": {"relations": ["self", "brand", "brand"]}}, "each only once"),
        ({"model": {"tower": [128, -5, 1]}}, r"model.tower = -5 is outside \[1, "),
        ({"model": {"colour": 1}}, "model.colour is unknown; known: buckets"),
        ({"colour": 1}, "plan key 'colour' is unknown"),
        ({"model": 3}, "model must be a table"),
        ({"aggregation": {"levels": 1}}, r"aggregation.levels = 1 is outside \[2, 715827882\]"),
        ({"aggregation": {"levels": 2.0}}, "aggregation.levels = 2.0 must be of type int"),
        ({"aggregation": {"bound": "1"}}, "aggregation.bound = '1' must be of type float"),
        ({"aggregation": {"slots": True}}, "aggregation.slots = True must be of type int"),
        ({"aggregation": {"colour": 1}}, "aggregation.colour is unknown; known: levels, bound"),
        ({"aggregation": [1]}, "aggregation must be a table"),
        ({"seed": -1}, "seed = -1 is outside"),
        ({"seed": "1"}, "seed = '1' is not a whole number"),
        ([], "plan must be a table"),
    ],
)
def test_a_bad_plan_is_one_clear_line(document, said) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        Plan.from_document(document)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000])
def test_bytes_that_are_no_json(data) -> None:
    with pytest.raises(ConfigError, match="not valid JSON"):
        Plan.from_json(data)


def test_the_tower_must_fit_the_dimension() -> None:
    good = ModelConfig(dimension=8, tower=(16, 4, 1))
    assert json.loads(Plan(model=good).to_json())["model"]["tower"] == [16, 4, 1]
    for tower in ((15, 4, 1), (16, 4), (1,), ()):
        with pytest.raises(ConfigError, match="must start at"):
            ModelConfig(dimension=8, tower=tower)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        Plan.from_toml(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("seed = = 1")
    with pytest.raises(ConfigError, match="can't be read"):
        Plan.from_toml(tmp_path / "bad.toml")


def test_the_first_and_the_last_round_carry_statistics() -> None:
    assert [n for n in range(1, 6) if is_statistics_round(n, 5)] == [1, 5]


def test_pairs_have_rounds_of_their_own_behind_those_of_popularity() -> None:
    plan = Plan(model=ModelConfig(pair_items=8), federation=FederationConfig(rounds=7))
    found = [plan.work_of(number) for number in range(1, 8)]
    training = ["training"] * 3
    assert found == ["popularity", "pairs", *training, "popularity", "pairs"]
    assert plan.training_rounds == 3
    assert plan.validation_rounds() == range(2, 6)
    without = replace(plan, model=ModelConfig())
    assert [without.work_of(n) for n in (1, 2, 6, 7)] == [
        *("popularity", "training", "training", "popularity"),
    ]
    assert without.validation_rounds() == range(1, 7)
    short = replace(plan, federation=FederationConfig(rounds=4))
    with pytest.raises(ConfigError, match="4 rounds, at least 5 are needed"):
        short.check_rounds()
