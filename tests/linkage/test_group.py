"""ristretto255 against the published vectors of RFC 9496, and against multiplication step by step."""

from __future__ import annotations

import copy
import hashlib
import pickle

import numpy as np
import pytest
from sides import digests

from crossrec_model.linkage.errors import PointError
from crossrec_model.linkage.group import (
    _DOMAIN,
    Cores,
    Rows,
    Scalar,
    from_wide,
    hash_to_group,
    is_valid,
)

#: A.1: the generator's multiples, from 1 on.
MULTIPLES = (
    "e2f2ae0a6abc4e71a884a961c500515f58e30b6aa582dd8db6a65945e08d2d76",
    "6a493210f7499cd17fecb510ae0cea23a110e8d5b901f8acadd3095c73a3b919",
    "94741f5d5d52755ece4f23f044ee27d5d1ea1e2bd196b462166b16152a9d0259",
    "da80862773358b466ffadfe0b3293ab3d9fd53c5ea6c955358f568322daf6a57",
    "e882b131016b52c1d3337080187cf768423efccbb517bb495ab812c4160ff44e",
    "f64746d3c92b13050ed8d80236a7f0007c3b3f962f5ba793d19a601ebb1df403",
    "44f53520926ec81fbd5a387845beb7df85a96a24ece18738bdcfa6a7822a176d",
    "903293d8f2287ebe10e2374dc1a53e0bc887e592699f02d077d5263cdd55601c",
    "02622ace8f7303a31cafc63f8fc48fdc16e1c8c8d234b2f0d6685282a9076031",
    "20706fd788b2720a1ed2a5dad4952b01f413bcf0e7564de8cdc816689e2db95f",
)
#: A.2: bytes that are no encoding of a point.
BAD = (
    "00ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "f3ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "01ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "ed57ffd8c914fb201471d1c3d245ce3c746fcbe63a3679d51b6a516ebebe0e20",
    "c34c4e1826e5d403b78e246e88aa051c36ccf0aafebffe137d148a2bf9104562",
    "c940e5a4404157cfb1628b108db051a8d439e1a421394ec4ebccb9ec92a8ac78",
    "47cfc5497c53dc8e61c91d17fd626ffb1c49e2bca94eed052281b510b1117a24",
    "f1c6165d33367351b0da8f6e4511010c68174a03b6581212c71c0e1d026c3c72",
    "87260f7a2f12495118360f02c26a470f450dadf34a413d21042b43b9d93e1309",
    "26948d35ca62e643e26a83177332e6b6afeb9d08e4268b650f1f5bbd8d81d371",
    "4eac077a713c57b4f4397629a4145982c661f48044dd3f96427d40b147d9742f",
    "de6a7b00deadc788eb6b6c8d20c0ae96c2f2019078fa604fee5b87d6e989ad7b",
    "bcab477be20861e01e4a0e295284146a510150d9817763caf1a6f4b422d67042",
    "3eb858e78f5a7254d8c9731174a94f76755fd3941c0ac93735c07ba14579630e",
    "a45fdc55c76448c049a1ab33f17023edfb2be3581e9c7aade8a6125215e04220",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
)
#: A.3: the SHA-512 of these texts maps to these points.
HASHED = {
    "Ristretto is traditionally a short shot of espresso coffee": (
        "3066f82a1a747d45120d1740f14358531a8f04bbffe6a819f86dfe50f44a0a46"
    ),
    "made with the normal amount of ground coffee but extracted with": (
        "f26e5b6f7d362d2d2a94c5d0e7602cb4773c95a2e5c31a64f133189fa76ed61b"
    ),
    "about half the amount of water in the same amount of time": (
        "006ccd2a9e6867e6a2c5cea83d3302cc9de128dd2a9a57dd8ee7b9d7ffe02826"
    ),
    "by using a finer grind.": "f8f0c87cf237953c5890aec3998169005dae3eca1fbb04548c635953c817f92a",
    "This produces a concentrated shot of coffee per volume.": (
        "ae81e7dedf20a497e10c304a765c1767a42d6e06029758d2d7e8ef7cc4c41179"
    ),
}
ORDER = 2**252 + 27742317777372353535851937790883648493
IDENTITY = bytes(32)


def rows(*texts: str) -> Rows:
    raw = b"".join(map(bytes.fromhex, texts))
    return np.frombuffer(raw, dtype=np.uint8).reshape(-1, 32)


def scalar(value: int) -> Scalar:
    return Scalar(value.to_bytes(64, "little"))


@pytest.mark.parametrize("factor", range(1, 11))
def test_multiples_of_the_generator(factor: int) -> None:
    with Cores(1) as cores:
        assert (
            cores.multiply(rows(MULTIPLES[0]), scalar(factor)).tobytes().hex()
            == (MULTIPLES[factor - 1])
        )


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_point_is_refused(text: str) -> None:
    with Cores(2) as cores, pytest.raises(PointError):
        cores.multiply(rows(*MULTIPLES, text), scalar(5))
    assert not is_valid(bytes.fromhex(text))


def test_the_identity_is_refused_alone_and_among_a_thousand() -> None:
    many = np.repeat(rows(MULTIPLES[3]), 1000, axis=0)
    many[777] = 0
    with Cores(2) as cores:
        for points in (rows(IDENTITY.hex()), many):
            with pytest.raises(PointError):
                cores.multiply(points, scalar(5))
    assert not is_valid(IDENTITY)
    assert is_valid(bytes.fromhex(MULTIPLES[0]))


@pytest.mark.parametrize(("text", "point"), HASHED.items())
def test_the_map_to_the_group(text: str, point: str) -> None:
    assert from_wide(hashlib.sha512(text.encode()).digest()).hex() == point


def test_hashing_is_separated_by_its_domain() -> None:
    given = digests(range(5))
    for place, point in enumerate(hash_to_group(given)):
        word = given[place].tobytes()
        assert point.tobytes() == from_wide(hashlib.sha512(_DOMAIN + word).digest())
        assert point.tobytes() != from_wide(hashlib.sha512(word).digest())


def test_blinding_commutes_and_does_not_depend_on_the_cores() -> None:
    given, a, b = digests(range(700)), scalar(12345), scalar(ORDER - 9)
    with Cores(1) as one, Cores(3) as three:
        forth = one.multiply(one.blind(given, a), b)
        back = three.multiply(three.blind(given, b), a)
        product = three.blind(given, scalar(12345 * (ORDER - 9)))
    assert forth.tobytes() == back.tobytes() == product.tobytes()
    assert len(set(map(bytes, forth))) == 700


def test_nothing_is_nothing() -> None:
    with Cores(2) as cores:
        assert cores.blind(digests([]), scalar(7)).shape == (0, 32)


@pytest.mark.parametrize("value", [0, ORDER, 7 * ORDER])
def test_the_scalar_zero_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match="is 0"):
        scalar(value)


def test_a_scalar_shows_itself_nowhere() -> None:
    secret = scalar(7)
    assert repr(secret) == "Scalar(secret)"
    with pytest.raises(ValueError, match="64"):
        Scalar(b"short")
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            attempt(secret)
