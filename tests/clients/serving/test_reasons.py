"""Reasons add up to the score, and they are true: what they name matters more than what they don't."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clients.serving.calls import ExplainCall
from clients.serving.gradients import attribute
from clients.serving.model import LiveModel
from clients.serving.reasons import explain
from clients.serving.scores import score
from clients.serving.service import Service


@pytest.mark.parametrize("user", ["u0", "u11", "u33", "u59"])
def test_parts_add_up_to_the_score(model: LiveModel, user: str) -> None:
    evidence = score(model, model.past(user, []))
    for column in range(len(model.candidates)):
        found = explain(model, evidence, column, 5)
        assert found.explained == pytest.approx(evidence.scores[column], abs=1e-4)
        assert found.score == pytest.approx(evidence.scores[column])
        assert sum(part.value for part in found.parts) == found.explained
        assert {part.component for part in found.parts} >= {*model.mixture.names}


def test_parts_add_up_without_a_history(model: LiveModel) -> None:
    evidence = score(model, model.past("nobody", []))
    found = explain(model, evidence, 0, 5)
    assert found.explained == pytest.approx(found.score, abs=1e-4)
    assert found.carriers == ()


def test_a_graphs_part_of_an_item_is_its_share_of_the_edges(model: LiveModel) -> None:
    evidence = score(model, model.past("u4", []))
    column, k = 3, len(model.mixture.names)
    at = model.mixture.names.index("own graph")
    had = evidence.count[column] > 0
    weight = model.mixture.weights[k + at if had else at]
    edges = model.graphs["own graph"].toarray()[evidence.plain.items, column].astype(np.float64)
    rest = weight * (np.log(edges.sum() + 0.01) - np.log(0.01))
    parts = {
        part.item_id: part.value
        for part in explain(model, evidence, column, 5).parts
        if part.component == "own graph" and part.item_id
    }
    for item, edge in zip(evidence.plain.items, edges, strict=True):
        expected = rest * edge / edges.sum()
        found = parts.get(model.items.item_ids[item], 0.0)
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["shared model", "own model"])
def test_gradients_are_complete_and_those_of_autograd(model: LiveModel, name: str) -> None:
    """A linear network's integrated gradients are its gradient times the input; ours add up in any."""
    live = model.networks[name]
    for user in ("u1", "u2"):
        read = live.read(model.past(user, []))
        logits = live.logits(read)
        for column in (0, 7):
            found = attribute(live, read, column)
            assert found.total == pytest.approx(float(logits[column]), abs=2e-5)


def test_gradients_agree_with_a_slow_riemann_sum(model: LiveModel) -> None:
    live = model.networks["shared model"]
    read = live.read(model.past("u8", []))
    found = attribute(live, read, 5)
    h, e = live.ranked.h[5].double(), live.ranked.e[5].double()
    numbers, total, steps = read.numbers.double(), 0.0, 400
    for step in range(steps):
        share = (step + 0.5) / steps
        along = (share * numbers).requires_grad_()
        u = live.wide.embed_users(
            share * read.pooled.double(), share * read.context.double(), along
        )
        logit = live.wide.pair_logits(h.expand(1, 1, -1), e.expand(1, 1, -1), u)[0, 0]
        (slope,) = torch.autograd.grad(logit, along)
        total += float((slope * numbers).sum()) / steps
    assert found.numbers == pytest.approx(total, abs=1e-4)


def test_both_sides_are_told_and_the_stronger_decides(service: Service) -> None:
    found = service.explain(ExplainCall(user_id="u6", item_id="i6"))
    assert found.decided_by == ("own" if found.own >= found.shared else "shared")
    assert not found.linked_profile
    assert len(found.words) == 4
    values = [carrier.value for carrier in found.carriers]
    assert values == sorted(values, reverse=True)
    assert len(values) <= 5


def test_removing_what_is_named_lowers_a_score_more_than_removing_others(model: LiveModel) -> None:
    random, gains = np.random.default_rng(7), []
    for user in model.histories.user_ids[:40]:
        past = model.past(user, [])
        evidence = score(model, past)
        new = np.flatnonzero(evidence.count == 0)
        if len(new) == 0 or len(past.items) < 6:
            continue
        column = int(new[np.argmax(evidence.scores[new])])
        named = [
            model.items.index[carrier.item_id]
            for carrier in explain(model, evidence, column, 2).carriers
        ]
        others = np.setdiff1d(past.items, named)
        drawn = random.choice(others, len(named), replace=False)
        falls = [
            evidence.scores[column] - score(model, past.without(gone)).scores[column]
            for gone in (named, drawn.tolist())
        ]
        gains.append(float(falls[0] - falls[1]))
    assert len(gains) > 10
    assert np.mean(gains) - 2 * np.std(gains) / len(gains) ** 0.5 > 0
