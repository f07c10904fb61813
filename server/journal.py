"""Keeps what the libraries say out of the operator's output, and their errors in a log file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from crossrec_model.journal import LogFormat, log_handler

_LIBRARIES: Final = ("flwr", "uvicorn", "alembic", "sqlalchemy", "httpx", "httpcore", "asyncio")


def keep_journal(path: Path, format: LogFormat = "text") -> None:
    """Send warnings and errors of the libraries, and all of our own records, to one file.

    Raises:
        FederationError: if the file can't be written.
    """
    handler = log_handler(path, format)
    for name in (*_LIBRARIES, "crossrec"):
        logger = logging.getLogger(name)
        for earlier in logger.handlers:
            if isinstance(earlier, logging.FileHandler):
                earlier.close()
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(logging.INFO if name == "crossrec" else logging.WARNING)
