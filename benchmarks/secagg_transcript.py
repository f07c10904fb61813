"""Whether a platform's messages can be told from ones that are made from the sum alone.

Plays 200 rounds of a small federation and simulates as many from their sums, several times over. Each time,
classifiers on several feature maps are trained to tell the two apart and validated forwards. The
figure `secagg.transcript_auc` is the mean area under the ROC curve of the best of them:

    0.5: at chance; 1: always right                                                   goal: <= 0.55

with the interval that the best one's mean leaves by chance once in a million times, for all that are
tried. Beside it stand the areas of the same observer where the protocol is weakened: where all masks come
from 2^12 seeds (2^32 are the same search, 2^20 times as long), where the weight travels beside the vector,
and where all pairs have one mask and there is no self mask.

Run: python benchmarks/secagg_transcript.py
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
from scipy import stats

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "secagg")]

from distinguisher import Area, areas, bodies, randomness_of  # noqa: E402
from observer import SeedSearch, equal_masks, few_seeds  # noqa: E402
from transcript import TARGET, TellingParticipant, true_and_simulated  # noqa: E402

from crossrec_model.secagg.participant import Participant  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "secagg_transcript.json"
ROUNDS, REPETITIONS = 200, 12
WEAK_ROUNDS, WEAK_REPETITIONS = 60, 3
SEED_BITS = 12
FALSE_ALARM = 1e-6


def mean_areas(found: list[dict[str, Area]]) -> dict[str, Area]:
    """The mean over repetitions, by classifier."""
    count = len(found)
    return {
        name: Area(
            value=float(np.mean([one[name].value for one in found])),
            chance=float(np.sqrt(sum(one[name].chance ** 2 for one in found)) / count),
        )
        for name in found[0]
    }


def best(found: dict[str, Area]) -> str:
    """The classifier with the largest area."""
    return max(found, key=lambda name: found[name].value)


def strong(search: SeedSearch) -> dict[str, object]:
    """The figure, of the protocol as it is."""
    found: list[dict[str, Area]] = []
    least_p = 1.0
    for repetition in range(REPETITIONS):
        true, simulated = true_and_simulated(ROUNDS, seed=100 + repetition)
        found.append(areas(true, simulated, search))
        p_values = [p for data in bodies(true).values() for p in randomness_of(data).values()]
        # The least of several, corrected for how many there are.
        least_p = min(least_p, min(p_values) * len(p_values) * REPETITIONS)
        print(f"{repetition + 1}: {found[-1][best(found[-1])].value:.3f} (best)", flush=True)
    mean = mean_areas(found)
    name = best(mean)
    width = float(stats.norm.isf(FALSE_ALARM / 2 / len(mean))) * mean[name].chance
    return {
        "value": round(mean[name].value, 4),
        "best": name,
        "chance_interval": [round(0.5 - width, 4), round(0.5 + width, 4)],
        "rounds": ROUNDS,
        "repetitions": REPETITIONS,
        "auc": {key: round(one.value, 4) for key, one in mean.items()},
        "least_corrected_p_of_bytes": round(min(1.0, least_p), 4),
    }


def weak(search: SeedSearch) -> dict[str, object]:
    """The best areas of the same observer against weakened protocols, and which classifier has it."""
    variants: dict[str, tuple[Callable[[], AbstractContextManager[None]], type[Participant]]] = {
        f"masks from 2^{SEED_BITS} seeds": (lambda: few_seeds(SEED_BITS), Participant),
        "weight beside the vector": (nullcontext, TellingParticipant),
        "equal masks": (equal_masks, Participant),
    }
    results: dict[str, object] = {}
    for variant, (weakened, platform) in variants.items():
        with weakened():
            mean = mean_areas(
                [
                    areas(*true_and_simulated(WEAK_ROUNDS, seed, platform), search)
                    for seed in range(WEAK_REPETITIONS)
                ]
            )
        name = best(mean)
        results[variant] = {"auc": round(mean[name].value, 4), "best": name}
        print(f"{variant}: {mean[name].value:.3f} by {name}", flush=True)
    return results


def main() -> int:
    start = time.process_time()
    search = SeedSearch(TARGET, SEED_BITS)
    hours = (time.process_time() - start) * 2 ** (32 - SEED_BITS) / 3600
    figure = {
        "figure": "secagg.transcript_auc",
        "goal": "<=0.55",
        "command": "python benchmarks/secagg_transcript.py",
        "seeds": REPETITIONS,
        **strong(search),
        "weakened": weak(search),
        "search_of_32_bits_core_hours": round(hours, 1),
    }
    partial = RESULTS.with_suffix(".partial")
    partial.write_text(json.dumps([figure], indent=2) + "\n", encoding="utf-8")
    partial.replace(RESULTS)
    print(json.dumps(figure, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
