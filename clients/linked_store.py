"""Profiles that a platform has received: one file a sender and period, for its owner's eyes only.

linked/SENDER/PERIOD.profiles
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Final

import numpy as np

from clients.linked import Profiles
from crossrec_model.data.items import ItemTable
from crossrec_model.durable import flush, write_durably
from crossrec_model.errors import DataError
from crossrec_model.linkage.profile import Floats, translation
from crossrec_model.linkage.profile_batch import ProfileBatch, check_period
from crossrec_model.pairs import places

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

    def keep_only(self, links: Set[str]) -> None:
        """Delete everything that was received about other links than these; raises DataError."""
        for path in self._paths():
            batch = self._read(path)
            gone = set(batch.links) - links
            if gone:
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
            # Not `parents`: those would be made with the mode of the process.
            for folder in (self._folder, path.parent):
                folder.mkdir(exist_ok=True, mode=0o700)
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
    batches: Mapping[str, ProfileBatch],
    links: Mapping[str, Mapping[str, str]],
    *,
    rows: Mapping[str, int],
    items: ItemTable,
    width: int,
) -> tuple[Profiles, dict[str, Floats]]:
    """Profiles of users with a history here, and of linked users without one, by their own ids.

    Several senders' vectors of one user are added up, in the basis of the latest batch. A batch of other
    cells than that one's, from before or after another shared model, is left out.

    Args:
        batches: by sender.
        links: for each sender, link id → own user id; whoever is not there is not used.
        rows: own user id → row of the histories.
        items: the platform's.
        width: of the plan's popularity sketch.

    Raises:
        DataError: if there are no batches.
    """
    if not batches:
        raise DataError("no profiles were received that end before this moment; have them sent")
    latest = max(batches.values(), key=lambda batch: (batch.day, batch.sender))
    total: dict[str, Floats] = {}
    variance = 0.0
    for sender, batch in sorted(batches.items()):
        if batch.cells != latest.cells:
            continue
        vectors, owner = (
            batch.vectors @ translation(batch.basis, latest.basis),
            links.get(sender, {}),
        )
        for link, vector in zip(batch.links, vectors, strict=True):
            user = owner.get(link)
            if user is not None:
                total[user] = total[user] + vector if user in total else vector
                variance += batch.terms.deviation**2
    here = sorted((rows[user], user) for user in total if user in rows)
    dimension = latest.basis.shape[1]
    vectors = np.array([total[user] for _, user in here], dtype=np.float32)
    found = Profiles(
        users=np.array([row for row, _ in here], dtype=np.int64),
        vectors=vectors.reshape(-1, dimension),
        basis=latest.basis,
        place=places(items, np.array(latest.cells, dtype=np.int64), width),
        variance=variance / max(len(total), 1),
    )
    return found, {user: vector for user, vector in total.items() if user not in rows}
