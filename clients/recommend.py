"""Recommendations from the trained model on disk, with the reason for each."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from clients.dataset import Dataset
from clients.item_graph import ItemGraph
from clients.linked_serving import LinkedServing, Links, Spoken
from clients.linked_trial import cold_scores
from clients.membership import Received
from clients.private import PrivateModel, restore_private
from clients.scoring import OWN, OWN_MODEL, Moment, SharedModel
from clients.state import PlatformFolder, Trained
from crossrec_model.data.histories import read_histories
from crossrec_model.data.items import item_table
from crossrec_model.data.prepared import open_prepared
from crossrec_model.data.splits import split_by_weeks
from crossrec_model.errors import ConfigError, DataError, StateError
from crossrec_model.parameters import Layout
from crossrec_model.ranking import REPEAT_NAMES, Components, Mixture
from crossrec_model.statistics import item_counts, log_popularity, shared_log_popularity
from crossrec_model.topk import NO_ITEM, given_scorer, ranked

REASONS: Final = {
    "own popularity": "popular on this platform",
    "own model": "fits what this user took here",
    "own neighbours": "often taken together with this user's items",
    "own graph": "goes with what this user took",
    "own graph, wide": "goes with much of what this user took",
    "own graph, latest": "goes with what this user took last",
    "own order": "often taken after what this user took last",
    "shared graph": "goes with what this user took, as known across the federation",
    "shared graph, wide": "goes with much of what this user took, as known across the federation",
    "shared graph, latest": "goes with what this user took last, as known across the federation",
    "shared popularity": "popular across the federation",
    "shared model": "fits this user's taste, as learnt across the federation",
}
#: Whatever a linked profile says: not where it comes from.
LINKED_REASON: Final = "fits what this user takes elsewhere, as a linked profile tells"
COLD_REASON: Final = "popular: nothing is known of this user yet"
_POPULARITIES: Final = ("own popularity", "shared popularity")


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """One item of a list; `score` only ranks within its list."""

    place: int
    item_id: str
    title: str
    category: tuple[str, ...]
    score: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class Recommendations:
    """A list for one user; `known` is false for the cold-start list."""

    platform: str
    user_id: str
    known: bool
    notes: tuple[str, ...]
    items: tuple[Recommendation, ...]

    def to_json(self) -> str:
        """Indented JSON."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    def lines(self) -> list[str]:
        """The list as lines to print; control characters in titles are made visible."""
        lines = [f"note: {note}" for note in self.notes]
        for item in self.items:
            category = " > ".join(item.category)
            text = f"{item.title or '(no title)'}  [{category}]" if category else item.title
            lines.append(
                _printable(
                    f"{item.place:3d}. {item.score:8.3f}  {item.item_id}  {text}  ({item.reason})"
                )
            )
        return lines or ["nothing to recommend: the platform has no candidate items"]


