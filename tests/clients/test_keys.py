"""The platform's identity, its pinned roster and its memory of what was opened, on a real disk."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clients import opened as opened_file
from clients.keys import (
    load_identity,
    load_roster,
    make_identity,
    pin,
    write_card,
)
from clients.opened import Opened
from clients.platform import main
from clients.state import StateError
from crossrec_model.errors import CrossrecError
from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.errors import (
    OldRoundError,
    OtherListError,
    RosterError,
    SurvivorsError,
)
from crossrec_model.secagg.identity import Card, IdentityKey, Member
from crossrec_model.secagg.roster import Roster, SignedRoster, sign

ROOT = Path(__file__).parent.parent.parent
RANDOMNESS = SystemRandomness()
SIGNER = IdentityKey.generate(RANDOMNESS)
KEYS = {name: IdentityKey.generate(RANDOMNESS) for name in "ABCDE"}


def _refused(error: type[CrossrecError], act: Callable[[], object]) -> str:
    with pytest.raises(error) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "A"


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# The identity.


def test_an_identity_is_made_once(folder: Path) -> None:
    before = os.umask(0)
    try:
        made, new = make_identity(folder, RANDOMNESS)
    finally:
        os.umask(before)
    assert new
    assert (_mode(folder), _mode(folder / "identity.key")) == (0o700, 0o600)
    content = (folder / "identity.key").read_bytes()
    again, new = make_identity(folder, RANDOMNESS)
    assert not new
    assert made.public == again.public == load_identity(folder).public
    assert (folder / "identity.key").read_bytes() == content
    assert sorted(p.name for p in folder.iterdir()) == ["identity.key", "identity.lock"]


def test_a_folder_that_others_could_read_is_closed_before_the_key_is_made(folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    make_identity(folder, RANDOMNESS)
    assert _mode(folder) == 0o700


def test_many_at_once_make_one_identity(folder: Path) -> None:
    barrier, found = threading.Barrier(8), []

    def make() -> None:
        barrier.wait()
        found.append(make_identity(folder, RANDOMNESS))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({identity.public for identity, _ in found}) == 1
    assert sum(new for _, new in found) == 1


def test_without_an_identity_the_command_is_named(folder: Path) -> None:
    message = _refused(StateError, lambda: load_identity(folder))
    assert "python -m clients.platform init --id" in message
    folder.mkdir(parents=True, mode=0o700)
    assert "does not exist" in _refused(StateError, lambda: load_identity(folder))


def _readable(path: Path) -> None:
    path.chmod(0o640)


def _writable(path: Path) -> None:
    path.chmod(0o602)


def _open_folder(path: Path) -> None:
    path.parent.chmod(0o710)


def _linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir(mode=0o700)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _huge(path: Path) -> None:
    path.write_bytes(bytes(10_000))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_readable, "open to others (mode 0640); chmod 600"),
        (_writable, "open to others (mode 0602); chmod 600"),
        (_open_folder, "open to others (mode 0710); chmod 700"),
        (_linked, "symbolic link"),
        (_dangling, "symbolic link"),
        (_pipe, "no plain file"),
        (_directory, "Is a directory"),
        (_cut, "is damaged"),
        (_empty, "is damaged"),
        (_huge, "has 10000 bytes"),
    ],
)
def test_a_key_that_is_not_safe_is_neither_used_nor_replaced(
    folder: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    make_identity(folder, RANDOMNESS)
    path = folder / "identity.key"
    spoil(path)
    before = path.lstat()
    assert reason in _refused(StateError, lambda: load_identity(folder))
    assert reason in _refused(StateError, lambda: make_identity(folder, RANDOMNESS))
    after = path.lstat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert not (folder / "nowhere").exists()


def test_a_key_of_another_user_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_identity(folder, RANDOMNESS)
    if os.geteuid() == 0:
        os.chown(folder / "identity.key", 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert "belongs to user" in _refused(StateError, lambda: load_identity(folder))


def test_a_state_folder_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = _refused(StateError, lambda: make_identity(tmp_path / "file" / "A", RANDOMNESS))
    assert "give another --state" in message


# The card.


def test_a_card_is_written_and_renewed(tmp_path: Path) -> None:
    path = tmp_path / "A.platform"
    write_card(path, "A", KEYS["A"])
    assert Card.from_json(path.read_bytes()).member == Member("A", KEYS["A"].public)
    write_card(path, "A", KEYS["B"])
    assert Card.from_json(path.read_bytes()).member.public == KEYS["B"].public
    assert [p.name for p in tmp_path.iterdir()] == ["A.platform"]


def test_a_card_replaces_nothing_but_its_earlier_self(folder: Path) -> None:
    key, _ = make_identity(folder, RANDOMNESS)
    secret = folder / "identity.key"
    (folder / "link").symlink_to(secret)
    write_card(folder / "B.platform", "B", KEYS["B"])
    (folder / "folder").mkdir()
    for path, reason in [
        (secret, "is no card"),
        (folder / "link", "no plain file"),
        (folder / "folder", "no plain file"),
        (folder / "B.platform", "card of platform B"),
        (folder / "none" / "A.platform", "does not exist"),
    ]:
        before = secret.read_bytes()
        assert reason in _refused(StateError, lambda path=path: write_card(path, "A", key))
        assert secret.read_bytes() == before
    _refused(RosterError, lambda: write_card(folder / "x", "no id", key))
    assert not (folder / "x").exists()


# The pinned roster.


def _signed(
    names: str, version: int = 1, signer: IdentityKey = SIGNER, **keys: str
) -> SignedRoster:
    roster = Roster(
        federation="north",
        version=version,
        members=tuple(Member(n, KEYS[keys.get(n, n)].public) for n in names),
        signer=signer.public,
        allow_two=True,
    )
    return sign(roster, signer)


@pytest.fixture
def pinned(folder: Path) -> Path:
    folder.mkdir(parents=True, mode=0o700)
    assert load_roster(folder) is None
    note = pin(folder, _signed("ABC", version=3), accept=False)
    assert SIGNER.public.fingerprint in note
    assert "by phone" in note
    assert "\n" not in note
    return folder


def test_the_first_roster_is_pinned_and_the_same_is_silent(pinned: Path) -> None:
    assert _mode(pinned / "roster.json") == 0o600
    assert load_roster(pinned) == _signed("ABC", version=3)
    written = (pinned / "roster.json").stat()
    for accept in (False, True):
        assert pin(pinned, _signed("ABC", version=3), accept=accept) == ""
    assert (pinned / "roster.json").stat().st_ino == written.st_ino


def test_a_newer_roster_needs_the_operators_word(pinned: Path) -> None:
    newer = _signed("ACD", version=4, C="E")
    message = _refused(RosterError, lambda: pin(pinned, newer, accept=False))
    assert "added D; removed B; changed the key of C" in message
    assert "--accept-roster" in message
    assert load_roster(pinned) == _signed("ABC", version=3)
    note = pin(pinned, newer, accept=True)
    assert "added D; removed B; changed the key of C" in note
    assert load_roster(pinned) == newer
    # There is no way back.
    older = _refused(RosterError, lambda: pin(pinned, _signed("ABC", version=3), accept=True))
    assert "older" in older


def test_a_new_version_of_the_same_members_is_asked_for_too(pinned: Path) -> None:
    newer = _signed("ABC", version=9)
    message = _refused(RosterError, lambda: pin(pinned, newer, accept=False))
    assert "no platform changed" in message
    assert "no platform changed" in pin(pinned, newer, accept=True)


@pytest.mark.parametrize("accept", [False, True])
def test_rosters_that_are_never_taken(pinned: Path, accept: bool) -> None:
    stranger = IdentityKey.generate(RANDOMNESS)
    other = replace(_signed("ABCD", version=4).roster, federation="south")
    offered = {
        "is signed by": _signed("ABC", version=4, signer=stranger),
        "federation south": sign(other, SIGNER),
        "is older": _signed("ABC", version=2),
        "two rosters of version 3": _signed("ABCD", version=3),
    }
    before = (pinned / "roster.json").read_bytes()
    for reason, signed in offered.items():
        message = _refused(RosterError, lambda signed=signed: pin(pinned, signed, accept=accept))
        assert reason in message
        assert (pinned / "roster.json").read_bytes() == before
    assert [p.name for p in pinned.iterdir()] == ["roster.json"]


def test_a_damaged_pin_is_not_taken_for_none(pinned: Path) -> None:
    path = pinned / "roster.json"
    good = path.read_bytes()
    spoilt = (b"", good[:-1], good.replace(b'"version":3', b'"version":2'), b" " * (2 << 20))
    for data in spoilt:
        path.write_bytes(data)
        for accept in (False, True):
            act = partial(pin, pinned, _signed("ABC", version=4), accept=accept)
            assert "can't be trusted" in _refused(StateError, act)
        assert path.read_bytes() == data


def test_a_roster_of_two_can_be_pinned_and_left(folder: Path) -> None:
    folder.mkdir(parents=True)
    pin(folder, _signed("AB"), accept=False)
    assert load_roster(folder) == _signed("AB")
    assert "added C" in pin(folder, _signed("ABC", version=2), accept=True)


# What was opened.

RUN = bytes(range(16))


@pytest.fixture
def opened(folder: Path) -> Opened:
    folder.mkdir(parents=True, mode=0o700)
    return Opened(folder)


def test_one_list_a_round(opened: Opened, folder: Path) -> None:
    opened.check_and_record(RUN, 1, 5, ("A", "B", "C"))
    assert _mode(folder / "opened.json") == 0o600
    for record in (opened, Opened(folder)):
        record.check_and_record(RUN, 1, 5, ("C", "A", "B"))
        for other in (("A", "B"), ("A", "B", "C", "D"), ("A", "B", "D")):
            message = _refused(
                OtherListError, lambda r=record, o=other: r.check_and_record(RUN, 1, 5, o)
            )
            assert "round 5 was opened over A, B, C" in message
        message = _refused(
            OldRoundError, lambda r=record: r.check_and_record(RUN, 1, 4, ("A", "B", "C"))
        )
        assert "round 5 was opened" in message
    # Other kinds and runs count on their own.
    opened.check_and_record(RUN, 2, 1, ("A", "B", "D"))
    opened.check_and_record(bytes(16), 1, 1, ("A", "B", "D"))
    opened.check_and_record(RUN, 1, 6, ("A", "B"))
    with pytest.raises(OldRoundError):
        opened.check_and_record(RUN, 1, 5, ("A", "B", "C"))


def test_a_refusal_changes_nothing(opened: Opened, folder: Path) -> None:
    opened.check_and_record(RUN, 1, 5, ("A", "B", "C"))
    before = (folder / "opened.json").read_bytes()
    for round, survivors in ((5, ("A",)), (4, ("A", "B", "C"))):
        with pytest.raises((OtherListError, OldRoundError)):
            opened.check_and_record(RUN, 1, round, survivors)
    for survivors in ((), ("A", "A"), ("A", ""), ("A", "b c"), tuple(f"P{i}" for i in range(101))):
        with pytest.raises(SurvivorsError):
            opened.check_and_record(RUN, 1, 6, survivors)
    for run, kind, round in ((b"", 1, 6), (RUN, -1, 6), (RUN, 16, 6), (RUN, 1, 0), (RUN, 1, 2**32)):
        with pytest.raises(ValueError, match=r"needed|out of bounds"):
            opened.check_and_record(run, kind, round, ("A", "B", "C"))
    assert (folder / "opened.json").read_bytes() == before


STEPS = st.lists(
    st.tuples(
        st.sampled_from([bytes(16), RUN]),
        st.integers(0, 1),
        st.integers(1, 4),
        st.sets(st.sampled_from("ABCD"), min_size=3),
        st.booleans(),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_no_order_of_requests_opens_two_lists(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[bytes, int, int, set[str], bool]],
) -> None:
    folder = tmp_path_factory.mktemp("opened")
    record, given_out = Opened(folder), {}
    latest: dict[tuple[bytes, int], int] = {}
    for run, kind, round, survivors, restart in steps:
        record = Opened(folder) if restart else record
        before = given_out.get((run, kind, round))
        allowed = round >= latest.get((run, kind), 0) and before in {None, frozenset(survivors)}
        try:
            record.check_and_record(run, kind, round, tuple(survivors))
        except (OldRoundError, OtherListError):
            assert not allowed
        else:
            assert allowed
            given_out[run, kind, round] = frozenset(survivors)
            latest[run, kind] = round


def test_the_last_64_runs_are_kept(opened: Opened, folder: Path) -> None:
    runs = [bytes((number,)) * 16 for number in range(66)]
    for run in runs[:64]:
        for kind in (0, 1):
            opened.check_and_record(run, kind, 2, ("A", "B", "C"))
    # The first is used again, so the second and third are the oldest.
    opened.check_and_record(runs[0], 0, 2, ("A", "B", "C"))
    opened.check_and_record(runs[64], 0, 2, ("A", "B", "C"))
    opened.check_and_record(runs[65], 0, 2, ("A", "B", "C"))
    document = json.loads((folder / "opened.json").read_bytes())
    kept = {record["run"] for record in document["opened"]}
    assert kept == {run.hex() for run in runs} - {runs[1].hex(), runs[2].hex()}
    for kind in (0, 1):
        with pytest.raises(OldRoundError):
            opened.check_and_record(runs[0], kind, 1, ("A", "B", "C"))


def test_the_fullest_record_can_be_read_back() -> None:
    names = tuple(f"{i:03}" + "x" * 61 for i in range(100))
    records = [
        opened_file.Opening(run=bytes((run,)) * 16, kind=kind, round=2**32 - 1, survivors=names)
        for run in range(opened_file.RUNS)
        for kind in range(opened_file.KINDS)
    ]
    assert opened_file._latest_runs(records) == records
    assert opened_file._records(opened_file._document(records)) == records


def test_damage_is_never_taken_for_nothing(opened: Opened, folder: Path) -> None:
    opened.check_and_record(RUN, 1, 5, ("A", "B", "C"))
    path = folder / "opened.json"
    good = path.read_bytes()
    spoilt = [
        b"",
        b"{}",
        b"\0" * len(good),
        good[:-1],
        good + b"\n",
        good.replace(b'"round":5', b'"round":4'),
        good.replace(b'"A",', b""),
        good.replace(b'"kind":1', b'"kind":1,"kind":2'),
        good.replace(RUN.hex().encode(), b"zz" * 16),
        good.replace(b'["A","B","C"]', b"[1,2,3]"),
        good.replace(b'["A","B","C"]', b'[["A"],null,{}]'),
        b" " * (9 << 20),
    ]
    for data in spoilt:
        path.write_bytes(data)
        for act in (
            lambda: Opened(folder),
            lambda: opened.check_and_record(RUN, 1, 6, ("A", "B", "C")),
        ):
            assert "is damaged" in _refused(StateError, act)
        assert path.read_bytes() == data
    path.unlink()
    message = _refused(StateError, lambda: opened.check_and_record(RUN, 1, 6, ("A", "B", "C")))
    assert "can't be read" in message
    assert not path.exists()


def test_what_can_not_be_written_is_not_opened(
    opened: Opened, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.check_and_record(RUN, 1, 5, ("A", "B", "C"))
    before = (folder / "opened.json").read_bytes()

    def full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        message = _refused(StateError, lambda: opened.check_and_record(RUN, 1, 6, ("A", "B")))
    assert "No space left" in message
    assert (folder / "opened.json").read_bytes() == before
    assert sorted(p.name for p in folder.iterdir()) == ["opened.json"]
    opened.check_and_record(RUN, 1, 6, ("A", "B", "C"))


CHILD = """
import sys
from pathlib import Path
from clients.opened import Opened
opened = Opened(Path(sys.argv[1]))
for round in range(1, 1_000_000):
    opened.check_and_record(bytes(16), 0, round, ("A", "B", "C"))
    print(round, flush=True)
