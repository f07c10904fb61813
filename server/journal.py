"""Keeps what the libraries say out of the operator's output, and their errors in a log file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from crossrec_model.errors import FederationError

_LIBRARIES: Final = ("flwr", "uvicorn", "alembic", "sqlalchemy", "httpx", "httpcore", "asyncio")
_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def keep_journal(path: Path) -> None:
    """Send warnings and errors of the libraries, and all of our own records, to one file.

    Raises:
        FederationError: if the file can't be written.
    """
    try:
        handler = logging.FileHandler(path, encoding="utf-8", delay=False)
    except OSError as error:
        raise FederationError(
            f"log file {path} can't be written: {error.strerror}; give another --state"
        ) from None
    handler.setFormatter(logging.Formatter(_FORMAT))
    for name in (*_LIBRARIES, "crossrec"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(logging.INFO if name == "crossrec" else logging.WARNING)


def keep_audit(folder: Path) -> Callable[[str, str], None]:
    """Return what appends (event, subject) to the folder's audit log."""

    def record(event: str, subject: str) -> None:
        with AuditLog.open(folder / AUDIT) as log:
            log.record(event, subject=subject)

    return record
