"""Integrated gradients of a network's logit over what it reads of a user (Sundararajan et al. 2017).

The path is straight, from a user of whom nothing is known to her. What a pool of her history contributes is
divided among its items exactly, since a pool is a weighted sum of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from clients.serving.networks import LiveNetwork, UserInput

Wide = npt.NDArray[np.float64]

#: Points of the path: doubled until the parts add up, at most so often.
_FEWEST: Final = 128
_MOST: Final = 16_384
_COMPLETE: Final = 2e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class Attribution:
    """Terms that add up to a logit: of nothing known, of each history item [H], of context and numbers."""

    nothing: float
    items: Wide
    context: float
    numbers: float

    @property
    def total(self) -> float:
        """Their sum."""
        return self.nothing + float(self.items.sum()) + self.context + self.numbers


def attribute(live: LiveNetwork, user: UserInput, column: int) -> Attribution:
    """Divide the logit of one candidate among what the network read of a user."""
    points = _FEWEST
    while True:
        found, logit = _integrated(live, user, column, points)
        if abs(found.total - logit) <= _COMPLETE or points >= _MOST:
            return found
        points *= 4


def _integrated(
    live: LiveNetwork, user: UserInput, column: int, points: int
) -> tuple[Attribution, float]:
    """By the midpoint rule over so many points, in double precision; and the logit itself."""
    network = live.wide
    h, e = live.ranked.h[column].double(), live.ranked.e[column].double()
    x = [part.double() for part in (user.pooled, user.context, user.numbers)]

    def logits(step: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        along = [(part * step.view(-1, *[1] * (part.dim() - 1))).requires_grad_() for part in x]
        u = network.embed_users(*along)  # [P, D]
        shape = (len(step), 1, len(h))
        return network.pair_logits(h.expand(shape), e.expand(shape), u)[:, 0], along

    with torch.enable_grad():
        step = (torch.arange(points, dtype=torch.float64) + 0.5) / points
        on_path, along = logits(step)
        gradients = torch.autograd.grad(on_path.sum(), along)
        mean = [gradient.mean(dim=0) for gradient in gradients]  # [2, D], [D], [S]
        ends = logits(torch.tensor([0.0, 1.0], dtype=torch.float64))[0].detach()
    history = live.e[torch.from_numpy(user.items)].double()  # [H, D]
    weights = torch.from_numpy(user.weights).double()  # [H, 2]
    items = torch.einsum("hd,hk,kd->h", history, weights, mean[0])
    found = Attribution(
        nothing=float(ends[0]),
        items=items.numpy(),
        context=float((mean[1] * x[1][0]).sum()),
        numbers=float((mean[2] * x[2][0]).sum()),
    )
    return found, float(ends[1])
