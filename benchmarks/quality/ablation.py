"""What each part of the model adds: validation users, everything less one part.

    python benchmarks/quality/ablation.py [xmrec] [cj] [amazon3] [--seeds 2]

A part that is scored apart (an item graph, the network, popularity) is left out of the mix; a part inside
the network is left out of its training, and the mix is fitted again. Weights are fitted on half of the
validation users and tried on the other half, both ways. Amazon-3's platforms share no item: there is
nothing of the federation to leave out there.
Writes results/quality_ablation.md, .json (every mean, no goals) and .svg.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import amazon3  # noqa: E402
import xmrec  # noqa: E402
from leave_one_out import write_platforms  # noqa: E402

from clients.dataset import Dataset  # noqa: E402
from clients.personal import Weighing  # noqa: E402
from clients.scoring import OWN, SHARED, SharedModel  # noqa: E402
from crossrec_model.config import Plan, open_plan  # noqa: E402
from crossrec_model.data.items import item_table  # noqa: E402
from crossrec_model.evaluation.charts import interval_chart, standalone  # noqa: E402
from crossrec_model.evaluation.comparison import AVERAGE, Estimate, estimates  # noqa: E402
from crossrec_model.evaluation.results import Result  # noqa: E402
from crossrec_model.randomness import ExperimentRandomness  # noqa: E402
from simulations.__main__ import settings_of  # noqa: E402
from simulations.experiment import Experiment, prepared_platforms  # noqa: E402

RESULTS = HERE.parent / "results"
METRIC, ALL = "ndcg@10", "everything"
Datasets = Mapping[str, Dataset]


def named(start: str, names: tuple[str, ...]) -> set[str]:
    """The components whose names begin with `start`."""
    return {name for name in names if name.startswith(start)}


#: Part → components of the mix that are it.
APART = {
    "federation": set(SHARED),
    "private part": set(OWN),
    "own item graph": named("own graph", OWN),
    "shared item graph": named("shared graph", SHARED),
    "both item graphs": named("own graph", OWN) | named("shared graph", SHARED),
    "order graph": {"own order"},
    "own neighbours": {"own neighbours"},
    "shared network": {"shared model"},
    "shared popularity": {"shared popularity"},
}


def no_content(data: Dataset, plan: Plan) -> Dataset:
    """Items known by their shared ids alone."""
    ids = data.items.catalogue.select("item_id", "shared_id")
    return replace(data, items=replace(item_table(ids, plan.model), vectors=data.items.vectors))


def no_ids(data: Dataset, plan: Plan) -> Dataset:
    """Items known by their content alone; their popularity is still summed by id."""
    bare = item_table(data.items.catalogue.drop("shared_id"), plan.model)
    return replace(data, items=replace(data.items, buckets=bare.buckets))


def no_context(data: Dataset, _plan: Plan) -> Dataset:
    """No store, channel or campaign of a user's last event."""
    empty = np.zeros_like(data.histories.context)
    return replace(data, histories=replace(data.histories, context=empty))


#: Part of the network → how data or the plan lose it.
INSIDE: dict[str, Callable[[Dataset, Plan], Dataset]] = {
    "content features": no_content,
    "id embeddings": no_ids,
    "context": no_context,
}


def same(one: Dataset, other: Dataset) -> bool:
    """Whether the network reads the same from both."""
    tokens = [np.sort(data.items.buckets, axis=1) for data in (one, other)]
    width = max(table.shape[1] for table in tokens)
    padded = [np.pad(table, ((0, 0), (width - table.shape[1], 0))) for table in tokens]
    contexts = [data.histories.context for data in (one, other)]
    return np.array_equal(*padded) and np.array_equal(*contexts)


def smaller(plan: Plan) -> dict[str, Plan]:
    """Part of the network → the plan without it."""
    model = plan.model
    return {
        "graph convolution": replace(plan, model=replace(model, graph_layers=0)),
        "dense tower": replace(plan, model=replace(model, tower=(2 * model.dimension, 1))),
    }


def trained(experiment: Experiment, plan: Plan, datasets: Datasets) -> SharedModel:
    """The federation's model as the trial sees it."""
    found = experiment._engine(plan, experiment.platforms, datasets)
    return experiment._federated("federated", plan, found).at_validation


def parts(experiment: Experiment, plan: Plan, seed: int) -> Iterator[Result]:
    """One result a platform and a row: everything, and everything less one part."""
    plan, datasets = replace(plan, seed=seed), experiment.datasets
    shared = trained(experiment, plan, datasets)
    weighing = {n: Weighing(data, plan.training, None) for n, data in datasets.items()}
    for name, w in weighing.items():
        yield result(ALL, name, seed, w, shared)
        for part, components in APART.items():
            yield result(part, name, seed, w, shared, components)
    for part, change in INSIDE.items():
        changed = {name: change(data, plan) for name, data in datasets.items()}
        if all(same(changed[name], data) for name, data in datasets.items()):
            continue  # the benchmark has no such part
        model = trained(experiment, plan, changed)
        for name, data in changed.items():
            yield result(part, name, seed, Weighing(data, plan.training, None), model)
    for part, less in smaller(plan).items():
        model = trained(experiment, less, datasets)
        for name, w in weighing.items():
            yield result(part, name, seed, w, model)


