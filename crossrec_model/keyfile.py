"""Files of keys on disk: read with care, each made under a lock; the same on both sides."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from crossrec_model.errors import CrossrecError
from crossrec_model.secagg.errors import SecureSumError
from crossrec_model.secagg.identity import MAX_BYTES, IdentityKey, not_private


def read_key(
    path: Path, *, what: str, folder: str, refusal: Callable[[str], CrossrecError]
) -> IdentityKey:
    """Read a private key that only this user can read; `what` and `folder` name them in a message.

    Raises:
        FileNotFoundError: if there is none.
        CrossrecError: made by `refusal`, for a file or folder that is damaged or not this user's
            alone.
    """
    try:
        if fault := not_private(path.parent.stat(), os.geteuid()):
            raise refusal(f"{folder} {path.parent} {fault}")
        # Opened without waiting, so that a pipe by that name can't hold us.
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(file, "rb") as stream:
            if fault := not_private(os.fstat(file), os.geteuid()):
                raise refusal(f"{what} {path} {fault}")
            pem = stream.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        link = error.errno == errno.ELOOP
        reason = "is a symbolic link" if link else f"can't be read: {error.strerror}"
        raise refusal(f"{what} {path} {reason}; put the key's own file there") from None
    try:
        return IdentityKey.from_pem(pem)
    except SecureSumError as error:
        raise refusal(f"{what} {path} is damaged ({error}); restore it") from None


def read_small(path: Path, most: int = MAX_BYTES) -> bytes:
    """Read a file, at most one byte more than `most`; raises OSError."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(file, "rb") as stream:
        found = os.fstat(file)
        # No more room is taken than the file fills.
        size = found.st_size if stat.S_ISREG(found.st_mode) else most
        return stream.read(min(size, most) + 1)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a lock file, waiting for whoever has it; it stays behind, empty. Raises OSError."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
