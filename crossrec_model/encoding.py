"""From rows of the item table and user blocks to the network's vectors, each item computed once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

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
    """Vectors of some items: e [n, D] and, after the graph, h [n, D]."""

    e: Tensor
    h: Tensor


def encode_items(network: Network, items: ItemTensors, rows: Tensor) -> Encoded:
    """Vectors of distinct item rows int64 [n]."""
    e = network.embed_items(items.buckets[rows], items.vectors[rows])
    return Encoded(e=e, h=_layer(network, items, rows, e, len(network.graph)))


def _layer(network: Network, items: ItemTensors, rows: Tensor, e: Tensor, depth: int) -> Tensor:
    """h^depth of rows [n]; `e` is their h^0. Neighbours are embedded once however often they occur."""
    if depth == 0:
        return e
    relations = network.config.relations
    own = _layer(network, items, rows, e, depth - 1)
    around = items.neighbours[rows]  # [n, R, K]
    seen = around >= 0
    if not around.numel() or not seen.any():
        means = own.new_zeros(len(rows), len(relations), own.shape[1])
    else:
        distinct, place = torch.unique(around.clamp(min=0), return_inverse=True)
        base = network.embed_items(items.buckets[distinct], items.vectors[distinct])
        vectors = _layer(network, items, distinct, base, depth - 1)[place]  # [n, R, K, D]
        share = seen / seen.sum(-1, keepdim=True).clamp(min=1)  # [n, R, K]
        means = torch.einsum("nrkd,nrk->nrd", vectors, share.to(vectors.dtype))
    parts = [own if r == "self" else means[:, i] for i, r in enumerate(relations)]
    result: Tensor = network.graph[depth - 1](torch.stack(parts, dim=1))
    return result


def encode_users(network: Network, block: UserBlock, history: Tensor, numbers: Tensor) -> Tensor:
    """e_u [B, D] from the vectors of the block's history items [B, H, D] and standardised numbers."""
    pooled = torch.einsum("bhd,bhk->bkd", history, block.weights)  # [B, 2, D]
    return network.embed_users(pooled, block.context, numbers)
