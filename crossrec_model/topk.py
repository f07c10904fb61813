"""The k best of many items for many users, exactly, without a sort of all scores.

Items are dealt into groups: the k best items lie within the k groups with the best maxima, so one pass
of maxima leaves k groups to look into, and which ones is the same question again. Scores exist for one
block of users at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float32]
#: Scores of the users in a slice for all items, float32 [slice, items]; may be written into.
Scorer = Callable[[slice], Tensor]

#: Fills a list where no further item may be shown.
NO_ITEM: Final = -1
#: Scores in one block of users, 64 MiB: larger ones are no faster.
BLOCK_SCORES: Final = 1 << 24
_GROUP: Final = 16


def ranked(
    scorer: Scorer, *, users: int, items: int, k: int, hidden: Any = None, block: int | None = None
) -> tuple[Int, Float]:
    """The `k` best items of each user, best first, and their scores, int64 and float32 [users, k].

    Args:
        scorer: gives float32 scores; −∞ means "never show this item".
        users: how many users the scorer knows.
        items: how many items.
        k: length of the lists, at least 1.
        hidden: sparse [users, items]; what is stored there is never shown, such as past purchases.
        block: users scored at once; by default as many as `BLOCK_SCORES` allows.

    Equal scores are ordered by item number. A list that runs out of items ends in `NO_ITEM` with −∞.

    Raises:
        ValueError: a score is NaN, or `k` is below 1.
    """
    if k < 1:
        raise ValueError(f"a list of {k} items can't be ranked; ask for at least 1")
    best = np.full((users, k), NO_ITEM, dtype=np.int64)
    values = np.full((users, k), -np.inf, dtype=np.float32)
    size = block or max(1, BLOCK_SCORES // max(items, 1))
    for start in range(0, users, size) if items else ():
        part = slice(start, min(start + size, users))
        scores = scorer(part)  # [B, N]
        if hidden is not None:
            _hide(scores, hidden, part)
        found, value = _best(scores, min(k, items))
        best[part, : found.shape[1]] = found.cpu().numpy()
        values[part, : found.shape[1]] = value.cpu().numpy()
    return best, values


def product_scorer(users: Tensor, items: Tensor) -> Scorer:
    """Inner products of user vectors [U, D] with item vectors [N, D]; all blocks share their memory."""
    room = users.new_empty(0)
    columns = items.T

    def scores(part: slice) -> Tensor:
        nonlocal room
        rows = users[part]
        if len(room) < len(rows):
            room = users.new_empty(len(rows), len(items))
        return torch.matmul(rows, columns, out=room[: len(rows)])

    return scores


def given_scorer(scores: npt.NDArray[Any]) -> Scorer:
    """Scores that are there already, [U, N]; they are copied block by block and stay as they are."""

    def part_of(part: slice) -> Tensor:
        return torch.from_numpy(np.array(scores[part], dtype=np.float32))

    return part_of


def _hide(scores: Tensor, hidden: Any, part: slice) -> None:
    """−∞ for what a csr matrix stores in the rows of `part`, in place."""
    bounds = hidden.indptr[part.start : part.stop + 1]
    columns = hidden.indices[bounds[0] : bounds[-1]].astype(np.int64)
    rows = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    place = torch.from_numpy(rows * scores.shape[1] + columns).to(scores.device)
    scores.view(-1).index_fill_(0, place, -torch.inf)


def _best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Items and scores of the k best, [B, k]; equal scores by item number; NO_ITEM behind the last."""
    found, value, doubtful = _candidates(scores, k)
    if bool(value.isnan().any()):
        raise ValueError("a score is NaN; scores must be numbers, or −∞ for what is never shown")
    # Ties within the list: by item first, then a stable sort by score.
    order = found.argsort(dim=1)
    found, value = found.gather(1, order), value.gather(1, order)
    value, order = value.sort(dim=1, descending=True, stable=True)
    found = found.gather(1, order)
    rows = doubtful.nonzero().squeeze(1)
    if len(rows):
        every, place = scores[rows].sort(dim=1, descending=True, stable=True)
        found[rows], value[rows] = place[:, :k], every[:, :k]
    return found.masked_fill(value == -torch.inf, NO_ITEM), value


def _candidates(scores: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Some k best of each row, [B, k] twice, and whether others have the score of the last, [B]."""
    b, n = scores.shape
    groups = n // _GROUP
    if groups <= 2 * k:
        more = min(k + 1, n)
        value, place = scores.topk(more, dim=1)
        tied = value[:, k - 1] == value[:, k] if more > k else value.new_zeros(b).bool()
        return place[:, :k], value[:, :k], tied & (value[:, k - 1] > -torch.inf)
    whole = groups * _GROUP
    # Group g holds the items g, g + G, g + 2G, …: maxima are then taken over contiguous rows.
    dealt = scores[:, :whole].reshape(b, _GROUP, groups)  # [B, 16, G]
    chosen, top, tied = _candidates(dealt.amax(dim=1), k)  # [B, k]
    inside = torch.arange(_GROUP, device=scores.device) * groups
    item = (chosen[:, :, None] + inside).flatten(1)  # [B, 16k]
    rest = torch.arange(whole, n, device=scores.device).expand(b, -1)
    item = torch.cat([item, rest], dim=1)
    place, value, doubtful = _candidates(scores.gather(1, item), k)
    # A group that was left out matters only if its best is as good as the last of the list.
    doubtful |= tied & (top[:, -1] >= value[:, -1])
    return item.gather(1, place), value, doubtful