"""


def test_a_killed_process_has_recorded_what_it_answered(folder: Path) -> None:
    folder.mkdir(parents=True, mode=0o700)
    for _ in range(2):
        (folder / "opened.json").unlink(missing_ok=True)
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(folder)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert child.stdout is not None
            for _line in range(25):
                child.stdout.readline()
            child.send_signal(signal.SIGKILL)
            answered = 25 + len(child.stdout.read().split())
        finally:
            child.kill()
            child.wait(10)
            child.stdout.close()
        # The kill may have come between recording a round and answering it, never the other way round.
        record = json.loads((folder / "opened.json").read_bytes())["opened"]
        assert [entry["round"] for entry in record] in ([answered], [answered + 1])
        with pytest.raises((OtherListError, OldRoundError)):
            Opened(folder).check_and_record(bytes(16), 0, answered, ("A", "B", "D"))


# The command.


def test_the_command_makes_an_identity_and_a_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["keys", "--id", "A", "--state", "state"]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    identity = load_identity(tmp_path / "state" / "A")
    assert f"identity of A: {identity.public.fingerprint} (new)" in first
    assert "send state/A/A.platform" in first
    secret = identity.to_pem().splitlines()[1].decode()
    card = (tmp_path / "state" / "A" / "A.platform").read_bytes()
    assert Card.from_json(card).member == Member("A", identity.public)
    assert main([*arguments, "--out", "A.platform"]) == 0
    again = capsys.readouterr().out
    assert f"identity of A: {identity.public.fingerprint}\n" in again
    assert (tmp_path / "A.platform").read_bytes() == card
    for shown in (first, again, card.decode()):
        assert secret not in shown
        assert identity.to_bytes().hex() not in shown


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--id", "A B"], "platform id 'A B'"),
        (["--id", "../A"], "platform id '../A'"),
        ([], "--id"),
        (["--id", "A", "--out", "none/A.platform"], "folder none does not exist"),
        (["--id", "A", "--out", "."], "no plain file"),
        (["--id", "A", "--out", "note.txt"], "note.txt exists and is no card"),
        (["--id", "A", "--state", "note.txt"], "give another --state"),
    ],
)
def test_mistakes_in_the_command_leave_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "note.txt").write_text("mine")
    assert main(["keys", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert reason in shown.err
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]
    assert (tmp_path / "note.txt").read_text() == "mine"


def test_the_command_does_not_use_a_key_that_others_can_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["keys", "--id", "A", "--state", str(tmp_path)]
    assert main(arguments) == 0
    (tmp_path / "A" / "identity.key").chmod(0o644)
    capsys.readouterr()
    assert main(arguments) == 2
    assert "chmod 600" in capsys.readouterr().err
