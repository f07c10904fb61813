"""Files that are either whole or not there."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from crossrec_model.errors import DataError


def write_whole(path: Path, text: str) -> None:
    """Write UTF-8 text to a temporary name beside `path`, flush it to disk, then rename.

    Raises:
        DataError: the folder is not there or can't be written; an older file stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(
            f"can't write {path}: {error.strerror}; give a folder that exists and can be written"
        ) from None
