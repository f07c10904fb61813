"""The plan: canonical bytes, and one clear refusal for everything outside its bounds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crossrec_model.config import (
    FederationConfig,
    ModelConfig,
    Plan,
    TrainingConfig,
    is_statistics_round,
)
from crossrec_model.errors import ConfigError


def test_equal_plans_have_equal_bytes_and_come_back(tmp_path: Path) -> None:
    plan = Plan(training=TrainingConfig(epochs=3), federation=FederationConfig(rounds=7), seed=4)
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_json(plan.to_json()).to_json() == plan.to_json()
    assert Plan.from_json(b"{}") == Plan()
    path = tmp_path / "plan.toml"
    path.write_text("seed = 4\n[training]\nepochs = 3\n[federation]\nrounds = 7\n")
    assert Plan.from_toml(path) == plan


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
