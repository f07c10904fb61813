"""What a platform releases about its linked users: each one's profile once a period, charged before.

A vector that was noised is kept, and whoever asks for it again in the same period gets the same one:
sending it to a second platform, or a second time, tells nothing more. The order is charge, noise, keep,
give out: wherever the process is killed, the ledger holds at least what was given out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from clients import tensorfile
from crossrec_model.errors import ConfigError, DataError
from crossrec_model.linkage.profile import (
    Floats,
    ProfileTerms,
    from_document,
    noised,
    to_document,
)
from crossrec_model.linkage.profile_batch import check_period
from crossrec_model.privacy.events import Budget
from crossrec_model.privacy.ledger import Ledger
from crossrec_model.privacy.noise import NoiseSource
from crossrec_model.randomness import SystemRandomness

FOLDER: Final = "profiles"
#: As the ledger has it.
WHAT: Final = "profile"
FORMAT: Final = 1
_KEYS: Final = {"format", "terms", "charged", "users", "withdrawn"}


def run_of(period: str) -> bytes:
    """What stands for a period on the ledger in the place of a run, 16 bytes."""
    return hashlib.sha256(b"crossrec/profiles/1;" + period.encode()).digest()[:16]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Kept:
    """One period: who was released, and who has withdrawn since and is not released again in it."""

    terms: ProfileTerms
    charged: str
    basis: Floats
    users: tuple[str, ...] = ()
    vectors: Floats
    withdrawn: tuple[str, ...] = ()


class ReleasedProfiles:
    """The files of what a platform has released, `folder` being the platform's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER

    def withdraw(self, users: Iterable[str]) -> None:
        """Forget these users' vectors in every period; they are not released again in it."""
        gone = set(users)
        for path in sorted(self._folder.glob("*.safetensors")):
            kept = self._read(path.stem)
            if kept is None or not gone & set(kept.users):
                continue
            stay = [number for number, user in enumerate(kept.users) if user not in gone]
            withdrawn = sorted({*kept.withdrawn, *(gone & set(kept.users))})
            self._write(
                path.stem,
                replace(
                    kept,
                    users=tuple(kept.users[number] for number in stay),
                    vectors=kept.vectors[stay],
                    withdrawn=tuple(withdrawn),
                ),
            )

    def _write(self, period: str, kept: _Kept) -> None:
        document = {
            "format": FORMAT,
            "terms": to_document(kept.terms),
            "charged": kept.charged,
            "users": list(kept.users),
            "withdrawn": list(kept.withdrawn),
        }
        path = self._path(period)
        try:
            self._folder.mkdir(exist_ok=True, mode=0o700)
            tensorfile.write(path, document, {"basis": kept.basis, "vectors": kept.vectors})
        except OSError as error:
            raise DataError(f"{path} can't be written: {error.strerror}; make room") from None

    def _read(self, period: str) -> _Kept | None:
        path = self._path(period)
        if not path.exists():
            return None
        try:
            document, tensors = tensorfile.read(path)
            return _parsed(document, tensors)
        except (OSError, ValueError, TypeError, LookupError, ConfigError) as error:
            raise DataError(
                f"{path} is damaged ({error or type(error).__name__}): who was released in this period is "
                "not known; move it away, and the period is charged again"
            ) from None

    def _path(self, period: str) -> Path:
        return self._folder / f"{period}.safetensors"


class ProfileReleases(ReleasedProfiles):
    """The profiles that a platform has released; `ledger` is held by this process.

    Args:
        folder: the platform's folder.
        unprotected: whether profiles without noise are released too; they stand on no ledger.
    """

    def __init__(
        self,
        folder: Path,
        ledger: Ledger,
        budget: Budget,
        randomness: SystemRandomness,
        *,
        unprotected: bool = False,
    ) -> None:
        super().__init__(folder)
        self._ledger, self._budget = ledger, budget
        self._randomness, self._unprotected = randomness, unprotected

    def release(
        self,
        period: str,
        terms: ProfileTerms,
        basis: Floats,
        users: Sequence[str],
        vectors: Floats,
    ) -> tuple[tuple[str, ...], Floats]:
        """Noised vectors of `users`, clipped ones `vectors` [users, D]; withdrawn users are left out.

        Of a user who was released in this period already, what was released stands.

        Raises:
            BudgetExceededError: if the period would overspend; nothing is released.
            ConfigError: for other terms or another basis than the period began with, for no noise where
                that is not allowed, or vectors beyond their clip.
            DataError: if the period's file is damaged or can't be written.
        """
        check_period(period)
        if len(set(users)) != len(users) or len(users) != len(vectors):
            raise ConfigError(
                f"{len(vectors)} profiles are given for {len(users)} users, each once"
            )
        if not terms.multiplier and not self._unprotected:
            raise ConfigError(
                "profiles without noise tell whole histories; give an epsilon, or --no-privacy"
            )
        kept = self._read(period)
        if kept is not None and (
            kept.terms != terms or not np.array_equal(kept.basis, basis, equal_nan=True)
        ):
            raise ConfigError(
                f"period {period} began with other terms or another shared model; begin a new period"
            )
        known = set(kept.users) | set(kept.withdrawn) if kept else set()
        new = [number for number, user in enumerate(users) if user not in known]
        if new or kept is None:
            kept = self._released(period, kept, terms, basis, [users[n] for n in new], vectors[new])
        row = {user: number for number, user in enumerate(kept.users)}
        there = tuple(user for user in users if user in row)
        return there, kept.vectors[[row[user] for user in there]]

    def _released(
        self,
        period: str,
        kept: _Kept | None,
        terms: ProfileTerms,
        basis: Floats,
        users: Sequence[str],
        vectors: Floats,
    ) -> _Kept:
        charged = self._charged(period, kept, terms)
        fresh = noised(vectors, terms, NoiseSource(self._randomness))
        if kept is None:
            none = np.zeros((0, terms.dimension), dtype=np.float32)
            kept = _Kept(terms=terms, charged=charged, basis=basis, vectors=none)
        whole = replace(
            kept,
            charged=charged,
            users=(*kept.users, *users),
            vectors=np.concatenate([kept.vectors, fresh]),
        )
        self._write(period, whole)
        return whole

    def _charged(self, period: str, kept: _Kept | None, terms: ProfileTerms) -> str:
        """The digest of the period's record on the ledger, charged now unless it is there.

        One record stands for all users of the period: each is in it with one vector. Where the file of
        those vectors is gone, who had one is not known, and the period is charged again.
        """
        event = terms.event
        if event is None:
            return ""
        run = run_of(period)
        before = [record for record in self._ledger.records if record.run == run]
        if kept is not None and any(record.digest == kept.charged for record in before):
            return kept.charged
        charge = self._ledger.charge(
            event, run=run, round=len(before), what=WHAT, budget=self._budget
        )
        return charge.record.digest


def _parsed(document: dict[str, Any], tensors: dict[str, Floats]) -> _Kept:
    """Take a period's file apart; any error means damage."""
    if (
        set(document) != _KEYS
        or document["format"] != FORMAT
        or set(tensors) != {"basis", "vectors"}
    ):
        raise ValueError("it is of another format")
    terms = from_document(document["terms"])
    users = tuple(str(user) for user in document["users"])
    if tensors["vectors"].shape != (len(users), terms.dimension):
        raise ValueError("its vectors are not those of its users")
    return _Kept(
        terms=terms,
        charged=str(document["charged"]),
        basis=tensors["basis"],
        users=users,
        vectors=tensors["vectors"],
        withdrawn=tuple(str(user) for user in document["withdrawn"]),
    )
