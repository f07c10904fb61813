"""Scores of a platform's users for its items, component by component."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from clients.dataset import Dataset
from clients.graph import user_items
from clients.private import PrivateModel
from clients.training import to_device
from crossrec_model.config import TrainingConfig
from crossrec_model.data.sampling import BlockSampler
from crossrec_model.encoding import ItemTensors, encode_items, encode_users
from crossrec_model.network import Network
from crossrec_model.ranking import Components
from crossrec_model.statistics import (
    Statistics,
    item_counts,
    log_popularity,
    shared_log_popularity,
)

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float32]

#: Components of the local row, and of the federated one.
LOCAL: Final = ("own popularity", "own model", "own neighbours")
FEDERATED: Final = (*LOCAL, "shared popularity", "shared model")
#: Users scored at once: bounds the [users, candidates, tower] tensor.
_USERS_AT_ONCE: Final = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class SharedModel:
    """The federation's network and statistics, as they came."""

    network: Network
    statistics: Statistics


@dataclass(frozen=True, kw_only=True, eq=False)
class Moment:
    """Everything that scoring at one day shares among users: candidates, popularity, graph."""

    dataset: Dataset
    config: TrainingConfig
    day: float
    candidates: Int

    @classmethod
    def at(cls, dataset: Dataset, config: TrainingConfig, day: float) -> Moment:
        """Candidates are chosen from what was known before `day`."""
        return cls(dataset=dataset, config=config, day=day, candidates=dataset.candidates(day))

    def own_components(self, users: Int, private: PrivateModel) -> dict[str, Float]:
        """LOCAL components, each [users, candidates]."""
        items = len(self.dataset.items)
        popularity = log_popularity(item_counts(self.dataset.histories, items, self.day))
        taken = user_items(self.dataset.histories, items, self.day)
        taken.data = np.ones_like(taken.data)
        affinity = (taken[users] @ self.dataset.graph(self.day))[:, self.candidates].toarray()
        wide = np.broadcast_to(popularity[self.candidates], affinity.shape)
        return {
            "own popularity": wide.astype(np.float32),
            "own model": self.logits(
                private.network, private.statistics, private.tensors, popularity, users
            ),
            "own neighbours": np.log1p(affinity).astype(np.float32),
        }

    def shared_components(self, users: Int, shared: SharedModel) -> dict[str, Float]:
        """The components that come from the federation, each [users, candidates]."""
        popularity = shared_log_popularity(shared.statistics, self.dataset.items)
        logits = self.logits(
            shared.network, shared.statistics, self.dataset.tensors, popularity, users
        )
        wide = np.broadcast_to(popularity[self.candidates], logits.shape).astype(np.float32)
        return {"shared popularity": wide, "shared model": logits}

    def components(self, users: Int, parts: dict[str, Float]) -> Components:
        """Named scores together with the users' own past takings of the candidates."""
        count, age = self._past(users)
        return Components(
            names=tuple(parts), values=np.stack(list(parts.values())), count=count, age=age
        )

    def logits(
        self,
        network: Network,
        statistics: Statistics,
        tensors: ItemTensors,
        popularity: npt.NDArray[np.float64],
        users: Int,
    ) -> Float:
        """The network's logits of users for the candidates, float32 [users, candidates]."""
        device = tensors.buckets.device
        sampler = BlockSampler(
            self.dataset.index, self.config, items=len(self.dataset.items), end=self.day
        )
        parts = []
        with torch.no_grad():
            ranked = encode_items(network, tensors, torch.from_numpy(self.candidates).to(device))
            for start in range(0, len(users), _USERS_AT_ONCE):
                block = sampler.at(users[start : start + _USERS_AT_ONCE], self.day, popularity)
                numbers = statistics.standardise(block.numbers.numpy())
                block = to_device(block, device)
                u = encode_users(network, tensors, block, torch.from_numpy(numbers).to(device))
                parts.append(network.all_logits(ranked.h, ranked.e, u).cpu().numpy())
        empty = np.zeros((0, len(self.candidates)), dtype=np.float32)
        return np.concatenate(parts) if parts else empty

    def _past(self, users: Int) -> tuple[Float, Float]:
        """Past takings of each candidate and days since the last, float32 [users, candidates]."""
        histories, index = self.dataset.histories, self.dataset.index
        column = np.full(len(self.dataset.items), -1, dtype=np.int64)
        column[self.candidates] = np.arange(len(self.candidates))
        place, event = index.events(
            users, np.full(len(users), -np.inf), np.full(len(users), self.day)
        )
        where = column[histories.item[event]]
        place, event, where = (x[where >= 0] for x in (place, event, where))
        count = np.zeros((len(users), len(self.candidates)), dtype=np.float32)
        np.add.at(count, (place, where), 1.0)
        age = np.full(count.shape, 1e4, dtype=np.float32)
        np.minimum.at(age, (place, where), (self.day - histories.day[event]).astype(np.float32))
        return count, age
