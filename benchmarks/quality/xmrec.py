"""XMRec: seven markets as platforms that share items and no users; 100 frozen candidates, and all items.

    python benchmarks/quality/xmrec.py [--seeds 5] [--markets de jp …] [--data FOLDER]

The shared network, its statistics and the sum of pairs come from the real coordinator and the real
platforms' rounds, in one process and without masks, which change no number beyond the grid's rounding.
Writes results/quality_xmrec.json, .md and .svg.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import scipy.sparse as sp
import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

from leave_one_out import write_platforms  # noqa: E402
from measured import CANDIDATES, FULL, Test, model_rows, plain_rows, published, scored  # noqa: E402

from clients.dataset import Dataset  # noqa: E402
from crossrec_model.closed_form import gram_of, item_weights  # noqa: E402
from crossrec_model.config import FederationConfig, ModelConfig, Plan, TrainingConfig  # noqa: E402
from crossrec_model.evaluation.baselines import ItemKnn  # noqa: E402
from crossrec_model.evaluation.comparison import AVERAGE  # noqa: E402
from crossrec_model.evaluation.figures import Figure, merge_figures, read_figures, write_figures  # noqa: E402
from crossrec_model.evaluation.results import Result  # noqa: E402
from simulations.__main__ import settings_of  # noqa: E402
from simulations.experiment import Experiment, prepared_platforms  # noqa: E402

DATA = HERE.parents[2] / "shared" / "data" / "xmrec"
RESULTS = HERE.parent / "results"
MARKETS = ("de", "jp", "in", "fr", "ca", "mx", "uk")
COMMAND = "python benchmarks/quality/xmrec.py"
PLAN = Plan(
    model=ModelConfig(
        buckets=2**15, dimension=32, tower=(64, 64, 32, 1), sketch_width=2**18, pair_items=2048
    ),
    training=TrainingConfig(
        users_per_step=512,
        least_steps=4,
        negatives=128,
        negatives_a_user=16,
        learning_rate=0.006,
    ),
    federation=FederationConfig(rounds=10, min_platforms=7),
)
PLAIN_LOCAL = ("popularity", "item-kNN", "EASE")


def pooled_plain(datasets: Mapping[str, Dataset]) -> dict[str, dict[str, np.ndarray]]:
    """Item-kNN and EASE of all markets' rows over all markets' items, cut to each market's: by market."""
    names = sorted({item for data in datasets.values() for item in data.items.item_ids})
    row = {item: number for number, item in enumerate(names)}
    parts, places = [], {}
    for market, data in datasets.items():
        places[market] = np.array([row[item] for item in data.items.item_ids])
        past = data.histories.before(data.split.test)
        shape = (len(data.histories), len(names))
        item = places[market][past.item]
        parts.append(
            sp.csr_matrix(
                (np.ones(len(item), np.float32), (past.user_of_event(), item)), shape=shape
            )
        )
    rows = sp.vstack(parts, format="csr")
    rows.data[:] = 1.0
    whole = {
        "item-kNN pooled": ItemKnn(shrink=10.0).fit(rows).weights,  # type: ignore[attr-defined]
        "EASE pooled": item_weights(gram_of(rows), 200.0),
    }
    return {
        market: {name: weights[np.ix_(place, place)] for name, weights in whole.items()}
        for market, place in places.items()
    }


def measured(data: Path, markets: list[str], seeds: int, work: Path) -> list[Result]:
    """Every row of every market."""
    platforms = write_platforms(data, work / "platforms", markets)
    arguments = ["--data", str(platforms), "--platforms", *markets, "--seeds", str(seeds)]
    arguments += ["--at-once", "2", "--evaluate-every", "0", "--no-secure-aggregation"]
    settings = settings_of([*arguments, "--work", str(work / "work")])
    experiment = Experiment(settings, PLAN, *prepared_platforms(settings))
    datasets = {name: replace(d, least_buyers=0) for name, d in experiment.datasets.items()}
    experiment.datasets = datasets
    rivals = []
    for seed in range(seeds):
        started, plan = time.monotonic(), replace(PLAN, seed=seed)
        trained = experiment._engine(plan, experiment.platforms, datasets)
        _, pooled = experiment._train_others(plan, trained)
        rivals += [(seed, experiment._federated("federated", plan, trained)), (seed, pooled)]
        print(f"seed {seed}: trained in {time.monotonic() - started:.0f} s", flush=True)
    plain, results = pooled_plain(datasets), list[Result]()
    for market in markets:
        frozen = pl.read_parquet(data / f"{market}_test99.parquet")
        negatives = dict(zip(frozen["user_id"], frozen["negatives"].to_list(), strict=True))
        test = Test.of(market, datasets[market], PLAN, negatives)
        results += plain_rows(test, plain[market])
        for result, said in model_rows(test, datasets[market], PLAN, rivals):
            results.append(result)
            means = {name: round(float(v.mean()), 4) for name, v in result.metrics.items()}
            print(
                f"{market} {result.row} (seed {result.seed}): {means[CANDIDATES]} among the "
                f"candidates, {means[FULL]} among all; {said}",
                flush=True,
            )
    return results


def figures(table: dict[str, dict[str, dict[str, float]]], seeds: int) -> list[Figure]:
    """What the targets ask for; `table` is metric → row → market → mean."""
    cand, full = table[CANDIDATES], table[FULL]
    markets = [market for market in cand["mix"] if market != AVERAGE]
    worst = min(
        view["mix"][market] / max(view[row][market] for row in PLAIN_LOCAL)
        for view in (cand, full)
        for market in markets
    )
    gain = cand["pooled"][AVERAGE] - cand["local"][AVERAGE]
    share = (cand["mix"][AVERAGE] - cand["local"][AVERAGE]) / gain
    values = [
        ("quality.xmrec.cand_ndcg10", cand["mix"][AVERAGE], ">=0.5"),
        ("quality.xmrec.full_ndcg10", full["mix"][AVERAGE], ">=0.385"),
        ("quality.xmrec.worst_market_over_local_plain", worst, ">=1"),
        ("quality.xmrec.share_of_pooled_gain", share, ">=0.9"),
    ]
    return [
        Figure(figure=name, value=round(value, 5), goal=goal, command=COMMAND, seeds=seeds)
        for name, value, goal in values
    ]


def main() -> int:
    """Measure, write the table, the plot and the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--markets", nargs="+", default=list(MARKETS))
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"{options.data} is absent: nothing is measured")
        return 0
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        results = measured(options.data, options.markets, options.seeds, Path(folder))
    table = scored(results)
    title = f"XMRec, {len(options.markets)} markets, {options.seeds} seeds"
    published(RESULTS / "quality_xmrec", title, results, (CANDIDATES, FULL, "hr@10"))
    if set(options.markets) == set(MARKETS):
        path = RESULTS / "quality_xmrec.json"
        found = figures(table, options.seeds)
        write_figures(path, merge_figures(read_figures(path) if path.exists() else [], found))
        for figure in found:
            print(f"{figure.figure} {figure.value} (goal {figure.goal})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
