"""Scores of a platform's users for its items, component by component."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from clients.dataset import Dataset
from clients.graph import user_items
from clients.item_graph import (
    ItemGraph,
    binary_rows,
    order_evidence,
    order_graph,
    own_graph,
    rows_of,
    shared_graph,
)
from clients.private import PrivateModel
from clients.training import to_device
from crossrec_model.config import Plan, TrainingConfig
from crossrec_model.data.sampling import BlockSampler
from crossrec_model.encoding import ItemTensors, encode_items, encode_users
from crossrec_model.network import Network
from crossrec_model.pairs import as_matrix, places, popular_cells
from crossrec_model.ranking import Components
from crossrec_model.statistics import (
    Statistics,
    item_counts,
    log_popularity,
    shared_log_popularity,
)

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float32]

#: Components that a platform can have of its own, and those that it gets from the federation.
OWN_MODEL: Final = "own model"
OWN: Final = (
    *("own popularity", OWN_MODEL, "own neighbours"),
    *("own graph", "own graph, wide", "own graph, latest", "own order"),
)
SHARED: Final = (
    *("shared popularity", "shared model"),
    *("shared graph", "shared graph, wide", "shared graph, latest"),
)
#: Users scored at once: bounds the [users, candidates, tower] tensor.
_USERS_AT_ONCE: Final = 32


@dataclass(frozen=True, kw_only=True, eq=False)
class SharedModel:
    """The federation's network and statistics, as they came under a plan."""

    plan: Plan
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

    def own_components(self, users: Int, private: PrivateModel | None) -> dict[str, Float]:
        """Those of OWN that there are, each [users, candidates]; the model only where one is given."""
        items = len(self.dataset.items)
        popularity = log_popularity(item_counts(self.dataset.histories, items, self.day))
        taken = user_items(self.dataset.histories, items, self.day)
        taken.data = np.ones_like(taken.data)
        affinity = (taken[users] @ self.dataset.graph(self.day))[:, self.candidates].toarray()
        wide = np.broadcast_to(popularity[self.candidates], affinity.shape)
        parts = {"own popularity": wide.astype(np.float32)}
        if private is not None:
            parts[OWN_MODEL] = self.logits(
                private.network, private.statistics, private.tensors, popularity, users
            )
        parts["own neighbours"] = np.log1p(affinity).astype(np.float32)
        plain, latest = rows_of(self.dataset.index, users, self.day, items)
        parts |= self.own_graph.evidence(plain, latest, "own graph")
        if self.order_graph is not None:
            parts |= order_evidence(self.order_graph, latest)
        return parts

    @cached_property
    def own_graph(self) -> ItemGraph:
        """Closed-form weights from the platform's own users."""
        return own_graph(self.taken, self.candidates)

    @cached_property
    def order_graph(self) -> ItemGraph | None:
        """Closed-form weights towards what comes next, where order says something."""
        return order_graph(self.dataset.index, self.day, self.candidates, len(self.dataset.items))

    def shared_graph(self, shared: SharedModel) -> ItemGraph | None:
        """Closed-form weights from the users of all platforms; None where no pairs were summed."""
        model, statistics = shared.plan.model, shared.statistics
        if not statistics.pairs.any():
            return None
        cells = popular_cells(statistics, model.sketch_width, model.pair_items)
        return shared_graph(
            self.taken,
            self.candidates,
            place=places(self.dataset.items, cells, model.sketch_width),
            pairs=as_matrix(statistics.pairs * np.float32(shared.plan.pair_unit), model.pair_items),
            platforms=shared.plan.federation.min_platforms,
            norm=model.pair_norm,
        )

    @cached_property
    def taken(self) -> sp.csr_matrix:
        """Which items each user took before the day, csr [all users, items]."""
        return binary_rows(self.dataset.histories, len(self.dataset.items), self.day)

    def shared_components(
        self, users: Int, shared: SharedModel, graph: ItemGraph | None
    ) -> dict[str, Float]:
        """Those of SHARED that there are, each [users, candidates]; `graph` is `shared_graph`'s."""
        popularity = shared_log_popularity(shared.statistics, self.dataset.items)
        logits = self.logits(
            shared.network, shared.statistics, self.dataset.tensors, popularity, users
        )
        wide = np.broadcast_to(popularity[self.candidates], logits.shape).astype(np.float32)
        parts = {"shared popularity": wide, "shared model": logits}
        if graph is not None:
            plain, latest = rows_of(self.dataset.index, users, self.day, len(self.dataset.items))
            parts |= graph.evidence(plain, latest, "shared graph")
        return parts

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
