"""Lists are as long as they can be under any filter, and what they leave out is not in them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clients.serving.calls import (
    Code,
    Filters,
    RecommendCall,
    RefusedCallError,
    SimilarCall,
)
from clients.serving.lists import EXPLORED_REASON, RARE_REASON
from clients.serving.model import LiveModel
from clients.serving.service import Service

ITEM = st.integers(0, 35).map(lambda number: f"i{number}")
PRICE = st.none() | st.integers(0, 9).map(float)
FILTERS = st.builds(
    lambda low, high, **rest: Filters(
        price_from=low if None in (low, high) else min(low, high),
        price_to=high if None in (low, high) else max(low, high),
        **rest,
    ),
    low=PRICE,
    high=PRICE,
    new_only=st.booleans(),
    include_out_of_stock=st.booleans(),
    exclude=st.lists(ITEM, max_size=36).map(tuple),
    shops=st.sampled_from([(), ("shop0",), ("shop0", "shop1")]),
    category=st.sampled_from([(), ("kind0",), ("kind2",)]),
)
OUT_OF_STOCK = ("i0", "i5", "i34", "of another catalogue")


def passing(model: LiveModel, filters: Filters, had: set[str]) -> set[str]:
    """Written again, item by item."""
    found = set()
    for number, item in enumerate(model.items.item_ids):
        price = model.prices[number]
        if filters.shops and model.shops[number] not in filters.shops:
            continue
        if filters.category and model.categories[number][:1] != filters.category:
            continue
        if filters.price_from is not None and not price >= filters.price_from:
            continue
        if filters.price_to is not None and not price <= filters.price_to:
            continue
        if filters.new_only and item in had:
            continue
        if item in filters.exclude:
            continue
        if not filters.include_out_of_stock and item in OUT_OF_STOCK:
            continue
        found.add(item)
    return found


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    filters=FILTERS,
    k=st.integers(1, 40),
    user=st.sampled_from(["u0", "u7", "u59", "nobody"]),
    diversity=st.sampled_from([0.0, 0.3, 1.0]),
    method=st.sampled_from(["dpp", "mmr"]),
    explore=st.sampled_from([0.0, 0.4, 1.0]),
)
def test_no_filter_costs_a_place(service, model, filters, k, user, diversity, method, explore):
    service.out_of_stock(OUT_OF_STOCK)
    call = RecommendCall(
        user_id=user,
        k=k,
        filters=filters,
        diversity=diversity,
        method=method,
        explore=explore,
        allow_unknown=True,
    )
    answer = service.recommend(call)
    items = model.items.item_ids
    had = {items[number] for number in model.past(user, []).items}
    allowed = passing(model, filters, had)
    found = [item.item_id for item in answer.items]
    assert len(found) == min(k, len(allowed))
    assert len(set(found)) == len(found)
    assert set(found) <= allowed
    assert [item.place for item in answer.items] == list(range(1, len(found) + 1))
    assert all(np.isfinite(item.score) for item in answer.items)
    assert (len(found) < k) == any("pass the filters" in note for note in answer.notes)


@settings(max_examples=60, deadline=None)
@given(filters=FILTERS, k=st.integers(1, 40), item=ITEM)
def test_similar_items_lose_no_place_either(model, filters, k, item):
    service = Service(model, [], np.random.default_rng(0))
    call = SimilarCall(item_id=item, k=k, filters=filters)
    found = [i.item_id for i in service.similar(call).items]
    # Nothing is out of stock here, and nobody asks.
    open_filters = replace(filters, include_out_of_stock=True)
    allowed = passing(model, open_filters, set()) - {item}
    assert set(found) <= allowed
    assert len(found) == len(set(found)) == min(k, len(allowed))


def test_plain_lists_are_the_best_by_score(service: Service) -> None:
    answer = service.recommend(RecommendCall(user_id="u1", k=30))
    scores = [item.score for item in answer.items if item.source == "ranked"]
    assert scores == sorted(scores, reverse=True)


def test_rare_items_follow_where_candidates_run_out(service: Service, model) -> None:
    answer = service.recommend(RecommendCall(user_id="u1", k=36))
    sources = [item.source for item in answer.items]
    ranked = len(model.candidates)
    assert sources == ["ranked"] * ranked + ["rare"] * (36 - ranked)
    assert {item.reason for item in answer.items[ranked:]} == {RARE_REASON}
    assert answer.items[ranked].score < answer.items[ranked - 1].score


def test_exploring_shows_what_nobody_was_shown(service: Service) -> None:
    seen: set[str] = set()
    for turn in range(3):
        answer = service.recommend(RecommendCall(user_id=f"u{turn}", k=10, explore=0.5))
        drawn = [item for item in answer.items if item.source == "explored"]
        assert len(drawn) == 5
        assert {item.reason for item in drawn} == {EXPLORED_REASON}
        assert not seen & {item.item_id for item in drawn}
        seen |= {item.item_id for item in answer.items}


def test_without_exploring_nothing_is_drawn(service: Service) -> None:
    lists = [service.recommend(RecommendCall(user_id="u9", k=10)) for _ in range(2)]
    assert lists[0] == lists[1]


def test_what_is_out_of_stock_comes_only_when_asked_for(service: Service) -> None:
    best = service.recommend(RecommendCall(user_id="u1", k=1)).items[0].item_id
    service.out_of_stock([best])
    assert service.recommend(RecommendCall(user_id="u1", k=1)).items[0].item_id != best
    asked = RecommendCall(user_id="u1", k=1, filters=Filters(include_out_of_stock=True))
    assert service.recommend(asked).items[0].item_id == best


def test_unlike_lists_cover_more_kinds(service: Service, model) -> None:
    """Content is random here, so likeness is of vectors: the mean cosine falls with the knob."""

    def alike(diversity: float, method: str) -> float:
        total = 0.0
        for user in range(12):
            call = RecommendCall(user_id=f"u{user}", k=8, diversity=diversity, method=method)
            numbers = [model.items.index[i.item_id] for i in service.recommend(call).items]
            vectors = model.content[numbers]
            total += float((vectors @ vectors.T).sum()) - len(numbers)
        return total

    for method in ("dpp", "mmr"):
        plain, half, whole = (alike(knob, method) for knob in (0.0, 0.5, 1.0))
        assert whole < half <= plain


def test_unknown_ids_are_not_found(service: Service) -> None:
    with pytest.raises(RefusedCallError) as refused:
        service.recommend(RecommendCall(user_id="nobody", k=3))
    assert refused.value.code is Code.NOT_FOUND
    with pytest.raises(RefusedCallError) as refused:
        service.similar(SimilarCall(item_id="nothing", k=3))
    assert refused.value.code is Code.NOT_FOUND
