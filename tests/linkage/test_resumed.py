"""A session that goes on later is held to what is known and allowed then."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sides import KEYS, ROSTER, digests

from clients.linking.folder import LinkageFolder
from clients.linking.kept import Kept, Phase, load_kept, save_kept
from clients.linking.session import Task, run_session
from crossrec_model.errors import StateError
from crossrec_model.linkage.elements import Elements, owner_of
from crossrec_model.linkage.errors import LinkageError, TooOftenError, UnknownPlatformError
from crossrec_model.linkage.group import Cores
from crossrec_model.linkage.intersection import Side
from crossrec_model.linkage.messages import Purpose
from crossrec_model.linkage.policy import Past, Policy, marks_of
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
