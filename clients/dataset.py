"""One platform's data in the form that training and ranking read."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from clients.graph import bought_together, user_items
from clients.training import TrainingData
from crossrec_model.config import ModelConfig
from crossrec_model.data.histories import Histories, read_histories
from crossrec_model.data.items import ItemTable, item_table
from crossrec_model.data.prepared import PreparedData
from crossrec_model.data.splits import TimeSplit, check_split, split_by_weeks
from crossrec_model.data.users import HistoryIndex
from crossrec_model.encoding import ItemTensors

#: What a platform needs to know of an item before it ranks it: so many buyers.
LEAST_BUYERS: Final = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Items, events and time split of one platform."""

    items: ItemTable
    histories: Histories
    split: TimeSplit
    device: torch.device
    #: Items with fewer buyers are neither ranked nor counted in evaluation.
    least_buyers: int = LEAST_BUYERS
    _graphs: dict[float, sp.csr_matrix] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def index(self) -> HistoryIndex:
        """Running totals over all events."""
        return HistoryIndex(self.histories)

    @cached_property
    def tensors(self) -> ItemTensors:
        """Items with the content graph only: what the shared network may see."""
        return ItemTensors.of(self.items, self.device)

    @property
    def training(self) -> TrainingData:
        """What the shared network trains on."""
        return TrainingData(
            index=self.index, items=self.items, tensors=self.tensors, end=self.split.validation
        )

    def graph(self, day: float) -> sp.csr_matrix:
        """What the platform's users take together, from the events before `day`; kept once made."""
        if day not in self._graphs:
            taken = user_items(self.histories, len(self.items), day)
            self._graphs[day] = bought_together(taken)
        return self._graphs[day]

    def candidates(self, day: float) -> npt.NDArray[np.int64]:
        """Items with at least `least_buyers` users before `day`; all known items if none has."""
        past = self.histories.before(day)
        pairs = np.unique(past.user_of_event() * len(self.items) + past.item)
        users = np.bincount(pairs % len(self.items), minlength=len(self.items))
        often = np.flatnonzero(users >= self.least_buyers)
        return often if len(often) else np.flatnonzero(users > 0)

    def taken(
        self,
        users: npt.NDArray[np.int64],
        candidates: npt.NDArray[np.int64],
        start: float,
        end: float,
    ) -> npt.NDArray[np.bool_]:
        """Which candidates each user took in start ≤ day < end; bool [users, candidates]."""
        column = np.full(len(self.items), -1, dtype=np.int64)
        column[candidates] = np.arange(len(candidates))
        place, event = self.index.events(users, *(np.full(len(users), d) for d in (start, end)))
        if self.histories.bought.any():
            bought = self.histories.bought[event]
            place, event = place[bought], event[bought]
        where = column[self.histories.item[event]]
        table = np.zeros((len(users), len(candidates)), dtype=bool)
        table[place[where >= 0], where[where >= 0]] = True
        return table


def load_dataset(
    prepared: PreparedData,
    model: ModelConfig,
    *,
    device: torch.device,
    validation_weeks: float = 8.0,
    test_weeks: float = 4.0,
    min_users: int = 1,
    end: float | None = None,
) -> Dataset:
    """Read prepared tables; the split is counted back from day `end`, or from the last event.

    Raises:
        DataError: if too few users are left before the validation weeks, or a table is damaged.
    """
    items = item_table(prepared.catalogue(), model)
    with prepared.reading():
        histories = read_histories(prepared.interactions(), items, model.buckets)
    split = split_by_weeks(
        float(histories.day.max()) if end is None else end,
        validation_weeks=validation_weeks,
        test_weeks=test_weeks,
    )
    check_split(histories, split, min_users=min_users)
    return Dataset(items=items, histories=histories, split=split, device=device)
