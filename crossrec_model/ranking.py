"""From scores of several models to one ranking: the mixture that a platform serves.

Every component is an estimate of how likely a user takes an item next: the shared model, the platform's
private model, popularity, bought-together affinity. Their weights are chosen on the platform's own
validation users and never leave it. Items that a user had before get weights of their own, with her own
frequency and recency: buying again is another decision than buying first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

Float = npt.NDArray[np.float32]

REPEAT_NAMES: Final = ("again", "again × log count", "again × recency")
_RECENCY_DAYS: Final = 30.0
#: Pulls weights to 0 (in units of a component's deviation), like so many users who tell nothing: few
#: validation users can't run wild, and many are not held back.
_RIDGE_USERS: Final = 10.0
_STEPS: Final = 60


@dataclass(frozen=True, kw_only=True, eq=False)
class Components:
    """Scores of U users for C candidate items: `values` float32 [K, U, C] named by `names`.

    `count` float32 [U, C] past takings (0 = new to the user), `age` float32 [U, C] days since the last.
    """

    names: tuple[str, ...]
    values: Float
    count: Float
    age: Float

    def select(self, names: tuple[str, ...]) -> Components:
        """The same users and items with only these components, in this order."""
        places = [self.names.index(name) for name in names]
        return Components(names=names, values=self.values[places], count=self.count, age=self.age)

    def joined(self, more: Mapping[str, Float]) -> Components:
        """The same users and items with more named scores, each [U, C], behind these."""
        return Components(
            names=(*self.names, *more),
            values=np.concatenate([self.values, np.stack(list(more.values()))]),
            count=self.count,
            age=self.age,
        )

    def users(self, rows: npt.NDArray[np.int64]) -> Components:
        """Only these users."""
        return Components(
            names=self.names,
            values=self.values[:, rows],
            count=self.count[rows],
            age=self.age[rows],
        )

    def features(self) -> Iterator[Float]:
        """The mixture's inputs, each [U, C]: components for new items, for known ones, own repeats."""
        known = (self.count > 0).astype(np.float32)
        for value in self.values:
            yield value * (1 - known)
        for value in self.values:
            yield value * known
        yield known
        yield known * np.log1p(self.count)
        yield known * np.exp(-self.age / _RECENCY_DAYS)


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Weights over `Components.features()`; `names` says which components it was fitted on."""

    names: tuple[str, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        wanted = 2 * len(self.names) + len(REPEAT_NAMES)
        if len(self.weights) != wanted or not np.isfinite(self.weights).all():
            raise ValueError(f"{len(self.weights)} weights given; {wanted} finite ones are needed")

    def scores(self, components: Components) -> Float:
        """Mixed score [U, C]; raises ValueError for other components than it was fitted on."""
        if components.names != self.names:
            raise ValueError(f"components are {components.names}, the mixture's {self.names}")
        total = np.zeros(components.count.shape, dtype=np.float32)
        for weight, feature in zip(self.weights, components.features(), strict=True):
            total += np.float32(weight) * feature
        return total


def fit_mixture(
    components: Components, taken: npt.NDArray[np.bool_], *, base: Float | None = None
) -> Mixture:
    """Weights that make what validation users took likeliest; `taken` bool [U, C].

    With `base` float32 [U, C] they are those of what is added to scores that stand already.

    Maximises, per user, the mean log-softmax of her taken items over all candidates plus that of her
    first-time items over the candidates new to her. Users who took nothing don't count. The problem
    is concave, so the result does not depend on a seed.
    """
    some = np.flatnonzero(taken.any(axis=1))
    if len(some) == 0:
        raise ValueError("no user took a candidate in the validation weeks; nothing can be fitted")
    part = components.users(some)
    features = np.stack(list(part.features()))  # [F, U, C]
    scale = np.maximum(features.reshape(len(features), -1).std(axis=1), 1e-6)
    features /= scale[:, None, None].astype(np.float32)  # in place: this is the largest array
    x = torch.from_numpy(features)
    y = torch.from_numpy(taken[some])
    new = torch.from_numpy(part.count == 0)
    start = torch.zeros(()) if base is None else torch.from_numpy(base[some])
    theta = torch.zeros(len(features), requires_grad=True)
    solver = torch.optim.LBFGS([theta], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        solver.zero_grad()
        # A matrix product on the flat view: einsum would copy the whole array.
        score = (theta @ x.flatten(1)).view(y.shape) + start
        every, first = _surprises(score, y, new)
        loss = _mean(every, y) + _mean(first, y & new)
        loss = loss + _RIDGE_USERS / len(some) * theta.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    solver.step(closure)  # type: ignore[no-untyped-call]
    weights = theta.detach().numpy().astype(np.float64) / scale
    return Mixture(names=components.names, weights=tuple(float(w) for w in weights))


def surprises(scores: Float, components: Components, taken: npt.NDArray[np.bool_]) -> Float:
    """What `fit_mixture` minimises, user by user, [U]: less is better; `scores`, `taken` [U, C]."""
    new = torch.from_numpy(components.count == 0)
    every, first = _surprises(torch.from_numpy(scores), torch.from_numpy(taken), new)
    total: Float = (every + first).numpy()
    return total


def _surprises(
    score: torch.Tensor, taken: torch.Tensor, new: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each user's mean negative log-softmax of all taken items, and of the new ones; [U] each."""
    return _each(score, taken), _each(score.masked_fill(~new, -1e9), taken & new)


def _each(score: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
    log = score - torch.logsumexp(score, dim=1, keepdim=True)
    return -(log * taken).sum(1) / taken.sum(1).clamp(min=1)


def _mean(each: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
    """Mean over the users who took something."""
    return each.sum() / taken.any(1).sum().clamp(min=1)
