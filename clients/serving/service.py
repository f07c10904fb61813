"""The service itself: a model and users' latest events in, answers out. No files, no network, no clock.

One thread calls it at a time. Its drivers keep an event on the disk before they tell it of one
(`checked`, then `EventStore.add`, then `remember`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np

from clients.serving import calls, lists, reasons
from clients.serving.calls import invalid, not_found
from clients.serving.events import RecordedEvent
from clients.serving.model import LiveModel
from clients.serving.past import Past
from clients.serving.scores import score
from clients.serving.shelf import Shelf
from crossrec_model.data.schema import Event
from crossrec_model.errors import shown

#: Clocks differ: an event may seem to come from so far in the future.
AHEAD: Final = timedelta(minutes=5)
EARLIEST: Final = datetime(1990, 1, 1, tzinfo=UTC)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
UNKNOWN: Final = "nothing is known of this user: these are the popular items"
_NOTHING: Final = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class _Served:
    """A model with what is looked up in it: exchanged in one step."""

    model: LiveModel
    shelf: Shelf
    shown: np.ndarray


class Service:
    """Answers calls from one model, until `take_over` gives it another.

    Args:
        model: what is served first.
        recorded: events kept so far, oldest first.
        generator: draws what is explored.
    """

    def __init__(
        self,
        model: LiveModel,
        recorded: Iterable[RecordedEvent],
        generator: np.random.Generator,
    ) -> None:
        self._recorded: dict[str, list[RecordedEvent]] = defaultdict(list)
        for event in recorded:
            self.remember(event)
        self._generator = generator
        self._out_of_stock: frozenset[str] = frozenset()
        self._served = _ready(model, None)

    @property
    def model(self) -> LiveModel:
        """What is served now."""
        return self._served.model

    def take_over(self, model: LiveModel) -> None:
        """Serve another model from the next call on; what was shown stays known."""
        self._served = _ready(model, self._served)

    def out_of_stock(self, items: Iterable[str]) -> None:
        """These items are out of stock, and no others."""
        self._out_of_stock = frozenset(items)

    def recommend(self, call: calls.RecommendCall) -> calls.Recommended:
        """The best items for a user.

        Raises:
            RefusedCallError: for an unknown user, shop or category.
        """
        served = self._served
        model, known = served.model, self._known(served.model, call.user_id)
        if not known and not call.allow_unknown:
            raise _unknown_user(model)
        past = self._past(model, call.user_id) if known else None
        passes = served.shelf.passing(
            call.filters, _NOTHING if past is None else past.items, self._out_of_stock
        )
        if past is None:
            items = lists.popular(model, call, passes)
        else:
            evidence = score(model, past)
            items = lists.recommended(
                *(model, evidence, call, passes, served.shown, self._generator)
            )
        served.shown[[model.items.index[item.item_id] for item in items]] = True
        notes = [] if known else [UNKNOWN]
        if len(items) < call.k:
            notes.append(f"only {len(items)} items pass the filters")
        return calls.Recommended(
            platform=model.platform,
            model=model.version,
            known=known,
            notes=tuple(notes),
            items=items,
        )

    def similar(self, call: calls.SimilarCall) -> calls.Similar:
        """Items that go with an item.

        Raises:
            RefusedCallError: for an unknown item, shop or category.
        """
        served = self._served
        model, item = served.model, _item(served.model, call.item_id)
        passes = served.shelf.passing(call.filters, _NOTHING, self._out_of_stock)
        return calls.Similar(
            platform=model.platform,
            model=model.version,
            items=lists.similar(model, item, call, passes),
        )

    def explain(self, call: calls.ExplainCall) -> calls.Explained:
        """What a user's score for an item is made of.

        Raises:
            RefusedCallError: for an unknown user or item, or an item that is not ranked.
        """
        model = self._served.model
        if not self._known(model, call.user_id):
            raise _unknown_user(model)
        column = int(model.column[_item(model, call.item_id)])
        if column < 0:
            raise invalid(
                f"item {shown(call.item_id)} has too few takers to be ranked: it has no score"
            )
        evidence = score(model, self._past(model, call.user_id))
        return reasons.explain(model, evidence, column, call.most)

    def checked(self, call: calls.RecordCall, now: datetime) -> RecordedEvent:
        """The event that a call tells of, to be kept; `now` is aware.

        Raises:
            RefusedCallError: for an unknown item or kind of event, or a time that can't be.
        """
        _item(self._served.model, call.item_id)
        kinds = [event.value for event in Event]
        if call.event not in kinds:
            raise invalid(
                f"event = {shown(call.event)} is unknown; choose one of {', '.join(kinds)}"
            )
        return RecordedEvent(
            user_id=call.user_id,
            item_id=call.item_id,
            event=Event(call.event),
            time_us=(_moment(call.time, now) - _EPOCH) // _MICROSECOND,
            quantity=call.quantity,
            price=call.price,
            shop_id=call.shop_id or None,
            event_id=call.event_id or None,
        )

    def remember(self, event: RecordedEvent) -> None:
        """Take an event that is kept into its user's history."""
        self._recorded[event.user_id].append(event)

    def past(self, user: str) -> Past:
        """What is known of a user now."""
        return self._past(self._served.model, user)

    def _past(self, model: LiveModel, user: str) -> Past:
        return model.past(user, self._recorded.get(user, []))

    def _known(self, model: LiveModel, user: str) -> bool:
        if user in model.row:
            return True
        return any(event.item_id in model.items.index for event in self._recorded.get(user, []))


def _ready(model: LiveModel, before: _Served | None) -> _Served:
    shelf = Shelf(model)
    shelf.warm()
    # Worked out now, rather than by the first calls.
    _ = model.row, model.column, model.edges, model.titles, model.categories, model.prices
    shown_before = np.zeros(len(model.items), dtype=bool)
    if before is not None:
        for item in np.flatnonzero(before.shown).tolist():
            number = model.items.index.get(before.model.items.item_ids[item])
            if number is not None:
                shown_before[number] = True
    return _Served(model, shelf, shown_before)


def _unknown_user(model: LiveModel) -> calls.RefusedCallError:
    return not_found(
        f"this user has no events on platform {model.platform}; set allow_unknown for the popular items"
    )


def _item(model: LiveModel, item: str) -> int:
    if item not in model.items.index:
        raise not_found(f"item {shown(item)} is not in the catalogue of {model.platform}")
    return model.items.index[item]


def _moment(text: str, now: datetime) -> datetime:
    """When an event was: now, or as ISO 8601 says."""
    if not text:
        return now.astimezone(UTC)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise invalid(
            f"time = {shown(text)} is not ISO 8601; give e.g. 2026-01-31T12:00:00Z"
        ) from None
    if moment.tzinfo is None:
        raise invalid(f"time = {shown(text)} has no time zone; add Z or +00:00")
    if not EARLIEST <= moment <= now + AHEAD:
        raise invalid(
            f"time = {shown(text)} must lie between {EARLIEST:%Y-%m-%d} and now; check the clock"
        )
    return moment.astimezone(UTC)
