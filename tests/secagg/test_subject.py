"""Masks belong to one request: platforms that were sent different models have no sum."""

from __future__ import annotations

import numpy as np
import pytest
from federation_in_memory import Federation

from crossrec_model.secagg import messages as frames
from crossrec_model.secagg.coordinator import Collecting
from crossrec_model.secagg.errors import ImplausibleSumError
from crossrec_model.secagg.messages import Kind
from crossrec_model.secagg.sums import subject_of

MODEL = np.linspace(-1, 1, 24, dtype=np.float32)
OTHER = np.zeros(24, dtype=np.float32)


def _total(subjects: dict[str, bytes], told: bytes) -> tuple[Federation, np.ndarray, Collecting]:
    """Open a sum in which each platform answered the request of its own subject."""
    federation = Federation()
    agreement = federation.agree()
    ticket = federation.ticket(agreement)
    collecting = Collecting(agreement=agreement, ticket=ticket, subject=told)
    for name in federation.names:
        pieces = federation.platforms[name].seal(
            frames.encode(ticket),
            federation.part(name).contribution,
            run=agreement.invite.run,
            kind=ticket.kind,
            number=ticket.round,
            subject=subjects[name],
        )
        collecting.add(name, b"".join(pieces))
    unmasking = collecting.close()
    for name in unmasking.survivors:
        unmasking.add(name, federation.ask(name, unmasking.message, frames.Reveal))
    return federation, unmasking.open(), collecting


def test_one_model_for_all_gives_the_sum() -> None:
    subject = subject_of(Kind.TRAIN, bytes(16), 1, MODEL)
    federation, total, collecting = _total(dict.fromkeys(Federation().names, subject), subject)
    bits, members = collecting.ticket.bits, len(federation.names)
    federation.grid.decode(total, len(total) - 2, bits=bits, members=members)


@pytest.mark.parametrize("singled_out", [0, 2, 4])
def test_a_model_of_its_own_for_one_platform_gives_nothing(singled_out: int) -> None:
    """Else the others' zero gradients would leave that platform's update alone in the sum."""
    names = Federation().names
    own = subject_of(Kind.TRAIN, bytes(16), 1, MODEL)
    subjects = dict.fromkeys(names, subject_of(Kind.TRAIN, bytes(16), 1, OTHER))
    subjects[names[singled_out]] = own
    for told in set(subjects.values()):
        federation, total, collecting = _total(subjects, told)
        # Masks of either subject stay on: the numbers are all over the modulus.
        bits = collecting.ticket.bits
        signed = total.astype(np.int64)
        signed[signed >= 1 << (bits - 1)] -= 1 << bits
        assert np.abs(signed).max() > len(names) * federation.grid.levels
        with pytest.raises(ImplausibleSumError):
            federation.grid.decode(total, len(total) - 2, bits=bits, members=len(names))


def test_a_subject_is_all_of_the_request() -> None:
    run = bytes(16)
    one = subject_of(Kind.TRAIN, run, 1, MODEL)
    moved = MODEL.copy()
    moved[3] = np.nextafter(moved[3], np.float32(2))
    others = {
        subject_of(Kind.EVALUATE, run, 1, MODEL),
        subject_of(Kind.TRAIN, bytes([1]) * 16, 1, MODEL),
        subject_of(Kind.TRAIN, run, 2, MODEL),
        subject_of(Kind.TRAIN, run, 1, moved),
        subject_of(Kind.TRAIN, run, 1, MODEL[:-1]),
    }
    assert len(others | {one}) == 6
    assert subject_of(Kind.TRAIN, run, 1, MODEL.copy()) == one
