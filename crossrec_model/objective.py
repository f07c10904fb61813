"""Losses per user: [B, …] in, [B] out; users never mix, so each user's gradient is her own.

Negatives are drawn in proportion to the shared popularity q. A logit f therefore estimates
log p(item | user) - log q(item): what is served is f + log q (Mikolov et al. 2013 for the noise
distribution; Yang et al. 2020, "Mixed negative sampling", for its correction in recommenders).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from crossrec_model.config import Objective


def user_losses(objective: Objective, positive: Tensor, mask: Tensor, negative: Tensor) -> Tensor:
    """Loss of each user: positive logits [B, M] with mask [B, M], negative logits [B, N] → [B].

    A user without a positive has loss 0: she says nothing in this block.
    """
    count = mask.sum(1)
    if objective == "softmax":
        rest = torch.logsumexp(negative, dim=1, keepdim=True)  # [B, 1]
        each = torch.logaddexp(rest, positive) - positive  # [B, M]
        return (each * mask).sum(1) / count.clamp(min=1)
    if objective == "bce":
        hit = (functional.softplus(-positive) * mask).sum(1) / count.clamp(min=1)
        return (hit + functional.softplus(negative).mean(1)) * (count > 0)
    # Squared error of the article's r̂ = σ(logit) against ratings 1 (taken up) and 0 (not).
    hit = ((torch.sigmoid(positive) - 1.0) ** 2 * mask).sum(1) / count.clamp(min=1)
    return (hit + (torch.sigmoid(negative) ** 2).mean(1)) * (count > 0)
