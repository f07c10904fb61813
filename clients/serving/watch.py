"""Takes a new model over while the earlier one answers: loaded beside it, exchanged in one step."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Final

from clients.serving.desk import Desk
from clients.serving.model import LiveModel, load_model, version_on_disk
from clients.state import PlatformFolder
from crossrec_model.errors import CrossrecError, DataError
from crossrec_model.keyfile import read_small

OUT_OF_STOCK: Final = "out-of-stock.txt"
_MOST_BYTES: Final = 16 << 20
_LOG: Final = logging.getLogger("crossrec.platform.serving")


class Watch:
    """Looks at a platform's folder every `every_s` seconds, until it is cancelled."""

    def __init__(self, desk: Desk, folder: PlatformFolder, platform: str, every_s: float) -> None:
        self._desk, self._folder, self._platform = desk, folder, platform
        self._every_s, self._refused = every_s, ""
        self._stock: tuple[int, ...] | None = None

    async def run(self) -> None:
        """Look, take over what is new, wait; a model that can't be served is told once."""
        while True:
            await self.look()
            await asyncio.sleep(self._every_s)

    async def look(self) -> None:
        """Look once."""
        self._look_at_stock()
        found = version_on_disk(self._folder)
        if found in (self._desk.service.model.version, self._refused):
            return
        started = time.monotonic()
        try:
            model = await asyncio.to_thread(self._take_over)
        except CrossrecError as error:
            self._refused = found
            self._desk.metrics.refused_model()
            _LOG.warning(
                "what lies in the folder can't be served; the earlier model goes on",
                extra={"version": found, "reason": str(error)},
            )
            return
        self._desk.metrics.taken_over(time.time(), len(model.candidates))
        _LOG.info(
            "a new model is served",
            extra={"version": model.version, "seconds": round(time.monotonic() - started, 3)},
        )

    def _take_over(self) -> LiveModel:
        model = load_model(self._folder, self._platform)
        self._desk.service.take_over(model)
        return model

    def _look_at_stock(self) -> None:
        path = self._folder.path / OUT_OF_STOCK
        stamp = _stamp(path)
        if stamp == self._stock:
            return
        self._stock = stamp
        try:
            items = read_out_of_stock(path)
        except CrossrecError as error:
            _LOG.warning(
                "the list of what is out of stock was not read", extra={"reason": str(error)}
            )
        else:
            self._desk.service.out_of_stock(items)
            _LOG.info("the list of what is out of stock was read", extra={"number": len(items)})


def read_out_of_stock(path: Path) -> list[str]:
    """Item ids, one a line; none if there is no file.

    Raises:
        DataError: if it can't be read, or is no text.
    """
    try:
        content = read_small(path, _MOST_BYTES)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}; check who owns it") from None
    if len(content) > _MOST_BYTES:
        raise DataError(f"{path} is above {_MOST_BYTES} bytes; list fewer items")
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8; write one item id a line") from None
    return [line.strip() for line in lines if line.strip()]


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns
