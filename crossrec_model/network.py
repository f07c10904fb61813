"""The shared network, layer by layer. B users, N items, T pairs a user, D the dimension.

    e_i = σ(W_i·x_i + b_i)                           x_i: hashed content, one row of W_i a token
    h_i = σ(Σ_r W_r · mean of h over N_r(i) + b)     r: a relation of the item graph (self is one)
    e_u = σ(W_u·x_u + b_u)                           x_u: that user's own history, context, numbers
    logit = W_o·[h_i, e_u, e_i, h_i ⊙ e_u] + b_o + tower([h_i ⊙ e_u, e_i ⊙ e_u])

The article's r̂ is σ(logit). The elementwise products carry what a tower of this size can't learn from
few users: Rendle et al. 2020, "Neural collaborative filtering vs. matrix factorization revisited".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from crossrec_model.config import Activation, ModelConfig
from crossrec_model.data.users import USER_NUMBERS

_ACTIVATIONS: Final[dict[Activation, Callable[[Tensor], Tensor]]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "identity": lambda x: x,
}


class Network(nn.Module):
    """Shared parameters only; adjacency, statistics and everything private stay outside."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, self.config = config.dimension, config
        self.activation = _ACTIVATIONS[config.activation]
        self.items = HashTable(config.buckets, d)  # W_i
        self.item_bias = Shift(d)  # b_i
        self.project = nn.Linear(config.vector_size, d, bias=False) if config.vector_size else None
        self.graph = nn.ModuleList(GraphConvolution(config) for _ in range(config.graph_layers))
        self.user = nn.Linear(3 * d + len(USER_NUMBERS), d)  # W_u on pools, context, numbers
        self.output = nn.Linear(4 * d, 1)  # W_o, b_o
        self.tower = nn.ModuleList(
            nn.Linear(a, b) for a, b in zip(config.tower, config.tower[1:], strict=False)
        )

    def reset(self, generator: torch.Generator) -> None:
        """Draw the initial weights: near identity, so that training starts at h ⊙ e_u ≈ similarity."""
        d = self.config.dimension
        with torch.no_grad():
            for parameter in self.parameters():
                scale = 0.02 if parameter.dim() > 1 else 0.0
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            table = self.items.weight
            table.copy_(torch.randn(table.shape, generator=generator) * 0.05)
            table[0] = 0.0
            for layer in self.layers():
                layer.start_as_identity()
            self.user.weight[:, :d] += torch.eye(d)
            self.output.weight[0, 3 * d :] = 1.0
            for linear in self._dense()[:-1]:
                bound = (1.0 / linear.in_features) ** 0.5
                draw = torch.rand(linear.weight.shape, generator=generator) * 2 - 1
                linear.weight.copy_(draw * bound)

    def layers(self) -> list[GraphConvolution]:
        """The graph layers, the first first."""
        return [layer for layer in self.graph if isinstance(layer, GraphConvolution)]

    def _dense(self) -> list[nn.Linear]:
        return [layer for layer in self.tower if isinstance(layer, nn.Linear)]

    def look_up(self, buckets: Tensor) -> Tensor:
        """Sum of the table's rows: int64 [..., F] → [..., D]; bucket 0 counts nothing."""
        sums: Tensor = self.items(buckets)
        return sums

    def embed_items(self, sums: Tensor, vectors: Tensor) -> Tensor:
        """Content → e_i. Looked-up sums [..., D], given vectors float32 [..., V] → [..., D]."""
        if self.project is not None:
            sums = sums + self.project(vectors)
        return self.activation(self.item_bias(sums))

    def embed_users(self, pooled: Tensor, context: Tensor, numbers: Tensor) -> Tensor:
        """History pools [B, 2, D], looked-up context [B, D], numbers [B, S] → e_u [B, D]."""
        x = torch.cat([pooled.flatten(1), context, numbers], dim=1)  # [B, 3D + S]
        return self.activation(self.user(x))

    def pair_logits(self, h: Tensor, e: Tensor, u: Tensor) -> Tensor:
        """Each user with her own T items: h, e [B, T, D], u [B, D] → [B, T]."""
        wide = u[:, None].expand_as(h)  # [B, T, D]
        product = h * wide  # [B, T, D]
        y = torch.cat([product, e * wide], dim=-1)  # [B, T, 2D]
        for layer in self._dense()[:-1]:
            y = torch.relu(layer(y))  # [B, T, 64], [B, T, 32]
        x = torch.cat([h, wide, e, product], dim=-1)  # [B, T, 4D]
        logit: Tensor = self.output(x) + self._dense()[-1](y)  # [B, T, 1]
        return logit.squeeze(-1)

    def logits_of(self, h: Tensor, e: Tensor, u: Tensor) -> Tensor:
        """One pair a row: h, e, u [T, D] → [T]; equals `pair_logits` with fewer copies."""
        d, out = self.config.dimension, self.output.weight[0]
        product = h * u  # [T, D]
        y = torch.cat([product, e * u], dim=1)  # [T, 2D]
        for layer in self._dense()[:-1]:
            y = functional.relu(layer(y), inplace=True)  # [T, 64], [T, 32]
        linear = h @ out[:d] + u @ out[d : 2 * d] + e @ out[2 * d : 3 * d] + product @ out[3 * d :]
        deep: Tensor = self._dense()[-1](y).squeeze(1)  # [T]
        return linear + self.output.bias + deep

    def all_logits(self, h: Tensor, e: Tensor, u: Tensor) -> Tensor:
        """Every user with every item: h, e [N, D], u [B, D] → [B, N]; equals `pair_logits`.

        A user only scales the first layer's weights: for many items no [B, N, 2D] product is made.
        """
        d, first, out = self.config.dimension, self._dense()[0], self.output.weight[0]
        x, twice = torch.cat([h, e], dim=1), u.repeat(1, 2)  # [N, 2D], [B, 2D]
        if len(x) <= first.out_features:  # the products are fewer than the scaled weights
            y: Tensor = first((x[:, None] * twice).flatten(0, 1))
        else:
            weight = (first.weight * twice[:, None]).flatten(0, 1)  # [B·64, 2D]
            y = functional.linear(x, weight, first.bias.repeat(len(u)))
        y = y.view(-1, first.out_features)  # [N·B, 64]: every layer is one matrix product
        for layer in self._dense()[1:]:
            y = layer(functional.relu(y, inplace=True))  # [N·B, 32], [N·B, 1]
        y = y.view(len(h), len(u)).T  # [B, N]
        linear = (h @ out[:d] + e @ out[2 * d : 3 * d])[None] + (u @ out[d : 2 * d])[:, None]
        return linear + (u * out[3 * d :]) @ h.T + self.output.bias + y


