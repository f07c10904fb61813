"""The courier keeps little, carries each frame once and in order, and sees nothing; sessions survive it."""

from __future__ import annotations

import csv
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from sides import KEYS, ROSTER, SYSTEM, digests

from clients.connection import NotThereError
from clients.linking.folder import LinkageFolder, read_links
from clients.linking.kept import Kept, Phase, load_kept
from clients.linking.rows import read_items, read_users
from clients.linking.session import Task, run_session
from crossrec_model.errors import DataError, StateError, WireError
from crossrec_model.linkage.channel import Parties
from crossrec_model.linkage.elements import Elements, owner_of
from crossrec_model.linkage.errors import LinkageError, OtherSessionError, TooOftenError
from crossrec_model.linkage.group import Cores
from crossrec_model.linkage.intersection import Side
from crossrec_model.linkage.links import Links, linked
from crossrec_model.linkage.messages import Purpose
from crossrec_model.linkage.policy import Policy
from crossrec_model.linkage.post import (
    ANY_THREAD,
    NO_BOX,
    PostMessage,
    Pull,
    Pulled,
    Push,
    Pushed,
    Status,
    decode_post,
    decode_post_as,
    encode_post,
)
from server.linking import BURST, KEPT_S, MOST_OF_SENDER, MOST_WAITING, PostOffice, TooManyError

import numpy as np  # isort: skip

THREAD = b"t" * 16


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def _office(clock: Clock | None = None) -> PostOffice:
    return PostOffice(lambda: ("A", "B", "C"), clock=clock or Clock())


def _push(
    office: PostOffice, number: int, *, by: str = "A", to: str = "B", opens: bool | None = None,
    thread: bytes = THREAD, frame: bytes = b"f", purpose: Purpose = Purpose.USERS,
) -> Pushed:  # fmt: skip
    opens = number == 0 if opens is None else opens
    push = Push(partner=to, purpose=purpose, thread=thread, opens=opens, number=number, frame=frame)
    return decode_post_as(Pushed, office.answer(by, encode_post(push)))


def _pull(
    office: PostOffice, number: int, *, by: str = "B", of: str = "A", thread: bytes = THREAD
) -> Pulled:
    pull = Pull(partner=of, purpose=Purpose.USERS, thread=thread, number=number)
    return decode_post_as(Pulled, office.answer(by, encode_post(pull)))


def test_each_frame_comes_once_and_in_order() -> None:
    office = _office()
    for number in range(3):
        assert _push(office, number, frame=bytes([number])).status is Status.DONE
        # Sent again, it is taken once.
        assert _push(office, number, frame=b"other").status is Status.DONE
    assert _push(office, 4).status is Status.OUT_OF_ORDER
    assert office.waiting == 3
    for number in range(3):
        for _ in range(2):
            assert _pull(office, number).frame == bytes([number])
    assert _pull(office, 3).status is Status.NOTHING
    assert office.waiting == 0
    assert _pull(office, 1).status is Status.OUT_OF_ORDER
    assert _push(office, 2).received == 3


def test_a_responder_finds_the_thread_and_nobody_else_the_frames() -> None:
    office = _office()
    _push(office, 0, frame=b"offer")
    found = _pull(office, 0, thread=ANY_THREAD)
    assert (found.thread, found.frame) == (THREAD, b"offer")
    assert _pull(office, 0, by="C").status is Status.NOTHING
    assert _pull(office, 0, of="C").status is Status.NOTHING
    assert _pull(office, 0, thread=b"u" * 16).status is Status.OTHER_THREAD
    assert _push(office, 1, thread=b"u" * 16).status is Status.OTHER_THREAD
    assert _push(office, 0, thread=b"u" * 16).status is Status.DONE
    assert _pull(office, 0).status is Status.OTHER_THREAD


def test_partners_must_be_on_the_roster() -> None:
    office = _office()
    for partner in ("D", "A"):
        assert _push(office, 0, to=partner).status is Status.UNKNOWN_PARTNER
        assert _pull(office, 0, by="A", of=partner).status is Status.UNKNOWN_PARTNER


