"""Each user's exact gradient, clipped, and the sum of them: what all noise is added to.

The unit is a user. One backward pass stops at the looked-up vectors of the hash table. The dense
layers' gradients per user are Opacus' (`GradSampleModule`). A user's gradient of the table is as
sparse as her block: it is summed over her (user, row) pairs, so that repeats and the table's several
places in the network count right. Nothing is kept between two calls; what a call broken off leaves on
the layers is taken off.

Opacus is touched here only; `tests/privacy/test_per_user.py` holds it against plain autograd.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import numpy as np
import numpy.typing as npt
import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.utils import register_grad_sampler
from torch import Tensor
from torch.nn import functional

from crossrec_model.config import Objective
from crossrec_model.data.sampling import UserBlock
from crossrec_model.encoding import ItemTensors, convolve_per_user, rows_per_user
from crossrec_model.network import GraphConvolution, Network, Shift
from crossrec_model.objective import user_losses

TABLE: Final = "items.weight"
#: Clipped norms stay this far below the clip, so that rounding in float32 can't lift them above it.
_SLACK: Final = 1e-5
#: Users are computed in multiples of this, see `_filled`.
_TOGETHER: Final = 16
#: Squares that are added in float32: in longer sums small ones are lost, by more than the slack.
_NORM_CHUNK: Final = 1024
#: What Opacus' hooks keep on a layer between the way there and the way back.
_LEFT_ON_LAYERS: Final = ("activations", "max_batch_len")


@register_grad_sampler(Shift)  # type: ignore[untyped-decorator]
def _shift_gradients(
    layer: Shift, _activations: list[Tensor], backprops: Tensor
) -> dict[Tensor, Tensor]:
    return {layer.bias: backprops.flatten(1, -2).sum(1)}  # [B, D]


@register_grad_sampler(GraphConvolution)  # type: ignore[untyped-decorator]
def _graph_gradients(
    layer: GraphConvolution, activations: list[Tensor], backprops: Tensor
) -> dict[Tensor, Tensor]:
    means = activations[0].flatten(-2)  # [B, n, R·D]
    weight = torch.bmm(backprops.transpose(1, 2), means)  # [B, D, R·D]
    b, d, _ = weight.shape
    return {
        layer.weight: weight.view(b, d, -1, d).transpose(1, 2),  # [B, R, D, D]
        layer.bias: backprops.sum(1),
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class UserBatch:
    """Some users with all that their losses read; the user is the first dimension of everything.

    `block` as in `data.sampling`; `negatives` int64 [B, N] rows of the public catalogue, each user's
    own; `numbers` float32 [B, S] standardised with public moments.
    """

    block: UserBlock
    negatives: Tensor
    numbers: Tensor

    def __len__(self) -> int:
        return len(self.numbers)


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """A batch as the network reads it: `rows` int64 [B, S] items, `buckets` int64 [B, O, F].

    O counts the look-ups: history, items with their neighbours, context. Unused ones are padding.
    The first `users` are real, the others empty.
    """

    users: int
    batch: UserBatch
    sizes: list[int]
    rows: Tensor
    buckets: Tensor
    vectors: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class TableSum:
    """A sparse sum of table gradients: `values` float32 [n, D] belong to `rows` int64 [n], repeats add."""

    rows: Tensor
    values: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class ClippedSum:
    """Σ over users of g · min(1, clip / |g|): one user more or less moves it by at most `clip` (L2).

    `dense` holds the sums of the dense parameters by name, `table` that of the hash table, None where
    it is not trained. `refused` counts users whose gradient was not finite: they add nothing. It is
    private, as are `losses` [B].
    """

    clip: float
    dense: dict[str, Tensor]
    table: TableSum | None
    refused: int
    losses: Tensor


def inputs_of(network: Network, items: ItemTensors, batch: UserBatch) -> Inputs:
    """Gather what a batch reads from the public item table."""
    users, batch = len(batch), _filled(batch)
    block = batch.block
    history = block.history.masked_fill(block.weights.sum(-1) == 0, -1)  # [B, H]
    positives = block.positives.masked_fill(block.mask == 0, -1)  # [B, M]
    rows, sizes = rows_per_user(network, items, torch.cat([positives, batch.negatives], dim=1))
    rows = torch.cat([rows, history], dim=1)  # [B, S]
    buckets = items.buckets[rows.clamp(min=0)].masked_fill((rows < 0)[..., None], 0)
    spare = buckets.shape[-1] - block.context.shape[1]
    context = functional.pad(block.context, (0, max(0, spare)))[:, None]  # [B, 1, F]
    # How much padding a user has depends on the others: no real item's vector may stand there, as
    # 0 times what overflows is NaN.
    vectors = items.vectors[rows.clamp(min=0)].masked_fill((rows < 0)[..., None], 0.0)
    return Inputs(
        users=users,
        batch=batch,
        sizes=sizes,
        rows=rows,
        buckets=torch.cat([functional.pad(buckets, (0, max(0, -spare))), context], dim=1),
        vectors=vectors,
    )


def _filled(batch: UserBatch) -> UserBatch:
    """The batch with empty users at its end, who have no loss; at least some.

    Matrix products treat left-over rows by kernels of their own, whose last digits differ, and
    received weights can make last digits decide. Which rows those are must not depend on any user.
    (That holds for layers of 16 and more; what rows of a few numbers come to depends on their place.)
    """
    spare = max(1, -(-len(batch) // _TOGETHER)) * _TOGETHER - len(batch)

    def grown(values: Tensor, fill: int = 0) -> Tensor:
        return torch.cat([values, values.new_full((spare, *values.shape[1:]), fill)])

    return UserBatch(
        block=UserBlock(**{name: grown(value) for name, value in vars(batch.block).items()}),
        negatives=grown(batch.negatives, -1),
        numbers=grown(batch.numbers),
    )


def per_user_losses(
    network: Network, items: ItemTensors, inputs: Inputs, sums: Tensor, objective: Objective
) -> Tensor:
    """Loss of each user [B] from the looked-up `sums` [B, O, D]; every layer is called once."""
    batch, rows, last = inputs.batch, inputs.rows, inputs.sizes[-1]
    block, m = batch.block, batch.block.positives.shape[1]
    e = network.embed_items(sums[:, :-1], inputs.vectors)  # [B, S, D]
    pooled = torch.einsum("bhd,bhk->bkd", e[:, last:], block.weights)  # [B, 2, D]
    u = network.embed_users(pooled, sums[:, -1], batch.numbers)  # [B, D]
    h = convolve_per_user(network, items, rows[:, :last], inputs.sizes, e[:, :last])  # [B, T, D]
    logits = network.pair_logits(h, e[:, : h.shape[1]], u)  # [B, T]
    return user_losses(objective, logits[:, :m], block.mask, logits[:, m:])


class PerUserGradients:
    """A network with Opacus' hooks on it, as a context: they are taken off at its end.

    Args:
        network: trained in place by others; its parameters are only read here.
        clip: the largest L2 norm of one user's gradient over all parameters together.
        table: whether the hash table is trained.
    """

    def __init__(
        self,
        network: Network,
        items: ItemTensors,
        *,
        clip: float,
        objective: Objective,
        table: bool = True,
    ) -> None:
        self._network, self._items = network, items
        self._clip, self._objective, self._table = clip, objective, table
        self._wrapped: GradSampleModule | None = None

    def __enter__(self) -> Self:
        self._wrap()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._unwrap()

    def _wrap(self) -> None:
        self._network.train()
        self._wrapped = GradSampleModule(self._network, loss_reduction="sum", strict=True)

    def _unwrap(self) -> None:
        if self._wrapped is None:
            return
        self._wrapped.to_standard_module()
        self._wrapped = None
        for layer, name in itertools.product(self._network.modules(), _LEFT_ON_LAYERS):
            vars(layer).pop(name, None)

    def clipped_sum(self, inputs: Inputs) -> ClippedSum:
        """The clipped sum over the users of a batch; zeros for an empty one.

        Book-keeping as in Bu et al. 2023 ("Differentially private optimization on large model at
        small cost"): one backward pass, then norms, then weighted sums.
        """
        if self._wrapped is None:
            raise RuntimeError("gradients per user are only there within the context")
        dense = {n: p for n, p in self._network.named_parameters() if n != TABLE}
        try:
            losses, sums = self._backward(inputs)
            each = _gradients(dense)
            self._wrapped.zero_grad(set_to_none=True)
        except BaseException:
            self._unwrap()
            self._wrap()
            raise
        square = _squares(list(each.values()))  # [B]
        pairs = _pairs(inputs.buckets, sums) if self._table else None
        if pairs is not None:
            square.index_add_(0, pairs.users, _squares([pairs.values]))
        scale = self._scale(square)
        total = {n: torch.zeros_like(p) for n, p in dense.items()}
        for name, gradient in each.items():
            total[name] = (scale @ _finite(gradient, scale)).view_as(total[name])
        table = None
        if pairs is not None:
            pairs.values.mul_(scale[pairs.users, None])
            table = TableSum(rows=pairs.rows, values=_finite(pairs.values, scale[pairs.users]))
        return ClippedSum(
            clip=self._clip,
            dense=total,
            table=table,
            refused=int((~torch.isfinite(square[: inputs.users])).sum()),
            losses=losses[: inputs.users],
        )

    def _backward(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Losses [B]; the gradient with respect to the looked-up sums [B, O, D]; hooks do the rest."""
        with torch.no_grad():
            sums = self._network.look_up(inputs.buckets)
        sums.requires_grad_()
        leaves = [sums]
        if self._network.project is not None:
            # A layer is only on the way back if its input is asked for.
            leaves.append(inputs.vectors.requires_grad_())
        losses = per_user_losses(self._network, self._items, inputs, sums, self._objective)
        # The batch's own weight gradients are not asked for, so they are not computed.
        losses.sum().backward(inputs=leaves)  # type: ignore[no-untyped-call]
        if sums.grad is None:
            raise RuntimeError("the looked-up vectors got no gradient")
        return losses.detach(), sums.grad

    def _scale(self, square: Tensor) -> Tensor:
        """min(1, clip / norm) float32 from squared norms [B]; 0 for a norm that is not finite."""
        norm = square.sqrt()
        scale = (self._clip * (1 - _SLACK) / norm.clamp(min=1e-30)).clamp(max=1.0)
        return torch.where(torch.isfinite(norm), scale, 0.0).float()


def _gradients(dense: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What Opacus' hooks left on the parameters, [B, n] each.

    A parameter that no user's loss reached has none. One that was used twice, or in a shape without
    users first, would be counted wrong: refused.
    """
    found: dict[str, Tensor] = {}
    for name, parameter in dense.items():
        gradient = getattr(parameter, "grad_sample", None)
        if gradient is None:
            continue
        if not isinstance(gradient, Tensor):
            raise TypeError(f"{name} was reached by more than one backward pass")
        found[name] = gradient.flatten(1)
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pairs:
    """Gradients of the distinct (user, row) pairs: users, rows int64 [n], values float32 [n, D]."""

    users: Tensor
    rows: Tensor
    values: Tensor


def _pairs(buckets: Tensor, gradient: Tensor) -> _Pairs:
    """Sum gradients [B, O, D] of bags [B, O, F] over equal (user, row); that of padding is 0."""
    b, o, f = buckets.shape
    flat = buckets.reshape(b, o * f)
    if buckets.device.type == "cpu":
        rows, order = _sorted(flat.numpy())
    else:
        rows, order = torch.sort(flat, dim=1)
    first = torch.ones_like(rows, dtype=torch.bool)
    first[:, 1:] = rows[:, 1:] != rows[:, :-1]
    place = torch.arange(b, device=rows.device)[:, None] * o + torch.div(
        order, f, rounding_mode="floor"
    )
    starts = first.flatten().nonzero().squeeze(1)
    distinct = rows.flatten()[starts]
    users = torch.div(starts, o * f, rounding_mode="floor")
    values = functional.embedding_bag(
        place.flatten(), gradient.reshape(b * o, -1), starts, mode="sum"
    )
    # Padding sorts first: at most one pair a user, which counts nothing.
    values[(distinct == 0).nonzero().squeeze(1)] = 0.0
    return _Pairs(users=users, rows=distinct, values=values)


def _sorted(flat: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Rows of a matrix sorted, and where each number was; NumPy's radix sort where 16 bits do."""
    narrow = flat.astype(np.uint16 if flat.max(initial=0) < 1 << 16 else np.uint32)
    order = np.argsort(narrow, axis=1, kind="stable")
    ordered = np.take_along_axis(narrow, order, axis=1).astype(np.int64)
    return torch.from_numpy(ordered), torch.from_numpy(order)


def _squares(parts: Sequence[Tensor]) -> Tensor:
    """Squared norms of the rows of matrices [B, n] side by side, float64 [B]."""
    chunks = (c for p in parts for c in torch.split(p, _NORM_CHUNK, dim=1))
    return torch.stack([torch.linalg.vector_norm(c, dim=1).double().square() for c in chunks]).sum(
        0
    )


def _finite(gradient: Tensor, scale: Tensor) -> Tensor:
    """Gradients [B, n] with 0 for refused users: 0 · NaN would be NaN."""
    if bool((scale > 0).all()):
        return gradient
    return torch.where(scale[:, None] > 0, gradient, 0.0)
