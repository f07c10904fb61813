"""Random small networks, items and users, and what their clipped sum must be by plain autograd."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from crossrec_model.config import Activation, ModelConfig, Objective
from crossrec_model.data.sampling import UserBlock
from crossrec_model.data.users import USER_NUMBERS
from crossrec_model.encoding import ItemTensors, encode
from crossrec_model.network import Network
from crossrec_model.objective import user_losses
from crossrec_model.privacy.per_user import (
    TABLE,
    ClippedSum,
    PerUserGradients,
    UserBatch,
    inputs_of,
)

Vectors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a random case looks like."""

    users: int = 4
    history: int = 4
    positives: int = 3
    negatives: int = 5
    items: int = 7
    features: int = 3
    neighbours: int = 2
    relations: tuple[str, ...] = ("self", "category")
    graph_layers: int = 1
    vector_size: int = 0
    dimension: int = 2
    hidden: int = 3
    buckets: int = 40
    activation: Activation = "tanh"
    used: float = 0.7
    seed: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A network, its items and some users."""

    network: Network
    items: ItemTensors
    batch: UserBatch

    def clipped(self, clip: float = 0.5, objective: Objective = "bce", **more: bool) -> ClippedSum:
        with PerUserGradients(
            self.network, self.items, clip=clip, objective=objective, **more
        ) as gradients:
            return gradients.clipped_sum(inputs_of(self.network, self.items, self.batch))

    def kept(self, users: list[int]) -> Case:
        return replace(self, batch=some(self.batch, users))


def some(batch: UserBatch, users: list[int]) -> UserBatch:
    block = UserBlock(**{name: tensor[users] for name, tensor in vars(batch.block).items()})
    return UserBatch(block=block, negatives=batch.negatives[users], numbers=batch.numbers[users])


def case(shape: Shape, *, scale: float = 0.3) -> Case:
    """Random weights of a size; few items and buckets, so that ids repeat everywhere."""
    s, draw = shape, np.random.default_rng(shape.seed)
    d = s.dimension
    network = Network(
        ModelConfig(
            buckets=s.buckets,
            dimension=d,
            neighbours=s.neighbours,
            relations=s.relations,
            graph_layers=s.graph_layers,
            tower=(2 * d, s.hidden, 1),
            vector_size=s.vector_size,
            sketch_width=16,
            activation=s.activation,
        )
    )
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(_floats(draw.normal(size=p.shape) * scale))
        network.items.weight[0] = 0.0

    def ids(top: int, *size: int, low: int = 0) -> Tensor:
        return torch.from_numpy(draw.integers(low, top, size))

    items = ItemTensors(
        # From a few low and a few high rows: repeats in a bag, between items, and with context.
        buckets=_spread(ids(8, s.items, s.features), s.buckets),
        neighbours=ids(s.items, s.items, len(s.relations), s.neighbours, low=-1),
        vectors=_floats(draw.normal(size=(s.items, s.vector_size))),
    )
    weights = draw.random((s.users, s.history, 2)) * (draw.random((s.users, s.history, 1)) < s.used)
    block = UserBlock(
        history=ids(s.items, s.users, s.history),
        weights=_floats(weights),
        numbers=torch.zeros(s.users, len(USER_NUMBERS)),
        context=_spread(ids(8, s.users, 3), s.buckets),
        positives=ids(s.items, s.users, s.positives),
        mask=_floats(draw.random((s.users, s.positives)) < s.used),
    )
    numbers = _floats(draw.normal(size=(s.users, len(USER_NUMBERS))))
    batch = UserBatch(block=block, negatives=ids(s.items, s.users, s.negatives), numbers=numbers)
    return Case(network=network, items=items, batch=batch)


def _floats(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def _spread(ids: Tensor, buckets: int) -> Tensor:
    return torch.where(ids < 4, ids, buckets - ids)


def alone(case: Case, objective: Objective) -> list[Vectors]:
    """Each user's gradient in double precision, by autograd through `encode`, by herself."""
    network = copy.deepcopy(case.network).double()
    items = replace(case.items, vectors=case.items.vectors.double())
    found = []
    for user in range(len(case.batch)):
        one = some(case.batch, [user])
        block = replace(one.block, weights=one.block.weights.double())
        m = block.positives.shape[1]
        rows = torch.cat([block.positives[0], one.negatives[0]])
        encoded, u = encode(network, items, rows, block, one.numbers.double())
        logits = network.pair_logits(encoded.h[None], encoded.e[None], u)
        loss = user_losses(objective, logits[:, :m], block.mask.double(), logits[:, m:])
        named = dict(network.named_parameters())
        parts = torch.autograd.grad(loss.sum(), list(named.values()), allow_unused=True)
        found.append(
            {
                name: torch.zeros_like(p) if g is None else g
                for (name, p), g in zip(named.items(), parts, strict=True)
            }
        )
    return found


def norm(vectors: Vectors) -> float:
    return float(torch.stack([v.square().sum() for v in vectors.values()]).sum().sqrt())


def clipped(gradient: Vectors, clip: float) -> Vectors:
    factor = min(1.0, clip / max(norm(gradient), 1e-300))
    return {name: g * factor for name, g in gradient.items()}


def dense(total: ClippedSum, network: Network) -> Vectors:
    """A clipped sum by parameter, float64, the table written out."""
    found = {name: g.double() for name, g in total.dense.items()}
    table = torch.zeros(network.items.weight.shape, dtype=torch.float64)
    if total.table is not None:
        table.index_add_(0, total.table.rows, total.table.values.double())
    return found | {TABLE: table}


def difference(one: Vectors, other: Vectors) -> float:
    return norm({name: one[name] - other[name] for name in one})
