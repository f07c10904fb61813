"""Losses against their formulas, one user at a time."""

from __future__ import annotations

from math import exp, log

import pytest
import torch

from crossrec_model.objective import user_losses

POSITIVE = torch.tensor([[1.0, -0.5, 9.0], [2.0, 0.0, 0.0], [5.0, 5.0, 5.0]])
MASK = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
NEGATIVE = torch.tensor([[0.3, -1.2], [0.0, 1.0], [3.0, 3.0]])


def _logistic(x: float) -> float:
    return 1 / (1 + exp(-x))


def _expected(objective: str, positive: list[float], negative: list[float]) -> float:
    if objective == "softmax":
        rest = sum(exp(n) for n in negative)
        return sum(-log(exp(p) / (exp(p) + rest)) for p in positive) / len(positive)
    if objective == "bce":
        hit = sum(-log(_logistic(p)) for p in positive) / len(positive)
        return hit + sum(-log(1 - _logistic(n)) for n in negative) / len(negative)
    hit = sum((_logistic(p) - 1) ** 2 for p in positive) / len(positive)
    return hit + sum(_logistic(n) ** 2 for n in negative) / len(negative)


@pytest.mark.parametrize("objective", ["softmax", "bce", "mse"])
def test_each_loss_is_its_formula_and_a_user_without_positives_has_none(objective) -> None:
    found = user_losses(objective, POSITIVE, MASK, NEGATIVE)
    assert float(found[0]) == pytest.approx(
        _expected(objective, [1.0, -0.5], [0.3, -1.2]), rel=1e-5
    )
    assert float(found[1]) == pytest.approx(_expected(objective, [2.0], [0.0, 1.0]), rel=1e-5)
    assert float(found[2]) == 0.0


@pytest.mark.parametrize("objective", ["softmax", "bce", "mse"])
def test_masked_places_and_silent_users_get_no_gradient(objective) -> None:
    positive, negative = (t.clone().requires_grad_() for t in (POSITIVE, NEGATIVE))
    user_losses(objective, positive, MASK, negative).sum().backward()
    assert float((positive.grad * (1 - MASK)).abs().sum()) == 0.0
    assert float(negative.grad[2].abs().sum()) == 0.0
    assert float(negative.grad[0].abs().sum()) > 0.0


@pytest.mark.parametrize("objective", ["softmax", "bce", "mse"])
def test_far_logits_stay_finite(objective) -> None:
    far = torch.tensor([[1e4], [-1e4]])
    found = user_losses(objective, far, torch.ones(2, 1), -far)
    assert torch.isfinite(found).all()
    assert float(found[0]) < 1e-3 < float(found[1])
