"""Two platforms link their users and items through a real coordinator over TLS, as real processes."""

from __future__ import annotations

import signal
import stat
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
from process_stage import Process, Stage

from clients.linking.folder import LinkageFolder, read_links
from crossrec_model.linkage.messages import Purpose

pytestmark = pytest.mark.processes


def _users(path: Path, numbers: Iterable[int], prefix: str) -> Path:
    lines = ["user_id,email,phone,consent"]
    lines += [
        f"{prefix}{k},person{k}@example.org,,{'false' if k % 50 == 0 else 'true'}" for k in numbers
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _link(stage: Stage, name: str, partner: str, port: int, data: Path, *more: object) -> Process:
    return stage.start(
        "linking_platform.py",
        *("link", "--id", name, "--with", partner, "--data", data, "--state", stage.platforms),
        *("--roster", stage.roster, "--server", f"127.0.0.1:{port}", "--ca", stage.tls.ca),
        *("--cores", 1, *more),
    )


def _found(stage: Stage, name: str, partner: str, purpose: Purpose = Purpose.USERS) -> Path:
    return LinkageFolder(stage.platforms / name).links_path(partner, purpose)


def _same_people(a: dict[str, str], b: dict[str, str], numbers: Iterable[int]) -> None:
    expected = {f"a{k}": f"b{k}" for k in numbers if k % 50}
    at_b = {link: user for user, link in b.items()}
    assert {user: at_b[link] for user, link in a.items()} == expected
    assert len(b) == len(expected)


def test_users_and_items_are_linked_and_a_revoked_user_is_not(stage: Stage) -> None:
    coordinator = stage.coordinator()
    port = stage.port(coordinator)
    one = _users(stage.folder / "one.csv", range(300), "a")
    two = _users(stage.folder / "two.csv", range(200, 420), "b")
    b = _link(stage, "B", "A", port, two)
    a = _link(stage, "A", "B", port, one)
    assert a.wait() == 0, a.output
    assert b.wait() == 0, b.output
    at_a, at_b = _found(stage, "A", "B"), _found(stage, "B", "A")
    _same_people(read_links(at_a), read_links(at_b), range(200, 300))
    assert stat.S_IMODE(at_a.stat().st_mode) == 0o600
    # Nothing of the session's secrets is left.
    assert not (at_a.parent / "B.users").exists()
    assert "left out, no consent: 6" in a.output

    gone = stage.start(
        "linking_platform.py",
        *("unlink", "--id", "A", "--state", stage.platforms, "--user", "a201"),
    )
    assert gone.wait() == 0
    assert "1 links deleted" in gone.output
    first = read_links(at_a)
    assert "a201" not in first
    a, b = _link(stage, "A", "B", port, one), _link(stage, "B", "A", port, two)
    assert (a.wait(), b.wait()) == (0, 0), a.output + b.output
    second, others = read_links(at_a), read_links(at_b)
    assert "a201" not in second
    assert "b201" not in others
    assert len(second) == len(others) == len(first)
    assert set(second.values()).isdisjoint(first.values())

    rows = ["item_id,gtin", *(f"i{k},{_gtin(k)}" for k in range(1, 151))]
    catalogue = stage.folder / "items.csv"
    catalogue.write_text("\n".join(rows) + "\n", encoding="utf-8")
    a = _link(stage, "A", "B", port, catalogue, "--items")
    b = _link(stage, "B", "A", port, catalogue, "--items")
    assert (a.wait(), b.wait()) == (0, 0), a.output + b.output
    assert len(read_links(_found(stage, "A", "B", Purpose.ITEMS))) == 150
    shown = stage.start("linking_platform.py", "links", "--id", "A", "--state", stage.platforms)
    assert shown.wait() == 0
    assert "B: 150 items" in shown.output
    assert "1 users have revoked" in shown.output


def _gtin(number: int) -> str:
    body = f"{number:012d}"
    total = sum(int(d) * (3 if k % 2 == 0 else 1) for k, d in enumerate(reversed(body)))
    return body + str(-total % 10)


def test_interruptions_and_a_new_coordinator_cost_nothing(stage: Stage) -> None:
    coordinator = stage.coordinator()
    port = stage.port(coordinator)
    # Several blocks, so that there is something to interrupt.
    one = _users(stage.folder / "one.csv", range(12_000), "a")
    two = _users(stage.folder / "two.csv", range(6_000, 18_000), "b")
    b = _link(stage, "B", "A", port, two)
    for number in (signal.SIGINT, signal.SIGKILL):
        a = _link(stage, "A", "B", port, one)
        a.expect(r"link \d+/\d+: blocks", within_s=120)
        a.send(number)
        a.wait()
    session = stage.platforms / "A" / "linkage" / "B.users"
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in session.iterdir())
    coordinator.send(signal.SIGKILL)
    coordinator.wait()
    a = _link(stage, "A", "B", port, one)
    time.sleep(1)
    again = stage.coordinator("--resume", port=port)
    stage.port(again)
    assert a.wait(within_s=120) == 0, a.output + b.output
    assert b.wait(within_s=120) == 0, b.output
    assert "going on with the interrupted linkage" in a.output
    _same_people(
        read_links(_found(stage, "A", "B")),
        read_links(_found(stage, "B", "A")),
        range(6_000, 12_000),
    )
    past = LinkageFolder(stage.platforms / "A").past("B", Purpose.USERS)
    # However often it was started, it was one linkage.
    assert len(past.times) == 1


def test_refusals_are_told_in_a_line(stage: Stage) -> None:
    port = stage.port(stage.coordinator())
    few = _users(stage.folder / "few.csv", range(1, 20), "a")
    many = _users(stage.folder / "many.csv", range(300), "a")
    other = stage.folder / "other.csv"
    other.write_text("user,email\n", encoding="utf-8")
    for partner, data, words in (
        ("B", few, "only 19 consenting identifiers"),
        ("Z", many, "is not on the pinned roster"),
        ("A", many, "can't be linked with itself"),
        ("B", other, "the first line must be user_id,email,phone,consent"),
    ):
        asked = _link(stage, "A", partner, port, data)
        assert asked.wait() == 2
        assert words in asked.output
        assert "Traceback" not in asked.output
    alone = _link(stage, "A", "B", port, many, "--wait", 1)
    assert alone.wait() == 2
    assert "B was silent for 1 s" in alone.output
