"""The Complete Journey, three platforms that share items and some households: both views beside EASE.

    python benchmarks/quality/complete_journey.py [--seeds 5]

The demo's experiment with more seeds: item graphs of the platforms and of the federation, the shared
network, the trial. Writes results/quality_cj.json and its report as results/quality_cj_report.md.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1])]

from crossrec_model.evaluation.figures import merge_figures, read_figures, write_figures  # noqa: E402
from simulations.__main__ import main as simulate  # noqa: E402

RESULTS = HERE.parent / "results"
COMMAND = "python benchmarks/quality/complete_journey.py"


def main() -> int:
    """Run the experiment and keep its figures and its report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report"
        arguments = ["--seeds", str(options.seeds), "--evaluate-every", "0", "--out", str(out)]
        arguments += ["--at-once", "2", "--no-secure-aggregation"]
        code = simulate([*arguments, "--figures", str(out.with_suffix(".json"))])
        if code:
            return code
        found = [
            replace(figure, command=COMMAND) for figure in read_figures(out.with_suffix(".json"))
        ]
        path = RESULTS / "quality_cj.json"
        write_figures(path, merge_figures(read_figures(path) if path.exists() else [], found))
        shutil.copy(out / "report.md", RESULTS / "quality_cj_report.md")
    for figure in found:
        print(f"{figure.figure} {figure.value} (goal {figure.goal})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
