"""Speed of training and of ranking, each beside its peer in the same process.

    python -m pip install -e '.[bench]'
    python benchmarks/quality/speed.py [--repeats 12] [--data FOLDER]

Training: one epoch of XMRec's seven markets (all 165,033 rows, dimension 32, two markets at a time on one
thread each, as a simulation trains them) beside one iteration of `implicit`'s AlternatingLeastSquares on
the same rows, 32 factors, 2 threads. An epoch draws every user once and learns from those who took
something new in the window after their moment; an iteration of ALS reads every row twice.
Ranking: 10,000 users by 100,000 items, the best 50 without what was bought, by `crossrec_model.topk`,
beside a bare `torch.matmul` and `torch.topk` of the same shapes on 2 threads, which filters nothing.

Ours and the peer take turns; the least time of each counts. Writes results/quality_speed.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from implicit.als import AlternatingLeastSquares
from threadpoolctl import threadpool_limits

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

from leave_one_out import write_platforms  # noqa: E402
from xmrec import DATA, MARKETS, PLAN, RESULTS  # noqa: E402

from clients.dataset import Dataset  # noqa: E402
from clients.training import TrainingData, steps, train  # noqa: E402
from crossrec_model.data.users import Float64  # noqa: E402
from crossrec_model.evaluation.figures import Figure, write_figures  # noqa: E402
from crossrec_model.parameters import initial_network  # noqa: E402
from crossrec_model.randomness import ExperimentRandomness  # noqa: E402
from crossrec_model.statistics import Statistics, measure, shared_log_popularity  # noqa: E402
from crossrec_model.topk import product_scorer, ranked  # noqa: E402
from simulations.__main__ import settings_of  # noqa: E402
from simulations.experiment import Experiment, prepared_platforms  # noqa: E402

COMMAND = "python benchmarks/quality/speed.py"
THREADS = 2
USERS, ITEMS, BEST, BOUGHT = 10_000, 100_000, 50, 50
PEER_BLOCKS = (32, 256)


@dataclass(frozen=True, kw_only=True, eq=False)
class Market:
    """What one platform trains on, with all of its rows known."""

    name: str
    data: TrainingData
    statistics: Statistics
    popularity: Float64


def datasets(data: Path, work: Path) -> dict[str, Dataset]:
    """All markets, read as `xmrec.py` reads them."""
    platforms = write_platforms(data, work / "platforms", list(MARKETS))
    arguments = ["--data", str(platforms), "--platforms", *MARKETS, "--work", str(work / "work")]
    settings = settings_of(arguments)
    return Experiment(settings, PLAN, *prepared_platforms(settings)).datasets


def market(name: str, dataset: Dataset) -> Market:
    """A market whose last event lies before the end of its training rows."""
    end = float(dataset.histories.day.max()) + 1.0
    statistics = measure(dataset.index, dataset.items, end, PLAN.model.sketch_width)
    return Market(
        name=name,
        data=replace(dataset.training, end=end),
        statistics=statistics,
        popularity=shared_log_popularity(statistics, dataset.items),
    )


def epoch_seconds(markets: list[Market], number: int) -> float:
    """One epoch of every market's own network, the largest first."""
    seed = ExperimentRandomness(number)
    networks = {one.name: initial_network(PLAN.model, seed) for one in markets}
    torch.set_num_threads(1)

    def trained(one: Market) -> None:
        streams = [seed.child(one.name)]
        train(networks[one.name], one.data, PLAN, one.statistics, one.popularity, streams)

    with ThreadPoolExecutor(THREADS) as pool:
        started = time.perf_counter()
        list(pool.map(trained, markets))
        return time.perf_counter() - started


def rows_of(parts: dict[str, Dataset]) -> sp.csr_matrix:
    """All rows, users of all markets under each other, items by their names; float32 csr."""
    names = sorted({item for data in parts.values() for item in data.items.item_ids})
    column = {item: number for number, item in enumerate(names)}
    blocks = []
    for data in parts.values():
        place = np.array([column[item] for item in data.items.item_ids])
        histories = data.histories
        where = (histories.user_of_event(), place[histories.item])
        ones = np.ones(len(histories.item), dtype=np.float32)
        blocks.append(sp.csr_matrix((ones, where), shape=(len(histories), len(names))))
    return sp.vstack(blocks, format="csr")


