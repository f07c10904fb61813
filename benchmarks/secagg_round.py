"""What secure aggregation costs a round of the demo, and what it changes in the demo's table.

Both kinds of sum run side by side in this process on the Complete Journey: same plan, same seeds, same
private models. Writes benchmarks/results/secagg_round.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from clients.assessment import Assessment, Rival
from clients.private import train_private
from clients.scoring import SharedModel
from crossrec_model.config import Plan
from crossrec_model.evaluation.results import ALL_PURCHASES, FIRST_TIME, Result
from crossrec_model.parameters import Layout
from crossrec_model.randomness import ExperimentRandomness
from server.federation import with_rounds
from simulations.__main__ import _parser, _settings
from simulations.engines import LocalEngine, Trained
from simulations.experiment import Experiment, _prepare, _sources

RESULTS = Path(__file__).parent / "results" / "secagg_round.json"
KINDS = ("plain", "secure")


def train(experiment: Experiment, plan: Plan, *, secure: bool, at_once: int) -> Trained:
    """One federated run; how long its rounds took stands in its history."""
    engine = LocalEngine(at_once=at_once, evaluate_every=0, secure=secure)
    return engine(plan, experiment.platforms, experiment.datasets)


def rival(experiment: Experiment, plan: Plan, trained: Trained, row: str) -> Rival:
    """The shared model of a run as a row of the table."""
    device = next(iter(experiment.datasets.values())).device
    network, latest = Layout(plan.model).unpack(trained.final, device)
    return Rival(
        row=row,
        at_validation=SharedModel(plan=plan, network=network, statistics=trained.validation),
        at_test=SharedModel(plan=plan, network=network, statistics=latest),
    )


def quality(experiment: Experiment, plan: Plan, runs: dict[str, Trained]) -> list[Result]:
    """The table's results of both runs, mixed with the same private models."""
    epochs = plan.training_rounds * plan.training.epochs
    found: list[Result] = []
    for name, dataset in sorted(experiment.datasets.items()):
        stream = ExperimentRandomness(plan.seed, "private", name)
        private = train_private(dataset, plan, stream, epochs=epochs)
        rivals = [rival(experiment, plan, runs[kind], kind) for kind in KINDS]
        assessment = Assessment(dataset, plan.training, name, private)
        found += assessment.results(rivals, plan.seed)
    return found


def average(results: list[Result], row: str, view: str) -> float:
    """The mean over the platforms of the mean nDCG@10 over users."""
    found = [
        # NaN stands for a user without a purchase of this view.
        float(np.nanmean(result.metrics["ndcg@10"]))
        for result in results
        if (result.row, result.view) == (row, view)
    ]
    return statistics.mean(found)


def main() -> int:
    """Measure, print, write both figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=Plan().federation.rounds)
    parser.add_argument("--at-once", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    command = "python benchmarks/secagg_round.py"
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    differences: dict[str, list[float]] = {FIRST_TIME: [], ALL_PURCHASES: []}
    with tempfile.TemporaryDirectory() as scratch:
        arguments = ["--rounds", str(options.rounds), "--out", scratch, "--seeds", "1"]
        settings = _settings(_parser().parse_args(arguments), arguments)
        console = Console()
        plan = with_rounds(Plan(), options.rounds)
        experiment = Experiment(
            settings, plan, _prepare(settings, _sources(settings), console), console
        )
        for seed in range(options.seeds):
            one, runs = replace(plan, seed=seed), {}
            # Which kind goes first changes with the seed.
            for kind in KINDS if seed % 2 else reversed(KINDS):
                started = time.monotonic()
                runs[kind] = train(
                    experiment, one, secure=kind == "secure", at_once=options.at_once
                )
                rounds = [record.seconds for record in runs[kind].history]
                # The first and last round carry statistics; the second warms everything up.
                seconds[kind] += rounds[2:-1]
                print(
                    f"seed {seed}, {kind}: median round {statistics.median(rounds[2:-1]):.3f} s, "
                    f"whole run {time.monotonic() - started:.1f} s",
                    flush=True,
                )
            results = quality(experiment, one, runs)
            for view, found in differences.items():
                found.append(average(results, "secure", view) - average(results, "plain", view))
                print(f"seed {seed}, {view}: nDCG@10 changes by {found[-1]:+.5f}", flush=True)
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    ratio = medians["secure"] / medians["plain"]
    worst = max(abs(statistics.mean(found)) for found in differences.values())
    figures = [
        {
            "figure": "secagg.round_ratio",
            "value": round(ratio, 3),
            "goal": "<=1.15",
            "command": command,
            "seeds": options.seeds,
            "median_seconds": {kind: round(value, 3) for kind, value in medians.items()},
            "rounds": len(seconds["secure"]),
        },
        {
            "figure": "secagg.quality_difference",
            "value": round(worst, 6),
            "goal": "<0.001",
            "command": command,
            "seeds": options.seeds,
            "ndcg@10_secure_minus_plain": {
                view: [round(value, 6) for value in found] for view, found in differences.items()
            },
        },
    ]
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    for figure in figures:
        print(f"{figure['figure']} {figure['value']} (goal {figure['goal']})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