def result(
    part: str,
    platform: str,
    seed: int,
    weighing: Weighing,
    shared: SharedModel | None,
    without: set[str] = frozenset(),  # type: ignore[assignment]
) -> Result:
    """How a platform's validation users fare."""
    each = weighing.fare(shared, without)
    print(f"  without {part}: {platform} (seed {seed}) {np.nanmean(each):.4f}", flush=True)
    users = weighing.users[~np.isnan(each)]
    return Result(
        row=part,
        platform=platform,
        view="validation",
        seed=seed,
        users=users,
        warm=np.ones(len(users), dtype=bool),
        metrics={METRIC: each[~np.isnan(each)]},
    )


def experiment_of(arguments: list[str], plan: Plan, work: Path, *, all_items: bool) -> Experiment:
    """Prepared platforms; `all_items` ranks items however few their buyers are."""
    more = ["--at-once", "2", "--evaluate-every", "0", "--no-secure-aggregation"]
    settings = settings_of([*arguments, *more, "--work", str(work)])
    experiment = Experiment(settings, plan, *prepared_platforms(settings))
    if all_items:
        kept = experiment.datasets.items()
        experiment.datasets = {name: replace(data, least_buyers=0) for name, data in kept}
    return experiment


def measured(benchmark: str, seeds: int, work: Path) -> list[Result]:
    """All rows of one benchmark."""
    print(benchmark, flush=True)
    if benchmark == "cj":
        experiment = experiment_of([], open_plan(), work, all_items=False)
        return [r for seed in range(seeds) for r in parts(experiment, open_plan(), seed)]
    module, names = (
        (xmrec, list(xmrec.MARKETS))
        if benchmark == "xmrec"
        else (amazon3, ["beauty", "sports", "toys"])
    )
    folder = write_platforms(module.DATA, work / "platforms", names)
    arguments = ["--data", str(folder), "--platforms", *names]
    experiment = experiment_of(arguments, module.PLAN, work / "work", all_items=True)
    if benchmark == "xmrec":
        return [r for seed in range(seeds) for r in parts(experiment, module.PLAN, seed)]
    found = []
    for name, data in experiment.datasets.items():
        weighing = Weighing(data, module.PLAN.training, None)
        own = {p: c for p, c in APART.items() if c < set(OWN)}
        found += [result(p, name, 0, weighing, None, c) for p, c in {ALL: set(), **own}.items()]
    return found


def table(results: list[Result]) -> dict[str, tuple[Estimate, Estimate | None]]:
    """Row → its mean, and everything's lead over it; averages of the platforms."""
    generator = ExperimentRandomness(0, "quality").numpy()
    found: dict[str, tuple[Estimate, Estimate | None]] = {}
    for row in dict.fromkeys(one.row for one in results):
        mean = estimates(results, row=row, view="validation", generator=generator)
        lead = (
            estimates(results, row=ALL, view="validation", generator=generator, against=row)
            if row != ALL
            else None
        )
        found[row] = (mean[METRIC][AVERAGE], lead[METRIC][AVERAGE] if lead else None)
    return found


def main() -> int:
    """Measure, write the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmarks", nargs="*", default=["xmrec", "cj", "amazon3"])
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    stem, charts = RESULTS / "quality_ablation", []
    path = stem.with_suffix(".json")
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for benchmark in options.benchmarks:
        with tempfile.TemporaryDirectory() as folder:
            found = table(measured(benchmark, options.seeds, Path(folder)))
        kept[benchmark] = {
            row: {"mean": mean.value, "adds": lead and [lead.value, lead.low, lead.high]}
            for row, (mean, lead) in found.items()
        }
        entries = [(row, lead) for row, (_, lead) in found.items() if lead]
        charts.append(interval_chart(benchmark, entries, "what it adds", around_zero=True))
    path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    rows = list(dict.fromkeys(row for one in kept.values() for row in one))
    lines = ["# What each part adds: nDCG@10 of validation users, average of platforms", ""]
    lines += ["| part | " + " | ".join(kept) + " |", "|---|" + "---:|" * len(kept)]
    for row in rows:
        cells = []
        for one in kept.values():
            entry = one.get(row)
            if entry is None:
                cells.append("–")
            elif entry["adds"] is None:
                cells.append(f"{entry['mean']:.4f}")
            else:
                value, low, high = entry["adds"]
                cells.append(f"{value:+.4f} [{low:+.4f} to {high:+.4f}]")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    stem.with_suffix(".svg").write_text(standalone(charts[0]), encoding="utf-8")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
