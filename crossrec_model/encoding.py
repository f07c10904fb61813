"""From rows of the item table and user blocks to the network's vectors, each item computed once."""

from __future__ import annotations

from dataclasses import dataclass

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
    distinct, place = torch.unique(rows, return_inverse=True)
    levels = _levels(items, distinct, len(network.layers()))
    known = torch.unique(torch.cat([levels[-1], block.history.flatten()]))
    spare = items.buckets.shape[1] - block.context.shape[1]
    buckets = functional.pad(items.buckets[known], (0, max(0, -spare)))
    context = functional.pad(block.context, (0, max(0, spare)))
    sums = network.look_up(torch.cat([buckets, context]))
    e = network.embed_items(sums[: len(known)], items.vectors[known])
    history = e[torch.searchsorted(known, block.history)]  # [B, H, D]
    pooled = torch.einsum("bhd,bhk->bkd", history, block.weights)  # [B, 2, D]
    u = network.embed_users(pooled, sums[len(known) :], numbers)
    h = _convolved(network, items, levels, known, e)
    return Encoded(e=e[torch.searchsorted(known, rows)], h=h[place]), u


def encode_items(network: Network, items: ItemTensors, rows: Tensor) -> Encoded:
    """Item rows int64 [n] alone."""
    distinct, place = torch.unique(rows, return_inverse=True)
    levels = _levels(items, distinct, len(network.layers()))
    known = levels[-1]
    e = network.embed_items(network.look_up(items.buckets[known]), items.vectors[known])
    h = _convolved(network, items, levels, known, e)
    return Encoded(e=e[torch.searchsorted(known, rows)], h=h[place])


def encode_users(network: Network, items: ItemTensors, block: UserBlock, numbers: Tensor) -> Tensor:
    """The users of a block alone, u [B, D]."""
    return encode(network, items, block.history.new_zeros(0), block, numbers)[1]


def _levels(items: ItemTensors, rows: Tensor, depth: int) -> list[Tensor]:
    """Rows, then rows with their neighbours, and so on: what each graph layer reads, ascending."""
    levels = [rows]
    for _ in range(depth):
        around = items.neighbours[levels[-1]].flatten()
        levels.append(torch.unique(torch.cat([levels[-1], around[around >= 0]])))
    return levels


def _convolved(
    network: Network, items: ItemTensors, levels: list[Tensor], known: Tensor, e: Tensor
) -> Tensor:
    """H [n, D] of levels[0], from the vectors e of the `known` rows, layer by layer."""
    h = e[torch.searchsorted(known, levels[-1])]
    layers = network.layers()
    for number, layer in enumerate(layers, start=1):
        rows, wider = levels[len(layers) - number], levels[len(layers) - number + 1]
        own = h[torch.searchsorted(wider, rows)]  # [n, D]
        around = items.neighbours[rows]  # [n, R, K]
        seen = around >= 0
        share = seen / seen.sum(-1, keepdim=True).clamp(min=1)  # [n, R, K]
        # A missing neighbour points anywhere; its share is 0.
        near = torch.searchsorted(wider, around.clamp(min=0)).clamp(max=max(len(wider) - 1, 0))
        means = torch.einsum("nrkd,nrk->nrd", h[near], share.to(h.dtype))  # [n, R, D]
        parts = [own if r == "self" else means[:, i] for i, r in enumerate(layer.relations)]
        h = network.activation(layer(torch.stack(parts, dim=1)))
    return h


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
