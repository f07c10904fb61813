from __future__ import annotations

import json
from pathlib import Path

import pytest

from crossrec_model.errors import ConfigError, CrossrecError, DataError
from crossrec_model.evaluation.figures import (
    Figure,
    check_figures,
    merge_figures,
    read_figures,
    write_figures,
)


def figure(name: str = "demo.minutes", value: float = 9.5, goal: str = "<=12") -> Figure:
    return Figure(figure=name, value=value, goal=goal, command="make demo")


def test_round_trip_and_plain_json(tmp_path: Path) -> None:
    path = tmp_path / "new" / "demo.json"
    figures = [figure(), Figure(figure="a.b", value=1, goal="> -1e-3", command="run", seeds=3)]
    write_figures(path, figures)
    assert read_figures(path) == figures
    assert json.loads(path.read_text())[0] == {
        "figure": "demo.minutes",
        "value": 9.5,
        "goal": "<=12",
        "command": "make demo",
        "seeds": 1,
    }
    assert [entry.name for entry in path.parent.iterdir()] == ["demo.json"]


@pytest.mark.parametrize(
    ("goal", "value", "met"),
    [
        (">=20", 20, True),
        (">=20", 19.99, False),
        ("<= 1.3", 1.3, True),
        ("<1.3", 1.3, False),
        (">0", 0, False),
        ("==0", 0, True),
        (">-.5", -0.4, True),
    ],
)
def test_goal_is_checked(goal: str, value: float, met: bool) -> None:
    entry = figure(value=value, goal=goal)
    assert check_figures([entry]) == ([] if met else [entry])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), True, "9"])
def test_value_must_be_a_finite_number(value: float) -> None:
    with pytest.raises(ConfigError, match="finite number"):
        figure(value=value)


@pytest.mark.parametrize(
    "goal", ["", "20", "=>20", ">=x", ">=nan", ">=inf", ">=1e999", ">=20 or", ">=1_0"]
)
def test_malformed_goal_is_refused(goal: str) -> None:
    with pytest.raises(ConfigError, match="goal"):
        figure(goal=goal)


@pytest.mark.parametrize("name", ["", "Demo", "a..b", "a b", ".a"])
def test_malformed_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        figure(name)


def test_newer_figure_takes_the_place_of_the_older() -> None:
    merged = merge_figures([figure("a"), figure("b", 1)], [figure("b", 2), figure("c")])
    assert [(f.figure, f.value) for f in merged] == [("a", 9.5), ("b", 2), ("c", 9.5)]


def test_figure_twice_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_figures(path, [figure()])
    before = path.read_bytes()
    with pytest.raises(DataError, match="twice"):
        write_figures(path, [figure(), figure()])
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        '[{"figure": "a"}]',
        '[{"figure": "a", "value": NaN, "goal": ">=1", "command": "x", "seeds": 1}]',
        '[{"figure": "a", "value": 1, "goal": ">=1", "command": "x", "seeds": 1, "more": 2}]',
        '[{"figure": "a", "value": 1, "goal": ">=1", "command": "", "seeds": 1}]',
        '[{"figure": "a", "value": 1, "goal": ">=1", "command": "x", "seeds": 0}]',
        '[{"figure": 3, "value": 1, "goal": ">=1", "command": "x", "seeds": 1}]',
        "[" * 100_000,
    ],
)
def test_broken_file_is_one_clear_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(CrossrecError) as caught:
        read_figures(path)
    assert "\n" not in str(caught.value)


def test_missing_file_and_unwritable_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run the benchmark first"):
        read_figures(tmp_path / "none.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="can't make the folder"):
        write_figures(tmp_path / "file" / "x.json", [figure()])
    (tmp_path / "taken.json").mkdir()
    with pytest.raises(DataError, match="can't write"):
        write_figures(tmp_path / "taken.json", [figure()])
    assert not list(tmp_path.glob(".*part"))
