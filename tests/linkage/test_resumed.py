"""A session that goes on later is held to what is known and allowed then."""

from __future__ import annotations

import stat
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sides import KEYS, ROSTER, SYSTEM, Remembered, digests, side

from clients.linking.folder import LinkageFolder
from clients.linking.kept import Kept, Phase, load_kept, save_kept
from clients.linking.session import Task, run_session
from crossrec_model.errors import StateError
from crossrec_model.linkage.elements import Elements, owner_of
from crossrec_model.linkage.errors import (
    LinkageError,
    OtherSessionError,
    TooOftenError,
    UnknownPlatformError,
)
from crossrec_model.linkage.group import Cores
from crossrec_model.linkage.intersection import Side
from crossrec_model.linkage.messages import Purpose
from crossrec_model.linkage.policy import Past, Policy, marks_of
from crossrec_model.linkage.post import Push, Pushed, Status, encode_post
from crossrec_model.secagg.identity import Member
from crossrec_model.secagg.roster import Roster
from server.linking import PostOffice

WORDS = range(200)


def _task(home: Path, *, roster: Roster = ROSTER, policy: Policy | None = None) -> Task:
    folder = LinkageFolder(home)
    folder.path.mkdir(parents=True, exist_ok=True)
    office = PostOffice(lambda: ("A", "B", "C"))
    elements = Elements(
        digests=digests(WORDS),
        owners=np.array([owner_of(str(word)) for word in WORDS], dtype="S16"),
        first=np.ones(len(WORDS), dtype=np.bool_),
        left_out={},
    )
    return Task(
        side=Side(roster=roster, platform="A", key=KEYS["A"]),
        partner="B",
        purpose=Purpose.USERS,
        elements=elements,
        policy=policy or Policy(least=20, most=2, least_new=5),
        folder=folder,
        ask=lambda request: office.answer("A", request),
        patience_s=0.05,
        report=lambda _text: None,
    )


def _begun(home: Path, cores: Cores) -> Kept:
    with pytest.raises(LinkageError, match="silent"):
        run_session(_task(home), cores)
    kept = load_kept(_session(home))
    assert kept is not None
    assert kept.phase is Phase.OFFERED
    return kept


def _session(home: Path) -> Path:
    return LinkageFolder(home).session_path("B", Purpose.USERS)


def _members(**keys: str) -> Roster:
    members = tuple(Member(name, KEYS[key].public) for name, key in keys.items())
    return replace(ROSTER, version=2, members=members, allow_two=len(members) == 2)


def test_not_with_a_partner_that_was_expelled_or_has_another_key(
    tmp_path: Path, cores: Cores
) -> None:
    _begun(tmp_path, cores)
    with pytest.raises(UnknownPlatformError):
        run_session(_task(tmp_path, roster=_members(A="A", C="C")), cores)
    with pytest.raises(StateError, match="key of B"):
        run_session(_task(tmp_path, roster=_members(A="A", B="C", C="B")), cores)
    with pytest.raises(StateError, match="federation"):
        run_session(_task(tmp_path, roster=replace(ROSTER, federation="south")), cores)
    # As before, it goes on.
    with pytest.raises(LinkageError, match="silent"):
        run_session(_task(tmp_path), cores)


def test_one_that_was_not_counted_yet_counts_as_of_now(tmp_path: Path, cores: Cores) -> None:
    kept = _begun(tmp_path, cores)
    save_kept(_session(tmp_path), replace(kept, time=1000))
    with pytest.raises(LinkageError, match="silent"):
        run_session(_task(tmp_path), cores)
    again = load_kept(_session(tmp_path))
    assert again is not None
    assert again.time >= kept.time
    folder, now = LinkageFolder(tmp_path), int(time.time())
    marks = marks_of(digests(WORDS))
    folder.record("B", Purpose.USERS, Past(times=(now - 6000, now - 5000), sets=(marks, marks)))
    with pytest.raises(TooOftenError):
        run_session(_task(tmp_path), cores)


def test_one_that_was_counted_is_not_counted_against_itself(tmp_path: Path, cores: Cores) -> None:
    kept = _begun(tmp_path, cores)
    folder = LinkageFolder(tmp_path)
    past = Past(times=(kept.time,), sets=(marks_of(digests(WORDS)),))
    folder.record("B", Purpose.USERS, past)
    with pytest.raises(LinkageError, match="silent"):
        run_session(_task(tmp_path, policy=Policy(least=20, most=1)), cores)


def test_a_courier_that_speaks_of_another_session_for_ever_is_given_up(
    tmp_path: Path, cores: Cores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clients.linking.session.MOST_ANEW", 3)
    asked: list[bytes] = []

    def courier(request: bytes) -> bytes:
        asked.append(request)
        return encode_post(Pushed(status=Status.OTHER_THREAD, received=0))

    with pytest.raises(OtherSessionError):
        run_session(replace(_task(tmp_path), ask=courier), cores)
    assert len(asked) == 4
    assert len(set(asked)) == 4


def test_a_frame_lies_on_the_disk_before_anything_counts_on_it(
    tmp_path: Path, cores: Cores, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def saved(path: Path, kept: Kept) -> None:
        assert all((path / f"out-{number}").exists() for number in range(kept.sent))
        seen.append(kept.sent)
        save_kept(path, kept)

    monkeypatch.setattr("clients.linking.session.save_kept", saved)
    _begun(tmp_path, cores)
    assert seen == [1]
    assert stat.S_IMODE(_session(tmp_path).stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in _session(tmp_path).iterdir())


def test_an_acceptance_counts_once_and_the_offers_secret_goes(tmp_path: Path, cores: Cores) -> None:
    task = _task(tmp_path)
    with pytest.raises(LinkageError, match="silent"):
        run_session(task, cores)
    kept = load_kept(_session(tmp_path))
    assert kept is not None
    assert kept.secret
    memory = Remembered()
    permit = task.policy.permit(memory, "A", Purpose.USERS, digests(WORDS), int(time.time()))
    _, frame = side("B").accept(kept.offer, digests(WORDS), permit, SYSTEM)
    office = PostOffice(lambda: ("A", "B", "C"))
    push = Push(
        partner="A", purpose=Purpose.USERS, thread=kept.thread, opens=True, number=0, frame=frame
    )
    office.answer("B", encode_post(push))
    for _ in range(2):
        with pytest.raises(LinkageError, match="silent"):
            run_session(replace(task, ask=lambda request: office.answer("A", request)), cores)
    kept = load_kept(_session(tmp_path))
    assert kept is not None
    assert (kept.phase, kept.secret, kept.offer) == (Phase.OPENING, b"", b"")
    assert LinkageFolder(tmp_path).past("B", Purpose.USERS).times == (kept.time,)
