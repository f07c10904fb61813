"""Which items pass a filter: looked up, never searched for."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property

import numpy as np
import numpy.typing as npt

from clients.serving.calls import Filters, not_found
from clients.serving.model import LiveModel
from crossrec_model.errors import shown

Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


class Shelf:
    """A model's items by shop and by category."""

    def __init__(self, model: LiveModel) -> None:
        self._model = model

    @cached_property
    def _shops(self) -> dict[str, Int]:
        groups: dict[str, list[int]] = {}
        for number, shop in enumerate(self._model.shops.tolist()):
            if shop:
                groups.setdefault(shop, []).append(number)
        return {shop: np.array(rows) for shop, rows in groups.items()}

    @cached_property
    def _categories(self) -> dict[tuple[str, ...], Int]:
        groups: dict[tuple[str, ...], list[int]] = {}
        for number, path in enumerate(self._model.categories):
            for depth in range(1, len(path) + 1):
                groups.setdefault(path[:depth], []).append(number)
        return {path: np.array(rows) for path, rows in groups.items()}

    def passing(self, filters: Filters, had: Int, out_of_stock: Collection[str]) -> Bool:
        """Which items pass, bool [items]; `had` are those that the user had.

        Raises:
            RefusedCallError: for a shop or category that no item has.
        """
        model = self._model
        passes = np.ones(len(model.items), dtype=bool)
        if filters.shops:
            passes &= self._any("shop", self._shops, filters.shops)
        if filters.category:
            passes &= self._any("category", self._categories, (filters.category,))
        low, high = filters.price_from, filters.price_to
        if low is not None or high is not None:
            # An item without a price (NaN) passes no price filter.
            with np.errstate(invalid="ignore"):
                passes &= model.prices >= (0.0 if low is None else low)
                passes &= model.prices <= (np.inf if high is None else high)
        if filters.new_only:
            passes[had] = False
        for gone in (filters.exclude, () if filters.include_out_of_stock else out_of_stock):
            passes[[model.items.index[item] for item in gone if item in model.items.index]] = False
        return passes

    def _any(
        self,
        what: str,
        groups: dict[str, Int] | dict[tuple[str, ...], Int],
        wanted: tuple[object, ...],
    ) -> Bool:
        passes = np.zeros(len(self._model.items), dtype=bool)
        for key in wanted:
            if key not in groups:
                raise not_found(f"{what} {shown(key)} has no item on this platform")
            passes[groups[key]] = True  # type: ignore[index]
        return passes

    def warm(self) -> None:
        """Work the groups out now rather than at the first request."""
        _ = self._shops, self._categories
