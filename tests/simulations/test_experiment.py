"""One command, three engines: the same numbers within rounding, and one line for every mistake."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from platform_rows import write_platform

from crossrec_model.config import (
    AggregationConfig,
    FederationConfig,
    ModelConfig,
    Plan,
    TrainingConfig,
)
from crossrec_model.evaluation.figures import read_figures
from simulations.__main__ import main
from simulations.processes import as_toml
from simulations.sums import WARNING

PLAN = Plan(
    model=ModelConfig(
        buckets=256,
        dimension=4,
        neighbours=2,
        sketch_width=64,
        tower=(8, 4, 1),
        pair_items=12,
    ),
    training=TrainingConfig(users_per_step=30, history=8, positives=4, negatives=16),
    federation=FederationConfig(rounds=6, min_platforms=3),
    # A grid for three platforms of 70 users, as fine as 32 bits allow: see `_check_alike`.
    aggregation=AggregationConfig(levels=1 << 29, max_weight=128.0),
)
#: The row of a report that a sum of contributions has a part in.
FROM_SUMS = "federated"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("platforms")
    for seed, name in enumerate("ABC"):
        write_platform(home / name, seed, users=70)
    (home / "plan.toml").write_text(as_toml(PLAN), encoding="utf-8")
    return home


@pytest.fixture(scope="module")
def in_one_process(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local") / "report"
    assert main([*_arguments(rows, out), "--figures", str(out / "figures.json")]) == 0
    return out


def _arguments(rows: Path, out: Path) -> list[str]:
    return [
        *("--data", str(rows), "--platforms", "A", "B", "C", "--plan", str(rows / "plan.toml")),
        *("--seeds", "1", "--out", str(out)),
    ]


def _numbers(out: Path) -> dict[str, Any]:
    """The report's JSON without what a run may differ in."""
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return {key: value for key, value in report.items() if key not in {"facts", "run"}}


def test_a_report_in_three_forms_with_all_rows(in_one_process: Path) -> None:
    for form in ("html", "md", "json"):
        text = (in_one_process / f"report.{form}").read_text(encoding="utf-8")
        for row in ("popularity", "item-kNN", "EASE", "local", "federated", "pooled"):
            assert row in text
    names = {figure.figure for figure in read_figures(in_one_process / "figures.json")}
    assert names == {
        "quality.cj.federated_minus_local_low",
        "quality.cj.federated_over_knn_local",
        "quality.cj.federated_over_ease_local",
        "quality.cj.federated_over_pooled",
        "quality.cj.first_over_ease",
        "quality.cj.all_over_ease",
    }


def _check_alike(one: Path, other: Path) -> None:
    """Compare two reports of the same seed of which one or both are of secure sums.

    Secure sums are rounded at random, from the operating system's source, so the shared models
    differ in their last places. Measured over five runs in one process and five in real processes,
    against one without protection: losses differed by up to 1.2e-5, and the mean figure of a group
    by up to 0.6 of what a single user can add to it, since two items of nearly the same score may
    change places in a list. An interval's end, of resamples in which a user may be drawn several
    times, moved by up to a whole user. Allowed are 1e-4, two users and four users. A platform that
    is missing from a single round moves losses by 1e-3. What no sum has a part in is the same to
    the bit.
    """
    first, second = _numbers(one), _numbers(other)
    assert first.keys() == second.keys()
    for part in ("figures", "federated_minus", "totals"):
        assert len(first[part]) == len(second[part]) > 0
        for a, b in zip(first[part], second[part], strict=True):
            if part != "federated_minus" and a["row"] != FROM_SUMS:
                assert a == b
            else:
                _check_figure(a, b)
    for a, b in zip(first["curves"], second["curves"], strict=True):
        assert (a["name"], a["metric"], a["rounds"]) == (b["name"], b["metric"], b["rounds"])
        # The validation figure is one of rankings too, over more than 100 users.
        room = 1e-4 if a["metric"] == "training: loss" else 2 / 100
        assert a["values"] == pytest.approx(b["values"], rel=0, abs=room)
    assert {a["metric"] for a in first["curves"]} == {"training: loss", "evaluation: ndcg@10"}


