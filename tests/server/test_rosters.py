"""The coordinator's roster: cards in, a signed list out, and its key stays its own."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.errors import IdentityError, RosterError, SecureSumError
from crossrec_model.secagg.identity import Card, IdentityKey
from crossrec_model.secagg.roster import SignedRoster
from server.__main__ import main
from server.rosters import Listed, list_platforms, read_roster

NAMES = "ABCDE"


@pytest.fixture
def cards(tmp_path: Path) -> dict[str, Path]:
    return {name: _card(tmp_path, name) for name in NAMES}


def _card(folder: Path, platform: str, key: IdentityKey | None = None, name: str = "") -> Path:
    path = folder / f"{name or platform}.platform"
    path.write_bytes(Card.of(platform, key or IdentityKey.generate(SystemRandomness())).to_json())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "federation"


def _list(
    folder: Path, *cards: Path, name: str | None = None, expel: tuple[str, ...] = ()
) -> Listed:
    return list_platforms(folder, federation=name, cards=cards, expel=expel)


def _refused(error: type[SecureSumError], act: Callable[[], object]) -> str:
    with pytest.raises(error) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def three(folder: Path, cards: dict[str, Path]) -> Path:
    _list(folder, *(cards[n] for n in "ABC"), name="north")
    return folder


def test_the_first_roster(folder: Path, cards: dict[str, Path]) -> None:
    before = os.umask(0)
    try:
        # The order of the cards does not matter.
        listed = _list(folder, *(cards[n] for n in "CAB"), name="north")
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()}
    assert modes == {"roster.key": 0o600, "roster.json": 0o644, "roster.lock": 0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    signed = SignedRoster.from_json((folder / "roster.json").read_bytes())
    assert signed == listed.signed
    roster = signed.roster
    assert (roster.federation, roster.version, roster.platforms) == ("north", 1, ("A", "B", "C"))
    key = IdentityKey.from_pem((folder / "roster.key").read_bytes())
    assert roster.signer == key.public
    lines = "\n".join(listed.lines())
    for member in roster.members:
        assert f"  {member.platform}  {member.public.fingerprint}" in lines
        card = Card.from_json(cards[member.platform].read_bytes())
        assert card.member == member
    assert f"signed by {key.public.fingerprint}" in lines
    assert "every sum needs 3 of the 3 platforms: 0 may be missing" in lines
    assert str(folder / "roster.json") in lines


def test_a_change_is_the_next_version(three: Path, cards: dict[str, Path]) -> None:
    key = (three / "roster.key").read_bytes()
    added = _list(three, cards["D"], cards["E"])
    assert (added.signed.roster.version, added.changes) == (2, "added D, E")
    assert "needs 4 of the 5 platforms: 1 may be missing" in "\n".join(added.lines())
    expelled = _list(three, expel=("B",))
    assert (expelled.signed.roster.version, expelled.changes) == (3, "removed B")
    renewed = _list(three, _card(three.parent, "A", name="new"), name="north")
    assert (renewed.signed.roster.version, renewed.changes) == (4, "changed the key of A")
    assert renewed.signed.roster.platforms == ("A", "C", "D", "E")
    both = _list(three, cards["B"], expel=("D", "E"))
    assert (both.signed.roster.version, both.changes) == (5, "added B; removed D, E")
    assert SignedRoster.from_json((three / "roster.json").read_bytes()) == both.signed
    assert (three / "roster.key").read_bytes() == key


def test_without_a_change_nothing_is_written(three: Path, cards: dict[str, Path]) -> None:
    before, written = _content(three), (three / "roster.json").stat().st_ino
    for given in ((), (cards["A"],), (cards["B"], cards["B"])):
        listed = _list(three, *given)
        assert listed.changes is None
        assert "version 1: unchanged" in listed.lines()[0]
    assert _content(three) == before
    assert (three / "roster.json").stat().st_ino == written


def test_mistakes_in_a_first_roster_leave_nothing(
    folder: Path, tmp_path: Path, cards: dict[str, Path]
) -> None:
    a, b, c = (cards[n] for n in "ABC")
    same = _card(tmp_path, "Z", IdentityKey.generate(SystemRandomness()))
    key = IdentityKey.generate(SystemRandomness())
    again, twin = _card(tmp_path, "X", key), _card(tmp_path, "Y", key)
    bad = tmp_path / "bad.platform"
    bad.write_bytes(a.read_bytes().replace(b'"A"', b'"Q"'))
    (tmp_path / "dir").mkdir()
    other = _card(tmp_path, "A", name="other")
    cases: list[tuple[str, Callable[[], object]]] = [
        ("shows each the other's update", lambda: _list(folder, a, b, name="north")),
        ("1 platforms", lambda: _list(folder, a, name="north")),
        ("0 platforms", lambda: _list(folder, name="north")),
        ("--name", lambda: _list(folder, a, b, c)),
        ("federation name", lambda: _list(folder, a, b, c, name="../north")),
        ("same key", lambda: _list(folder, a, again, twin, name="north")),
        ("bad.platform can't be used", lambda: _list(folder, a, b, bad, name="north")),
        ("none can't be read", lambda: _list(folder, a, tmp_path / "none", name="north")),
        ("dir can't be read", lambda: _list(folder, a, tmp_path / "dir", name="north")),
        ("another card with another key", lambda: _list(folder, a, b, c, other, name="north")),
        ("Q is not on the roster", lambda: _list(folder, a, b, same, name="north", expel=("Q",))),
    ]
    for reason, act in cases:
        assert reason in _refused(RosterError, act)
        assert not folder.exists()


def test_mistakes_in_a_change_leave_the_roster(three: Path, cards: dict[str, Path]) -> None:
    before = _content(three)
    cases: list[tuple[str, Callable[[], object]]] = [
        ("shows each the other's update", lambda: _list(three, expel=("C",))),
        ("D is not on the roster", lambda: _list(three, expel=("D",))),
        ("both listed and expelled", lambda: _list(three, cards["A"], expel=("A",))),
        ("federation north, not south", lambda: _list(three, cards["D"], name="south")),
        ("federation north, not south", lambda: _list(three, name="south")),
    ]
    for reason, act in cases:
        assert reason in _refused(RosterError, act)
        assert _content(three) == before


def _readable(path: Path) -> None:
    path.chmod(0o644)


def _linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def _missing(path: Path) -> None:
    path.unlink()


def _exchanged(path: Path) -> None:
    path.write_bytes(IdentityKey.generate(SystemRandomness()).to_pem())


def _damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:50])


def _open_folder(path: Path) -> None:
    path.parent.chmod(0o755)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_readable, "open to others (mode 0644)"),
        (_linked, "symbolic link"),
        (_missing, "is missing"),
        (_exchanged, "is another one"),
        (_damaged, "is damaged"),
        (_open_folder, "chmod 700"),
        (_pipe, "no plain file"),
    ],
)
def test_a_signing_key_that_is_not_safe_is_neither_used_nor_replaced(
    three: Path, cards: dict[str, Path], spoil: Callable[[Path], None], reason: str
) -> None:
    spoil(three / "roster.key")
    names = sorted(path.name for path in three.iterdir())
    roster = (three / "roster.json").read_bytes()
    for given in ((), (cards["D"],)):
        assert reason in _refused(IdentityError, lambda given=given: _list(three, *given))
    assert (three / "roster.json").read_bytes() == roster
    assert sorted(path.name for path in three.iterdir()) == names


def test_a_signing_key_of_another_user(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        os.chown(three / "roster.key", 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert "belongs to user" in _refused(IdentityError, lambda: _list(three))


def test_a_damaged_roster_is_not_begun_anew(three: Path, cards: dict[str, Path]) -> None:
    path = three / "roster.json"
    good = path.read_bytes()
    for data in (b"", good[:-1], good.replace(b'"version":1', b'"version":2')):
        path.write_bytes(data)
        message = _refused(RosterError, lambda: _list(three, cards["D"], name="north"))
        assert "restore it" in message
        assert path.read_bytes() == data


def test_a_key_that_was_left_alone_is_used_again(three: Path, cards: dict[str, Path]) -> None:
    key = (three / "roster.key").read_bytes()
    (three / "roster.json").unlink()
    listed = _list(three, *(cards[n] for n in "ABC"), name="north")
    assert (listed.changes, listed.signed.roster.version) == ("new", 1)
    assert (three / "roster.key").read_bytes() == key


def test_a_place_that_can_not_be_written(tmp_path: Path, cards: dict[str, Path]) -> None:
    (tmp_path / "file").write_text("")
    given = [cards[n] for n in "ABC"]
    for place in (tmp_path / "file", tmp_path / "file" / "federation"):
        with pytest.raises(SecureSumError) as caught:
            _list(place, *given, name="north")
        assert "\n" not in str(caught.value)


def test_commands_at_once_give_each_change_a_version(three: Path, cards: dict[str, Path]) -> None:
    barrier, versions = threading.Barrier(2), []

    def add(name: str) -> None:
        barrier.wait()
        versions.append(_list(three, cards[name]).signed.roster.version)

    threads = [threading.Thread(target=add, args=(name,)) for name in "DE"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(versions) == [2, 3]
    last = SignedRoster.from_json((three / "roster.json").read_bytes()).roster
    assert last.platforms == ("A", "B", "C", "D", "E")


def test_the_command(
    folder: Path, cards: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["roster", "--out", str(folder)]
    three = [str(cards[n]) for n in "ABC"]
    assert main([*out, "--name", "north", *three]) == 0
    shown = capsys.readouterr().out
    roster = SignedRoster.from_json((folder / "roster.json").read_bytes()).roster
    assert "roster of north, version 1: new" in shown
    assert all(member.public.fingerprint in shown for member in roster.members)
    assert main([*out, str(cards["D"]), str(cards["E"])]) == 0
    assert "version 2: added D, E" in capsys.readouterr().out
    assert main([*out, "--expel", "A", "--expel", "B"]) == 0
    assert "version 3: removed A, B" in capsys.readouterr().out
    assert main(out) == 0
    assert "version 3: unchanged" in capsys.readouterr().out


def test_two_only_when_asked_for(
    folder: Path, cards: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["roster", "--out", str(folder), "--name", "north"]
    assert main([*command, str(cards["A"]), str(cards["B"]), "--allow-two"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("warning: two platforms alone: each can subtract its own update")
    assert "every sum needs 2 of the 2 platforms" in shown
    with pytest.raises(RosterError, match="--allow-two"):
        read_roster(folder / "roster.json")
    assert read_roster(folder / "roster.json", allow_two=True).platforms == ("A", "B")
    assert main([*command, str(cards["C"])]) == 0  # the third may come later
    assert read_roster(folder / "roster.json").version == 2


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["A", "B"], "a sum over two shows each the other's update"),
        (["A", "B", "none"], "none can't be read"),
        (["A", "B", "C", "--expel", "X"], "X is not on the roster"),
        (["--unknown"], "--unknown"),
    ],
)
def test_mistakes_in_the_command(
    folder: Path,
    cards: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    reason: str,
) -> None:
    given = [str(cards.get(word, word)) for word in arguments]
    assert main(["roster", "--out", str(folder), "--name", "north", *given]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert reason in shown.err
    assert not folder.exists()
