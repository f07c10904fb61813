"""Linked profiles in use: learnt on the platform's validation weeks, kept on disk, read for one user.

linked/weights.json   weights and trials, of the run that they were fitted with
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from clients.linked import LINKED, LinkedEvidence
from clients.linked_store import FOLDER, ReceivedProfiles, joined
from clients.linked_trial import (
    Added,
    LinkedWeights,
    Scorer,
    linked_components,
    newcomer_components,
    weigh_linked,
)
from clients.personal import Gain, Trial
from clients.scoring import Moment
from crossrec_model.durable import write_durably
from crossrec_model.errors import DataError
from crossrec_model.linkage.profile import Floats
from crossrec_model.ranking import Components, Mixture

WEIGHTS: Final = "weights.json"
FORMAT: Final = 1
#: Sender → link id → own user id, as the linkages left them.
Links = Mapping[str, Mapping[str, str]]


def learn_linked(
    folder: Path, moment: Moment, links: Links, *, width: int, base: Scorer
) -> LinkedWeights:
    """Fit and try the weights for profiles that end before `moment`, and keep them.

    Args:
        folder: the platform's folder.
        moment: the first day of the validation weeks.
        links: whose profiles are whose.
        width: of the plan's popularity sketch.
        base: the scores that are served without a profile.

    Raises:
        DataError: if no profile is old enough, or the weights can't be written.
    """
    batches = ReceivedProfiles(folder).batches(moment.day)
    dataset = moment.dataset
    rows = {user: row for row, user in enumerate(dataset.histories.user_ids)}
    profiles, _ = joined(batches, links, rows=rows, items=dataset.items, width=width)
    weights = weigh_linked(LinkedEvidence(moment, profiles), base)
    save_weights(folder, weights)
    return weights


def save_weights(folder: Path, weights: LinkedWeights) -> None:
    """Replace the platform's weights for linked profiles; raises DataError if they can't be written."""
    path = folder / FOLDER / WEIGHTS
    text = json.dumps({"format": FORMAT, **asdict(weights)}, allow_nan=False, sort_keys=True)
    try:
        path.parent.mkdir(exist_ok=True, mode=0o700)
        write_durably(path, text.encode(), mode=0o600)
    except OSError as error:
        raise DataError(f"{path} can't be written: {error.strerror}; make room") from None


def load_weights(folder: Path) -> LinkedWeights | None:
    """What `learn_linked` kept; None if there is nothing. Raises DataError for a damaged file."""
    path = folder / FOLDER / WEIGHTS
    try:
        return _weights(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error}); learn the weights again") from None


@dataclass(frozen=True, kw_only=True, eq=False)
class Spoken:
    """What a profile adds for one user: weights and evidence, [K, 1, candidates]."""

    added: Added
    components: Components


@dataclass(frozen=True, kw_only=True, eq=False)
class LinkedServing:
    """The latest profiles at the moment of serving."""

    evidence: LinkedEvidence
    weights: LinkedWeights
    newcomers: Mapping[str, Floats]

    @classmethod
    def opened(
        cls, folder: Path, moment: Moment, links: Links | None, *, width: int
    ) -> LinkedServing | None:
        """None where nothing was learnt, nothing passed its trial, or nobody here is linked.

        Raises:
            DataError: for a damaged file.
        """
        weights = load_weights(folder) if links else None
        if links is None or weights is None:
            return None
        if not (weights.known.trial.passed or weights.newcomer.trial.passed):
            return None
        batches = ReceivedProfiles(folder).batches(moment.day)
        if not batches:
            return None
        dataset = moment.dataset
        rows = {user: row for row, user in enumerate(dataset.histories.user_ids)}
        profiles, new = joined(batches, links, rows=rows, items=dataset.items, width=width)
        if not len(profiles.users):
            return None
        evidence = LinkedEvidence(moment, profiles, weights.middle)
        return cls(evidence=evidence, weights=weights, newcomers=new)

    def of_known(self, row: int) -> Spoken | None:
        """For a user with a history here; None where she has no profile, or it is not served."""
        place = self.evidence.rows(np.array([row]))
        if place[0] < 0 or not self.weights.known.trial.passed:
            return None
        return Spoken(added=self.weights.known, components=linked_components(self.evidence, place))

    def of_newcomer(self, user: str) -> Spoken | None:
        """For somebody without a history here; None where she has no profile, or it is not served."""
        vector = self.newcomers.get(user)
        if vector is None or not self.weights.newcomer.trial.passed:
            return None
        parts = self.evidence.of_newcomer(vector)
        return Spoken(added=self.weights.newcomer, components=newcomer_components(parts))


def _weights(document: dict[str, Any]) -> LinkedWeights:
    """Take the file apart; any error means damage."""
    if set(document) != {"format", "known", "newcomer", "middle"}:
        raise ValueError("its keys differ")
    if document["format"] != FORMAT:
        raise ValueError(f"format {document['format']}, not {FORMAT}")
    return LinkedWeights(
        known=_added(document["known"]),
        newcomer=_added(document["newcomer"]),
        middle=float(document["middle"]),
    )


def _added(document: dict[str, Any]) -> Added:
    trial, mixture = document["trial"], document["mixture"]
    if set(document) != {"mixture", "trial"} or set(trial) != {"users", "fit", "ndcg", "least"}:
        raise ValueError("its keys differ")
    if tuple(mixture["names"]) != LINKED:
        raise ValueError("its weights are of other evidence")
    return Added(
        mixture=Mixture(names=LINKED, weights=tuple(float(w) for w in mixture["weights"])),
        trial=Trial(
            users=int(trial["users"]),
            fit=Gain(**trial["fit"]),
            ndcg=Gain(**trial["ndcg"]),
            least=float(trial["least"]),
        ),
    )
