"""What a platform reads: its own folder's files, the invitation, the address, plans and budgets."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from targets import OF_BYTES, OF_JSON, OF_TEXT, Check, Cost, Target, judge, same
from targets_keys import (
    ADDRESS,
    authority,
    both,
    invitation,
    key,
    parsed,
    sealed_all,
    signed_plan,
    signed_roster,
    written,
)

from clients.connection import Endpoint
from clients.joining import accept_invitation, load_pinned
from clients.opened import OPENED, Opened, Opening, _document
from clients.spending import read_spending
from clients.terms import explainer
from crossrec_model.config import ModelConfig, Plan
from crossrec_model.privacy.events import (
    Budget,
    DistributedGaussian,
    Event,
    GaussianRelease,
    Record,
    SampledGaussian,
)
from crossrec_model.privacy.ledger import LEDGER, Ledger

BUDGET: Final = Budget(epsilon=8.0, delta=1e-5, life_epsilon=24.0)
#: A network of some hundred numbers.
SMALL: Final = Plan(
    model=ModelConfig(buckets=32, dimension=4, neighbours=1, sketch_width=16, tower=(8, 1))
)
_TIMES: Final = [datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2, 3)]


def _openings() -> list[Opening]:
    return [
        Opening(run=bytes(range(at, at + 16)), kind=1 + at % 2, round=4, survivors=("A", "B", "C"))
        for at in range(3)
    ]


def _sealed_opened(document: dict[str, Any]) -> dict[str, Any]:
    content = {k: v for k, v in document.items() if k != "sha256"}
    return content | {"sha256": sha256(written(content) or b"").hexdigest()}


def _opened(scratch: Path) -> Check:
    path = scratch / OPENED

    def read(data: bytes) -> None:
        path.write_bytes(data)
        opened = Opened(scratch)
        same(_document(opened._load()), data, OPENED)
        opened.check_and_record(bytes(16), 3, 9, ("A", "B", "C"))

    return both(read, _sealed_opened)


def _events() -> list[Event]:
    return [
        SampledGaussian(multiplier=1.5, rate=0.01, steps=20),
        GaussianRelease(multiplier=4.0),
        DistributedGaussian(multiplier=4.0, honest=2),
    ]


def _ledger_seeds() -> list[bytes]:
    made = []
    for events in (_events()[:2], _events()):
        lines, after = [], None
        for number, event in enumerate(events, 1):
            after = Record.following(
                after,
                time=_TIMES[number - 1],
                run=bytes(range(16)),
                round=number,
                what="training",
                event=event,
                budget=BUDGET,
            )
            lines.append(after.line)
        made.append(b"\n".join(lines) + b"\n")
    return made


def chained(data: bytes) -> bytes:
    """Lines of JSON with the digests that their contents and order give."""
    previous, lines = "0" * 64, []
    for number, line in enumerate(data.split(b"\n"), 1):
        document = parsed(line)
        if document is None:
            lines.append(line)
            continue
        content = {k: v for k, v in document.items() if k != "sha256"}
        content |= {"sequence": number, "previous": previous}
        previous = sha256(written(content) or b"").hexdigest()
        lines.append(written(content | {"sha256": previous}) or line)
    return b"\n".join(lines)


def _ledger(scratch: Path) -> Check:
    path = scratch / LEDGER
    path.touch(mode=0o600)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        spending = read_spending(path, "A", platforms=2)
        same(bool(spending.lines() and spending.to_json()), True, "text")
        with Ledger.open(path) as ledger:
            records = ledger.records
            after = b"".join(record.line + b"\n" for record in records)
        same(after, path.read_bytes(), "ledger")

    def check(data: bytes) -> None:
        judge(read, data)
        read(chained(data))

    return check


def _address(data: bytes) -> None:
    found = Endpoint(address=data.decode("utf-8", "surrogateescape"), insecure=True)
    same(Endpoint(address=found.address, insecure=True), found, "address")
    # As the resolver and HTTP get them.
    same(len(found.host.encode("idna")) > 0 and 0 < int(found.port) < 65536, True, "address")
    same(any(c.isspace() or c == "\0" for c in found.host), False, "address with white space")


def _pinned(scratch: Path) -> Check:
    """The files that an invitation left: an address, a plan and a roster, one of them changed."""
    (scratch / "ca.pem").write_text(authority(), encoding="ascii")
    whole = {
        "address": ADDRESS.encode(),
        "plan.json": signed_plan().to_json(),
        "roster.json": signed_roster().to_json(),
    }

    def check(data: bytes) -> None:
        names = list(whole)
        chosen = names[data[0] % 3] if data else names[0]
        for name, content in whole.items():
            (scratch / name).write_bytes(data[1:] if name == chosen else content)
        pinned = load_pinned(scratch)
        if pinned is not None:
            Endpoint(address=pinned.address, insecure=True)

    return check


def _pinned_seeds() -> list[bytes]:
    contents = (ADDRESS.encode(), signed_plan().to_json(), signed_roster().to_json())
    return [bytes((at,)) + content for at, content in enumerate(contents)]


def _joining(scratch: Path) -> Check:
    """An invitation that its operator accepts, in a fresh folder."""
    state, path = scratch / "A", scratch / "A.invitation"
    explain = explainer(BUDGET, _events()[:1])

    def ask(lines: list[str], _question: str) -> bool:
        same(all(line.isprintable() for line in lines), True, "printable terms")
        return True

    def read(data: bytes) -> None:
        shutil.rmtree(state, ignore_errors=True)
        state.mkdir(mode=0o700)
        (state / "identity.key").touch(mode=0o600)
        (state / "identity.key").write_bytes(key("A").to_pem())
        path.write_bytes(data)
        accept_invitation(state, "A", path, ask=ask, explain=explain, allow_two=True)
        pinned = load_pinned(state)
        same(pinned is not None, True, "pinned")

    def check(data: bytes) -> None:
        document = parsed(data)
        raw = None if document is None else written(sealed_all(document))
        read(data if raw is None else raw)

    return check


TARGETS: Final = (
    Target(
        name="platform.opened",
        seeds=lambda: [_document([]), _document(_openings())],
        check=_opened,
        changes=OF_JSON,
    ),
    Target(
        name="platform.ledger",
        seeds=_ledger_seeds,
        check=_ledger,
        changes=OF_JSON,
        cost=Cost.MEDIUM,
    ),
    Target(
        name="platform.address",
        seeds=lambda: [
            b"example.org:9092",
            b"127.0.0.1:1",
            b"[::1]:65535",
            b"https://a.b:80/",
            "bücher.example:9092".encode(),
        ],
        check=lambda _: _address,
        changes=OF_BYTES + OF_TEXT,
    ),
    Target(
        name="platform.pinned",
        seeds=_pinned_seeds,
        check=_pinned,
        changes=OF_BYTES + OF_JSON,
        cost=Cost.MEDIUM,
    ),
    Target(
        name="platform.invitation",
        seeds=lambda: [invitation().to_json()],
        check=_joining,
        changes=OF_JSON,
        cost=Cost.MEDIUM,
    ),
)
