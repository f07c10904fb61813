"""One file a source: each turns a platform's own rows into the canonical tables."""

from __future__ import annotations

from pathlib import Path

from clients.adapters.complete_journey import CompleteJourneySource
from clients.adapters.files import DESCRIPTION, FolderSource
from clients.adapters.sql import SqlSource
from crossrec_model.data.source import Source
from crossrec_model.errors import DataError

COMPLETE_JOURNEY = "complete-journey"


def open_source(data: str, platform_id: str, *, first_rows: int | None = None) -> Source:
    """Open the source that `--data` names.

    Args:
        data: `complete-journey`, a folder with a `crossrec.toml`, or a `.toml` file with `[sql]`.
        platform_id: which of the embedded platforms (A, B or C); own data has only one platform.
        first_rows: where a query would be run as a whole, let it deliver so many rows at most.

    Raises:
        DataError: there is no such source, or its description is wrong.
    """
    if data == COMPLETE_JOURNEY:
        return CompleteJourneySource(platform_id)
    path = Path(data)
    if path.is_dir():
        if not (path / DESCRIPTION).is_file():
            raise DataError(f"{path} has no {DESCRIPTION}; write one that names files and columns")
        return FolderSource(path)
    if path.is_file() and path.suffix == ".toml":
        if path.name == DESCRIPTION:
            return FolderSource(path.parent)
        return SqlSource(path, first_rows=first_rows)
    raise DataError(
        f"there is no source {data!r}; give {COMPLETE_JOURNEY}, a folder with {DESCRIPTION}, or a "
        ".toml file with [sql]"
    )