class Recommender:
    """Ranks a platform's items with everything that is known up to its last event.

    `links` says which received profile is of which of the platform's users; None: none is used.

    Raises:
        StateError: if the platform is unknown or not yet trained; the message says what to run.
        DataError: if its prepared data are missing or damaged.
    """

    def __init__(
        self,
        folder: PlatformFolder,
        platform: str,
        device: torch.device,
        *,
        links: Links | None = None,
    ) -> None:
        trained = trained_on_disk(folder, platform)
        self._personal, received = trained.personal, trained.received
        self._platform, self._plan = platform, received.plan
        self._notes, plan = _unfinished(folder, received), received.plan
        prepared = open_prepared(folder.data)
        try:
            items = item_table(prepared.catalogue(), plan.model)
            with prepared.reading():
                histories = read_histories(prepared.interactions(), items, plan.model.buckets)
        except DataError as error:
            raise DataError(
                f"{error}: python -m clients.platform data --id {platform} --data …"
            ) from None
        split = split_by_weeks(float(histories.day.max()))
        self._dataset = Dataset(items=items, histories=histories, split=split, device=device)
        self._moment = Moment.at(self._dataset, plan.training, split.end)
        self._row = {user: row for row, user in enumerate(histories.user_ids)}
        network, statistics = Layout(plan.model).unpack(received.vector, device)
        self._shared = SharedModel(plan=plan, network=network, statistics=statistics)
        self._linked = LinkedServing.opened(
            folder.path, self._moment, links, width=plan.model.sketch_width
        )

    def recommend(self, user: str, *, k: int, new_only: bool = False) -> Recommendations:
        """The best `k` items for a user, fewer if the platform has fewer; at least 1 is asked.

        Raises:
            ConfigError: for k below 1.
        """
        if k < 1:
            raise ConfigError(f"k = {k} is below 1; ask for at least one item")
        notes = list(self._notes)
        if user not in self._row:
            spoken = self._linked.of_newcomer(user) if self._linked else None
            which = "this is the cold-start list" + (" with a linked profile" if spoken else "")
            notes.append(
                f"user {_printable(user)} has no events on platform {self._platform}: {which}"
            )
            items = self._cold(k, spoken)
        else:
            items = self._warm(self._row[user], k, new_only=new_only)
        return Recommendations(
            platform=self._platform,
            user_id=user,
            known=user in self._row,
            notes=tuple(notes),
            items=items,
        )

    def _warm(self, row: int, k: int, *, new_only: bool) -> tuple[Recommendation, ...]:
        users = np.array([row], dtype=np.int64)
        mixture = self._personal.mixtures.served
        parts = self._moment.own_components(users, self._private)
        if not set(mixture.names) <= set(OWN):
            parts |= self._moment.shared_components(users, self._shared, self._shared_graph)
        components = self._moment.components(users, parts).select(mixture.names)
        scores = mixture.scores(components)  # [1, candidates]
        spoken = self._linked.of_known(row) if self._linked else None
        if spoken is not None:
            scores = spoken.added.scores(scores, spoken.components)
        scores = scores[0]
        if new_only:
            scores[components.count[0] > 0] = -np.inf
        speech, linked = contributions(mixture, components), None
        if spoken is not None:
            linked = contributions(spoken.added.mixture, spoken.components).sum(axis=0)
        return tuple(
            self._item(place, column, scores[column], _reason(speech, components, column, linked))
            for place, column in enumerate(_best(scores, k), 1)
        )

    def _cold(self, k: int, spoken: Spoken | None) -> tuple[Recommendation, ...]:
        """Both popularities with their weights for new items, never against the popular; and a profile."""
        items, histories = self._dataset.items, self._dataset.histories
        own = log_popularity(item_counts(histories, len(items), self._moment.day))
        shared = shared_log_popularity(self._shared.statistics, items)
        mixture = self._personal.mixtures.served
        by_name = dict(zip(mixture.names, mixture.weights, strict=False))
        weights = [max(by_name.get(name, 0.0), 0.0) for name in _POPULARITIES]
        if sum(weights) == 0:
            weights = [0.5, 0.5]
        scores = (weights[0] * own + weights[1] * shared)[self._moment.candidates]
        reason = COLD_REASON
        if spoken is not None:
            reason, cold = LINKED_REASON, cold_scores(self._moment)
            scores = spoken.added.scores(cold, spoken.components)[0].astype(np.float64)
        return tuple(
            self._item(place, column, scores[column], reason)
            for place, column in enumerate(_best(scores, k), 1)
        )

    @cached_property
    def _shared_graph(self) -> ItemGraph | None:
        return self._moment.shared_graph(self._shared)

    @cached_property
    def _private(self) -> PrivateModel | None:
        """The private network over the bought-together graph of today, where one was trained."""
        personal = self._personal
        if OWN_MODEL not in personal.mixtures.served.names or personal.statistics is None:
            return None
        try:
            return restore_private(
                self._dataset,
                self._plan,
                personal.tensors,
                personal.statistics,
                day=self._moment.day,
            )
        except RuntimeError:
            raise StateError(
                "the private model on disk is not of its plan's shape; take part again"
            ) from None

    def _item(self, place: int, column: int, score: float, reason: str) -> Recommendation:
        number = int(self._moment.candidates[column])
        row = self._dataset.items.catalogue.row(number, named=True)
        return Recommendation(
            place=place,
            item_id=self._dataset.items.item_ids[number],
            title=row.get("title") or "",
            category=tuple(level for level in row.get("category") or () if level),
            score=round(float(score), 6),
            reason=reason,
        )


