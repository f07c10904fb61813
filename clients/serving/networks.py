"""A network with everything that no user changes worked out: one user's logits in a millisecond or two."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from clients.serving.past import Past
from crossrec_model.config import TrainingConfig
from crossrec_model.data.sampling import BlockSampler
from crossrec_model.encoding import ItemTensors, encode_items
from crossrec_model.network import Network
from crossrec_model.statistics import Statistics

Float = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class UserInput:
    """What the network reads of one user, and the history that it pools.

    `items` int64 [H] with `weights` float32 [H, 2] (frequency, recency); `pooled` float32 [1, 2, D];
    `context` [1, D]; `numbers` [1, S], standardised.
    """

    items: npt.NDArray[np.int64]
    weights: Float
    pooled: Tensor
    context: Tensor
    numbers: Tensor


class LiveNetwork:
    """One network over one platform's candidates; everything is on the CPU and without gradients.

    Args:
        popularity: log popularity of all items, float64 [items], as the network was trained with.
        candidates: rows of the items that are ranked, int64 [C].
    """

    def __init__(
        self,
        network: Network,
        statistics: Statistics,
        tensors: ItemTensors,
        popularity: npt.NDArray[np.float64],
        candidates: npt.NDArray[np.int64],
        config: TrainingConfig,
    ) -> None:
        self.network, self._statistics, self._config = (
            network.requires_grad_(False),
            statistics,
            config,
        )
        self._popularity, self._width = popularity, tensors.buckets.shape[1]
        with torch.no_grad():
            self.e = network.embed_items(
                network.look_up(tensors.buckets), tensors.vectors
            )  # [N, D]
            ranked = encode_items(network, tensors, torch.from_numpy(candidates))
        self.ranked = ranked
        d = network.config.dimension
        out = network.output.weight[0]
        self._both = torch.cat([ranked.h, ranked.e], dim=1).contiguous()  # [C, 2D]
        dense = [layer for layer in network.tower if isinstance(layer, nn.Linear)]
        self._first, self._middle, self._last = dense[0], dense[1:-1], dense[-1]
        self._alone = len(dense) == 1
        self._items = ranked.h @ out[:d] + ranked.e @ out[2 * d : 3 * d]  # [C]
        self._items += network.output.bias + self._last.bias

    @cached_property
    def wide(self) -> Network:
        """The same network in double precision: sums of many gradients need it."""
        return copy.deepcopy(self.network).double()

    def read(self, past: Past) -> UserInput:
        """What the network reads of a user at her moment."""
        sampler = BlockSampler(past.index, self._config, items=len(self.e), end=past.day)
        block = sampler.at(np.zeros(1, dtype=np.int64), past.day, self._popularity)
        numbers = torch.from_numpy(self._statistics.standardise(block.numbers.numpy()))
        with torch.no_grad():
            history = self.e[block.history]  # [1, H, D]
            pooled = torch.einsum("bhd,bhk->bkd", history, block.weights)  # [1, 2, D]
            context = self.network.look_up(block.context)
        return UserInput(
            items=block.history[0].numpy(),
            weights=block.weights[0].numpy(),
            pooled=pooled,
            context=context,
            numbers=numbers,
        )

    def logits(self, user: UserInput) -> Float:
        """Logits of one user for all candidates, float32 [C]; equals `Network.all_logits`."""
        network, d = self.network, self.network.config.dimension
        out = network.output.weight[0]
        with torch.no_grad():
            u = network.embed_users(user.pooled, user.context, user.numbers)[0]  # [D]
            weight = self._first.weight * u.repeat(2)  # [64, 2D]
            if self._alone:
                y = self._both @ weight[0]
            else:
                y = torch.addmm(self._first.bias, self._both, weight.T).relu_()  # [C, 64]
                for layer in self._middle:
                    y = torch.addmm(layer.bias, y, layer.weight.T).relu_()  # [C, 32]
                y = y @ self._last.weight[0]  # [C]
            y += self._items
            y += self.ranked.h @ (u * out[3 * d :])
            y += u @ out[d : 2 * d]
        logits: Float = y.numpy()
        return logits
