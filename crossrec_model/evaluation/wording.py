"""How figures are written for people: names, signs and intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from crossrec_model.evaluation.comparison import Estimate

_NAMES: Final = {
    "ndcg": "nDCG",
    "recall": "recall",
    "precision": "precision",
    "hit_rate": "hit rate",
    "mrr": "MRR",
    "auc": "AUC",
    "diversity": "diversity",
    "novelty": "novelty",
    "coverage": "coverage",
}
MISSING: Final = "–"


def metric_name(metric: str) -> str:
    """`ndcg@10` as nDCG@10; an unknown name stays as it is."""
    stem, at, cut = metric.partition("@")
    return f"{_NAMES.get(stem, stem)}{at}{cut}"


def decimals(metric: str) -> int:
    """Novelty is in bits and needs two decimals; shares need four."""
    return 2 if metric.startswith("novelty") else 4


def number(value: float, digits: int = 4) -> str:
    """A value with a true minus sign; a dash where there is none."""
    return MISSING if math.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 4) -> str:
    """A difference, always with its sign; what rounds to zero has none."""
    if math.isnan(value):
        return MISSING
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text[1:] if float(f"{value:.{digits}f}") == 0 else text


def interval(estimate: Estimate, digits: int = 4, *, sign: bool = False) -> str:
    """Both bounds, or a dash where nobody counts."""
    if math.isnan(estimate.low):
        return MISSING
    write = signed if sign else number
    # A space that can't break before the upper bound: a narrow column takes two lines, not three.
    return f"{write(estimate.low, digits)} to\u00a0{write(estimate.high, digits)}"


def joined(words: Sequence[str]) -> str:
    """A, B and C."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