def test_boxes_and_senders_are_bounded_and_old_boxes_go() -> None:
    clock = Clock()
    office = _office(clock)
    for number in range(MOST_WAITING):
        assert _push(office, number).status is Status.DONE
    assert _push(office, MOST_WAITING).status is Status.FULL
    assert office.waiting == MOST_WAITING
    clock.now = KEPT_S + 1
    assert _push(office, 0, to="C").status is Status.DONE
    # The old box is gone: it has to be opened anew.
    assert _push(office, MOST_WAITING).status in {Status.NO_THREAD, Status.FULL}
    many = PostOffice(lambda: tuple(f"P{k}" for k in range(99)), clock=Clock())
    taken = 0
    for partner in range(1, 40):
        for number in range(4):
            status = _push(many, number, by="P0", to=f"P{partner}").status
            taken += status is Status.DONE
    assert taken == many.waiting == MOST_OF_SENDER


def test_who_asks_too_often_is_told_so_and_others_are_not() -> None:
    clock = Clock()
    office = _office(clock)
    for _ in range(int(BURST)):
        _pull(office, 0)
    with pytest.raises(TooManyError):
        _pull(office, 0)
    _pull(office, 0, by="A", of="B")
    clock.now = 1.0
    _pull(office, 0)


def test_attempts_are_taken_down_once() -> None:
    heard: list[tuple[str, str, str]] = []
    office = PostOffice(lambda: ("A", "B"), lambda *who: heard.append(who), Clock())
    for number in (0, 0, 1):
        _push(office, number)
    _push(office, 0, by="B", to="A")
    assert heard == [("A", "B", "users"), ("B", "A", "users")]


POSTS: list[PostMessage] = [
    Push(partner="B", purpose=Purpose.ITEMS, thread=THREAD, opens=True, number=3, frame=b"xy"),
    Pull(partner="B", purpose=Purpose.USERS, thread=ANY_THREAD, number=0),
    Pushed(status=Status.FULL, received=NO_BOX),
    Pulled(status=Status.DONE, received=2, thread=THREAD, frame=b"z"),
]


@pytest.mark.parametrize("message", POSTS, ids=lambda message: type(message).__name__)
def test_a_request_comes_back_and_no_part_of_it_does(message: PostMessage) -> None:
    data = encode_post(message)
    assert decode_post(data) == message
    for wrong in [data[:end] for end in range(len(data))] + [data + b"\0", b"\xff" + data[1:]]:
        with pytest.raises(WireError):
            decode_post(wrong)
    if isinstance(message, Pushed | Pulled):
        with pytest.raises(WireError):
            _office().answer("A", data)


# Sessions of two platforms over a courier in memory.


@dataclass
class Wire:
    """Asks an office; loses what it is told to lose."""

    office: list[PostOffice]
    platform: str
    count: int = 0
    bad: Callable[[int], bool] = lambda number: False
    seen: list[bytes] = field(default_factory=list)

    def __call__(self, request: bytes) -> bytes:
        self.count += 1
        self.seen.append(request)
        if self.bad(self.count):
            if self.count % 2:
                # The request arrives; its answer does not.
                self.office[0].answer(self.platform, request)
            raise NotThereError("lost")
        try:
            return self.office[0].answer(self.platform, request)
        except TooManyError:
            raise NotThereError("too many") from None


def _elements(words: range) -> Elements:
    owners = np.array([owner_of(str(word)) for word in words], dtype="S16")
    return Elements(
        digests=digests(words),
        owners=owners,
        first=np.ones(len(words), dtype=np.bool_),
        left_out={},
    )


def _task(home: Path, name: str, partner: str, words: range, wire: Wire, **more: object) -> Task:
    folder = LinkageFolder(home / name)
    folder.path.mkdir(parents=True, exist_ok=True)
    task = Task(
        side=Side(roster=ROSTER, platform=name, key=KEYS[name]),
        partner=partner,
        purpose=Purpose.USERS,
        elements=_elements(words),
        policy=Policy(least=20, most=2, least_new=5),
        folder=folder,
        ask=wire,
        patience_s=60.0,
        report=lambda _text: None,
        settle_s=30.0,
    )
    return replace(task, **more)  # type: ignore[arg-type]


def _run(task: Task, words: range, cores: Cores) -> None:
    session, end = run_session(task, cores)
    pairs = linked(task.elements, end, map(str, words))
    task.folder.write_links(
        Links(partner=task.partner, purpose=task.purpose, session=session.id, pairs=pairs)
    )
    session.settle()


