"""The primitives that the secure sum stands on, against published vectors.

Vectors that are not written here come from `cryptography-vectors`: RFC 7748, RFC 5869, AESAVS, RFC
3686, RFC 8439 and the Ed25519 reference vectors of which RFC 8032 prints some.
"""

from __future__ import annotations

import hmac
from importlib.metadata import version
from importlib.resources import files

import numpy as np
import pytest
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from crossrec_model.secagg.agreement import exchange, public_of
from crossrec_model.secagg.derive import derive, domain
from crossrec_model.secagg.errors import KeyListError
from crossrec_model.secagg.masking import CHUNK_BYTES, KeyStream, Masker, zeros


def _lines(*path: str) -> list[str]:
    text = files("cryptography_vectors").joinpath(*path).read_text(encoding="utf-8")
    return text.splitlines()


def _records(*path: str) -> list[dict[str, str]]:
    """Records of `NAME = value` lines, each of which begins with COUNT."""
    records: list[dict[str, str]] = []
    for line in _lines(*path):
        name, equals, value = line.partition("=")
        if line.startswith("#") or not equals:
            continue
        if name.strip().upper() == "COUNT":
            records.append({})
        if records:
            records[-1][name.strip().upper()] = value.strip()
    return records


def _bytes(text: str) -> bytes:
    return text[1:-1].encode() if text.startswith('"') else bytes.fromhex(text)


def test_the_vectors_are_of_the_installed_library() -> None:
    assert version("cryptography-vectors") == version("cryptography")


def test_x25519_rfc_7748_exchange() -> None:
    records = _records("asymmetric", "X25519", "rfc7748.txt")
    assert len(records) >= 3
    for record in records:
        scalar, point = _bytes(record["INPUT_SCALAR"]), _bytes(record["INPUT_U"])
        assert exchange(scalar, point, "A").hex() == record["OUTPUT_U"]


def test_x25519_rfc_7748_thousand_iterations() -> None:
    scalar = point = (9).to_bytes(32, "little")
    for _ in range(1000):
        scalar, point = exchange(scalar, point, "A"), scalar
    assert scalar.hex() == "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"


