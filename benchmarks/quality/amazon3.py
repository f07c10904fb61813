"""Amazon-3: Beauty, Sports, Toys as three platforms that share users and hardly an item; full ranking.

    python benchmarks/quality/amazon3.py [--platforms beauty sports toys] [--data FOLDER]

The published single-platform rows of SASRec and S3-Rec stand beside. The platforms share no item, so a
federation has nothing to tell them but through linked users: what is measured here is the platform's own
part, which is worked out in closed form: no seed enters.
Writes results/quality_amazon3.json, .md and .svg.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

from leave_one_out import write_platforms  # noqa: E402
from measured import FULL, Test, model_rows, plain_rows, published, scored  # noqa: E402

from crossrec_model.config import ModelConfig, Plan  # noqa: E402
from crossrec_model.evaluation.figures import Figure, merge_figures, read_figures, write_figures  # noqa: E402
from crossrec_model.evaluation.results import Result  # noqa: E402
from simulations.__main__ import settings_of  # noqa: E402
from simulations.experiment import Experiment, prepared_platforms  # noqa: E402

DATA = HERE.parents[2] / "shared" / "data" / "amazon3"
RESULTS = HERE.parent / "results"
COMMAND = "python benchmarks/quality/amazon3.py"
PLAN = Plan(model=ModelConfig(buckets=2**15, dimension=32, tower=(64, 64, 32, 1)))
#: HR@10 and nDCG@10 as published for single platforms.
PUBLISHED = {
    "SASRec": {"beauty": (0.0605, 0.0318), "sports": (0.0350, 0.0192), "toys": (0.0675, 0.0374)},
    "S3-Rec": {"beauty": (0.0647, 0.0327), "sports": (0.0385, 0.0204), "toys": (0.0700, 0.0376)},
}


def measured(data: Path, names: list[str], work: Path) -> list[Result]:
    """The rows of every platform."""
    platforms = write_platforms(data, work / "platforms", names)
    arguments = ["--data", str(platforms), "--platforms", *names, "--no-secure-aggregation"]
    settings = settings_of([*arguments, "--work", str(work / "work")])
    experiment = Experiment(settings, PLAN, *prepared_platforms(settings))
    results = list[Result]()
    for name in names:
        started = time.monotonic()
        dataset = replace(experiment.datasets[name], least_buyers=0)
        test = Test.of(name, dataset, PLAN, None)
        results += plain_rows(test)
        results += [result for result, _ in model_rows(test, dataset, PLAN, [])]
        for result in results:
            if result.platform == name:
                means = {metric: round(float(v.mean()), 4) for metric, v in result.metrics.items()}
                print(f"{name} {result.row}: {means}", flush=True)
        print(f"{name} took {time.monotonic() - started:.0f} s", flush=True)
    return results


def main() -> int:
    """Measure, write the table, the plot and the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--platforms", nargs="+", default=["beauty", "sports", "toys"])
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"{options.data} is absent: nothing is measured")
        return 0
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        results = measured(options.data, options.platforms, Path(folder))
    table = scored(results)[FULL]["local"]
    published(RESULTS / "quality_amazon3", "Amazon-3", results, (FULL, "hr@10"), against="EASE")
    found = [
        Figure(
            figure=f"quality.amazon3.{name}",
            value=round(table[name], 5),
            goal=f">={PUBLISHED['S3-Rec'][name][1]}",
            command=COMMAND,
            seeds=1,
        )
        for name in options.platforms
    ]
    path = RESULTS / "quality_amazon3.json"
    write_figures(path, merge_figures(read_figures(path) if path.exists() else [], found))
    for figure in found:
        print(f"{figure.figure} {figure.value} (goal {figure.goal})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
