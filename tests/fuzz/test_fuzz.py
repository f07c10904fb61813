"""Every decoder and importer withstands changed inputs; see docs/fuzzing.md.

The inputs are the same each time. `benchmarks/fuzz.py` tries a million of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from targets import Cost, all_targets
from watchdog import run
from worker import Outcome

#: Inputs of the slowest targets; the others get more of them, by their cost.
GATE, SLOW = 3, 40
SEED = "gate"

TARGETS = all_targets()


def _outcomes(scale: int, seed: str, folder: Path) -> dict[str, list[Outcome]]:
    jobs = [
        {"target": target.name, "seed": seed, "count": scale * target.cost.value}
        for target in TARGETS
    ]
    found: dict[str, list[Outcome]] = {target.name: [] for target in TARGETS}
    for outcome in run(jobs, folder):
        found[outcome.target].append(outcome)
    return found


def _check(outcomes: list[Outcome], wanted: int) -> None:
    defects = [defect for outcome in outcomes for defect in outcome.defects]
    assert not defects, "\n".join(f"{defect.text} ({defect.file})" for defect in defects)
    assert sum(outcome.inputs for outcome in outcomes) == wanted


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Outcome]]:
    return _outcomes(GATE, SEED, tmp_path_factory.mktemp("defects"))


@pytest.mark.parametrize("name", [target.name for target in TARGETS])
def test_changed_inputs_are_accepted_or_refused(
    outcomes: dict[str, list[Outcome]], name: str
) -> None:
    cost = next(target.cost for target in TARGETS if target.name == name)
    _check(outcomes[name], GATE * cost.value)


def test_names_are_unique_and_every_cost_occurs() -> None:
    assert len({target.name for target in TARGETS}) == len(TARGETS) > 50
    assert {target.cost for target in TARGETS} == set(Cost)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", ["one", "two", "three"])
def test_more_changed_inputs_are_accepted_or_refused(seed: str, tmp_path: Path) -> None:
    for name, outcomes in _outcomes(SLOW, seed, tmp_path).items():
        cost = next(target.cost for target in TARGETS if target.name == name)
        _check(outcomes, SLOW * cost.value)
