"""The linkage: frames, the courier's requests, files of identifiers, and what a platform keeps."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Final

import numpy as np
from targets import OF_JSON, OF_TEXT, Check, Cost, Target, judge, same
from targets_keys import key, parsed, signed_roster

from clients.linking.folder import LinkageFolder
from clients.linking.kept import Kept, Phase
from clients.linking.rows import read_items, read_users
from crossrec_model.errors import DataError
from crossrec_model.linkage.channel import Parties
from crossrec_model.linkage.elements import articles, people
from crossrec_model.linkage.group import Cores, Rows
from crossrec_model.linkage.identifiers import IdentifierError, Rules, gtin
from crossrec_model.linkage.intersection import Exchanging, Side
from crossrec_model.linkage.links import Links
from crossrec_model.linkage.messages import (
    BLOCK,
    Accept,
    Announcement,
    BatchSize,
    Offer,
    Purpose,
    Sealed,
    Stream,
    decode,
    encode,
)
from crossrec_model.linkage.policy import Past, Policy
from crossrec_model.linkage.post import (
    ANY_THREAD,
    NO_BOX,
    Pull,
    Pulled,
    Push,
    Pushed,
    Status,
    decode_post,
    encode_post,
)
from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.identity import canonical
from server.linking import PostOffice

RULES: Final = Rules(region="DE")
THREAD: Final = b"t" * 16
_LINKS: Final = Links(
    partner="B", purpose=Purpose.USERS, session=b"n" * 16, pairs={"ü 1": "0" * 32, "a": "f" * 32}
)
_USERS: Final = (
    'user_id,email,phone,consent\nu1,a.b+c@gmail.com,030 901820,true\n"u,2",B@Bücher.de,,no\n'
).encode()
_ITEMS: Final = b"item_id,gtin\ni1,4006381333931\ni2,96385074\n"


def _frames() -> list[bytes]:
    return [
        encode(
            Offer(
                federation=bytes(32),
                initiator="A",
                responder="shop.b",
                purpose=Purpose.ITEMS,
                ephemeral=b"e" * 32,
                signature=b"s" * 64,
            )
        ),
        encode(Accept(offer=b"o" * 32, ephemeral=b"e" * 32, signature=b"s" * 64)),
        encode(Sealed(session=b"n" * 16, stream=Stream.BLINDED, number=7, ciphertext=b"c" * 99)),
        encode(Announcement(size=256, block=BLOCK)),
        encode(BatchSize(size=7)),
    ]


def _frame(data: bytes) -> None:
    same(encode(decode(data)), data, "frame")


def _posts() -> list[bytes]:
    return [
        *_requests(),
        encode_post(Pushed(status=Status.FULL, received=NO_BOX)),
        encode_post(Pulled(status=Status.DONE, received=2, thread=THREAD, frame=b"z")),
    ]


def _requests() -> list[bytes]:
    users = Purpose.USERS
    return [
        encode_post(
            Push(partner="B", purpose=users, thread=THREAD, opens=True, number=0, frame=b"xy")
        ),
        encode_post(Pull(partner="B", purpose=users, thread=ANY_THREAD, number=0)),
    ]


def _post(data: bytes) -> None:
    same(encode_post(decode_post(data)), data, "request")


def _office(_folder: Path) -> Check:
    clock = itertools.count()
    office = PostOffice(lambda: ("A", "B", "shop.b"), clock=lambda: float(next(clock)))
    return lambda data: decode_post(office.answer("A", data))


def _links(data: bytes) -> None:
    same(Links.from_bytes(data).to_bytes(), data, "links")


def _kept() -> bytes:
    parties = Parties(federation=b"f" * 32, initiator="A", responder="B", purpose=Purpose.USERS)
    kept = Kept(
        phase=Phase.OPENING,
        parties=parties,
        partner=b"p" * 32,
        time=7,
        elements=b"e" * 32,
        seed=b"s" * 32,
    )
    return kept.to_json()


def _session(data: bytes) -> None:
    def read(given: bytes) -> None:
        same(Kept.from_json(given).to_json(), given, "session")

    judge(read, data)
    # Summed anew: a changed file would else never get past its checksum.
    document = parsed(data)
    if isinstance(document, dict):
        document.pop("sha256", None)
        try:
            digest = sha256(canonical(document)).hexdigest()
            data = canonical(document | {"sha256": digest})
        except (ValueError, RecursionError, UnicodeError):
            pass
    read(data)


def _in_folder(name: str, read: Callable[[LinkageFolder], object]) -> Callable[[Path], Check]:
    def check(home: Path) -> Check:
        folder = LinkageFolder(home)
        folder.path.mkdir(exist_ok=True)

        def judged(data: bytes) -> None:
            (folder.path / name).write_bytes(data)
            read(folder)

        return judged

    return check


def _past(folder: LinkageFolder) -> None:
    found = folder.past("B", Purpose.USERS)
    folder.record("B", Purpose.USERS, found)
    again = folder.past("B", Purpose.USERS)
    same(again.times, found.times, "times")
    same([s.tolist() for s in again.sets], [s.tolist() for s in found.sets], "sets")


def _revoked(folder: LinkageFolder) -> None:
    found = folder.revoked()
    folder.revoke(found)
    same(folder.revoked(), found, "revoked users")


def _rows(home: Path, work: Callable[[Path], object]) -> Check:
    path = home / "rows.csv"

    def judged(data: bytes) -> None:
        path.write_bytes(data)
        work(path)

    return judged


def _text(data: bytes) -> None:
    try:
        text = data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise DataError("not UTF-8") from None
    refusal: IdentifierError | None = None
    for form in (RULES.email, RULES.phone, gtin):
        try:
            made = form(text)
        except IdentifierError as error:
            refusal = error
        else:
            same(form(made), made, "identifier")
            made.encode()
            return
    if refusal is not None:
        raise refusal


class _NoMemory:
    def past(self, partner: str, purpose: Purpose) -> Past:
        return Past()

    def record(self, partner: str, purpose: Purpose, past: Past) -> None:
        return None


@cache
def _exchanging() -> tuple[Exchanging, bytes, Cores]:
    """A session at its first block, that block, and a core."""
    cores, policy, memory = Cores(1), Policy(least=0, least_new=0), _NoMemory()
    digests: Rows = np.frombuffer(sha256(b"x").digest(), dtype=np.uint8).reshape(1, 32)
    side = {
        name: Side(roster=signed_roster().roster, platform=name, key=key(name)) for name in "AB"
    }
    permits = {
        name: policy.permit(memory, other, Purpose.USERS, digests, 7)
        for name, other in (("A", "B"), ("B", "A"))
    }
    offered, offer = side["A"].offer(digests, permits["A"], SystemRandomness())
    accepted, accept = side["B"].accept(offer, digests, permits["B"], SystemRandomness())
    opening, announcement = offered.accepted(accept)
    b, announced = accepted.announced(announcement)
    a = opening.announced(announced)
    block = a.next_block(cores)
    if block is None:
        raise AssertionError("no block")
    return b, block, cores


def _block(data: bytes) -> None:
    state, _first, cores = _exchanging()
    before = state.counters
    try:
        state.receive(data, cores)
    finally:
        # The next input meets the same state.
        state.counters = before


TARGETS: Final = (
    Target(name="linkage.frames", seeds=_frames, check=lambda _: _frame),
    Target(name="linkage.post", seeds=_posts, check=lambda _: _post),
    Target(name="linkage.courier", seeds=_requests, check=_office),
    Target(
        name="linkage.block",
        seeds=lambda: [_exchanging()[1]],
        check=lambda _: _block,
        cost=Cost.MEDIUM,
    ),
    Target(
        name="linkage.identifiers",
        seeds=lambda: [
            b"Ann.B+c@Gmail.com",
            b"030 901820",
            b"4006381333931",
            "é@bücher.de".encode(),
        ],
        check=lambda _: _text,
        changes=OF_TEXT,
    ),
    Target(
        name="linkage.users",
        seeds=lambda: [_USERS],
        check=lambda home: _rows(home, lambda path: people(read_users(path), RULES)),
        changes=OF_TEXT,
        cost=Cost.MEDIUM,
    ),
    Target(
        name="linkage.items",
        seeds=lambda: [_ITEMS],
        check=lambda home: _rows(home, lambda path: articles(read_items(path))),
        changes=OF_TEXT,
        cost=Cost.MEDIUM,
    ),
    Target(
        name="linkage.links",
        seeds=lambda: [_LINKS.to_bytes()],
        check=lambda _: _links,
        changes=OF_JSON,
    ),
    Target(
        name="linkage.session", seeds=lambda: [_kept()], check=lambda _: _session, changes=OF_JSON
    ),
    Target(
        name="linkage.past",
        seeds=lambda: [
            b'{"format":1,"sizes":[2,3],"times":[1,2]}\n' + np.arange(5, dtype="<u8").tobytes()
        ],
        check=_in_folder("B.users.past", _past),
        changes=OF_JSON,
        cost=Cost.DEAR,
    ),
    Target(
        name="linkage.revoked",
        seeds=lambda: [b'{"format":1,"users":["a","b"]}'],
        check=_in_folder("revoked.json", _revoked),
        changes=OF_JSON,
        cost=Cost.DEAR,
    ),
)
