"""Received profiles on trial: weights fitted on the validation weeks, beside the scores served anyway."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from clients.dataset import Dataset
from clients.linked_serving import Links, learn_linked
from clients.linked_store import ReceivedProfiles
from clients.linked_trial import Added, Scorer
from clients.participation import shared_for_validation
from clients.private import restore_private
from clients.scoring import OWN, OWN_MODEL, Moment
from clients.state import Trained
from crossrec_model.data.users import Int
from crossrec_model.linkage.profile import Floats

#: Users scored at once.
_AT_ONCE: Final = 256


def served_scores(trained: Trained, moment: Moment, note: Callable[[str], None]) -> Scorer:
    """The scores that are served without a profile, as they were at `moment`."""
    dataset, plan = moment.dataset, trained.received.plan
    personal, mixture = trained.personal, trained.personal.mixtures.served
    private = None
    if OWN_MODEL in mixture.names and personal.statistics is not None:
        private = restore_private(
            dataset, plan, personal.tensors, personal.statistics, day=moment.day
        )
    shared = shared_for_validation(trained.received, dataset.device, note)
    alone = set(mixture.names) <= set(OWN)
    graph = None if alone else moment.shared_graph(shared)

    def some(users: Int) -> Floats:
        parts = moment.own_components(users, private)
        if not alone:
            parts |= moment.shared_components(users, shared, graph)
        scores: Floats = mixture.scores(
            moment.components(users, parts).select(mixture.names)
        ).astype(np.float32)
        return scores

    def scores(users: Int) -> Floats:
        empty = np.zeros((0, len(moment.candidates)), dtype=np.float32)
        parts = [some(users[n : n + _AT_ONCE]) for n in range(0, len(users), _AT_ONCE)]
        return np.concatenate([empty, *parts])

    return scores


def fit_received(
    folder: Path,
    trained: Trained,
    dataset: Dataset,
    links: Links,
    note: Callable[[str], None],
) -> str:
    """Fit and try the weights if profiles are old enough for it; return what came of it, in a line.

    Raises:
        DataError: if a file of received profiles is damaged, or the weights can't be written.
    """
    day = dataset.split.validation
    here = set(dataset.histories.user_ids)
    found = ReceivedProfiles(folder).batches(day)
    known = {
        links[sender][link]
        for sender, batch in found.items()
        for link in batch.links
        if link in links.get(sender, {})
    }
    if not known & here:
        return (
            "no received profile of a user with a history here ends before the validation weeks: "
            "profiles are weighed and served from the next period on"
        )
    plan = trained.received.plan
    moment = Moment.at(dataset, plan.training, day)
    weights = learn_linked(
        folder,
        moment,
        links,
        width=plan.model.sketch_width,
        base=served_scores(trained, moment, note),
    )
    return f"linked users: {_told(weights.known)}; newcomers: {_told(weights.newcomer)}"


def _told(added: Added) -> str:
    trial = added.trial
    end = "profiles are served" if trial.passed else "not clearly better, profiles are not served"
    return f"{trial.ndcg} nDCG@10 and {trial.fit} nats of fit for {trial.users} of them, {end}"