def _check_figure(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Compare one figure of the federated row; see `_check_alike`."""
    numbers = ("value", "low", "high")
    assert {k: v for k, v in a.items() if k not in numbers} == {
        k: v for k, v in b.items() if k not in numbers
    }
    # A total, such as the share of items that are ever shown, may gain or lose three of 30.
    users = a.get("users", 20)
    for name, room in zip(numbers, (2, 4, 4), strict=True):
        if a.get(name) is None:
            assert b.get(name) is None
        else:
            assert a[name] == pytest.approx(b[name], rel=0, abs=room / max(users, 1)), (a, b)


@pytest.mark.processes
def test_real_processes_give_the_same_numbers_within_rounding(
    rows: Path, in_one_process: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    assert main([*_arguments(rows, tmp_path / "report"), "--processes"]) == 0
    _check_alike(tmp_path / "report", in_one_process)


@pytest.mark.slow
# Ray leaves children of its own behind for the collector to find.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_ray_gives_the_same_numbers(
    rows: Path, in_one_process: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="the optional extra 'ray' is not installed")
    # Ray's future way with accelerators, which no platform has here; it warns of the present one.
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    assert main([*_arguments(rows, tmp_path / "report"), "--engine", "ray"]) == 0
    _check_alike(tmp_path / "report", in_one_process)


def test_without_secure_aggregation_a_seed_gives_the_same_bits_and_a_warning(
    rows: Path, in_one_process: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    for name in ("one", "two"):
        assert main([*_arguments(rows, tmp_path / name), "--no-secure-aggregation"]) == 0
        # The terminal may have broken the line.
        said = " ".join(capsys.readouterr().out.split())
        assert said.count(WARNING) == 1
        assert "keys agreed" not in said
    assert _numbers(tmp_path / "one") == _numbers(tmp_path / "two")
    # What is given up is privacy alone: the secure sum gives these numbers, but for its rounding.
    _check_alike(tmp_path / "one", in_one_process)
    assert _numbers(tmp_path / "one") != _numbers(in_one_process)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--rounds", "2"], "the plan has 2 rounds"),
        (["--seeds", "0"], "--seeds is 0"),
        (["--at-once", "0"], "--at-once is 0"),
        (["--platforms", "A", "Z"], "platform Z has no folder"),
        (["--data", "nowhere"], "--data nowhere holds no platform folders"),
        (["--data", "complete-journey", "--platforms", "D"], "'D'"),
        (["--data", "complete-journey", "--platforms", "D", "--no-secure-aggregation"], "'D'"),
        (
            ["--platforms", "A", "B"],
            "2 platforms are too few for secure aggregation, which needs 3; "
            "name more, or add --no-secure-aggregation",
        ),
        (
            ["--no-secure-aggregation", "--processes"],
            "--no-secure-aggregation works without --processes only",
        ),
        (["--processes", "--engine", "ray"], "exclude each other"),
        (["--device", "quantum"], "quantum"),
        (["--rounds", "many"], "many"),
        (["--platforms", "A", "A", "B"], "names one twice"),
        (["--evaluate-every", "-1"], "--evaluate-every is -1"),
        (["--plan", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_report(
    rows: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changed: list[str],
    message: str,
) -> None:
    out = tmp_path / "report"
    arguments = _arguments(rows, out)
    if changed[0] == "--data":
        arguments = [a for a in arguments if a not in {"--platforms", "A", "B", "C"}]
    assert main([*arguments, *changed]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("error: ")
    assert message in said[0]
    assert not (out / "report.html").exists()


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    aggregation = AggregationConfig(
        levels=1000, bound=0.1, clip_norm=7.0, max_weight=1e9, colluding_share=1 / 7, slots=3
    )
    plan = dataclasses.replace(PLAN, seed=7, aggregation=aggregation)
    (tmp_path / "plan.toml").write_text(as_toml(plan), encoding="utf-8")
    assert Plan.from_toml(tmp_path / "plan.toml") == plan
