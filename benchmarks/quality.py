"""Federated against local, plain rows and pooled on the Complete Journey; the figures quality.cj.*.

    python benchmarks/quality.py [--seeds 5]

First-time purchases, nDCG@10, average of three platforms; the interval is a paired bootstrap over users.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "quality_cj_report")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        command = [
            *(sys.executable, "-m", "simulations", "--seeds", str(options.seeds)),
            *("--out", str(options.out), "--work", work),
            *("--figures", str(RESULTS / "quality_cj.json")),
        ]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
