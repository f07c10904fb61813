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

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from crossrec_model.network import Network
from crossrec_model.privacy.noise import NoiseSource
from crossrec_model.privacy.per_user import TABLE, ClippedSum


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
        self._weight = network.items.weight if table else None
        self._owed = np.zeros(len(network.items.weight), dtype=np.int32)

    def owed(self, buckets: Tensor) -> None:
        """Give the rows that a batch will read, int64 [...], the noise of the steps since."""
        if self._weight is None:
            return
        read = np.zeros(len(self._owed), dtype=bool)
        read[buckets.cpu().numpy().ravel()] = True
        self._pay(np.flatnonzero(read & (self._owed > 0)))

    @torch.no_grad()
    def step(self, parts: Sequence[ClippedSum]) -> None:
        """One step on the sum of a batch's parts; none of them is a step on noise alone.

        Raises:
            ValueError: for a part of another clip, which this noise would not cover.
        """
        for part in parts:
            if part.clip != self._clip:
                raise ValueError(f"a sum is clipped to {part.clip}, the noise covers {self._clip}")
        for name, parameter in self._dense.items():
            total = self._normal(parameter.numel())
            for part in parts:
                np.add(total, part.dense[name].cpu().numpy().ravel(), out=total)
            change = torch.from_numpy((total * self._factor).astype(np.float32))
            parameter.add_(change.view_as(parameter).to(parameter.device))
        if self._weight is not None:
            for part in parts:
                if part.table is None:
                    raise ValueError("a sum without the table's gradients; compute them with it")
                self._weight.index_add_(0, part.table.rows, part.table.values, alpha=self._factor)
            self._owed[1:] += 1  # row 0 is padding: no data reach it

    def settle(self) -> None:
        """Give every row the noise it is still owed; before this nothing may leave."""
        self._pay(np.flatnonzero(self._owed))

    @torch.no_grad()
    def _pay(self, rows: npt.NDArray[np.int64]) -> None:
        if self._weight is None or not len(rows):
            return
        if len(rows) == len(self._owed) - 1 and (self._owed[1:] == self._owed[1]).all():
            self._pay_all(float(self._owed[1]))
        else:
            width = self._weight.shape[1]
            noise = self._normal(len(rows) * width).reshape(-1, width)
            noise *= (self._factor * np.sqrt(self._owed[rows]))[:, None]
            place = torch.from_numpy(rows).to(self._weight.device)
            change = torch.from_numpy(noise.astype(np.float32)).to(self._weight.device)
            self._weight.index_add_(0, place, change)
        self._owed[rows] = 0

    def _pay_all(self, steps: float) -> None:
        """The same for a table of which every row is owed as much, without a copy on the CPU."""
        if self._weight is None:
            return
        flat = self._weight[1:].detach().cpu().numpy().ravel()
        self._source.add_normal(flat, abs(self._factor) * self._deviation * float(np.sqrt(steps)))
        if self._weight.device.type != "cpu":
            self._weight[1:] = torch.from_numpy(flat).view(-1, self._weight.shape[1])

    def _normal(self, count: int) -> npt.NDArray[np.float64]:
        if self._deviation == 0.0:
            return np.zeros(count)
        noise = self._source.normal(count)
        noise *= self._deviation
        return noise
