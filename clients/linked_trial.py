"""Whether linked profiles are served, and at which weights: fitted and tried on the platform's own users.

What a profile says is added to the scores that the platform serves anyway. A user without one keeps
exactly those.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from clients.linked import LinkedEvidence
from clients.personal import LEAST, Gain, Trial, quality
from clients.scoring import Moment
from crossrec_model.data.users import Int
from crossrec_model.ranking import Components, Mixture, fit_mixture, surprises
from crossrec_model.statistics import item_counts, log_popularity

Float = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
#: Scores [users, candidates] of users (rows of the histories).
Scorer = Callable[[Int], Float]

#: Of users x candidates that are weighed at once, as `personal.MOST_CELLS` of fewer components.
MOST_CELLS: Final = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Added:
    """What is added to a linked user's scores, if it passed its trial."""

    mixture: Mixture
    trial: Trial

    def scores(self, base: Float, components: Components) -> Float:
        """The scores that are served, [U, C]; `base` itself where the trial was not passed."""
        if not self.trial.passed:
            return base
        total: Float = base + self.mixture.scores(components)
        return total


@dataclass(frozen=True, kw_only=True)
class LinkedWeights:
    """Weights for linked users who are known here, and for newcomers; `middle` as in the evidence."""

    known: Added
    newcomer: Added
    middle: float


def linked_components(
    evidence: LinkedEvidence, rows: Int, *, newcomers: bool = False
) -> Components:
    """Linked users' evidence, with what they took before; nothing for `newcomers`."""
    parts = evidence.of_linked(rows, newcomers=newcomers)
    if newcomers:
        return newcomer_components(parts)
    return evidence.moment.components(evidence.profiles.users[rows], parts)


def newcomer_components(parts: dict[str, Float]) -> Components:
    """Evidence about users to whom every item is new."""
    values = np.stack(list(parts.values()))
    none = np.zeros(values.shape[1:], dtype=np.float32)
    return Components(names=tuple(parts), values=values, count=none, age=none + np.float32(1e4))


def cold_scores(moment: Moment) -> Float:
    """The list that a newcomer's profile is added to, by popularity here: [1, candidates]."""
    dataset = moment.dataset
    counts = item_counts(dataset.histories, len(dataset.items), moment.day)
    popular: Float = log_popularity(counts)[None, moment.candidates].astype(np.float32)
    return popular


def weigh_linked(evidence: LinkedEvidence, base: Scorer) -> LinkedWeights:
    """Fit and try the weights on linked users who took a candidate in the validation weeks.

    `evidence` must be of the first day of those; `base` gives the scores that are served without a
    profile.
    """
    moment = evidence.moment
    split, linked = moment.dataset.split, evidence.profiles.users
    taken = moment.dataset.taken(linked, moment.candidates, split.validation, split.test)
    rows = np.flatnonzero(taken.any(axis=1))
    most = max(2, MOST_CELLS // len(moment.candidates))
    if len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]
    taken, cold = taken[rows], np.repeat(cold_scores(moment), len(rows), axis=0)
    return LinkedWeights(
        known=_added(linked_components(evidence, rows), taken, base(linked[rows])),
        newcomer=_added(linked_components(evidence, rows, newcomers=True), taken, cold),
        middle=evidence.middle,
    )


def _added(components: Components, taken: npt.NDArray[np.bool_], base: Float) -> Added:
    """The mean of both halves' weights, each tried on the other half."""
    halves = np.arange(len(taken)) % 2 == 1
    if len(halves) < 4:  # nobody to try on
        nothing = Gain(mean=0.0, error=0.0)
        zeros = (0.0,) * (2 * len(components.names) + 3)
        mixture = Mixture(names=components.names, weights=zeros)
        return Added(mixture=mixture, trial=Trial(users=0, fit=nothing, ndcg=nothing, least=LEAST))
    gains, weights = np.empty((2, len(halves))), []
    for half in (halves, ~halves):
        fitted, tried = np.flatnonzero(half), np.flatnonzero(~half)
        mixture = fit_mixture(components.users(fitted), taken[fitted], base=base[fitted])
        weights.append(mixture.weights)
        part, wanted, before = components.users(tried), taken[tried], base[tried]
        after = before + mixture.scores(part)
        gains[0, tried] = surprises(before, part, wanted) - surprises(after, part, wanted)
        gains[1, tried] = quality(after, part, wanted) - quality(before, part, wanted)
    trial = Trial(users=len(halves), fit=Gain.of(gains[0]), ndcg=Gain.of(gains[1]), least=LEAST)
    mean = tuple(float(w) for w in np.mean(weights, axis=0))
    return Added(mixture=Mixture(names=components.names, weights=mean), trial=trial)
