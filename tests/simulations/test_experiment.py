"""One command, three engines: the same numbers for the same seed, and one line for every mistake."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from platform_rows import write_platform

from crossrec_model.config import FederationConfig, ModelConfig, Plan, TrainingConfig
from crossrec_model.evaluation.figures import read_figures
from simulations.__main__ import main
from simulations.processes import as_toml

PLAN = Plan(
    model=ModelConfig(buckets=256, dimension=4, neighbours=2, sketch_width=64, tower=(8, 4, 1)),
    training=TrainingConfig(users_per_step=30, history=8, positives=4, negatives=16),
    federation=FederationConfig(rounds=4, min_platforms=3),
)


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


def _numbers(out: Path) -> dict[str, object]:
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
    }


def _assert_near(one: object, other: object) -> None:
    """Equal but for rounding, which is drawn anew in every run: 70 users of 65,536 make it coarse."""
    if isinstance(one, dict) and isinstance(other, dict):
        assert one.keys() == other.keys()
        for key in one.keys() - {"summary"}:
            _assert_near(one[key], other[key])
    elif isinstance(one, list) and isinstance(other, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            _assert_near(a, b)
    elif isinstance(one, float) and isinstance(other, float):
        assert one == pytest.approx(other, abs=0.05)


@pytest.mark.processes
def test_real_processes_give_the_same_numbers(
    rows: Path, in_one_process: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    assert main([*_arguments(rows, tmp_path / "report"), "--processes"]) == 0
    _assert_near(_numbers(tmp_path / "report"), _numbers(in_one_process))


@pytest.mark.slow
def test_ray_gives_the_same_numbers(rows: Path, in_one_process: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the optional extra 'ray' is not installed")
    assert main([*_arguments(rows, tmp_path / "report"), "--engine", "ray"]) == 0
    _assert_near(_numbers(tmp_path / "report"), _numbers(in_one_process))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--rounds", "2"], "2 rounds are too few"),
        (["--seeds", "0"], "--seeds is 0"),
        (["--at-once", "0"], "--at-once is 0"),
        (["--platforms", "A", "Z"], "platform Z has no folder"),
        (["--data", "nowhere"], "--data nowhere holds no platform folders"),
        (["--data", "complete-journey", "--platforms", "D"], "'D'"),
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
    plan = dataclasses.replace(PLAN, seed=7)
    (tmp_path / "plan.toml").write_text(as_toml(plan), encoding="utf-8")
    assert Plan.from_toml(tmp_path / "plan.toml") == plan