def als_seconds(rows: sp.csr_matrix) -> float:
    """The fastest of three iterations of ALS."""
    found: list[float] = []
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(
            factors=PLAN.model.dimension, iterations=3, num_threads=THREADS, random_state=0
        )
        model.fit_callback = lambda _number, seconds, *_: found.append(seconds)
        model.fit(rows, show_progress=False)
    return min(found)


def ranking(bought: sp.csr_matrix) -> tuple[Callable[[], object], list[Callable[[], object]]]:
    """Our ranking, and the bare product with blocks of some sizes."""
    generator = torch.Generator().manual_seed(1)
    users, items = (
        torch.randn(n, PLAN.model.dimension, generator=generator) for n in (USERS, ITEMS)
    )

    def ours() -> object:
        scorer = product_scorer(users, items)
        return ranked(scorer, users=USERS, items=ITEMS, k=BEST, hidden=bought)

    def bare(block: int) -> object:
        room = torch.empty(block, ITEMS)
        parts = []
        for part in users.split(block):
            torch.matmul(part, items.T, out=room[: len(part)])
            parts.append(room[: len(part)].topk(BEST, dim=1))
        return parts

    return ours, [partial(bare, block) for block in PEER_BLOCKS]


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    torch.set_num_threads(THREADS)
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> int:
    """Measure in turns, print a table, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"{options.data} is absent: nothing is measured")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        parts = datasets(options.data, Path(folder))
        markets = [market(name, data) for name, data in parts.items()]
        markets.sort(key=lambda one: -len(one.data.index.histories.item))
        rows = rows_of(parts)
        turns = [(epoch_seconds(markets, n), als_seconds(rows)) for n in range(options.repeats)]
    epoch, als = np.array(turns)[1:].min(axis=0).tolist()  # the first turn warms up
    bought = sp.random(USERS, ITEMS, density=BOUGHT / ITEMS, format="csr", random_state=1)
    ours, peers = ranking(bought)
    few = max(3, options.repeats // 4)
    rounds = [[seconds(ours), *map(seconds, peers)] for _ in range(few)]
    best = np.array(rounds).min(axis=0)
    ranks, bare = float(best[0]), float(best[1:].min())
    drawn = [step for one in markets for step in _steps(one)]
    speaking, read = sum(len(s.numbers) for s in drawn), sum(_read(s.block.weights) for s in drawn)
    foreseen = int(sum(float(step.block.mask.sum()) for step in drawn))
    print(
        f"rows {rows.nnz:,}, users {rows.shape[0]:,}, items {rows.shape[1]:,}; an epoch took "
        f"{len(drawn)} steps, {speaking:,} users with {read:,} items read and {foreseen:,} foreseen"
    )
    print(f"{'':24}{'ours':>10}{'peer':>10}{'ratio':>8}")
    print(f"{'epoch beside ALS, s':24}{epoch:10.4f}{als:10.4f}{epoch / als:8.2f}")
    print(f"{'top-50 beside bare, s':24}{ranks:10.3f}{bare:10.3f}{bare / ranks:8.2f}")
    found = [
        ("train.epoch_ratio_to_als", epoch / als, "<=3"),
        ("rank.ratio_to_matmul", bare / ranks, ">=0.7"),
    ]
    figures = [
        Figure(figure=name, value=round(value, 3), goal=goal, command=COMMAND)
        for name, value, goal in found
    ]
    write_figures(RESULTS / "quality_speed.json", figures)
    return 0


def _steps(one: Market):  # type: ignore[no-untyped-def]
    stream = ExperimentRandomness(0).child(one.name)
    return steps(one.data, PLAN, one.statistics, one.popularity, stream)


def _read(weights: torch.Tensor) -> int:
    return int((weights[:, :, 0] > 0).sum())


if __name__ == "__main__":
    sys.exit(main())
