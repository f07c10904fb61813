"""What linked profiles are worth, with linkage given: users who stand on several platforms under one id.

    python benchmarks/link.py [--data cj amazon3] [--platforms A B C] [--seeds 1]

The Complete Journey has shared items and shared households; a profile is made of what came before the
moment of evaluation. Amazon-3 (Beauty, Sports, Toys) shares users and hardly an item; a sender's profile
holds its training rows only. The number of directions follows a trial on validation users of one platform of
the Complete Journey (docs/profiles.md). Weights, and whether profiles are served at all, rest on
validation users; test users are measured once a seed. A seed is another draw of the profiles' noise.
Writes results/link.json, and link_DATA.md and .svg for each data set.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "quality")]

from leave_one_out import write_platforms  # noqa: E402
from linked_history import Platform, Space, measured, shuffled, terms_of  # noqa: E402

from clients.dataset import Dataset  # noqa: E402
from clients.linked import LinkedEvidence  # noqa: E402
from crossrec_model.config import ModelConfig, Plan  # noqa: E402
from crossrec_model.evaluation.charts import interval_chart, standalone  # noqa: E402
from crossrec_model.evaluation.comparison import AVERAGE, Estimate, estimates  # noqa: E402
from crossrec_model.evaluation.figures import (  # noqa: E402
    Figure,
    merge_figures,
    read_figures,
    write_figures,
)
from crossrec_model.evaluation.results import ALL_PURCHASES, FIRST_TIME, Result  # noqa: E402
from crossrec_model.randomness import ExperimentRandomness  # noqa: E402
from simulations.__main__ import settings_of  # noqa: E402
from simulations.experiment import Experiment, prepared_platforms  # noqa: E402
from simulations.pooled import pooled_statistics  # noqa: E402

AMAZON = HERE.parents[1] / "shared" / "data" / "amazon3"
RESULTS = HERE / "results"
COMMAND = "python benchmarks/link.py"
NDCG = "ndcg@10"
PLACEBO = "another's profile"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A data set, its plan, and (epsilon, dimension, clip) of the profiles that are measured."""

    names: tuple[str, ...]
    plan: Plan
    view: str
    profiles: tuple[tuple[float, int, float], ...]


def plan_with(pairs: int) -> Plan:
    """A small network, which is not trained here, and so many items of the common space."""
    return Plan(
        model=ModelConfig(
            buckets=2**15,
            dimension=32,
            tower=(64, 64, 32, 1),
            sketch_width=2**18,
            pair_items=pairs,
        )
    )


SETTINGS = {
    "cj": Setting(
        names=("A", "B", "C"),
        plan=plan_with(2048),
        view=FIRST_TIME,
        profiles=((math.inf, 64, 0), (8.0, 32, 3.0), (2.0, 32, 3.0)),
    ),
    "amazon3": Setting(
        names=("beauty", "sports", "toys"),
        plan=plan_with(4096),
        view=ALL_PURCHASES,
        profiles=((math.inf, 256, 0), (8.0, 32, 1.0), (2.0, 32, 1.0)),
    ),
}


def opened(data: str, names: Sequence[str], work: Path) -> dict[str, Dataset]:
    """The data set's platforms; leave-one-out ranks every item."""
    plan, arguments = SETTINGS[data].plan, ["--no-secure-aggregation", "--work", str(work / "work")]
    if data == "amazon3":
        folder = write_platforms(AMAZON, work / "platforms", list(names))
        arguments += ["--data", str(folder)]
    settings = settings_of([*arguments, "--platforms", *names])
    plain = replace(plan, model=replace(plan.model, pair_items=0))
    datasets = Experiment(settings, plain, *prepared_platforms(settings)).datasets
    if data == "amazon3":
        return {name: replace(dataset, least_buyers=0) for name, dataset in datasets.items()}
    return datasets


def spaces(data: str, datasets: dict[str, Dataset]) -> tuple[Space, Space]:
    """The common space for validation and for the test."""
    plan = SETTINGS[data].plan
    before = Space(
        plan=plan,
        statistics=pooled_statistics(datasets, plan, at_test=False),
        day=lambda dataset: dataset.split.validation,
    )
    if data == "amazon3":  # a sender's validation item may be later than the receiver's test item
        return before, before
    after = pooled_statistics(datasets, plan, at_test=True)
    return before, Space(plan=plan, statistics=after, day=lambda dataset: dataset.split.test)


def results_of(data: str, names: Sequence[str], seeds: int, work: Path) -> Iterator[Result]:
    """Every row of every platform."""
    datasets = opened(data, SETTINGS[data].names, work)
    before, after = spaces(data, datasets)
    for name in names:
        started, platform = time.monotonic(), Platform(name, datasets, SETTINGS[data].plan)
        for epsilon, dimension, clip in SETTINGS[data].profiles:
            terms, label = terms_of(epsilon, dimension, clip), f"ε = {epsilon:g}"
            for seed in range(seeds if terms.multiplier else 1):
                received = before.received(name, datasets, terms)
                weights = platform.weights(LinkedEvidence(platform.validation, received))
                at_test = after.received(name, datasets, terms)
                yield from measured(platform, at_test, weights, f"profile, {label}", seed)
                known, new = weights.known.trial, weights.newcomer.trial
                print(
                    f"{name} {label} D = {dimension}, seed {seed}: {known.users} validation users; fit "
                    f"{known.fit}, nDCG@10 {known.ndcg}, {'served' if known.passed else 'not served'}; "
                    f"newcomers: fit {new.fit}, nDCG@10 {new.ndcg} "
                    f"({time.monotonic() - started:.0f} s)",
                    flush=True,
                )
                if epsilon == math.inf:
                    placebo = platform.weights(
                        LinkedEvidence(platform.validation, shuffled(received))
                    )
                    yield from measured(platform, shuffled(at_test), placebo, PLACEBO, seed)


