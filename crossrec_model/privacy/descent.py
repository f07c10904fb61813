"""Noisy gradient descent on clipped sums: Abadi et al. 2016, Algorithm 1, with a user as the example.

A step is w ← w - lr / E · (Σ clipped gradients + σ · clip · z), z standard normal in every coordinate,
E a public constant. The batch's real size is not read anywhere.

A row of a large table is read in few steps. What noise it is owed for the others is added when it is
read next, or at the end: k steps' noise at once is one normal number of √k times the deviation. Only
the model after the last step leaves the platform, and its distribution is the same (Lee et al. 2024,
"LazyDP").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from crossrec_model.network import Network
from crossrec_model.privacy.noise import NoiseSource
from crossrec_model.privacy.per_user import TABLE, ClippedSum

#: Rows whose noise or gradient is held in float64 at once.
_ROWS: Final = 4096


class NoisyDescent:
    """Steps on one network, in place.

    Args:
        clip: the bound of every clipped sum.
        multiplier: the noise's deviation in units of `clip`, above 0; 0 only for comparisons.
        expected: E, the users that a step is divided by.
        table: whether the hash table is trained.

    Use: `owed` for the rows of each batch before it is computed, then `step`; at the end `settle`.
    """

    def __init__(
        self,
        network: Network,
        source: NoiseSource,
        *,
        clip: float,
        multiplier: float,
        expected: float,
        learning_rate: float,
        table: bool = True,
    ) -> None:
        self._network, self._source, self._clip = network, source, clip
        self._deviation = multiplier * clip
        self._factor = -learning_rate / expected
        self._dense = {n: p for n, p in network.named_parameters() if n != TABLE}
        self._table = _Table(network.items.weight) if table else None
        self._owed = np.zeros(len(network.items.weight), dtype=np.int32)

    def owed(self, buckets: Tensor) -> None:
        """Give the rows that a batch will read, int64 [...], the noise of the steps since."""
        if self._table is None:
            return
        read = np.zeros(len(self._owed), dtype=bool)
        read[buckets.cpu().numpy().ravel()] = True
        self._pay(np.flatnonzero(read & (self._owed > 0)))

    @torch.no_grad()
    def step(self, parts: Sequence[ClippedSum]) -> None:
        """One step on the sum of a batch's parts; none of them is a step on noise alone.

        Raises:
            ValueError: for a part of another clip, which this noise would not cover, or without the
                table where it is trained; nothing is changed.
        """
        for part in parts:
            if part.clip != self._clip:
                raise ValueError(f"a sum is clipped to {part.clip}, the noise covers {self._clip}")
            if self._table is not None and part.table is None:
                raise ValueError("a sum without the table's gradients; compute them with it")
        for name, parameter in self._dense.items():
            total = self._normal(parameter.numel())
            for part in parts:
                np.add(total, part.dense[name].cpu().numpy().ravel(), out=total)
            change = torch.from_numpy((total * self._factor).astype(np.float32))
            parameter.add_(change.view_as(parameter).to(parameter.device))
        if self._table is not None:
            for part in parts:
                if part.table is not None:
                    self._table.add(part.table.rows, part.table.values, self._factor)
            self._owed[1:] += 1  # row 0 is padding: no data reach it

    def settle(self) -> None:
        """Give every row the noise it is still owed; before this nothing may leave."""
        self._pay(np.flatnonzero(self._owed))

    @torch.no_grad()
    def _pay(self, rows: npt.NDArray[np.int64]) -> None:
        if self._table is None:
            return
        for start in range(0, len(rows), _ROWS):
            some = rows[start : start + _ROWS]
            noise = self._normal(len(some) * self._table.width).reshape(len(some), -1)
            noise *= (self._factor * np.sqrt(self._owed[some]))[:, None]
            self._table.pay(torch.from_numpy(some), torch.from_numpy(noise))
        self._owed[rows] = 0

    def _normal(self, count: int) -> npt.NDArray[np.float64]:
        if self._deviation == 0.0:
            return np.zeros(count)
        noise = self._source.normal(count)
        noise *= self._deviation
        return noise


class _Table:
    """The hash table as start + change, the change in float64; the weights are its rounded sum.

    A weight is rounded only after it has all its noise. Rounded at every addition, a weight that is
    large beside the gradients would lose or double them, those of all users after one who carried it
    over a power of two; and the last bits of a small one would tell how often it was added to, which
    is how often its row was read.
    """

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight
        self._start = weight.detach().clone()  # float32 [rows, D]
        self._change = torch.zeros_like(self._start, dtype=torch.float64)

    @property
    def width(self) -> int:
        """D."""
        return self._weight.shape[1]

    def add(self, rows: Tensor, values: Tensor, factor: float) -> None:
        """Add factor · values [n, D] to rows [n], repeats add; the weights don't show it yet."""
        for some, part in zip(torch.split(rows, _ROWS), torch.split(values, _ROWS), strict=True):
            self._change.index_add_(0, some, part.double(), alpha=factor)

    def pay(self, rows: Tensor, noise: Tensor) -> None:
        """Add noise float64 [n, D] to distinct rows [n] and show them in the weights."""
        rows = rows.to(self._weight.device)
        self._change.index_add_(0, rows, noise.to(self._weight.device))
        self._weight[rows] = (self._start[rows] + self._change[rows]).float()
