"""Identities: what is signed, whose it is, and that the secret shows nowhere."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.errors import (
    IdentityError,
    RosterError,
    SecureSumError,
    SignatureError,
)
from crossrec_model.secagg.identity import (
    MAX_BYTES,
    MAX_PEM_BYTES,
    Card,
    IdentityKey,
    Member,
    PublicIdentity,
    not_private,
)

ROOT = Path(__file__).parent.parent.parent
P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
#: RFC 8032, 7.1, test 1.
SECRET = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
KEY = IdentityKey.from_bytes(SECRET)


def _refused(error: type[SecureSumError], make: object, *arguments: object) -> str:
    with pytest.raises(error) as caught:
        make(*arguments)  # type: ignore[operator]
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


def test_a_published_key_signs_the_written_out_domain() -> None:
    assert KEY.public.raw == PUBLIC
    assert KEY.to_bytes() == SECRET
    # Type and length before each: protocol, version, purpose, message.
    domain = (
        b"s\x0f\x00\x00\x00crossrec/secagg"
        b"i\x08\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00"
        b"s\x06\x00\x00\x00roster"
        b"b\x03\x00\x00\x00abc"
    )
    signature = KEY.sign("roster", b"abc")
    assert signature == Ed25519PrivateKey.from_private_bytes(SECRET).sign(domain)
    assert signature.hex() == (
        "ff2bb9378d89e818bfbb3f662592a451036862b957f6c5e765a055d3038f5304"
        "c93d17f5271035486a3490e543febddcf89cf503cceb726caa214c622f54a309"
    )
    KEY.public.verify("roster", b"abc", signature)


@given(st.binary(max_size=40), st.text(alphabet="abc -", max_size=5))
def test_a_signature_holds_for_its_purpose_and_message_only(message: bytes, more: str) -> None:
    signature = KEY.sign("roster", message)
    KEY.public.verify("roster", message, signature)
    for purpose, said in [("roste", b"r" + message), ("rosters" + more, message)]:
        _refused(SignatureError, KEY.public.verify, purpose, said, signature)
    _refused(SignatureError, KEY.public.verify, "roster", message + b"\0", signature)


def test_every_flipped_bit_is_noticed() -> None:
    signature = KEY.sign("card", b"abc")
    for bit in range(512):
        flipped = bytearray(signature)
        flipped[bit // 8] ^= 1 << bit % 8
        _refused(SignatureError, KEY.public.verify, "card", b"abc", bytes(flipped))
    for bit in range(256):
        other = bytearray(PUBLIC)
        other[bit // 8] ^= 1 << bit % 8
        _refused(SignatureError, PublicIdentity(bytes(other)).verify, "card", b"abc", signature)


@pytest.mark.parametrize("length", [0, 32, 63, 65, 128])
def test_a_signature_of_another_length_is_refused(length: int) -> None:
    signature = (KEY.sign("card", b"abc") * 2)[:length]
    _refused(SignatureError, KEY.public.verify, "card", b"abc", signature)


def test_a_signature_has_one_form_only() -> None:
    signature = KEY.sign("card", b"abc")
    again = int.from_bytes(signature[32:], "little") + L
    second = signature[:32] + again.to_bytes(32, "little")
    _refused(SignatureError, KEY.public.verify, "card", b"abc", second)


def _torsion() -> set[int]:
    """The y of every point whose order divides 8, from the curve's equation alone."""
    d = -121665 * pow(121666, -1, P) % P

    def root(a: int) -> int | None:
        r = pow(a, (P + 3) // 8, P)
        for candidate in (r, r * pow(2, (P - 1) // 4, P) % P):
            if candidate * candidate % P == a % P:
                return candidate
        return None

    # (0, 1), (0, -1), (±x, 0); a point of order 8 doubles to y = 0: x² = -y², so d·y⁴ + 2y² = 1.
    found = {0, 1, P - 1}
    discriminant = root(1 + d)
    assert discriminant is not None
    for sign in (1, -1):
        y = root((-1 + sign * discriminant) * pow(d, -1, P) % P)
        found |= set() if y is None else {y, P - y}
    return found


def test_keys_of_small_order_are_refused() -> None:
    torsion = _torsion()
    assert len(torsion) == 5
    for y in torsion:
        for top in (0, 1 << 255):
            raw = (y | top).to_bytes(32, "little")
            assert "small order" in _refused(IdentityError, PublicIdentity, raw)
    # Why: under the neutral point one signature holds for every message.
    neutral = (1).to_bytes(32, "little")
    for message in (b"one", b"another"):
        Ed25519PublicKey.from_public_bytes(neutral).verify(neutral + bytes(32), message)


@pytest.mark.parametrize("top", [0, 1 << 255])
def test_keys_with_a_second_encoding_are_refused(top: int) -> None:
    for y in range(P, 2**255):
        raw = (y | top).to_bytes(32, "little")
        assert "not canonical" in _refused(IdentityError, PublicIdentity, raw)


def test_bytes_off_the_curve_sign_nothing() -> None:
    # y = 2 has no x on the curve; `cryptography` tells at the first signature.
    public = PublicIdentity((2).to_bytes(32, "little"))
    _refused(SignatureError, public.verify, "card", b"abc", KEY.sign("card", b"abc"))


@pytest.mark.parametrize("raw", [b"", bytes(31), PUBLIC + b"\0", bytearray(PUBLIC), "text", None])
def test_malformed_public_keys(raw: object) -> None:
    _refused(IdentityError, PublicIdentity, raw)


@pytest.mark.parametrize(
    "text",
    [
        "",
        PUBLIC.hex().upper(),
        PUBLIC.hex()[:-1],
        PUBLIC.hex() + "\n",
        " " + PUBLIC.hex(),
        "é" * 64,
    ],
)
def test_a_public_key_is_written_in_one_way(text: str) -> None:
    assert PublicIdentity.from_hex(PUBLIC.hex()) == KEY.public
    _refused(IdentityError, PublicIdentity.from_hex, text)


def test_a_fingerprint_is_six_groups_of_four() -> None:
    # base32(sha256(key)), the first 120 bits; from coreutils' sha256sum and base32.
    assert KEY.public.fingerprint == "EH7D-DX5B-KSRG-CYTL-7BKA-I36S"


def test_public_identities_are_values() -> None:
    again = IdentityKey.from_bytes(SECRET)
    assert again.public == KEY.public
    assert len({again.public, KEY.public, IdentityKey.from_bytes(bytes(32)).public}) == 2


def test_the_secret_shows_nowhere() -> None:
    shown = f"{KEY} {KEY!r} {[KEY]} {KEY.public!r}"
    assert SECRET.hex() not in shown
    assert repr(SECRET)[2:20] not in shown
    assert KEY.public.fingerprint in repr(KEY)
    for act in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled"):
            act(KEY)
    assert IdentityKey.from_bytes(SECRET) != KEY
    assert not hasattr(KEY, "__dict__")


def test_generated_keys_differ() -> None:
    keys = {IdentityKey.generate(SystemRandomness()).public for _ in range(20)}
    assert len(keys) == 20


def test_a_private_key_has_32_bytes() -> None:
    for length in (0, 31, 33, 64):
        _refused(IdentityError, IdentityKey.from_bytes, bytes(length))


def test_pem_comes_back() -> None:
    pem = KEY.to_pem()
    assert pem.startswith(b"-----BEGIN PRIVATE KEY-----\n")
    assert IdentityKey.from_pem(pem).to_bytes() == SECRET


def _other_pems() -> dict[str, bytes]:
    pem, key = KEY.to_pem(), Ed25519PrivateKey.from_private_bytes(SECRET)

    def written(other: ec.EllipticCurvePrivateKey | x25519.X25519PrivateKey) -> bytes:
        return other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    return {
        "empty": b"",
        "noise": os.urandom(100),
        "cut": pem[:-30],
        "more": pem + b"\n",
        "two": pem + pem,
        "before": b"hello\n" + pem,
        "lines": pem.replace(b"\n", b"\r\n"),
        "public": key.public_key().public_bytes_raw(),
        "x25519": written(x25519.X25519PrivateKey.generate()),
        "elliptic": written(ec.generate_private_key(ec.SECP256R1())),
        "encrypted": key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word")
        ),
        "openssh": key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()),
    }


@pytest.mark.parametrize(("name", "pem"), list(_other_pems().items()), ids=list(_other_pems()))
def test_anything_else_than_one_plain_key_is_refused(name: str, pem: bytes) -> None:
    _refused(IdentityError, IdentityKey.from_pem, pem)


def test_private_files_are_their_owners_alone(tmp_path: Path) -> None:
    path, user = tmp_path / "key", os.geteuid()
    path.write_bytes(KEY.to_pem())
    path.chmod(0o600)
    assert not_private(path.stat(), user) is None
    assert "belongs to user" in str(not_private(path.stat(), user + 1))
    for mode in (0o640, 0o604, 0o620, 0o602, 0o610, 0o601):
        path.chmod(mode)
        assert str(not_private(path.stat(), user)).endswith(f"(mode {mode:04o}); chmod 600 it")
    tmp_path.chmod(0o700)
    assert not_private(tmp_path.stat(), user) is None
    tmp_path.chmod(0o750)
    assert "chmod 700" in str(not_private(tmp_path.stat(), user))
    path.chmod(0o600)
    path.write_bytes(bytes(MAX_PEM_BYTES + 1))
    assert "restore it" in str(not_private(path.stat(), user))
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "no plain file" in str(not_private((tmp_path / "pipe").stat(), user))


def test_a_card_says_who_made_it() -> None:
    card = Card.of("shop.example-1", KEY)
    assert card.member == Member("shop.example-1", KEY.public)
    again = Card.from_json(card.to_json())
    assert again == card
    document = json.loads(card.to_json())
    assert document.keys() == {"format", "platform", "public", "signature"}
    assert SECRET.hex() not in card.to_json().decode()


@pytest.mark.parametrize("platform", ["", "-a", "a b", "a/b", "a" * 65, "ä", "a\n"])
def test_a_card_of_a_wrong_id_is_refused(platform: str) -> None:
    _refused(RosterError, Card.of, platform, KEY)


def test_a_card_can_not_be_changed_or_borrowed() -> None:
    document = json.loads(Card.of("A", KEY).to_json())
    other = IdentityKey.from_bytes(bytes(32))

    def written(**changes: object) -> bytes:
        text = json.dumps(document | changes, sort_keys=True, separators=(",", ":"))
        return text.encode()

    Card.from_json(written())
    _refused(SignatureError, Card.from_json, written(platform="B"))
    _refused(SignatureError, Card.from_json, written(public=other.public.hex))
    _refused(SignatureError, Card.from_json, written(signature="0" * 128))
    # The signature of a roster by the same key is no card's.
    blank = {name: document[name] for name in ("format", "platform", "public")}
    text = json.dumps(blank, sort_keys=True, separators=(",", ":")).encode()
    wrong = KEY.sign("roster", text).hex()
    _refused(SignatureError, Card.from_json, written(signature=wrong))


CARD = Card.of("A", KEY).to_json()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no valid JSON"),
        (b"{", "no valid JSON"),
        (b"[]", "no JSON object"),
        (b"null", "no JSON object"),
        (b"\xff" + CARD, "no valid JSON"),
        (b"\xef\xbb\xbf" + CARD, "no valid JSON"),
        (CARD + CARD, "no valid JSON"),
        (b"[" * 100_000, "no valid JSON"),
        (b"9" * 5000, "no valid JSON"),
        (CARD + b"\n", "canonical"),
        (CARD.replace(b":", b": "), "canonical"),
        (CARD.replace(b'"A"', b'"\\u0041"'), "canonical"),
        (CARD.replace(b'"format":1', b'"format":1,"format":1'), "a key twice"),
        (CARD.replace(b'"format":1', b'"format":1.0'), "no int"),
        (CARD.replace(b'"format":1', b'"format":true'), "no int"),
        (CARD.replace(b'"format":1', b'"format":1e999'), "no int"),
        (CARD.replace(b'"format":1', b'"format":NaN'), "no valid JSON"),
        (CARD.replace(b'"format":1', b'"format":2'), "format 2"),
        (CARD.replace(b'"format":1', b'"format":' + b"9" * 4000), "format 999"),
        (CARD.replace(b'"format":1,', b""), "'format' is missing"),
        (CARD.replace(b'"format":1', b'"format":1,"more":1'), "'more' is unknown"),
        (CARD.replace(b'"format":1', b'"format":1,"' + b"m" * 999 + b'":1'), "is unknown"),
        (CARD.replace(b'"A"', b'["A"]'), "no str"),
        (CARD.replace(b'"A"', b'"' + b"A" * 2000 + b'"'), "platform id"),
        (CARD.replace(b'"A"', b'"\\ud800"'), "platform id"),
        (CARD.replace(KEY.public.hex.encode(), KEY.public.hex.upper().encode()), "public key"),
        (CARD + b" " * MAX_BYTES, "at most 1048576"),
    ],
)
def test_a_damaged_card_is_told_in_one_line(data: bytes, reason: str) -> None:
    assert reason in _refused(SecureSumError, Card.from_json, data)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(SecureSumError):
        Card.from_json(data)


def test_no_learning_library_is_loaded() -> None:
    code = (
        "import sys, crossrec_model.secagg.roster as r;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'flwr', 'polars')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
