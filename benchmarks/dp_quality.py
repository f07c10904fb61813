"""What differential privacy costs: nDCG@10 at epsilon = infinity, 8, 4, 2, 1, local and distributed noise.

Each row is what a platform serves: its private model mixed with the shared one where that helps its
validation users, else its private model alone. Beside them stand
`local` (no federation) and `pooled` (all rows in one place, no noise). The Complete Journey, and, where
they are present, seven markets of XMRec. Their leave-one-out split is laid on the time axis: training
rows fill 300 days in order of their date, the validation row of a user comes 53 to 31 days before the
end, her test row in the last 24 days.

    python benchmarks/dp_quality.py [cj] [xmrec] [--seeds 3] [--epsilon 8 4 2 1] [--markets FOLDER]

Writes results/dp_quality.json, results/dp_quality_<data>.md and .svg.
"""

from __future__ import annotations

import argparse
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from crossrec_model.config import FederationConfig, ModelConfig, Noise, Plan
from crossrec_model.evaluation.charts import epsilon_chart, standalone
from crossrec_model.evaluation.comparison import AVERAGE
from crossrec_model.evaluation.figures import Figure, merge_figures, read_figures, write_figures
from crossrec_model.evaluation.findings import FEDERATED, LOCAL, POOLED
from crossrec_model.evaluation.markdown import privacy_markdown
from crossrec_model.evaluation.privacy_cost import PrivateRow, privacy_cost
from crossrec_model.evaluation.results import Result
from crossrec_model.randomness import ExperimentRandomness
from simulations.__main__ import DELTA, settings_of
from simulations.experiment import Experiment, prepared_platforms

RESULTS = Path(__file__).resolve().parent / "results"
MARKETS = Path(__file__).resolve().parents[2] / "shared" / "data" / "xmrec"
COMMAND = "python benchmarks/dp_quality.py"
EPSILONS = (8.0, 4.0, 2.0, 1.0)
NOISES: tuple[Noise, ...] = ("local", "distributed")
PLAN = Plan(
    model=ModelConfig(buckets=2**15, dimension=32, tower=(64, 64, 32, 1), sketch_width=2**16),
    federation=FederationConfig(rounds=8),
)
DESCRIPTION = """
[interactions]
files = "events.parquet"
[interactions.columns]
user_id = "user_id"
item_id = "item_id"
event = "event"
time = "time"
[catalogue]
files = "items.parquet"
[catalogue.columns]
item_id = "item_id"
shared_id = "item_id"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="*", help="cj, xmrec (default: both)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epsilon", type=float, nargs="+", default=EPSILONS)
    parser.add_argument("--noise", nargs="+", default=NOISES)
    parser.add_argument("--markets", type=Path, default=MARKETS)
    options = parser.parse_args()
    for name in options.data or ("cj", "xmrec"):
        with tempfile.TemporaryDirectory() as folder:
            data = "complete-journey"
            if name == "xmrec":
                if not options.markets.is_dir():
                    print(f"{options.markets} is absent: xmrec is left out")
                    continue
                data = str(write_markets(options.markets, Path(folder) / "markets"))
            asked = [
                PrivateRow(noise=noise, epsilon=epsilon, delta=DELTA)
                for noise in options.noise
                for epsilon in options.epsilon
            ]
            results = measured(data, Path(folder), options.seeds, asked)
        report(name, results, options.seeds, asked)


def write_markets(source: Path, target: Path) -> Path:
    """Make a platform's folder a market, with its split on the time axis."""
    for path in sorted(source.glob("??.parquet")):
        folder = target / path.stem
        folder.mkdir(parents=True)
        rows = pl.read_parquet(path)
        first, last = rows["date"].min(), rows["date"].max()
        span = max((last - first).days, 1)  # type: ignore[operator]
        start = datetime(2024, 1, 1, tzinfo=UTC)

        def moment(row: dict[str, object], first=first, span=span, start=start) -> datetime:  # type: ignore[no-untyped-def]
            spread = zlib.crc32(str(row["user_id"]).encode()) % 1000 / 1000
            day = {
                "train": 300 * (row["date"] - first).days / span,  # type: ignore[operator]
                "valid": 311 + 22 * spread,
                "test": 340 + 24 * spread,
            }[str(row["split"])]
            return start + timedelta(days=day)

        times = [moment(row) for row in rows.iter_rows(named=True)]
        events = rows.select("user_id", "item_id").with_columns(
            pl.lit("purchase").alias("event"), pl.Series("time", times)
        )
        events.write_parquet(folder / "events.parquet")
        events.select("item_id").unique(maintain_order=True).write_parquet(folder / "items.parquet")
        (folder / "crossrec.toml").write_text(DESCRIPTION, encoding="utf-8")
    return target


def measured(data: str, work: Path, seeds: int, asked: Sequence[PrivateRow]) -> list[Result]:
    """Local, federated, every private federation and pooled, for every seed."""
    arguments = ["--data", data, "--seeds", str(seeds), "--at-once", "2", "--evaluate-every", "0"]
    arguments += ["--work", str(work / "work")]
    settings = replace(settings_of(arguments), private=tuple(asked))
    experiment = Experiment(settings, PLAN, *prepared_platforms(settings))
    return [result for seed in range(seeds) for result in experiment.seed(seed)[0]]


def report(name: str, results: Sequence[Result], seeds: int, rows: Sequence[PrivateRow]) -> None:
    """Write the table, the plot and the figures of one data set."""
    generator = ExperimentRandomness(0, "dp quality").numpy()
    cost = privacy_cost(results, rows, generator=generator)
    table = f"# {name}, {seeds} seeds\n{privacy_markdown(cost)}"
    (RESULTS / f"dp_quality_{name}.md").write_text(table, encoding="utf-8")
    print(table)
    flat = [(row, cost.levels[row][AVERAGE].value) for row in (LOCAL, FEDERATED, POOLED)]
    drawn = epsilon_chart(name, list(cost.series()), flat, f"{name}: nDCG@10, {cost.view}")
    (RESULTS / f"dp_quality_{name}.svg").write_text(standalone(drawn), encoding="utf-8")
    lowest, worst = cost.worst()
    suffix = "" if name == "cj" else f"_{name}"
    figures = [
        # "At least local within its interval": the upper end of the worst interval.
        figure(f"dp.worst_gain_over_local{suffix}", worst.high, ">=0", seeds),
        figure(f"dp.worst_gain_over_local_mean{suffix}", lowest, ">=0", seeds),
    ]
    local = cost.levels[LOCAL][AVERAGE].value
    for row in rows:
        ratio = cost.levels[row.name][AVERAGE].value / local
        named = f"dp.over_local_{row.noise}_eps{row.epsilon:g}{suffix}"
        figures.append(figure(named, ratio, ">=1", seeds))
    path = RESULTS / "dp_quality.json"
    write_figures(path, merge_figures(read_figures(path) if path.exists() else [], figures))


def figure(name: str, value: float, goal: str, seeds: int) -> Figure:
    return Figure(figure=name, value=round(value, 6), goal=goal, command=COMMAND, seeds=seeds)


if __name__ == "__main__":
    main()