def test_x25519_rfc_7748_diffie_hellman() -> None:
    alice = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    assert public_of(alice).hex() == (
        "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    )
    assert public_of(bob).hex() == (
        "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    )
    secret = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert exchange(alice, public_of(bob), "B").hex() == secret
    assert exchange(bob, public_of(alice), "A").hex() == secret


@pytest.mark.parametrize(
    "point",
    [
        0,
        1,
        2**255 - 20,
        2**255 - 19,
        2**255 - 18,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    ],
)
def test_x25519_points_of_small_order_are_refused(point: int) -> None:
    # RFC 7748, section 6.1: an all-zero secret must be found out.
    with pytest.raises(KeyListError, match="platform B is weak"):
        exchange(X25519PrivateKey.generate().private_bytes_raw(), point.to_bytes(32, "little"), "B")


def test_hkdf_rfc_5869() -> None:
    records = _records("KDF", "rfc-5869-HKDF-SHA256.txt")
    assert len(records) == 3
    for record in records:
        salt, info, length = _bytes(record["SALT"]), _bytes(record["INFO"]), int(record["L"])
        whole = HKDF(algorithm=hashes.SHA256(), length=length, salt=salt or None, info=info)
        assert whole.derive(_bytes(record["IKM"])).hex() == record["OKM"]
        expand = HKDFExpand(algorithm=hashes.SHA256(), length=length, info=info)
        assert expand.derive(_bytes(record["PRK"])).hex() == record["OKM"]


def test_derived_keys_are_hkdf_of_their_domain() -> None:
    # RFC 5869, section 2, with HMAC from the standard library: one block of output.
    secret, parts = bytes(range(32)), (b"run", 7, "A")
    extracted = hmac.digest(bytes(32), secret, "sha256")
    expanded = hmac.digest(extracted, domain("pair mask", *parts) + b"\x01", "sha256")
    assert derive(secret, "pair mask", *parts) == expanded


def test_aes_256_ctr_sp_800_38a() -> None:
    # F.5.5 CTR-AES256.Encrypt
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    plain = (
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    sealed = (
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )
    cipher = Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor()
    assert cipher.update(bytes.fromhex(plain)).hex() == sealed


def test_aes_256_ctr_rfc_3686() -> None:
    records = _records("ciphers", "AES", "CTR", "aes-256-ctr.txt")
    assert len(records) >= 3
    for record in records:
        cipher = Cipher(algorithms.AES(_bytes(record["KEY"])), modes.CTR(_bytes(record["IV"])))
        sealed = cipher.encryptor().update(_bytes(record["PLAINTEXT"]))
        assert sealed.hex().upper() == record["CIPHERTEXT"].upper()


def test_our_key_stream_begins_as_nist_says() -> None:
    # From a zero counter the first block is AES of zeros: the variable-key tests of the AESAVS.
    names = ("ECBVarKey256.rsp", "ECBKeySbox256.rsp")
    records = [r for name in names for r in _records("ciphers", "AES", "ECB", name)]
    assert len(records) >= 256
    for record in records:
        assert int(record["PLAINTEXT"], 16) == 0
        chunk = zeros(4, 32)
        Masker(32, add=[_bytes(record["KEY"])], subtract=[]).apply(chunk)
        assert chunk.astype("<u4").tobytes().hex() == record["CIPHERTEXT"]


def test_our_key_stream_counts_blocks_as_sp_800_38a() -> None:
    # Its counter is one big-endian number of 16 bytes; ours begins at 0.
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    single = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    blocks = CHUNK_BYTES // 16 + 2
    expected = single.update(b"".join(n.to_bytes(16, "big") for n in range(blocks)))
    stream, found = KeyStream(key), np.empty(16 * blocks, dtype=np.uint8)
    for start, end in ((0, 5), (5, CHUNK_BYTES), (CHUNK_BYTES, 16 * blocks)):
        stream.fill(found[start:end])
    assert found.tobytes() == expected


def test_chacha20_poly1305_rfc_8439() -> None:
    records = _records("ciphers", "ChaCha20Poly1305", "boringssl.txt")
    assert records[0]["IN"].startswith('"Ladies and Gentlemen')  # section 2.8.2
    assert len(records) > 50
    for record in records:
        cipher = ChaCha20Poly1305(_bytes(record["KEY"]))
        nonce, plain, data = (_bytes(record[name]) for name in ("NONCE", "IN", "AD"))
        sealed = _bytes(record["CT"]) + _bytes(record["TAG"])
        assert cipher.encrypt(nonce, plain, data) == sealed
        assert cipher.decrypt(nonce, sealed, data) == plain
        for at in (0, len(sealed) - 1):
            spoiled = bytearray(sealed)
            spoiled[at] ^= 1
            with pytest.raises(InvalidTag):
                cipher.decrypt(nonce, bytes(spoiled), data)


def test_chacha20_poly1305_rfc_8439_decryption() -> None:
    # The first record is appendix A.5; the others are changed in one place each, or from OpenSSL.
    refused = 0
    for record in _records("ciphers", "ChaCha20Poly1305", "openssl.txt"):
        cipher = ChaCha20Poly1305(_bytes(record["KEY"]))
        sealed = _bytes(record["CIPHERTEXT"]) + _bytes(record["TAG"])
        nonce, data = _bytes(record["IV"]), _bytes(record["AAD"])
        if "RESULT" in record:
            refused += 1
            with pytest.raises(InvalidTag):
                cipher.decrypt(nonce, sealed, data)
        else:
            assert cipher.decrypt(nonce, sealed, data) == _bytes(record["PLAINTEXT"])
    assert refused


#: RFC 8032, section 7.1: the public keys of tests 1, 2, 3 and 1024.
RFC_8032 = {
    "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
    "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
    "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
    "278117fc144c72340f67d0f2316e8386ceffbf2b2428c9c51fef7c597f1d426e",
}


def test_ed25519_rfc_8032() -> None:
    seen = set()
    for line in _lines("asymmetric", "Ed25519", "sign.input"):
        private, public, message, signed = line.split(":")[:4]
        seen.add(public)
        key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(private)[:32])
        assert key.public_key().public_bytes_raw().hex() == public
        signature = key.sign(bytes.fromhex(message))
        assert signature.hex() + message == signed
        verifier = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
        verifier.verify(signature, bytes.fromhex(message))
        with pytest.raises(InvalidSignature):
            verifier.verify(signature, bytes.fromhex(message) + b"\0")
    assert len(RFC_8032 & seen) >= 3
    assert len(seen) == 1024
