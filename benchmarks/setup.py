"""The README's two commands on a fresh clone: minutes and memory of `make demo`, minutes of `make test`.

    python benchmarks/setup.py [demo] [test]

The clone holds what is committed; its environment is made anew. Memory is the largest sum of the
proportional set sizes of the command and all its children, sampled twice a second.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from crossrec_model.evaluation.figures import Figure, merge_figures, read_figures, write_figures

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "setup.json"
COMMAND = "python benchmarks/setup.py"


def measured(arguments: list[str], folder: Path) -> tuple[float, float]:
    """Run a command; minutes and peak memory in GiB. SystemExit if it fails."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("VIRTUAL_ENV", "MAKE"))}
    started, peak = time.monotonic(), 0
    process = psutil.Popen(arguments, cwd=folder, env=environment)
    while process.poll() is None:
        peak = max(peak, memory(process))
        time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with code {process.returncode}")
    return (time.monotonic() - started) / 60, peak / 2**30


def memory(process: psutil.Process) -> int:
    """Bytes of a process and its children, shared pages counted once."""
    total = 0
    try:
        for one in (process, *process.children(recursive=True)):
            try:
                total += one.memory_full_info().pss
            except psutil.Error:  # it ended between the listing and the question
                continue
    except psutil.Error:
        return total
    return total


def main(targets: list[str]) -> None:
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "crossrec"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        if "demo" in targets:
            minutes, peak = measured(["make", "demo"], clone)
            figures += [
                Figure(
                    figure="demo.minutes", value=round(minutes, 2), goal="<=12", command=COMMAND
                ),
                Figure(figure="demo.peak_gib", value=round(peak, 2), goal="<=4", command=COMMAND),
            ]
        if "test" in targets:
            minutes, _ = measured(["make", "test"], clone)
            figures.append(
                Figure(
                    figure="tests.minutes", value=round(minutes, 2), goal="<=15", command=COMMAND
                )
            )
    older = read_figures(RESULT) if RESULT.exists() else []
    write_figures(RESULT, merge_figures(older, figures))
    for figure in figures:
        print(f"{figure.figure} = {figure.value} (goal {figure.goal})")


if __name__ == "__main__":
    main(sys.argv[1:] or ["demo", "test"])
