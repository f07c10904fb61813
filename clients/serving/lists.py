"""From a user's scores, or an item, to a list that is as long as it was asked for if that can be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from clients.recommend import COLD_REASON
from clients.serving.calls import Listed, RecommendCall, SimilarCall, Source
from clients.serving.diversity import best, explored, pool_size, spread
from clients.serving.model import OWN_GRAPH, SHARED_GRAPH, LiveModel
from clients.serving.reasons import reason, speech
from clients.serving.scores import Evidence

Float = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
Int = npt.NDArray[np.int64]

RARE_REASON: Final = "fills the list: it passes the filters, but few have taken it yet"
EXPLORED_REASON: Final = "never shown to anybody yet"
GOES_WITH: Final = "often taken by the same users"
ALIKE: Final = "alike in what the catalogue says of it"
_POPULARITIES: Final = ("own popularity", "shared popularity")


@dataclass(frozen=True, kw_only=True)
class _Row:
    """An item of a list before it has its place."""

    item: int
    score: float
    reason: str
    source: Source


def recommended(
    model: LiveModel,
    evidence: Evidence,
    call: RecommendCall,
    passes: Bool,
    shown: Bool,
    generator: np.random.Generator,
) -> tuple[Listed, ...]:
    """The best for a user among the items that pass, bool [items]; `shown` are those shown before.

    1. The explored share is drawn among candidates that nobody was shown. 2. The rest are the best
    candidates, spread by the diversity knob. 3. Where candidates run out, rarely taken items follow.
    """
    allowed = np.flatnonzero(passes[model.candidates])
    scores = evidence.scores
    drawn = allowed[:0]
    if count := _share(call.explore, call.k, generator):
        fresh = allowed[~shown[model.candidates[allowed]]]
        drawn = explored(scores, fresh, count, generator)
    rest = np.setdiff1d(allowed, drawn, assume_unique=True) if len(drawn) else allowed
    length = call.k - len(drawn)
    pool = rest[best(scores[rest], pool_size(length, call.diversity))]
    vectors = model.content[model.candidates[pool]] if call.diversity else model.content[:0]
    chosen = pool[spread(scores[pool], vectors, length, call.diversity, call.method)]
    columns = np.concatenate([chosen, drawn])
    said = speech(model, evidence, columns)
    rows = [
        _Row(
            item=int(model.candidates[column]),
            score=float(scores[column]),
            reason=reason(model, evidence, said[:, place], int(column))
            if place < len(chosen)
            else EXPLORED_REASON,
            source="ranked" if place < len(chosen) else "explored",
        )
        for place, column in enumerate(columns.tolist())
    ]
    least = min((row.score for row in rows), default=0.0)
    rows += _rare(model, passes, call.k - len(rows), least)
    return tuple(_listed(model, rows))


def popular(model: LiveModel, call: RecommendCall, passes: Bool) -> tuple[Listed, ...]:
    """Both popularities with their weights for new items: for a user of whom nothing is known."""
    mixture = model.mixture
    by_name = dict(zip(mixture.names, mixture.weights, strict=False))
    weights = [max(by_name.get(name, 0.0), 0.0) for name in _POPULARITIES]
    if sum(weights) == 0:
        weights = [0.5, 0.5]
    scores = weights[0] * model.own_popularity + weights[1] * model.shared_popularity
    at = scores[model.candidates].astype(np.float32)
    allowed = np.flatnonzero(passes[model.candidates])
    pool = allowed[best(at[allowed], pool_size(call.k, call.diversity))]
    vectors = model.content[model.candidates[pool]] if call.diversity else model.content[:0]
    chosen = pool[spread(at[pool], vectors, call.k, call.diversity, call.method)]
    rows = [
        _Row(
            item=int(model.candidates[column]),
            score=float(at[column]),
            reason=COLD_REASON,
            source="popular",
        )
        for column in chosen
    ]
    least = min((row.score for row in rows), default=0.0)
    rows += _rare(model, passes, call.k - len(rows), least)
    return tuple(_listed(model, rows))


def similar(model: LiveModel, item: int, call: SimilarCall, passes: Bool) -> tuple[Listed, ...]:
    """Items by the mean of their edges in the served graphs; by content where edges run out."""
    passes = passes.copy()
    passes[item] = False
    strength = np.zeros(len(model.candidates), dtype=np.float32)
    graphs = [model.graphs[name] for name in (OWN_GRAPH, SHARED_GRAPH) if name in model.graphs]
    for graph in graphs:
        edges = slice(graph.indptr[item], graph.indptr[item + 1])
        strength[graph.indices[edges]] += graph.data[edges] / len(graphs)
    allowed = np.flatnonzero(passes[model.candidates] & (strength > 0))
    chosen = allowed[best(strength[allowed], call.k)]
    rows = [
        _Row(
            item=int(model.candidates[column]),
            score=float(strength[column]),
            reason=GOES_WITH,
            source="graph",
        )
        for column in chosen
    ]
    if len(rows) < call.k:
        passes[model.candidates[chosen]] = False
        left = np.flatnonzero(passes)
        alike = model.content[left] @ model.content[item]
        rows += [
            _Row(item=int(left[at]), score=float(alike[at]), reason=ALIKE, source="content")
            for at in best(alike, call.k - len(rows))
        ]
    return tuple(_listed(model, rows))


def _rare(model: LiveModel, passes: Bool, count: int, least: float) -> list[_Row]:
    """Items outside the candidates that pass, the most popular first, below what is ranked."""
    if count <= 0:
        return []
    left = np.flatnonzero(passes & (model.column < 0))
    popularity = model.own_popularity[left].astype(np.float32)
    chosen = best(popularity, count)
    top = float(popularity[chosen[0]]) if len(chosen) else 0.0
    return [
        _Row(
            item=int(left[at]),
            score=least - 1.0 + float(popularity[at]) - top,
            reason=RARE_REASON,
            source="rare",
        )
        for at in chosen
    ]


def _share(explore: float, k: int, generator: np.random.Generator) -> int:
    """The share of the list as a whole number, right on average."""
    return min(k, int(explore * k + generator.random())) if explore > 0 else 0


def _listed(model: LiveModel, rows: list[_Row]) -> Iterator[Listed]:
    for place, row in enumerate(rows, 1):
        yield Listed(
            place=place,
            item_id=model.items.item_ids[row.item],
            title=model.titles[row.item],
            category=model.categories[row.item],
            score=round(row.score, 6),
            reason=row.reason,
            source=row.source,
        )
