"""A million changed inputs for every decoder and importer: how many were handled without a defect.

    python benchmarks/fuzz.py [--inputs N] [--seed TEXT] [--no-guided]

Two processes try inputs under limits of time and memory; docs/fuzzing.md says what counts as a defect.
Where atheris is installed (`pip install -e '.[fuzz]'`), a tenth of the inputs of most targets are guided
by the branches that they reach. Inputs that show a defect are kept in `fuzz-defects/`, and the figure is 0.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUITE = ROOT / "tests" / "fuzz"
sys.path[:0] = [str(ROOT), str(SUITE)]

import guided  # noqa: E402
from targets import Cost, Target, all_targets  # noqa: E402
from watchdog import run  # noqa: E402
from worker import Defect, Outcome  # noqa: E402

from crossrec_model.evaluation.figures import Figure, write_figures  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "fuzz.json"
DEFECTS = ROOT / "fuzz-defects"
COMMAND = "python benchmarks/fuzz.py"
PROCESSES = 2
#: Each target's inputs are tried in so many parts, so that progress shows.
PARTS = 4
#: A guided engine gets so many inputs of a target for each of its cost's share.
GUIDED_SHARE = 0.1


def share(target: Target, scale: float) -> int:
    """How many changed inputs a target gets in each part."""
    return max(1, round(target.cost.value * scale / PARTS))


def changed(targets: tuple[Target, ...], scale: float, seed: str) -> list[Outcome]:
    """Try changed inputs, part by part."""
    outcomes: list[Outcome] = []
    for part in range(PARTS):
        jobs = [
            {
                "target": target.name,
                "seed": f"{seed}/{part}",
                "count": share(target, scale),
                "bombs": part == 0,
            }
            for target in targets
        ]
        outcomes += run(jobs, DEFECTS, processes=PROCESSES)
        print(f"part {part + 1} of {PARTS}: {_summary(outcomes)}", flush=True)
    return outcomes


def guided_inputs(target: Target, runs: int) -> Outcome:
    """Let the guided engine try inputs of one target."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(SUITE / "guided.py"), target.name, str(runs), str(DEFECTS)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    outcome = Outcome(target=target.name, seconds=time.monotonic() - started)
    if done.returncode == 0:
        # It ends by itself after so many, and with another code at the first defect.
        outcome.inputs = runs
    else:
        last = " ".join((done.stdout + done.stderr).split())[-600:]
        defect = Defect(target=target.name, kind="guided", text=last, file=str(DEFECTS))
        outcome.defects.append(defect)
    return outcome


def table(outcomes: list[Outcome]) -> list[str]:
    """A line a target: inputs, how many of them were accepted, the slowest in seconds."""
    by_name: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_name[outcome.target].append(outcome)
    lines = []
    for name, found in sorted(by_name.items()):
        inputs = sum(outcome.inputs for outcome in found)
        accepted = sum(outcome.accepted for outcome in found)
        slowest = max(outcome.slowest_s for outcome in found)
        lines.append(
            f"{name:26} {inputs:8,} inputs, {accepted:7,} accepted, slowest {slowest:.2f} s"
        )
    return lines


def _summary(outcomes: list[Outcome]) -> str:
    inputs = sum(outcome.inputs for outcome in outcomes)
    defects = sum(len(outcome.defects) for outcome in outcomes)
    return f"{inputs:,} inputs, {defects} defects"


def main() -> int:
    """Try all inputs, print what came of them, write the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="how many at least")
    parser.add_argument("--seed", default="benchmark", help="another seed gives other inputs")
    parser.add_argument("--no-guided", action="store_true", help="leave out the guided engine")
    options = parser.parse_args()
    targets = all_targets()
    print(
        f"{len(targets)} targets, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
        flush=True,
    )
    scale = 1.01 * options.inputs / sum(target.cost.value for target in targets)
    outcomes = changed(targets, scale, options.seed)
    print("\n".join(table(outcomes)), flush=True)
    if guided.available() and not options.no_guided:
        chosen = [target for target in targets if target.cost is not Cost.SLOW]
        with ThreadPoolExecutor(PROCESSES) as pool:
            more = list(
                pool.map(
                    lambda one: guided_inputs(one, round(one.cost.value * scale * GUIDED_SHARE)),
                    chosen,
                )
            )
        print(f"guided by coverage: {_summary(more)}", flush=True)
        outcomes += more
    defects = [defect for outcome in outcomes for defect in outcome.defects]
    for defect in defects:
        print(f"defect in {defect.target}: {defect.text} ({defect.file})")
    handled = 0 if defects else sum(outcome.inputs for outcome in outcomes)
    figure = Figure(
        figure="ops.fuzz_inputs", value=handled, goal=">=1000000", command=COMMAND, seeds=1
    )
    write_figures(RESULT, [figure])
    print(f"ops.fuzz_inputs {handled:,} (goal >=1,000,000), written to {RESULT}")
    return 0 if figure.met else 1


if __name__ == "__main__":
    sys.exit(main())
