"""Profiles that a platform has received: one file a sender and period, for its owner's eyes only.

linked/SENDER/PERIOD.profiles
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from clients.linked import Profiles
from crossrec_model.data.users import Int
from crossrec_model.durable import flush, write_durably
from crossrec_model.errors import DataError
from crossrec_model.linkage.profile import Floats, translation
from crossrec_model.linkage.profile_batch import ProfileBatch, check_period

FOLDER: Final = "linked"
_ENDING: Final = ".profiles"


class ReceivedProfiles:
    """What lies in a platform's folder; every change is whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER

    def take(self, data: bytes, *, sender: str, links: Iterable[str]) -> ProfileBatch:
        """Keep a batch that came from `sender`; vectors of other links than `links` are not kept.

        Raises:
            DataError: if it is malformed, says it is of another sender, or can't be written.
        """
        batch = ProfileBatch.from_bytes(data)
        if batch.sender != sender:
            raise DataError(
                f"profiles that came from {sender} say they are of {batch.sender}; they are not used"
            )
        batch = batch.without(set(batch.links) - set(links))
        self._write(batch)
        return batch

    def batches(self, before: float) -> dict[str, ProfileBatch]:
        """Each sender's latest batch of which everything happened before the day `before`."""
        latest: dict[str, ProfileBatch] = {}
        for path in self._paths():
            batch = self._read(path)
            known = latest.get(batch.sender)
            if batch.day <= before and (known is None or batch.day > known.day):
                latest[batch.sender] = batch
        return latest

    def forget(self, links: Iterable[str]) -> None:
        """Delete everything that was received about these links; raises DataError."""
        gone = set(links)
        for path in self._paths():
            batch = self._read(path)
            if gone & set(batch.links):
                self._write(batch.without(gone))

    def forget_sender(self, sender: str) -> None:
        """Delete everything of one sender; harmless where there is nothing."""
        for path in self._paths():
            if path.parent.name == sender:
                path.unlink()
                flush(path.parent)

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob(f"*/*{_ENDING}"))

    def _write(self, batch: ProfileBatch) -> None:
        check_period(batch.period)
        path = self._folder / batch.sender / f"{batch.period}{_ENDING}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_durably(path, batch.to_bytes(), mode=0o600)
        except OSError as error:
            raise DataError(f"{path} can't be written: {error.strerror}; make room") from None

    def _read(self, path: Path) -> ProfileBatch:
        try:
            return ProfileBatch.from_bytes(path.read_bytes())
        except OSError as error:
            raise DataError(f"{path} can't be read: {error.strerror}") from None
        except DataError as error:
            raise DataError(f"{path}: {error}") from None


def joined(
    batches: Iterable[ProfileBatch],
    rows: Mapping[str, int],
    *,
    basis: Floats,
    place: Int,
) -> tuple[Profiles, dict[str, Floats]]:
    """Profiles of users with a history here, and of linked users without one, by link id.

    Several senders' vectors of one link are added up, each taken to `basis` [cells, D] first; `rows` says
    which row of the histories a link id stands for, -1 = none.

    Raises:
        DataError: if a sender's basis stands for another number of cells.
    """
    total: dict[str, Floats] = {}
    variance, count = 0.0, 0
    for batch in batches:
        if len(batch.basis) != len(basis):
            raise DataError(
                f"profiles of {batch.sender} stand for {len(batch.basis)} cells, not {len(basis)}: they "
                "are of another plan; have them sent again"
            )
        vectors = batch.vectors @ translation(batch.basis, basis)
        for link, vector in zip(batch.links, vectors, strict=True):
            if link in rows:
                total[link] = total[link] + vector if link in total else vector
                variance, count = variance + batch.terms.deviation**2, count + 1
    here = sorted((rows[link], link) for link in total if rows[link] >= 0)
    width = basis.shape[1]
    found = Profiles(
        users=np.array([row for row, _ in here], dtype=np.int64),
        vectors=np.array([total[link] for _, link in here], dtype=np.float32).reshape(-1, width),
        basis=basis,
        place=place,
        variance=variance / max(len(total), 1),
    )
    return found, {link: vector for link, vector in total.items() if rows[link] < 0}
