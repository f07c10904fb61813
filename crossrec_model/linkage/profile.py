"""What one platform tells another about a linked user: a short vector, clipped and noised.

The vector is her history in a space that the federation has in common: the directions in which the
released sum of pairs (`crossrec_model.pairs`) is largest. Nothing in them comes from anywhere but that
release, so her vector depends on her own events and on nobody else's, and what it tells about her is
bounded by its norm and its noise alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.sparse.linalg import eigsh

from crossrec_model.data.histories import Histories
from crossrec_model.data.users import Int
from crossrec_model.errors import ConfigError, DataError
from crossrec_model.pairs import as_matrix
from crossrec_model.privacy.events import LEAST_MULTIPLIER, GaussianRelease
from crossrec_model.privacy.noise import NoiseSource
from crossrec_model.privacy.pricing import calibrate_sampled

Floats = npt.NDArray[np.float32]

MOST_DIMENSION: Final = 1024
_MOST_CLIP: Final = 1e6
#: Below so many cells all directions are worked out.
_FEW_CELLS: Final = 512


@dataclass(frozen=True, kw_only=True)
class ProfileTerms:
    """How profiles of one period are made; the same for every user, and known to the receiver.

    The noise's standard deviation in each coordinate is `multiplier` × `sensitivity`; 0 is none.

    Raises:
        ConfigError: for a value outside its bounds.
    """

    dimension: int = 64
    clip: float = 3.0
    multiplier: float = 0.0

    def __post_init__(self) -> None:
        if type(self.dimension) is not int or not 1 <= self.dimension <= MOST_DIMENSION:
            raise ConfigError(f"dimension = {self.dimension!r} is outside [1, {MOST_DIMENSION}]")
        for name in ("clip", "multiplier"):
            value = getattr(self, name)
            if type(value) not in {int, float} or not math.isfinite(value):
                raise ConfigError(f"{name} = {value!r} is no finite number")
            object.__setattr__(self, name, float(value))
        if not 0 < self.clip <= _MOST_CLIP:
            raise ConfigError(f"clip = {self.clip} is outside (0, {_MOST_CLIP:g}]")
        if self.multiplier != 0 and not self.multiplier >= LEAST_MULTIPLIER:
            raise ConfigError(
                f"multiplier = {self.multiplier} is neither 0 nor at least {LEAST_MULTIPLIER}"
            )

    @classmethod
    def for_epsilon(
        cls, epsilon: float, delta: float, *, dimension: int, clip: float
    ) -> ProfileTerms:
        """The terms whose profile costs a user (epsilon, delta) a period; infinity is no noise.

        Raises:
            ConfigError: for a value outside its bounds.
        """
        if epsilon == math.inf:
            return cls(dimension=dimension, clip=clip)
        multiplier = calibrate_sampled(epsilon, delta, rate=1.0, steps=1)
        return cls(dimension=dimension, clip=clip, multiplier=multiplier)

    @property
    def sensitivity(self) -> float:
        """The most that exchanging a user's whole history for another moves her vector: 2 × clip."""
        return 2 * self.clip

    @property
    def deviation(self) -> float:
        """The noise's standard deviation in each coordinate."""
        return self.multiplier * self.sensitivity

    @property
    def event(self) -> GaussianRelease | None:
        """What a profile does to its user, for the ledger; None where there is no noise."""
        return GaussianRelease(multiplier=self.multiplier) if self.multiplier else None


