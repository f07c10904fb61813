"""API keys: made once, shown once, kept as scrypt hashes in the platform's folder.

    api-keys.json          {"format": 1, "keys": {name: {"salt", "hash", "made"}}}, for its owner alone

A key is `crk_NAME_SECRET`. What a caller shows is compared with one hash, the one of its name.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from crossrec_model.durable import write_durably
from crossrec_model.errors import ConfigError, CrossrecError, shown
from crossrec_model.keyfile import alone, read_small
from crossrec_model.randomness import SystemRandomness

API_KEYS: Final = "api-keys.json"
_PREFIX: Final = "crk"
_FORMAT: Final = 1
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_SECRET_BYTES: Final = 32
_MOST_BYTES: Final = 1 << 20
#: 16 MiB and some 50 ms a try (RFC 7914 with N = 2^14, r = 8, p = 1).
_COST: Final = {"n": 2**14, "r": 8, "p": 1, "length": 32}
#: Keys that were proven are known again by a digest, so that scrypt runs once a key and not once a call.
_MOST_PROVEN: Final = 1024


class KeyFileError(CrossrecError):
    """The file of API keys can't be used."""


@dataclass(frozen=True, kw_only=True)
class _Kept:
    salt: bytes
    hash: bytes
    made: str


def make_key(folder: Path, name: str, now: datetime) -> str:
    """Make a key and keep its hash; return it, which can't be had again.

    Raises:
        ConfigError: for a name that is taken or not of lower-case letters, digits and dashes.
        KeyFileError: if the file can't be read or written.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"key name {shown(name)} must be 1 to 40 lower-case letters, digits or dashes; choose another"
        )
    random = SystemRandomness()
    secret = base64.urlsafe_b64encode(random.bytes(_SECRET_BYTES)).rstrip(b"=").decode()
    key, salt = f"{_PREFIX}_{name}_{secret}", random.bytes(16)
    kept = _Kept(
        salt=salt,
        hash=Scrypt(salt=salt, **_COST).derive(key.encode()),
        made=now.isoformat(timespec="seconds"),
    )
    with _changing(folder):
        keys = read_keys(folder)
        if name in keys:
            raise ConfigError(
                f"there is a key named {name} already; revoke it or choose another name"
            )
        _write(folder, {**keys, name: kept})
    return key


def revoke_key(folder: Path, name: str) -> None:
    """Forget a key: a running service refuses it from its next call on.

    Raises:
        ConfigError: if there is no key of that name.
        KeyFileError: if the file can't be read or written.
    """
    with _changing(folder):
        keys = read_keys(folder)
        if name not in keys:
            raise ConfigError(
                f"there is no key named {shown(name)}; there are: {', '.join(keys) or 'none'}"
            )
        _write(folder, {other: kept for other, kept in keys.items() if other != name})


def read_keys(folder: Path) -> dict[str, _Kept]:
    """Names and hashes, none if there is no file; raises KeyFileError for a damaged one."""
    path = folder / API_KEYS
    try:
        return _parsed(json.loads(read_small(path, _MOST_BYTES)))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise KeyFileError(f"{path} can't be used ({error}); restore it or make new keys") from None


class Doorkeeper:
    """Tells whose key a caller shows. Any thread may ask; a change of the file is seen at the next call.

    Raises:
        KeyFileError: if the file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, threading.Lock()
        self._proven: dict[bytes, str] = {}
        self._stamp: tuple[int, ...] | None = None
        self._keys: dict[str, _Kept] = {}
        self._look()

    def known(self, shown_key: str) -> str | None:
        """The name of a key that was proven before, without any work; None for others."""
        self._look()
        return self._proven.get(_digest(shown_key))

    def proven(self, shown_key: str) -> str | None:
        """The name of the key, None if it is no key of this platform; takes some 50 ms."""
        self._look()
        kept_keys = self._keys
        prefix, _, rest = shown_key.partition("_")
        name, _, secret = rest.partition("_")
        kept = kept_keys.get(name)
        if prefix != _PREFIX or not secret or kept is None:
            return None
        try:
            # In constant time.
            Scrypt(salt=kept.salt, **_COST).verify(shown_key.encode(), kept.hash)
        except InvalidKey:
            return None
        with self._lock:
            if self._keys is kept_keys and len(self._proven) < _MOST_PROVEN:
                self._proven[_digest(shown_key)] = name
        return name

    def _look(self) -> None:
        """Read the file again if it was replaced, and forget who was let in before."""
        stamp = _stamp(self._folder / API_KEYS)
        if stamp == self._stamp:
            return
        keys = read_keys(self._folder)
        with self._lock:
            self._stamp, self._keys, self._proven = stamp, keys, {}


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _parsed(document: dict[str, Any]) -> dict[str, _Kept]:
    if document["format"] != _FORMAT:
        raise ValueError(f"its format is {document['format']}, not {_FORMAT}")
    return {name: _kept(entry) for name, entry in document["keys"].items()}


def _kept(entry: dict[str, Any]) -> _Kept:
    return _Kept(
        salt=bytes.fromhex(entry["salt"]),
        hash=bytes.fromhex(entry["hash"]),
        made=str(entry["made"]),
    )


def _write(folder: Path, keys: dict[str, _Kept]) -> None:
    entries = {
        name: {"salt": kept.salt.hex(), "hash": kept.hash.hex(), "made": kept.made}
        for name, kept in keys.items()
    }
    text = json.dumps({"format": _FORMAT, "keys": entries}, indent=1, sort_keys=True)
    write_durably(folder / API_KEYS, text.encode(), mode=0o600)


@contextmanager
def _changing(folder: Path) -> Iterator[None]:
    """Hold the lock of the file while it is read, changed and written."""
    try:
        with alone(folder / f"{API_KEYS}.lock"):
            yield
    except OSError as error:
        raise KeyFileError(
            f"{folder} can't be written: {error.strerror}; run init first, or give another --state"
        ) from None
