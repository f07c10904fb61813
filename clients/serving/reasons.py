"""Why an item was recommended: the terms of its score, exactly where it is linear, by gradients elsewhere.

The score is Σ over components of weight × value (`ranking.Mixture`). A popularity is a term of its own. The
value of a graph is log(Σ of edges from the history + floor): what it is without any history, log(floor), is
one term, and the rest is divided among the history items in proportion to their edges. A network's logit is
divided by integrated gradients (`gradients`). Repeats belong to the item itself.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from clients.recommend import REASONS
from clients.scoring import OWN
from clients.serving.calls import Carrier, Explained, Part
from clients.serving.gradients import attribute
from clients.serving.model import LiveModel
from clients.serving.scores import GRAPH_TERMS, Evidence, History
from crossrec_model.ranking import REPEAT_NAMES

Float = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

WITHOUT: Final = "without a history"
HISTORY: Final = "history"
_RECENCY_DAYS: Final = 30.0


def speech(model: LiveModel, evidence: Evidence, columns: Int) -> Wide:
    """What each component adds to the scores of some candidates beyond its mean, [K + 1, n].

    The last row is what the user's own repeats add; equals `recommend.contributions`.
    """
    k = len(model.mixture.names)
    new, known, again = np.split(np.array(model.mixture.weights), [k, 2 * k])
    count, age = evidence.count[columns], evidence.age[columns]
    weights = np.where(count > 0, known[:, None], new[:, None])
    values = evidence.values[:, columns].astype(np.float64)
    mean = evidence.values.mean(axis=1, dtype=np.float64)
    return np.vstack([weights * (values - mean[:, None]), again @ _repeats(count, age)])


def reason(model: LiveModel, evidence: Evidence, said: Wide, column: int) -> str:
    """The component that spoke loudest for a candidate, in words; `said` [K + 1] of `speech`."""
    names = model.mixture.names
    count, age = int(evidence.count[column]), float(evidence.age[column])
    if count > 0 and int(np.argmax(said)) == len(names):
        return f"taken {count} times before, last {age:.0f} days ago"
    return REASONS[names[int(np.argmax(said[:-1]))]]


def explain(model: LiveModel, evidence: Evidence, column: int, most: int) -> Explained:
    """Every term of a candidate's score, and the history items that carried it."""
    parts = _parts(model, evidence, column)
    carriers = _carriers(model, parts, most)
    said = speech(model, evidence, np.array([column]))[:, 0]
    names = np.array(model.mixture.names)
    own = float(said[:-1][np.isin(names, OWN)].sum() + said[-1])
    shared = float(said[:-1][~np.isin(names, OWN)].sum())
    decided: Literal["own", "shared"] = "own" if own >= shared else "shared"
    return Explained(
        platform=model.platform,
        model=model.version,
        score=float(evidence.scores[column]),
        explained=float(sum(part.value for part in parts)),
        parts=parts,
        carriers=carriers,
        decided_by=decided,
        own=own,
        shared=shared,
        linked_profile=False,
        words=_words(reason(model, evidence, said, column), carriers, decided, own, shared),
    )


def _parts(model: LiveModel, evidence: Evidence, column: int) -> tuple[Part, ...]:
    k, had = len(model.mixture.names), evidence.count[column] > 0
    weights = model.mixture.weights[k : 2 * k] if had else model.mixture.weights[:k]
    parts: list[Part] = []
    for name, weight in zip(model.mixture.names, weights, strict=True):
        if name in model.popularities:
            value = float(model.popularities[name][column])
            parts.append(Part(component=name, item_id="", what="popularity", value=weight * value))
        elif name in model.networks:
            parts += _of_network(model, evidence, name, weight, column)
        else:
            parts += _of_graph(model, evidence, name, weight, column)
    if had:
        item = model.items.item_ids[int(model.candidates[column])]
        repeats = _repeats(evidence.count[[column]], evidence.age[[column]])[:, 0]
        for what, weight, value in zip(
            REPEAT_NAMES, model.mixture.weights[2 * k :], repeats, strict=True
        ):
            term = weight * float(value)
            parts.append(Part(component="own repeats", item_id=item, what=what, value=term))
    return tuple(parts)


def _of_graph(
    model: LiveModel, evidence: Evidence, name: str, weight: float, column: int
) -> list[Part]:
    graph, fading, floor = GRAPH_TERMS[name]
    history = evidence.latest if fading else evidence.plain
    edges = _edges(model, graph, history, column)
    nothing = float(np.log(floor))
    parts = [Part(component=name, item_id="", what=WITHOUT, value=weight * nothing)]
    total = float(edges.sum())
    if total > 0:
        rest = weight * (float(np.log(max(total, 0.0) + float(floor))) - nothing)
        parts += [
            Part(
                component=name,
                item_id=model.items.item_ids[int(history.items[place])],
                what=HISTORY,
                value=rest * float(edges[place]) / total,
            )
            for place in np.flatnonzero(edges)
        ]
    return parts


def _edges(model: LiveModel, graph: str, history: History, column: int) -> Wide:
    """Edge from each history item to a candidate, times the item's weight, float64 [H]."""
    edges = model.graphs[graph][history.items][:, [column]].toarray()[:, 0]
    weighted: Wide = edges.astype(np.float64) * history.weights
    return weighted


def _of_network(
    model: LiveModel, evidence: Evidence, name: str, weight: float, column: int
) -> list[Part]:
    user = evidence.inputs[name]
    found = attribute(model.networks[name], user, column)
    used = np.asarray(user.weights).any(axis=1)
    terms = [("", WITHOUT, found.nothing), ("", "context", found.context)]
    terms += [("", "rhythm and spend", found.numbers)]
    terms += [
        (model.items.item_ids[int(item)], HISTORY, float(value))
        for item, value in zip(user.items[used], found.items[used], strict=True)
    ]
    return [
        Part(component=name, item_id=item, what=what, value=weight * value)
        for item, what, value in terms
    ]


def _carriers(model: LiveModel, parts: tuple[Part, ...], most: int) -> tuple[Carrier, ...]:
    """History items by what they add over all components, the strongest first."""
    total: dict[str, float] = defaultdict(float)
    for part in parts:
        if part.item_id:
            total[part.item_id] += part.value
    strongest = sorted(total.items(), key=lambda entry: (-entry[1], entry[0]))[:most]
    return tuple(
        Carrier(item_id=item, title=model.titles[model.items.index[item]], value=value)
        for item, value in strongest
        if value > 0
    )


def _repeats(count: Float, age: Float) -> Wide:
    """The features named by REPEAT_NAMES, [3, n]: 0 for what the user never had."""
    known = (count > 0).astype(np.float64)
    return np.stack([known, known * np.log1p(count), known * np.exp(-age / _RECENCY_DAYS)])


def _words(
    loudest: str, carriers: tuple[Carrier, ...], decided: str, own: float, shared: float
) -> tuple[str, ...]:
    names = ", ".join(carrier.title or carrier.item_id for carrier in carriers)
    side = "what this platform knows" if decided == "own" else "what the federation knows"
    return (
        f"mainly: {loudest}",
        f"carried by what this user had: {names}" if names else "not carried by her history",
        f"decided by {side} (above the average item: own {own:+.2f}, shared {shared:+.2f})",
        "no linked profile took part",
    )