def unique(results: Iterator[Result]) -> list[Result]:
    """Each row of each platform and seed once: the unlinked ones come with every setting."""
    kept: dict[tuple[str, str, str, int], Result] = {}
    for result in results:
        kept.setdefault((result.row, result.platform, result.view, result.seed), result)
    return [r for r in kept.values() if r.seed == 0 or "profile, ε" in r.row]


class Table:
    """Means and differences of the rows of one data set."""

    def __init__(self, results: Sequence[Result]) -> None:
        self.results = results

    def of(self, row: str, view: str, against: str | None = None) -> dict[str, Estimate]:
        """By platform, and on average."""
        generator = ExperimentRandomness(0, "quality").numpy()
        return estimates(self.results, row=row, view=view, generator=generator, against=against)[
            NDCG
        ]

    def share(self, view: str) -> float:
        """How much of the way from the cold-start list to the full history a profile goes."""
        mean = {
            row: self.of(row, view)[AVERAGE].value
            for row in ("unlinked", "newcomer, cold-start list", "newcomer, profile, ε = inf")
        }
        full, cold, linked = mean.values()
        return (linked - cold) / (full - cold)


def published(data: str, table: Table) -> None:
    """The rows of a data set with intervals, as Markdown and as a plot."""
    rows = dict.fromkeys(result.row for result in table.results)
    view, lines = SETTINGS[data].view, [f"# Linked users, {data}", ""]
    for shown in dict.fromkeys((view, ALL_PURCHASES)):
        head = list(table.of("unlinked", shown))
        lines += [f"## {shown}: nDCG@10 of linked users", "", "| row | " + " | ".join(head) + " |"]
        lines += ["|---|" + "---:|" * len(head)]
        for row in rows:
            cells = [
                f"{e.value:.4f} [{e.low:.4f} to {e.high:.4f}]"
                for e in table.of(row, shown).values()
            ]
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
        lines += ["", "| gain over | | average |", "|---|---|---:|"]
        for row in rows:
            against = "newcomer, cold-start list" if row.startswith("newcomer") else "unlinked"
            if row == against:
                continue
            gain = table.of(row, shown, against)[AVERAGE]
            lines.append(
                f"| {against} | {row} | {gain.value:+.4f} [{gain.low:+.4f} to {gain.high:+.4f}] |"
            )
        lines += [
            "",
            f"Newcomers' share of the way to the full history: {table.share(shown):.3f}",
            "",
        ]
    stem = RESULTS / f"link_{data}"
    stem.with_suffix(".md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))
    entries = [
        (row, table.of(row, view, "unlinked")[AVERAGE])
        for row in rows
        if row != "unlinked" and not row.startswith("newcomer")
    ]
    chart = interval_chart(stem.name, entries, "gain in nDCG@10", around_zero=True)
    stem.with_suffix(".svg").write_text(standalone(chart), encoding="utf-8")


def figures(data: str, table: Table, seeds: int) -> list[Figure]:
    """What the goals ask for: absolute gains in nDCG@10, platforms weighed alike."""
    view, command = SETTINGS[data].view, f"{COMMAND} --data {data}"
    gain = table.of("profile, ε = inf", view, "unlinked")[AVERAGE]
    if data == "amazon3":
        values = [("link.amazon3_gain_low", gain.low, ">0", 1)]
    else:
        noised = table.of("profile, ε = 8", view, "unlinked")[AVERAGE]
        values = [
            ("link.cj_gain_low", gain.low, ">0", 1),
            ("link.cj_gain_eps8", noised.value, ">=0", seeds),
            ("link.newcomer_share", table.share(view), ">=0.5", 1),
        ]
    return [
        Figure(
            figure=name, value=round(float(value), 5), goal=goal, command=command, seeds=seeds_of
        )
        for name, value, goal, seeds_of in values
    ]


def main() -> int:
    """Measure, write tables, plots and figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", choices=list(SETTINGS), default=["cj", "amazon3"])
    parser.add_argument("--platforms", nargs="+", help="only these, without figures")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for data in options.data:
        if data == "amazon3" and not AMAZON.is_dir():
            print(f"{AMAZON} is absent: nothing is measured")
            continue
        names = options.platforms or SETTINGS[data].names
        with tempfile.TemporaryDirectory() as folder:
            results = unique(results_of(data, names, options.seeds, Path(folder)))
        table = Table(results)
        published(data, table)
        if options.platforms:
            continue
        found, path = figures(data, table, options.seeds), RESULTS / "link.json"
        write_figures(path, merge_figures(read_figures(path) if path.exists() else [], found))
        for figure in found:
            print(f"{figure.figure} {figure.value} (goal {figure.goal})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
