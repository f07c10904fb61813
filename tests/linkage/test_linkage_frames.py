"""The linkage's frames and its links file are read back exactly or refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sides import digests, link

from crossrec_model.errors import DataError, WireError
from crossrec_model.linkage.compared import Compared
from crossrec_model.linkage.elements import Person, people
from crossrec_model.linkage.group import Cores
from crossrec_model.linkage.identifiers import Rules
from crossrec_model.linkage.links import Links, linked
from crossrec_model.linkage.messages import (
    BLOCK,
    MAX_ELEMENTS,
    MAX_FRAME,
    MAX_SEALED,
    Accept,
    Announcement,
    BatchSize,
    Message,
    Offer,
    Purpose,
    Sealed,
    Stream,
    decode,
    decode_as,
    encode,
)

OFFER = Offer(
    federation=bytes(32),
    initiator="A",
    responder="shop.b",
    purpose=Purpose.ITEMS,
    ephemeral=b"e" * 32,
    signature=b"s" * 64,
)
FRAMES: list[Message] = [
    OFFER,
    Accept(offer=b"o" * 32, ephemeral=b"e" * 32, signature=b"s" * 64),
    Sealed(session=b"n" * 16, stream=Stream.RETURNED, number=7, ciphertext=b"c" * 99),
    Announcement(size=256, block=BLOCK),
    BatchSize(size=7),
]
LINKS = Links(
    partner="B", purpose=Purpose.USERS, session=b"n" * 16, pairs={"ü 1": "0" * 32, "a": "f" * 32}
)


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: type(frame).__name__)
def test_a_frame_comes_back_and_no_part_of_it_does(frame: Message) -> None:
    data = encode(frame)
    assert decode(data) == frame
    assert len(data) <= MAX_FRAME
    for wrong in [data[:end] for end in range(len(data))] + [data + b"\0"]:
        with pytest.raises(WireError):
            decode(wrong)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_frame_or_refused(data: bytes) -> None:
    for given_data in (data, encode(OFFER)[:3] + data):
        try:
            found = decode(given_data)
        except WireError:
            continue
        assert encode(found) == given_data


@pytest.mark.parametrize(
    "made",
    [
        lambda: Announcement(size=0, block=BLOCK),
        lambda: Announcement(size=MAX_ELEMENTS + 1, block=BLOCK),
        lambda: Announcement(size=256, block=BLOCK + 1),
        lambda: encode(
            Sealed(
                session=b"n" * 16,
                stream=Stream.BLINDED,
                number=0,
                ciphertext=bytes(MAX_SEALED + 1),
            )
        ),
        lambda: decode_as(Accept, encode(OFFER)),
        lambda: decode(b"\x02" + encode(OFFER)[1:]),
    ],
)
def test_what_is_out_of_bounds_is_refused(made: Callable[[], object]) -> None:
    with pytest.raises(WireError):
        made()


def test_links_come_back_and_a_changed_file_is_refused() -> None:
    data = LINKS.to_bytes()
    assert Links.from_bytes(data) == LINKS
    lines = data.splitlines(keepends=True)
    for wrong in (
        b"",
        b"\n",
        lines[0].replace(b": 1,", b": 2,"),
        lines[0] + lines[2] + lines[1],
        data + lines[2],
        data[:-1],
        data.replace(b"ffff", b"FFFF"),
        data.replace(b'"users"', b'"other"'),
        b"[" * 100_000,
        "ü".encode(),
    ):
        with pytest.raises(DataError):
            Links.from_bytes(wrong)


def test_a_revoked_user_goes_from_the_links() -> None:
    left = LINKS.without(["a", "nobody"])
    assert left.pairs == {"ü 1": "0" * 32}
    assert b'"a"' not in left.to_bytes()


def test_both_sides_give_a_user_of_two_identifiers_one_link(cores: Cores) -> None:
    rules = Rules(region="DE")

    def person(user: str, email: str = "", phone: str = "") -> Person:
        return Person(user=user, email=email, phone=phone, consent=True)

    at_a = [person("a1", "one@example.org", "+4930901820"), person("a2", "", "+16502530000")]
    at_b = [
        person("b1", "One@Example.org", "030901820"),
        person("b2", "two@example.org", "+1 650 253 0000"),
        person("b3", "three@example.org"),
    ]
    one, two = people(at_a, rules), people(at_b, rules)
    a, b = link(one.digests, two.digests, cores)
    pairs_a = linked(one, a, [row.user for row in at_a])
    pairs_b = linked(two, b, [row.user for row in at_b])
    assert pairs_a.keys() == {"a1", "a2"}
    assert pairs_b == {"b1": pairs_a["a1"], "b2": pairs_a["a2"]}


def test_no_match_is_no_link() -> None:
    nobody = people([], Rules())
    end = Compared(
        elements=np.zeros(0, dtype=np.int64),
        links=np.zeros((0, 16), dtype=np.uint8),
        their_size=256,
    )
    assert linked(nobody, end, ["a"]) == {}
    assert digests([]).shape == (0, 32)
