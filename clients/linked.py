"""What another platform's profile says about every item here: learnt from linked users in closed form.

Two readings of a profile. *Items*: turned back into the shared items that it stands for, so that what
somebody takes elsewhere again and again is known here by name. *Taste*: ridge regression from the linked
users' profiles to what they took here, which works where platforms share no item. A user who is linked is
left out of the regression that speaks about her.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from clients.scoring import Moment
from crossrec_model.data.users import Int
from crossrec_model.errors import DataError

Float = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]

LINKED: Final = (
    *("linked items", "linked items, wide", "linked items, new here"),
    *("linked taste", "linked taste, new here"),
)
#: Pulls the regression towards 0, as a share of the profiles' mean square in a direction.
_RIDGE: Final = 0.3
#: Logarithms, as of the other evidence: of what is near 0 anyway, and of what is clearly above.
_NEAR: Final = 0.1
_NEAR_TASTE: Final = 0.01


@dataclass(frozen=True, kw_only=True, eq=False)
class Profiles:
    """Profiles of linked users in this platform's basis, the senders' added up.

    `users` int64 [n] are rows of the platform's histories, each once, ascending; `vectors` float32 [n, D];
    `basis` float32 [cells, D]; `place` int64 [items] is each item's cell, -1 = none; `variance` is that of
    the noise in each coordinate, known from the terms.
    """

    users: Int
    vectors: Float
    basis: Float
    place: Int
    variance: float

    def __post_init__(self) -> None:
        if self.vectors.shape != (len(self.users), self.basis.shape[1]):
            raise DataError(
                f"{len(self.users)} users have profiles of shape {self.vectors.shape} in a basis of "
                f"{self.basis.shape[1]} directions"
            )
        if (np.diff(self.users) <= 0).any():
            raise DataError("profiles must stand in the order of their users, each once")

    def shrinkage(self) -> tuple[Wide, Wide]:
        """The best linear guess without noise: mean [D], and matrix [D, D] for what differs from it.

        Directions of mere noise shrink to the mean; without noise it is the identity.
        """
        wide = self.vectors.astype(np.float64)
        width = wide.shape[1]
        if not self.variance or len(wide) < 2:
            return np.zeros(width), np.eye(width)
        spread = np.cov(wide.T).reshape(width, width)
        values, directions = np.linalg.eigh(spread)
        kept = np.maximum(values - self.variance, 0) / np.maximum(values, 1e-12)
        return wide.mean(axis=0), (directions * kept) @ directions.T


class LinkedEvidence:
    """Scores of linked users for a platform's candidates at one moment.

    Args:
        moment: with the platform's own histories up to its day.
        profiles: of linked users, made of what came before that day.
        middle: how many items make a user's own history count as much as none; None: the linked users'
            median.

    Raises:
        DataError: if nobody is linked.
    """

    def __init__(self, moment: Moment, profiles: Profiles, middle: float | None = None) -> None:
        if not len(profiles.users):
            raise DataError("nobody is linked: there are no profiles to learn from")
        self.moment, self.profiles = moment, profiles
        self._mean, self._shrinkage = profiles.shrinkage()
        self._vectors = self._guessed(profiles.vectors)
        own = moment.taken[self.profiles.users]
        self._size = np.asarray(own.sum(axis=1)).ravel()
        self.middle = float(max(1.0, np.median(self._size))) if middle is None else middle
        self._own = own[:, moment.candidates].tocsr()
        vectors = self._vectors.astype(np.float64)
        square = vectors.T @ vectors
        ridge = _RIDGE * max(float(np.trace(square)) / len(square), 1e-9)
        self._inverse = np.linalg.inv(square + ridge * np.eye(len(square)))
        crossed = np.asarray((self._own.T @ vectors).T)  # [D, candidates]
        self._weights = (self._inverse @ crossed).astype(np.float32)
        cell = self.profiles.place[moment.candidates]
        known = self.profiles.basis[np.maximum(cell, 0)] * (cell >= 0)[:, None]
        self._items = np.ascontiguousarray(known.T, dtype=np.float32)

    def rows(self, users: Int) -> Int:
        """Where users stand among the linked ones, int64 [users], -1 = has no profile."""
        place = np.searchsorted(self.profiles.users, users)
        place = np.minimum(place, len(self.profiles.users) - 1)
        found: Int = np.where(self.profiles.users[place] == users, place, -1)
        return found

    def of_linked(self, rows: Int, *, newcomers: bool = False) -> dict[str, Float]:
        """LINKED of linked users [rows, candidates], each by what the others' profiles teach.

        With `newcomers` as if they had no history here.
        """
        vectors = self._vectors[rows]
        leverage = np.einsum("ud,de,ue->u", vectors, self._inverse, vectors)
        leverage = np.minimum(leverage, 0.99).astype(np.float32)[:, None]
        taste = (vectors @ self._weights - leverage * self._own[rows].toarray()) / (1 - leverage)
        return self._named(vectors, taste, np.zeros(len(rows)) if newcomers else self._size[rows])

    def of_newcomer(self, vector: Float) -> dict[str, Float]:
        """LINKED of somebody without a history here, [1, candidates], by her profile [D] alone."""
        vectors = self._guessed(vector[None])
        return self._named(vectors, vectors @ self._weights, np.zeros(1))

    def _guessed(self, vectors: Float) -> Float:
        """Vectors [n, D] without what is likely noise."""
        guess: Float = (self._mean + (vectors - self._mean) @ self._shrinkage).astype(np.float32)
        return guess

    def _named(
        self, vectors: Float, taste: Float, size: npt.NDArray[np.float64]
    ) -> dict[str, Float]:
        new = (self.middle / (self.middle + size)).astype(np.float32)[:, None]
        items = vectors @ self._items
        near = np.log(np.maximum(items, 0) + np.float32(_NEAR))
        liked = np.log(np.maximum(taste, 0) + np.float32(_NEAR_TASTE))
        values = (near, items, near * new, liked, liked * new)
        return {n: v.astype(np.float32) for n, v in zip(LINKED, values, strict=True)}
