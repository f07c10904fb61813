"""One user's scores for all candidates, component by component, equal to what the mixture was fitted on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from clients.serving.model import (
    NEIGHBOURS,
    OWN_GRAPH,
    OWN_ORDER,
    SHARED_GRAPH,
    Edges,
    LiveModel,
)
from clients.serving.networks import UserInput
from clients.serving.past import Past
from crossrec_model.history_rows import history_rows
from crossrec_model.ranking import Components, Mixture

Float = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

_NEAR: Final = np.float32(0.01)
_WIDE: Final = np.float32(0.1)
#: component → (graph, whether it reads the fading history, floor under the logarithm)
GRAPH_TERMS: Final = {
    NEIGHBOURS: (NEIGHBOURS, False, np.float32(1.0)),
    **{
        f"{graph}{ending}": (graph, latest, floor)
        for graph in (OWN_GRAPH, SHARED_GRAPH)
        for ending, latest, floor in (
            ("", False, _NEAR),
            (", wide", False, _WIDE),
            (", latest", True, _NEAR),
        )
    },
    OWN_ORDER: (OWN_ORDER, True, _NEAR),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class History:
    """A user's distinct items with their weights, plain (all 1) or fading with each visit since."""

    items: Int
    weights: Float
    #: Whether all weights are 1.
    even: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What speaks for each candidate: `values` float32 [K, C] by the mixture's names, and the score [C].

    `count` and `age` float32 [C], as in `ranking.Components`.
    """

    values: Float
    count: Float
    age: Float
    scores: Float
    plain: History
    latest: History
    inputs: dict[str, UserInput]

    def components(self, mixture: Mixture) -> Components:
        """The same as components of one user."""
        return Components(
            names=mixture.names,
            values=self.values[:, None],
            count=self.count[None],
            age=self.age[None],
        )


def score(model: LiveModel, past: Past) -> Evidence:
    """Score all candidates for a user with what is known of her."""
    ones = np.ones(len(past.items), dtype=np.float32)
    plain = History(items=past.items, weights=ones, even=True)
    latest = _fading(past, len(model.items))
    sums: dict[tuple[str, bool], Float] = {}
    inputs: dict[str, UserInput] = {}
    values = np.empty((len(model.mixture.names), len(model.candidates)), dtype=np.float32)
    for place, name in enumerate(model.mixture.names):
        if name in model.popularities:
            values[place] = model.popularities[name]
        elif name in model.networks:
            inputs[name] = model.networks[name].read(past)
            values[place] = model.networks[name].logits(inputs[name])
        else:
            graph, fading, floor = GRAPH_TERMS[name]
            if (graph, fading) not in sums:
                history = latest if fading else plain
                sums[graph, fading] = summed(model.edges[graph], history)
            np.log(sums[graph, fading] + floor, out=values[place])
    count, age = _takings(model, past)
    return Evidence(
        values=values,
        count=count,
        age=age,
        scores=_mixed(model.mixture, values, count, age),
        plain=plain,
        latest=latest,
        inputs=inputs,
    )


def summed(edges: Edges, history: History) -> Float:
    """Σ of the edges from a history to each candidate, float32 [C]; never negative."""
    start, end = edges.start[history.items], edges.start[history.items + 1]
    # A copy of a few long runs is faster than one number at a time.
    runs = [slice(a, b) for a, b in zip(start.tolist(), end.tolist(), strict=True)]
    if not runs:
        return np.zeros(edges.width, dtype=np.float32)
    weights = np.concatenate([edges.weight[run] for run in runs])
    if not history.even:
        weights *= np.repeat(history.weights, end - start)
    column = np.concatenate([edges.column[run] for run in runs])
    sums = np.bincount(column, weights=weights, minlength=edges.width)
    return np.maximum(sums, 0).astype(np.float32)


def _fading(past: Past, items: int) -> History:
    row = history_rows(past.index, np.zeros(1, dtype=np.int64), past.day, items, fading=0.5)
    return History(items=row.indices.astype(np.int64), weights=row.data)


def _takings(model: LiveModel, past: Past) -> tuple[Float, Float]:
    """Past takings of each candidate and days since the last, float32 [C] each."""
    where = model.column[past.histories.item]
    known = where >= 0
    where = where[known]
    count = np.bincount(where, minlength=len(model.candidates)).astype(np.float32)
    age = np.full(len(model.candidates), 1e4, dtype=np.float32)
    np.minimum.at(age, where, (past.day - past.histories.day[known]).astype(np.float32))
    return count, age


def _mixed(mixture: Mixture, values: Float, count: Float, age: Float) -> Float:
    """`Mixture.scores` of one user, reading each value once."""
    k = len(mixture.names)
    weights = np.array(mixture.weights, dtype=np.float32)
    scores: Float = weights[:k] @ values
    had = np.flatnonzero(count > 0)
    if len(had):
        one = Components(
            names=mixture.names,
            values=values[:, None, had],
            count=count[None, had],
            age=age[None, had],
        )
        scores[had] = mixture.scores(one)[0]
    return scores
