"""How many rounds, and how many bytes, until the mix is as good as it gets: validation users of XMRec.

    python benchmarks/quality/convergence.py [--markets de jp in mx] [--rounds 12]

FedAvg, FedAvgM and FedAdam train the network without the sum of pairs; `pairs` is FedAvg with it. After
each round every market fits its weights on half of its validation users and is tried on the other half, and
the other way round. The target is 99% of the best final value. Bytes are those of one platform's uploads: a
masked vector a round, four bytes a number.
Writes results/quality_convergence.json, .md and .svg.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

from leave_one_out import write_platforms  # noqa: E402
from xmrec import DATA, PLAN, RESULTS  # noqa: E402

from clients.personal import Weighing  # noqa: E402
from clients.scoring import SharedModel  # noqa: E402
from crossrec_model.config import Plan  # noqa: E402
from crossrec_model.evaluation.charts import Curve, curve_chart, standalone  # noqa: E402
from crossrec_model.evaluation.figures import Figure, merge_figures, read_figures, write_figures  # noqa: E402
from crossrec_model.parameters import Layout  # noqa: E402
from server.checkpoint import Checkpoint  # noqa: E402
from simulations.__main__ import settings_of  # noqa: E402
from simulations.engines import LocalEngine, coordinated  # noqa: E402
from simulations.experiment import Experiment, prepared_platforms  # noqa: E402
from simulations.sums import plain_sums  # noqa: E402

COMMAND = "python benchmarks/quality/convergence.py"
BYTES_A_NUMBER = 4


def plans(rounds: int) -> dict[str, Plan]:
    """The same network and rounds under four ways to learn together."""
    alone = replace(PLAN, model=replace(PLAN.model, pair_items=0))

    def under(plan: Plan, **changed: object) -> Plan:
        config = replace(plan.federation, rounds=rounds, min_platforms=3, **changed)  # type: ignore[arg-type]
        return replace(plan, federation=config)

    return {
        "FedAvg": under(alone),
        "FedAvgM": under(alone, optimizer="fedavgm", momentum=0.5),
        "FedAdam": under(alone, optimizer="fedadam", server_lr=0.003),
        "pairs": under(PLAN),
    }


def curve(experiment: Experiment, plan: Plan, weighing: dict[str, Weighing]) -> list[float]:
    """The mean over markets of the mix's held-out validation nDCG@10 after each round."""
    kept: list[Checkpoint] = []
    datasets, sums = experiment.datasets, plain_sums(experiment.datasets)
    engine = LocalEngine(at_once=2, evaluate_every=0, secure=False)
    with closing(engine.grid(plan, datasets, sums)) as grid:
        coordinated(plan, grid, len(datasets), 0, sums, kept.append)
    values, known = [], None
    for checkpoint in kept:
        if checkpoint.round == 0:
            continue
        network, statistics = Layout(plan.model).unpack(checkpoint.parameters, torch.device("cpu"))
        if checkpoint.round in plan.validation_rounds():
            known = statistics
        if known is None:  # nothing to mix in yet
            values.append(float(np.mean([np.nanmean(w.fare()) for w in weighing.values()])))
            continue
        shared = SharedModel(plan=plan, network=network, statistics=known)
        values.append(float(np.mean([np.nanmean(w.fare(shared)) for w in weighing.values()])))
    return values


def main() -> int:
    """Measure, write the table, the plot and the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--markets", nargs="+", default=["de", "jp", "in", "mx"])
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    if not DATA.is_dir():
        print(f"{DATA} is absent: nothing is measured")
        return 0
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        platforms = write_platforms(DATA, Path(folder) / "platforms", options.markets)
        arguments = ["--data", str(platforms), "--platforms", *options.markets]
        settings = settings_of(
            [*arguments, "--no-secure-aggregation", "--work", str(Path(folder) / "work")]
        )
        experiment = Experiment(settings, PLAN, *prepared_platforms(settings))
        experiment.datasets = {
            n: replace(d, least_buyers=0) for n, d in experiment.datasets.items()
        }
        weighing = {
            name: Weighing(dataset, PLAN.training, None)
            for name, dataset in experiment.datasets.items()
        }
        found = {}
        for name, plan in plans(options.rounds).items():
            found[name] = curve(experiment, plan, weighing)
            print(name, [round(value, 4) for value in found[name]], flush=True)
    return report(found, options.markets)


def report(found: dict[str, list[float]], markets: list[str]) -> int:
    """Rounds and bytes to 99% of the best final value, as a table, a plot and a figure."""
    target = 0.99 * max(values[-1] for values in found.values())
    lines = [
        f"# XMRec ({', '.join(markets)}): rounds to {target:.4f} nDCG@10 of validation users",
        "",
    ]
    lines += ["| | final | rounds | MiB a platform |", "|---|---:|---:|---:|"]
    reached = {}
    for name, values in found.items():
        rounds = next((n for n, value in enumerate(values, 1) if value >= target), None)
        reached[name] = rounds
        size = Layout(plans(len(values))[name].model).size * BYTES_A_NUMBER / 2**20
        shown = ("–", "–") if rounds is None else (str(rounds), f"{rounds * size:.0f}")
        lines.append(f"| {name} | {values[-1]:.4f} | {shown[0]} | {shown[1]} |")
    stem = RESULTS / "quality_convergence"
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    curves = [
        Curve(
            name=name,
            metric="validation nDCG@10",
            rounds=tuple(range(1, len(values) + 1)),
            values=tuple(values),
        )
        for name, values in found.items()
    ]
    chart = curve_chart("convergence", "validation nDCG@10", curves)
    stem.with_suffix(".svg").write_text(standalone(chart), encoding="utf-8")
    best = reached["pairs"] or 999
    figure = Figure(
        figure="quality.rounds_to_99", value=best, goal="<=30", command=COMMAND, seeds=1
    )
    path = stem.with_suffix(".json")
    write_figures(path, merge_figures(read_figures(path) if path.exists() else [], [figure]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
