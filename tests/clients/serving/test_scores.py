"""A live model's scores are the mixture's, for prepared and for recorded histories."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clients.recommend import Recommender, contributions
from clients.serving.calls import RecommendCall
from clients.serving.events import RecordedEvent
from clients.serving.model import LiveModel
from clients.serving.reasons import speech
from clients.serving.scores import score
from clients.serving.service import Service
from clients.state import PlatformFolder
from crossrec_model.data.schema import Event

DAY_US = 86_400 * 10**6


@pytest.fixture(scope="module")
def recommender(home) -> Recommender:
    return Recommender(PlatformFolder(home / "A"), "A", torch.device("cpu"))


def test_every_component_is_served(model: LiveModel) -> None:
    named = set(model.mixture.names)
    assert {"own model", "shared model", "own graph, latest", "shared graph, wide"} < named


def test_lists_equal_those_of_the_command_line(recommender, service: Service, model) -> None:
    for user in model.histories.user_ids[:20]:
        expected = recommender.recommend(user, k=12)
        found = service.recommend(RecommendCall(user_id=user, k=12))
        assert [item.item_id for item in found.items] == [item.item_id for item in expected.items]
        assert [item.reason for item in found.items] == [item.reason for item in expected.items]
        scores = [item.score for item in expected.items]
        np.testing.assert_allclose([i.score for i in found.items], scores, atol=2e-4)


def test_the_cold_list_equals_that_of_the_command_line(recommender, service: Service) -> None:
    expected = recommender.recommend("nobody", k=9)
    found = service.recommend(RecommendCall(user_id="nobody", k=9, allow_unknown=True))
    assert not found.known
    assert [item.item_id for item in found.items] == [item.item_id for item in expected.items]


def test_every_component_equals_the_one_that_was_fitted(recommender, model: LiveModel) -> None:
    users = np.arange(15)
    moment, shared = recommender._moment, recommender._shared
    parts = moment.own_components(users, recommender._private)
    parts |= moment.shared_components(users, shared, recommender._shared_graph)
    components = moment.components(users, parts).select(model.mixture.names)
    for user in users.tolist():
        found = score(model, model.past(model.histories.user_ids[user], []))
        for place, name in enumerate(model.mixture.names):
            np.testing.assert_allclose(
                found.values[place], components.values[place, user], atol=2e-4, err_msg=name
            )
        np.testing.assert_array_equal(found.count, components.count[user])
        np.testing.assert_allclose(found.age, components.age[user], rtol=1e-5)


def test_reasons_weigh_as_those_of_the_command_line(model: LiveModel) -> None:
    found = score(model, model.past("u3", []))
    columns = np.arange(len(model.candidates))
    expected = contributions(model.mixture, found.components(model.mixture))
    np.testing.assert_allclose(speech(model, found, columns), expected, atol=1e-5)


def test_a_recorded_event_counts_as_if_it_had_been_prepared(model: LiveModel) -> None:
    """Taking away a user's last events and recording them again changes nothing."""
    row = model.row["u5"]
    _start, end = model.histories.offsets[row : row + 2]
    kept = np.ones(len(model.histories.item), dtype=bool)
    kept[end - 3 : end] = False
    histories = model.histories
    counts = np.bincount(histories.user_of_event()[kept], minlength=len(histories))
    cut = {
        name: getattr(histories, name)[kept]
        for name in ("item", "day", "weight", "bought", "spend", "context")
    }
    offsets = np.concatenate([[0], np.cumsum(counts)])
    shorter = type(histories)(user_ids=histories.user_ids, offsets=offsets, **cut)
    without = type(model)(**{**vars_of(model), "histories": shorter})
    events = [
        RecordedEvent(
            user_id="u5",
            item_id=model.items.item_ids[histories.item[event]],
            event=Event.PURCHASE,
            time_us=round(histories.day[event] * DAY_US),
            quantity=1.0,
            price=float(histories.spend[event]),
        )
        for event in range(end - 3, end)
    ]
    whole = score(model, model.past("u5", []))
    again = score(without, without.past("u5", events))
    np.testing.assert_allclose(again.scores, whole.scores, atol=1e-4)
    assert np.abs(score(without, without.past("u5", [])).scores - whole.scores).max() > 1e-3
    # What the prepared data hold already does not count twice.
    twice = score(model, model.past("u5", events))
    np.testing.assert_array_equal(twice.scores, whole.scores)


def test_without_a_history_scores_are_finite(model: LiveModel) -> None:
    assert np.isfinite(score(model, model.past("nobody", [])).scores).all()


def vars_of(model: LiveModel) -> dict[str, object]:
    return {name: getattr(model, name) for name in model.__dataclass_fields__}