def shared_basis(pairs: Floats, cells: int, dimension: int) -> Floats:
    """The directions of most pairs, orthonormal float32 [cells, dimension], the strongest first.

    `pairs` is the released upper triangle. Two machines may find other signs, or turn directions of
    equal strength into each other: a sender's basis travels with its profiles (`translation`).

    Raises:
        DataError: if there are no pairs, or fewer cells than directions.
    """
    if not pairs.any():
        raise DataError("the federation has summed no pairs: there is no common space for profiles")
    if dimension >= cells:
        raise DataError(f"{dimension} directions are asked of {cells} cells; ask for fewer")
    matrix = as_matrix(pairs, cells).astype(np.float64)
    if cells <= _FEW_CELLS:
        vectors = np.linalg.eigh(matrix)[1][:, ::-1][:, :dimension]
    else:
        values, found = eigsh(matrix, k=dimension, which="LA", v0=np.ones(cells))
        vectors = found[:, np.argsort(-values)]
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(dimension)]
    basis: Floats = (vectors * np.sign(largest)).astype(np.float32)
    return basis


def check_basis(basis: Floats) -> None:
    """Raise DataError for a received basis [cells, dimension] that is not finite and orthonormal."""
    if basis.ndim != 2 or not np.isfinite(basis).all():
        raise DataError("a sender's basis is not a finite matrix; its profiles are not used")
    gap = np.abs(basis.T @ basis - np.eye(basis.shape[1], dtype=np.float32)).max(initial=0)
    if gap > 1e-3:
        raise DataError("a sender's basis is not orthonormal; its profiles are not used")


def translation(sender: Floats, receiver: Floats) -> Floats:
    """What takes vectors in a sender's basis to the receiver's, float32 [D sender, D receiver]."""
    moved: Floats = sender.T @ receiver
    return moved


def cell_rows(histories: Histories, place: Int, day: float, cells: int) -> sp.csr_matrix:
    """log(1 + how often) each user took what stands for each cell before `day`, csr [users, cells]."""
    past = histories.before(day)
    where = place[past.item]
    user, where = past.user_of_event()[where >= 0], where[where >= 0]
    shape = (len(histories), cells)
    rows = sp.csr_matrix((np.ones(len(where), dtype=np.float32), (user, where)), shape=shape)
    rows.sum_duplicates()
    rows.data = np.log1p(rows.data)
    return rows


def profiles(rows: sp.csr_matrix, basis: Floats, clip: float) -> Floats:
    """Each user's vector float32 [users, D], of norm at most `clip`; noise is still to be added.

    A row that is not finite gives zeros.
    """
    vectors = np.asarray(rows @ basis, dtype=np.float64)
    vectors[~np.isfinite(vectors).all(axis=1)] = 0
    norm = np.sqrt(np.einsum("ud,ud->u", vectors, vectors))
    vectors *= np.minimum(1.0, clip / np.maximum(norm, 1e-300))[:, None]
    short: Floats = vectors.astype(np.float32)
    return short


def noised(vectors: Floats, terms: ProfileTerms, source: NoiseSource) -> Floats:
    """The vectors [users, D] with the terms' noise in every coordinate.

    Raises:
        ConfigError: for vectors of another width, not finite, or longer than the clip: their noise would
            not be enough.
    """
    if vectors.ndim != 2 or vectors.shape[1] != terms.dimension:
        raise ConfigError(f"profiles have shape {vectors.shape}, not [users, {terms.dimension}]")
    norm = np.sqrt(np.einsum("ud,ud->u", vectors, vectors, dtype=np.float64))
    if not (norm <= terms.clip * (1 + 1e-6)).all():  # NaN is not within it either
        raise ConfigError("a profile is longer than its clip; nothing is released")
    if not terms.multiplier:
        return vectors.copy()
    noise = source.normal(vectors.size).reshape(vectors.shape)
    released: Floats = (vectors + terms.deviation * noise).astype(np.float32)
    return released


def to_document(terms: ProfileTerms) -> dict[str, Any]:
    """Write terms as a plain JSON object."""
    return {"dimension": terms.dimension, "clip": terms.clip, "multiplier": terms.multiplier}


def from_document(document: object) -> ProfileTerms:
    """Read `to_document` back, strictly; raises ConfigError."""
    if not isinstance(document, dict) or set(document) != {"dimension", "clip", "multiplier"}:
        raise ConfigError("terms of profiles have the keys dimension, clip and multiplier")
    return ProfileTerms(**document)