def _both(tasks: dict[str, tuple[Task, range]], cores: Cores) -> dict[str, BaseException]:
    failed: dict[str, BaseException] = {}

    def work(name: str) -> None:
        try:
            _run(*tasks[name], cores)
        except BaseException as error:
            failed[name] = error

    threads = [threading.Thread(target=work, args=(name,)) for name in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    return failed


ONE, TWO = range(200), range(100, 320)


def _links(home: Path) -> tuple[dict[str, str], dict[str, str]]:
    found = [
        read_links(LinkageFolder(home / name).links_path(partner, Purpose.USERS))
        for name, partner in (("A", "B"), ("B", "A"))
    ]
    return found[0], found[1]


def test_two_platforms_over_a_courier_that_loses_every_third_question(
    tmp_path: Path, small_blocks: int, cores: Cores
) -> None:
    office = [_office()]
    wires = {name: Wire(office, name, bad=lambda n: n % 3 == 0) for name in "AB"}
    tasks = {
        "A": (_task(tmp_path, "A", "B", ONE, wires["A"]), ONE),
        "B": (_task(tmp_path, "B", "A", TWO, wires["B"]), TWO),
    }
    assert not _both(tasks, cores)
    at_a, at_b = _links(tmp_path)
    assert at_a == at_b
    assert set(at_a) == {str(k) for k in range(100, 200)}
    for name, partner in (("A", "B"), ("B", "A")):
        folder = LinkageFolder(tmp_path / name)
        path = folder.links_path(partner, Purpose.USERS)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert not folder.session_path(partner, Purpose.USERS).exists()
        assert len(folder.past(partner, Purpose.USERS).times) == 1
    # The courier saw no element, however it was hashed.
    carried = b"".join(wires["A"].seen + wires["B"].seen)
    assert not any(row.tobytes()[:8] in carried for row in digests(range(320)))


class KilledError(BaseException):
    """Stands for the end of a process."""


@pytest.mark.parametrize("every", [7, 12])
def test_processes_that_end_again_and_again_and_a_courier_that_forgets(
    tmp_path: Path, small_blocks: int, cores: Cores, every: int
) -> None:
    office = [_office()]

    def killed(number: int) -> bool:
        if number % every == 0:
            raise KilledError
        return False

    def work(name: str, partner: str, words: range) -> None:
        for attempt in range(1000):
            wire = Wire(office, name, bad=killed)
            try:
                _run(_task(tmp_path, name, partner, words, wire), words, cores)
                return
            except KilledError:
                # Now and then the courier's memory is lost, too.
                if name == "A" and attempt % 5 == 4:
                    office[0] = _office()
            except (LinkageError, StateError) as error:
                ends.append(error)
                return

    ends: list[Exception] = []
    threads = [
        threading.Thread(target=work, args=arguments)
        for arguments in (("A", "B", ONE), ("B", "A", TWO))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(280)
    assert not ends
    at_a, at_b = _links(tmp_path)
    assert at_a == at_b
    assert set(at_a) == {str(k) for k in range(100, 200)}
    assert len(LinkageFolder(tmp_path / "A").past("B", Purpose.USERS).times) <= 2


def test_too_often_is_refused_from_what_is_on_the_disk(tmp_path: Path, cores: Cores) -> None:
    folder = LinkageFolder(tmp_path / "A")
    folder.path.mkdir(parents=True)
    wire = Wire([_office()], "A")
    for _ in range(2):
        task = _task(tmp_path, "A", "B", ONE, wire)
        now = 2_000_000_000
        permit = Policy(least=0).permit(folder, "B", Purpose.USERS, task.elements.digests, now)
        permit.use()
    with pytest.raises(TooOftenError):
        run_session(_task(tmp_path, "A", "B", ONE, wire), cores)
    assert wire.count == 0


def test_a_partner_that_stays_silent_ends_with_a_named_error(tmp_path: Path, cores: Cores) -> None:
    wire = Wire([_office()], "A")
    with pytest.raises(LinkageError, match="silent"):
        run_session(_task(tmp_path, "A", "B", ONE, wire, patience_s=0.1), cores)
    kept = load_kept(LinkageFolder(tmp_path / "A").session_path("B", Purpose.USERS))
    assert kept is not None
    assert kept.phase is Phase.OFFERED
    assert LinkageFolder(tmp_path / "A").past("B", Purpose.USERS).times == ()
    with pytest.raises(StateError, match="rows have changed"):
        run_session(_task(tmp_path, "A", "B", range(201), wire), cores)


def test_other_session_is_a_linkage_error() -> None:
    assert issubclass(OtherSessionError, LinkageError)


# What lies on the disk.


def test_a_kept_session_comes_back_and_every_damage_is_noticed() -> None:
    kept = Kept(
        phase=Phase.OFFERED,
        parties=Parties(federation=b"f" * 32, initiator="A", responder="B", purpose=Purpose.USERS),
        partner=KEYS["B"].public.raw,
        time=7,
        elements=b"e" * 32,
        seed=SYSTEM.bytes(32),
        secret=SYSTEM.bytes(32),
        sent=1,
    )
    data = kept.to_json()
    assert Kept.from_json(data) == kept
    assert kept.seed.hex() not in repr(kept)
    for place in range(0, len(data), 3):
        wrong = bytearray(data)
        wrong[place] ^= 1
        with pytest.raises(StateError):
            Kept.from_json(bytes(wrong))


def test_revocation_deletes_links_and_what_was_derived(tmp_path: Path) -> None:
    folder = LinkageFolder(tmp_path)
    pairs = {"u1": "1" * 32, "u2": "2" * 32}
    with folder.held():
        for purpose in Purpose:
            folder.write_links(Links(partner="B", purpose=purpose, session=b"s" * 16, pairs=pairs))
        for link in pairs.values():
            folder.derived(link).mkdir(parents=True)
            (folder.derived(link) / "profile").write_bytes(b"x")
        assert folder.revoke(["u1", "nobody"]) == 1
        assert folder.revoked() == {"u1", "nobody"}
        assert not folder.derived("1" * 32).exists()
        assert folder.derived("2" * 32).exists()
        assert read_links(folder.links_path("B", Purpose.USERS)) == {"u2": "2" * 32}
        # An item of the same name is none of hers.
        assert read_links(folder.links_path("B", Purpose.ITEMS)) == pairs
        # A linkage that had begun before she revoked.
        folder.write_links(
            Links(partner="B", purpose=Purpose.USERS, session=b"z" * 16, pairs=pairs)
        )
        assert read_links(folder.links_path("B", Purpose.USERS)) == {"u2": "2" * 32}
        folder.allow_again(["nobody"])
        assert folder.revoked() == {"u1"}
        (folder.path / "revoked.json").write_bytes(b"{}")
        with pytest.raises(StateError, match="damaged"):
            folder.revoked()


@pytest.mark.parametrize(
    "damage", [b"", b"{}", b"x" * 30, b'{"format":1,"times":[1]}\nseven by'[:-1]]
)
def test_a_damaged_past_is_noticed(tmp_path: Path, damage: bytes) -> None:
    folder = LinkageFolder(tmp_path)
    folder.path.mkdir()
    (folder.path / "B.users.past").write_bytes(damage)
    with pytest.raises(StateError):
        folder.past("B", Purpose.USERS)


def test_rows_are_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        '\ufeffuser_id,email,phone,consent\nü,"a@example.org",,TRUE\n\n"x,y",,+49 30 901820,no\n',
        encoding="utf-8",
    )
    users = list(read_users(path))
    assert [(row.user, row.email, row.consent) for row in users] == [
        ("ü", "a@example.org", True),
        ("x,y", "", False),
    ]
    head = b"user_id,email,phone,consent\n"
    for content, words in (
        (b"", "first line"),
        (b"user,email,phone,consent\n", "first line"),
        (head + b"a,b\n", "line 2: 2 columns"),
        (head + b"a,b,c,maybe\n", "line 2: consent"),
        (head + b",b,c,yes\n", "line 2: the id"),
        (head + b"\xff,b,c,yes\n", "UTF-8"),
        (head + b'"a,b,c,yes\n', "CSV"),
        (head + b"a," + b"x" * 5000 + b",c,yes\n", "CSV"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=words):
            list(read_users(path))
    with pytest.raises(DataError, match="can't be read"):
        list(read_users(tmp_path / "none.csv"))
    path.write_text("item_id,gtin\ni,96385074\n", encoding="utf-8")
    assert [row.code for row in read_items(path)] == ["96385074"]
    assert csv.field_size_limit() > 5000
