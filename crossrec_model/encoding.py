"""From rows of the item table and user blocks to the network's vectors, each item computed once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from crossrec_model.data.items import ItemTable
from crossrec_model.data.sampling import UserBlock
from crossrec_model.network import Network


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemTensors:
    """The item table on a device: buckets [N, F], neighbours [N, R, K] (-1 = none), vectors [N, V]."""

    buckets: Tensor
    neighbours: Tensor
    vectors: Tensor

    @classmethod
    def of(
        cls, table: ItemTable, device: torch.device, neighbours: np.ndarray | None = None
    ) -> ItemTensors:
        """Move a table to `device`, with other neighbours where given (the private graph)."""
        graph = table.neighbours if neighbours is None else neighbours
        return cls(
            buckets=torch.from_numpy(table.buckets).to(device),
            neighbours=torch.from_numpy(graph).to(device),
            vectors=torch.from_numpy(table.vectors).to(device),
        )

    @cached_property
    def connected(self) -> tuple[bool, ...]:
        """Whether any item has a neighbour, by relation, [R]; the others' means are 0 everywhere."""
        return tuple((self.neighbours >= 0).flatten(2).any(2).any(0).tolist())


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    """Distinct rows of the item table, ascending, and the place among them of each item that is there."""

    rows: Tensor
    place: Tensor

    @classmethod
    def of(cls, rows: Tensor, items: int) -> _Rows:
        """From int64 [n] in any order."""
        there = torch.zeros(items, dtype=torch.bool, device=rows.device)
        there[rows] = True
        # Marking costs less than sorting, and the order is the same.
        return cls(rows=there.nonzero().squeeze(1), place=there.cumsum(0) - 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """Vectors of items: e [n, D] and, after the graph, h [n, D]."""

    e: Tensor
    h: Tensor


def encode(
    network: Network, items: ItemTensors, rows: Tensor, block: UserBlock, numbers: Tensor
) -> tuple[Encoded, Tensor]:
    """Item rows int64 [n] and the users u [B, D] of a block.

    `numbers` float32 [B, S] are standardised. The embedding table is read once, for every item and
    context that occurs anywhere: one dense gradient instead of one a use.
    """
    levels = _levels(items, rows, len(network.layers()))
    user, slot = (block.weights != 0).any(-1).nonzero(as_tuple=True)  # of T items in histories
    history, weights = block.history[user, slot], block.weights[user, slot]  # [T], [T, 2]
    known = _Rows.of(torch.cat([levels[-1].rows, history]), len(items.buckets))
    spare = items.buckets.shape[1] - block.context.shape[1]
    buckets = functional.pad(items.buckets[known.rows], (0, max(0, -spare)))
    context = functional.pad(block.context, (0, max(0, spare)))
    sums = network.look_up(torch.cat([buckets, context]))
    e = network.embed_items(sums[: len(known.rows)], items.vectors[known.rows])
    weighed = weights[:, :, None] * _taken(e, known.place[history])[:, None]  # [T, 2, D]
    pooled = e.new_zeros(len(block.history), *weighed.shape[1:]).index_add(0, user, weighed)
    u = network.embed_users(pooled, sums[len(known.rows) :], numbers)
    return _of_rows(network, items, levels, known, e, rows), u


def encode_items(network: Network, items: ItemTensors, rows: Tensor) -> Encoded:
    """Item rows int64 [n] alone."""
    levels = _levels(items, rows, len(network.layers()))
    known = levels[-1]
    sums = network.look_up(items.buckets[known.rows])
    e = network.embed_items(sums, items.vectors[known.rows])
    return _of_rows(network, items, levels, known, e, rows)


def encode_users(network: Network, items: ItemTensors, block: UserBlock, numbers: Tensor) -> Tensor:
    """The users of a block alone, u [B, D]."""
    return encode(network, items, block.history.new_zeros(0), block, numbers)[1]


def _levels(items: ItemTensors, rows: Tensor, depth: int) -> list[_Rows]:
    """Rows, then rows with their neighbours, and so on: what each graph layer reads."""
    levels, count = [_Rows.of(rows, len(items.buckets))], len(items.buckets)
    for _ in range(depth):
        if not any(items.connected):
            levels.append(levels[-1])
            continue
        around = items.neighbours[levels[-1].rows].flatten()
        levels.append(_Rows.of(torch.cat([levels[-1].rows, around[around >= 0]]), count))
    return levels


def _of_rows(
    network: Network, items: ItemTensors, levels: list[_Rows], known: _Rows, e: Tensor, rows: Tensor
) -> Encoded:
    """Vectors of `rows`, which are levels[0] in any order, from the vectors e of the `known` rows."""
    h = _convolved(network, items, levels, known, e)
    return Encoded(e=_taken(e, known.place[rows]), h=_taken(h, levels[0].place[rows]))


def _convolved(
    network: Network, items: ItemTensors, levels: list[_Rows], known: _Rows, e: Tensor
) -> Tensor:
    """H [n, D] of levels[0], from the vectors e of the `known` rows, layer by layer."""
    h = _taken(e, known.place[levels[-1].rows])
    layers = network.layers()
    for number, layer in enumerate(layers, start=1):
        level, wider = levels[len(layers) - number], levels[len(layers) - number + 1]
        own = h if level is wider else _taken(h, wider.place[level.rows])  # [n, D]
        # What no item has a neighbour under adds nothing.
        kept = [i for i, r in enumerate(layer.relations) if r == "self" or _connected(items, i)]
        parts = [
            own
            if layer.relations[i] == "self"
            else _means(items.neighbours[level.rows, i], wider, h)
            for i in kept
        ]
        means = torch.stack(parts, dim=1) if parts else own.new_zeros(len(own), 0, own.shape[1])
        h = network.activation(layer(means, kept if len(kept) < len(layer.relations) else None))
    return h


def _connected(items: ItemTensors, relation: int) -> bool:
    return relation < len(items.connected) and items.connected[relation]


def _means(around: Tensor, wider: _Rows, h: Tensor) -> Tensor:
    """Means over the neighbours [n, K] (-1 = none, and 0 where there is none) of h, [n, D]."""
    seen = around >= 0
    share = seen / seen.sum(-1, keepdim=True).clamp(min=1)  # [n, K]
    # A missing neighbour points anywhere; its share is 0.
    near = _taken(h, wider.place[around.clamp(min=0)].clamp(min=0))  # [n, K, D]
    return torch.einsum("nkd,nk->nd", near, share.to(h.dtype))


def _taken(vectors: Tensor, places: Tensor) -> Tensor:
    """Rows of vectors [n, D] at int64 places of any shape; its gradient is a plain sum by row."""
    return vectors.index_select(0, places.flatten()).view(*places.shape, vectors.shape[1])


def rows_per_user(network: Network, items: ItemTensors, rows: Tensor) -> tuple[Tensor, list[int]]:
    """Each user's items and all that the graph layers read around them.

    Rows int64 [B, T] → int64 [B, S], -1 = none, and the number of leading columns that each level
    holds, the rows themselves first: level l + 1 is level l with the neighbours of its items.
    """
    kept = [i for i, r in enumerate(network.config.relations) if r != "self"]
    sizes = [rows.shape[1]]
    for _ in network.layers():
        around = items.neighbours[rows.clamp(min=0)][:, :, kept]  # [B, S, R', K]
        around = around.masked_fill((rows < 0)[:, :, None, None], -1)
        rows = torch.cat([rows, around.flatten(1)], dim=1)
        sizes.append(rows.shape[1])
    return rows, sizes


def convolve_per_user(
    network: Network, items: ItemTensors, rows: Tensor, sizes: list[int], e: Tensor
) -> Tensor:
    """Return h [B, T, D] of the first rows, from e [B, S, D] of all `rows_per_user`.

    As `encode` computes it, with nothing shared between users and every layer called once.
    """
    h = e
    for layer, (inner, outer) in zip(
        network.layers(), zip(sizes[-2::-1], sizes[:0:-1], strict=True), strict=True
    ):
        b, k = rows.shape[0], items.neighbours.shape[-1]
        others = sum(r != "self" for r in layer.relations)
        seen = (rows[:, inner:outer] >= 0).view(b, inner, others, k)
        share = seen / seen.sum(-1, keepdim=True).clamp(min=1)  # [B, n, R', K]
        near = h[:, inner:outer].view(b, inner, others, k, h.shape[-1])
        means = (near * share.to(h.dtype)[..., None]).sum(-2)  # [B, n, R', D]
        own, taken = h[:, :inner], iter(means.unbind(2))
        parts = [own if relation == "self" else next(taken) for relation in layer.relations]
        h = network.activation(layer(torch.stack(parts, dim=2)))  # [B, n, D]
    return h