class HashTable(nn.Module):
    """Rows of hashed tokens; row 0 is padding and stays 0."""

    def __init__(self, buckets: int, dimension: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(buckets, dimension))
        self._place: Tensor | None = None  # of each bucket in a table of some rows only

    @contextmanager
    def only(self, rows: Tensor) -> Iterator[None]:
        """Within the context the parameter is a new one, of these rows alone; they are written back.

        `rows` int64, ascending and distinct, with 0 and with every bucket that will be looked up. The
        others have no gradient: an optimiser that starts within the context leaves them alone anyway.
        """
        whole = self.weight
        self._place = torch.full((len(whole),), -1, device=rows.device)
        self._place[rows] = torch.arange(len(rows), device=rows.device)
        self.weight = nn.Parameter(whole.detach()[rows])
        try:
            yield
        finally:
            with torch.no_grad():
                whole[rows] = self.weight
            self.weight, self._place = whole, None

    def forward(self, buckets: Tensor) -> Tensor:
        """Sum of the rows of each bag: int64 [..., F] → [..., D]."""
        if self._place is not None:
            buckets = self._place[buckets]
        bags = buckets.flatten(0, -2)  # [N, F]
        sums = functional.embedding_bag(bags, self.weight, mode="sum", padding_idx=0)
        return sums.view(*buckets.shape[:-1], self.weight.shape[1])


class Shift(nn.Module):
    """A learned constant that is added to every vector."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(dimension))

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] → [..., D]."""
        return x + self.bias


class GraphConvolution(nn.Module):
    """One relation-weighted layer before σ: Σ_r W_r·m_r + b, m_r the mean over the neighbours under r."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.dimension
        self.relations = config.relations
        self.weight = nn.Parameter(torch.zeros(len(config.relations), d, d))  # W_r
        self.bias = nn.Parameter(torch.zeros(d))

    def start_as_identity(self) -> None:
        """The item itself at first; its neighbours as training finds them useful."""
        for number, relation in enumerate(self.relations):
            if relation == "self":
                nn.init.eye_(self.weight[number])

    def forward(self, means: Tensor, kept: Sequence[int] | None = None) -> Tensor:
        """Neighbour means [..., R, D] → [..., D]; only of the relations `kept`, where others are 0."""
        # One product of [R·D] with [R·D, D] is faster than one a relation.
        weight = self.weight if kept is None else self.weight[list(kept)]
        weight = weight.transpose(1, 2).flatten(0, 1)  # [R·D, D]
        return means.flatten(-2) @ weight + self.bias