def contributions(mixture: Mixture, components: Components) -> npt.NDArray[np.float64]:
    """What each component adds to each score of one user beyond its mean, [K + 1, candidates].

    The last row is what the user's own repeats add: 0 for items that are new to her.
    """
    k = len(mixture.names)
    new, known, again = np.split(np.array(mixture.weights), [k, 2 * k])
    had = components.count[0] > 0
    values = components.values[:, 0].astype(np.float64)  # [K, candidates]
    weights = np.where(had, known[:, None], new[:, None])
    speech = weights * (values - values.mean(axis=1, keepdims=True))
    features = list(components.features())[-len(REPEAT_NAMES) :]
    repeats = sum(weight * feature[0] for weight, feature in zip(again, features, strict=True))
    return np.vstack([speech, repeats])


def _best(scores: npt.NDArray[np.floating], k: int) -> list[int]:
    """Columns of the k best of scores [candidates], best first; fewer where −∞ hides the rest."""
    best, _ = ranked(given_scorer(scores[None]), users=1, items=len(scores), k=k)
    return [int(column) for column in best[0] if column != NO_ITEM]


def _reason(
    speech: npt.NDArray[np.float64],
    components: Components,
    column: int,
    linked: npt.NDArray[np.float64] | None,
) -> str:
    """What spoke loudest for an item: a component, her own repeats, or a linked profile [candidates]."""
    if linked is not None and linked[column] > speech[:, column].max():
        return LINKED_REASON
    best = int(np.argmax(speech[:, column]))
    count, age = int(components.count[0, column]), float(components.age[0, column])
    if count > 0 and best == len(components.names):
        return f"taken {count} times before, last {age:.0f} days ago"
    # A new item's repeat row is 0: the components alone compete for its reason.
    return REASONS[components.names[int(np.argmax(speech[:-1, column]))]]


def trained_on_disk(folder: PlatformFolder, platform: str) -> Trained:
    """The platform's model; an error that says what to run first if there is none."""
    command = f"python -m clients.platform --id {platform} --data … --server …"
    if not folder.path.is_dir():
        home = folder.path.parent
        known = sorted(p.name for p in home.iterdir() if p.is_dir()) if home.is_dir() else []
        there = f" (known: {', '.join(known)})" if known else ""
        raise StateError(
            f"platform {platform} is unknown: there is no {folder.path}{there}; "
            f"run first: {command}"
        )
    trained = folder.load_trained()
    if trained is not None:
        return trained
    what, kept = "has no model yet", folder.load_received()
    if kept is not None:
        rounds = kept.received.plan.federation.rounds
        what = f"is not trained yet (round {kept.received.round} of {rounds} is on disk)"
    raise StateError(f"platform {platform} {what}; run first: {command}")


def _unfinished(folder: PlatformFolder, served: Received) -> tuple[str, ...]:
    """A note if a later run was begun but what is private was not yet trained on it."""
    kept = folder.load_received()
    if kept is None or kept.received.run == served.run:
        return ()
    rounds = kept.received.plan.federation.rounds
    return (
        f"a newer run stands at round {kept.received.round} of {rounds} and is not used; "
        "this list is from the last finished one",
    )


def _printable(text: str) -> str:
    """Titles and ids come from outside: nothing in them may steer a terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
