"""What a platform's operator sees: bars on a terminal, plain lines otherwise."""

from __future__ import annotations

import logging
import sys
from contextlib import AbstractContextManager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichBars

from crossrec_model.journal import LogFormat, log_handler


class Progress(AbstractContextManager["Progress"], Protocol):
    """Something that shows how far a platform is."""

    def done(self, stage: str, number: int, total: int, text: str) -> None:
        """Step `number` of `total` of a stage is done; `text` says what it gave."""

    def note(self, text: str) -> None:
        """Print a line."""


class PlainProgress(AbstractContextManager["PlainProgress"]):
    """One line an event."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __exit__(self, *_: object) -> None:
        return None

    def done(self, stage: str, number: int, total: int, text: str) -> None:
        """Print the step's line."""
        self.note(f"{stage} {number}/{total}: {text}")

    def note(self, text: str) -> None:
        """Print a line."""
        print(text, file=self._stream, flush=True)


class BarProgress(AbstractContextManager["BarProgress"]):
    """A live bar for the present stage, with notes above it."""

    def __init__(self, console: Console) -> None:
        self._bars = RichBars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bars.add_task("waiting", total=None)

    def __enter__(self) -> BarProgress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def done(self, stage: str, number: int, total: int, text: str) -> None:
        """Move the bar."""
        self._bars.update(self._task, description=f"{stage}: {text}", completed=number, total=total)

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)


class JsonProgress(AbstractContextManager["JsonProgress"]):
    """One JSON object an event, for a collector of logs."""

    def __init__(self, stream: TextIO) -> None:
        self._logger = logging.Logger("crossrec.platform.run", logging.INFO)
        self._logger.addHandler(log_handler(stream, "json"))

    def __exit__(self, *_: object) -> None:
        return None

    def done(self, stage: str, number: int, total: int, text: str) -> None:
        """Write the step."""
        self._logger.info(text, extra={"stage": stage, "number": number, "total": total})

    def note(self, text: str) -> None:
        """Write a line."""
        self._logger.info(text)


def progress_for(stream: TextIO | None = None, format: LogFormat = "text") -> Progress:
    """Return JSON lines, or bars if the stream (default: standard output) is a terminal, or lines."""
    target = sys.stdout if stream is None else stream
    if format == "json":
        return JsonProgress(target)
    return BarProgress(Console(file=target)) if target.isatty() else PlainProgress(target)
