"""What differential privacy costs: nDCG@10 at epsilon = infinity, 8, 4, 2, 1, local and distributed noise.

Each row is what a platform serves: its private model mixed with the shared one. Beside them stand
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

import matplotlib as mpl
import polars as pl
from matplotlib.figure import Figure as Drawing

from crossrec_model.config import FederationConfig, ModelConfig, Noise, Plan
from crossrec_model.evaluation.comparison import AVERAGE, Estimate, estimates
from crossrec_model.evaluation.figures import Figure, merge_figures, read_figures, write_figures
from crossrec_model.evaluation.results import FIRST_TIME, Result
from crossrec_model.randomness import ExperimentRandomness
from simulations.__main__ import settings_of
from simulations.experiment import Experiment, prepared_platforms

RESULTS = Path(__file__).resolve().parent / "results"
MARKETS = Path(__file__).resolve().parents[2] / "shared" / "data" / "xmrec"
COMMAND = "python benchmarks/dp_quality.py"
EPSILONS = (8.0, 4.0, 2.0, 1.0)
NOISES: tuple[Noise, ...] = ("local", "distributed")
METRIC = "ndcg@10"
#: (noise, epsilon) → the row's name.
Rows = dict[tuple[Noise, float], str]
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
            asked = {
                (noise, epsilon): f"{noise} noise, ε = {epsilon:g}"
                for noise in options.noise
                for epsilon in options.epsilon
            }
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


def measured(data: str, work: Path, seeds: int, asked: Rows) -> list[Result]:
    """Local, federated, every private federation and pooled, for every seed."""
    arguments = ["--data", data, "--seeds", str(seeds), "--at-once", "2", "--evaluate-every", "0"]
    arguments += ["--work", str(work / "work")]
    settings = replace(settings_of(arguments), private=tuple(asked))
    experiment = Experiment(settings, PLAN, *prepared_platforms(settings))
    return [result for seed in range(seeds) for result in experiment.seed(seed)[0]]


def report(name: str, results: Sequence[Result], seeds: int, asked: Rows) -> None:
    """Write the table, the plot and the figures of one data set."""
    generator = ExperimentRandomness(0, "dp quality").numpy()
    names = ["local", "federated", *asked.values(), "pooled"]
    means = {
        row: estimates(results, row=row, view=FIRST_TIME, generator=generator)[METRIC]
        for row in names
    }
    gains = {
        row: estimates(results, row=row, view=FIRST_TIME, generator=generator, against="local")[
            METRIC
        ]
        for row in names
        if row != "local"
    }
    table = markdown(name, means, gains, seeds)
    (RESULTS / f"dp_quality_{name}.md").write_text(table, encoding="utf-8")
    print(table)
    plot(name, means, asked)
    worst = min(
        (gain for row in asked.values() for gain in gains[row].values()), key=lambda g: g.high
    )
    lowest = min(gain.value for row in asked.values() for gain in gains[row].values())
    suffix = "" if name == "cj" else f"_{name}"
    figures = [
        # "At least local within its interval": the upper end of the worst interval.
        figure(f"dp.worst_gain_over_local{suffix}", worst.high, ">=0", seeds),
        figure(f"dp.worst_gain_over_local_mean{suffix}", lowest, ">=0", seeds),
    ]
    for (noise, epsilon), row in asked.items():
        ratio = means[row][AVERAGE].value / means["local"][AVERAGE].value
        figures.append(figure(f"dp.over_local_{noise}_eps{epsilon:g}{suffix}", ratio, ">=1", seeds))
    path = RESULTS / "dp_quality.json"
    write_figures(path, merge_figures(read_figures(path) if path.exists() else [], figures))


def figure(name: str, value: float, goal: str, seeds: int) -> Figure:
    return Figure(figure=name, value=round(value, 6), goal=goal, command=COMMAND, seeds=seeds)


def markdown(
    name: str,
    means: dict[str, dict[str, Estimate]],
    gains: dict[str, dict[str, Estimate]],
    seeds: int,
) -> str:
    """nDCG@10 of first-time purchases, and the gain over local with its 95% interval."""
    columns = list(means["local"])
    lines = [
        f"# What privacy costs: {name}",
        "",
        f"nDCG@10 of first-time purchases, {seeds} seeds, δ = 1e-5, a user's whole history is the unit.",
        "Below: the gain over `local` with its 95% interval (bootstrap over users).",
        "",
        "| | " + " | ".join(columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for row, values in means.items():
        lines.append(f"| {row} | " + " | ".join(f"{values[c].value:.4f}" for c in columns) + " |")
    lines += ["", "| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for row, values in gains.items():
        cells = [
            f"{values[c].value:+.4f} [{values[c].low:+.4f}, {values[c].high:+.4f}]" for c in columns
        ]
        lines.append(f"| {row} − local | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(name: str, means: dict[str, dict[str, Estimate]], asked: Rows) -> None:
    """Average nDCG@10 against epsilon, with `local`, `federated` and `pooled` as lines."""
    with mpl.rc_context({"svg.hashsalt": name, "font.size": 10}):
        drawing = Drawing(figsize=(6.4, 3.6), layout="constrained")
        axes = drawing.add_subplot()
        for noise, marker, shift in (("local", "o", 0.97), ("distributed", "s", 1.03)):
            epsilons = [epsilon for kind, epsilon in asked if kind == noise]
            found = [means[asked[noise, e]][AVERAGE] for e in epsilons]
            axes.errorbar(
                [e * shift for e in epsilons],
                [f.value for f in found],
                yerr=[
                    [f.value - f.low for f in found],
                    [f.high - f.value for f in found],
                ],
                marker=marker,
                capsize=2,
                label=f"{noise} noise",
            )
        for row, style in (("local", ":"), ("federated", "-"), ("pooled", "--")):
            label = "federated, ε = ∞" if row == "federated" else row
            axes.axhline(means[row][AVERAGE].value, color="0.35", linestyle=style, label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(EPSILONS, [f"{e:g}" for e in EPSILONS])
        axes.set_xlabel("ε of each user's whole history (δ = 1e-5)")
        axes.set_ylabel("nDCG@10, first-time purchases")
        axes.legend(fontsize=8, frameon=False)
        drawing.savefig(RESULTS / f"dp_quality_{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
