"""From scores to a list: the best ones, as unlike each other as one knob says, some never shown before.

Maximal marginal relevance: Carbonell & Goldstein 1998. Greedy determinantal point process: Chen, Zhang &
Zhou 2018, "Fast greedy MAP inference for determinantal point process", algorithm 1.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from crossrec_model.topk import NO_ITEM, given_scorer, ranked

Float = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

#: A list is chosen among so many of the best for each of its places.
POOL: Final = 10
FEWEST: Final = 100
MOST: Final = 1000
#: A determinant's factor below is taken for 0: all that is left is like what is chosen already.
_LEAST_GAIN: Final = 1e-10
_OWN: Final = 1e-3


def best(scores: Float, k: int) -> Int:
    """Places of the `k` highest scores, best first, equal ones by place; -∞ is never among them."""
    if k < 1:
        return np.zeros(0, dtype=np.int64)
    found, _ = ranked(given_scorer(scores[None]), users=1, items=len(scores), k=k)
    places: Int = found[0][found[0] != NO_ITEM]
    return places


def pool_size(k: int, diversity: float) -> int:
    """Among how many of the best a list of `k` is chosen."""
    return k if diversity == 0 else min(max(POOL * k, FEWEST), MOST)


def mmr(relevance: Wide, alike: Wide, k: int, diversity: float) -> Int:
    """Greedy (1 - d) · relevance - d · largest similarity to what is chosen; int64 [≤ k].

    `relevance` [n] and `alike` [n, n] lie within [0, 1] and [-1, 1].
    """
    left = np.ones(len(relevance), dtype=bool)
    nearest = np.zeros(len(relevance))
    chosen: list[int] = []
    for _ in range(min(k, len(relevance))):
        gain = np.where(left, (1 - diversity) * relevance - diversity * nearest, -np.inf)
        one = int(np.argmax(gain))
        chosen.append(one)
        left[one] = False
        nearest = np.maximum(nearest, alike[one]) if len(chosen) > 1 else alike[one].copy()
    return np.array(chosen, dtype=np.int64)


def greedy_dpp(alike: Wide, log_quality: Wide, k: int) -> Int:
    """Greedily chosen places with the largest determinant of qᵢ · alike · qⱼ on them; int64 [≤ k].

    `alike` [n, n] is positive semidefinite, `log_quality` [n] is log q. The list ends early where every
    further item would make the determinant 0. Qualities stay logarithms, so that none underflows.
    """
    size = min(k, len(alike))
    gain = np.diag(alike).astype(np.float64).copy()  # d², without the quality
    parts = np.zeros((size, len(alike)))  # the rows cᵢ of the Cholesky factor
    chosen: list[int] = []
    left = np.ones(len(alike), dtype=bool)
    while len(chosen) < size:
        some = left & (gain > _LEAST_GAIN)
        if not some.any():
            break
        value = np.full(len(alike), -np.inf)
        value[some] = np.log(gain[some]) + 2 * log_quality[some]
        one, row = int(np.argmax(value)), len(chosen)
        parts[row] = (alike[one] - parts[:row, one] @ parts[:row]) / np.sqrt(gain[one])
        gain -= parts[row] ** 2
        left[one] = False
        chosen.append(one)
    return np.array(chosen, dtype=np.int64)


def log_quality(relevance: Wide, diversity: float) -> Wide:
    """α · relevance with α = (1 - d) / 2d, as in the paper's section 4.3; d above 0, at 1 all are 0."""
    return (1 - diversity) / (2 * diversity) * relevance


def spread(scores: Float, vectors: Float, k: int, diversity: float, method: str) -> Int:
    """Choose `k` of a pool of scores [n], best first, with vectors [n, D] of length 1; int64 [≤ k].

    A list is never shorter for being varied: where the determinant is used up, the best follow.
    """
    if diversity == 0 or len(scores) <= 1:
        return np.arange(min(k, len(scores)))
    low, high = float(scores.min()), float(scores.max())
    relevance = (scores.astype(np.float64) - low) / max(high - low, 1e-12)
    alike = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    if method == "mmr":
        return mmr(relevance, alike, k, diversity)
    # Vectors of a few numbers are never independent for long: a little of each item is its own.
    alike[np.diag_indices(len(alike))] += _OWN
    chosen = greedy_dpp(alike, log_quality(relevance, diversity), k)
    rest = np.setdiff1d(np.arange(len(scores)), chosen)
    more = rest[np.argsort(-scores[rest], kind="stable")][: min(k, len(scores)) - len(chosen)]
    return np.concatenate([chosen, more])


def explored(scores: Float, allowed: Int, count: int, generator: np.random.Generator) -> Int:
    """Draw `count` of the places `allowed` without return, in proportion to exp(score); int64 [≤ count].

    By Gumbel noise (Kool et al. 2019): a score is a log probability up to a constant.
    """
    noisy = scores[allowed] + generator.gumbel(size=len(allowed)).astype(np.float32)
    return allowed[best(noisy, count)]
