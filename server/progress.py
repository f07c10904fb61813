"""What the coordinator's operator sees: bars on a terminal, plain lines anywhere else."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import AbstractContextManager, ExitStack
from typing import Final, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichBars

from crossrec_model.journal import LogFormat, log_handler
from server.checkpoint import RoundRecord

#: A plain log repeats that it waits, though nothing changed, after this many seconds.
REPEAT_WAITING_S: Final = 60.0


class Progress(AbstractContextManager["Progress"], Protocol):
    """Hears what happens in a run."""

    def waiting(self, here: tuple[str, ...], needed: int) -> None:
        """Platforms are missing; called many times a second."""

    def round_started(self, number: int, rounds: int, cohort: tuple[str, ...]) -> None:
        """A round begins with this cohort."""

    def round_finished(self, record: RoundRecord, rounds: int) -> None:
        """A round is saved."""

    def round_repeated(self, number: int, reason: str) -> None:
        """A round begins again."""

    def left_out(self, platform: str, reason: str) -> None:
        """A round goes on without a platform."""

    def note(self, text: str) -> None:
        """Something worth one line."""


class _Lines:
    """What is a line in any form."""

    def note(self, text: str) -> None:
        """Show a line."""
        raise NotImplementedError

    def round_repeated(self, number: int, reason: str) -> None:
        """Say so."""
        self.note(f"round {number} is repeated: {reason}")

    def left_out(self, platform: str, reason: str) -> None:
        """Say so."""
        self.note(f"platform {platform} was left out: {reason}")


def _waiting_text(here: tuple[str, ...], needed: int) -> str:
    names = f" ({', '.join(here)})" if here else ""
    return f"waiting for platforms: {len(here)} of {needed}{names}"


def _round_text(record: RoundRecord, rounds: int) -> str:
    metrics = {**record.training, **record.evaluation}
    shown = "".join(f"  {name} {value:.4f}" for name, value in metrics.items())
    return (
        f"round {record.round}/{rounds}{shown}  "
        f"platforms {', '.join(record.platforms)}  {record.seconds:.2f} s"
    )


class PlainProgress(_Lines, AbstractContextManager["PlainProgress"]):
    """One line an event."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last, self._said_at = "", 0.0

    def __exit__(self, *_: object) -> None:
        return None

    def waiting(self, here: tuple[str, ...], needed: int) -> None:
        """Print a line when who is here changed, or after a minute."""
        text = _waiting_text(here, needed)
        if text != self._last or time.monotonic() - self._said_at > REPEAT_WAITING_S:
            self.note(text)

    def round_started(self, number: int, rounds: int, cohort: tuple[str, ...]) -> None:
        """Say nothing: the line comes when the round is done."""

    def round_finished(self, record: RoundRecord, rounds: int) -> None:
        """Print the round's line."""
        self.note(_round_text(record, rounds))

    def note(self, text: str) -> None:
        """Print a line."""
        self._last, self._said_at = text, time.monotonic()
        print(text, file=self._stream, flush=True)


class BarProgress(_Lines, AbstractContextManager["BarProgress"]):
    """A live bar, with the lines above it."""

    def __init__(self, console: Console) -> None:
        self._bars = RichBars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bars.add_task("starting", total=None)

    def __enter__(self) -> BarProgress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def waiting(self, here: tuple[str, ...], needed: int) -> None:
        """Show how many are here."""
        self._bars.update(
            self._task, description=_waiting_text(here, needed), completed=len(here), total=needed
        )

    def round_started(self, number: int, rounds: int, cohort: tuple[str, ...]) -> None:
        """Show which round is on."""
        text = f"round {number}/{rounds} on {', '.join(cohort)}"
        self._bars.update(self._task, description=text, completed=number - 1, total=rounds)

    def round_finished(self, record: RoundRecord, rounds: int) -> None:
        """Move the bar and print the round's line above it."""
        self._bars.update(self._task, completed=record.round, total=rounds)
        self.note(_round_text(record, rounds))

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self._bars.console.print(text, markup=False, highlight=False)


class JsonProgress(_Lines, AbstractContextManager["JsonProgress"]):
    """One JSON object an event, for a collector of logs."""

    def __init__(self, stream: TextIO) -> None:
        self._logger = logging.Logger("crossrec.run", logging.INFO)
        self._logger.addHandler(log_handler(stream, "json"))
        self._here: tuple[str, ...] | None = None

    def __exit__(self, *_: object) -> None:
        return None

    def waiting(self, here: tuple[str, ...], needed: int) -> None:
        """Write a line when who is here changed."""
        if here != self._here:
            self._here = here
            fields = {"here": list(here), "needed": needed}
            self._logger.info(_waiting_text(here, needed), extra=fields)

    def round_started(self, number: int, rounds: int, cohort: tuple[str, ...]) -> None:
        """Write which round begins, with whom."""
        self._here = None
        fields = {"round": number, "rounds": rounds, "platforms": list(cohort)}
        self._logger.info("round started", extra=fields)

    def round_finished(self, record: RoundRecord, rounds: int) -> None:
        """Write what the round gave."""
        fields = {
            "round": record.round,
            "rounds": rounds,
            "platforms": list(record.platforms),
            "seconds": round(record.seconds, 3),
        }
        self._logger.info(_round_text(record, rounds), extra=fields)

    def note(self, text: str) -> None:
        """Write a line."""
        self._logger.info(text)


class Together(AbstractContextManager["Together"]):
    """Several listeners as one."""

    def __init__(self, *parts: Progress) -> None:
        self._parts, self._stack = parts, ExitStack()

    def __enter__(self) -> Together:
        with ExitStack() as entered:
            for part in self._parts:
                entered.enter_context(part)
            self._stack = entered.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def waiting(self, here: tuple[str, ...], needed: int) -> None:
        """Tell all."""
        for part in self._parts:
            part.waiting(here, needed)

    def round_started(self, number: int, rounds: int, cohort: tuple[str, ...]) -> None:
        """Tell all."""
        for part in self._parts:
            part.round_started(number, rounds, cohort)

    def round_finished(self, record: RoundRecord, rounds: int) -> None:
        """Tell all."""
        for part in self._parts:
            part.round_finished(record, rounds)

    def round_repeated(self, number: int, reason: str) -> None:
        """Tell all."""
        for part in self._parts:
            part.round_repeated(number, reason)

    def left_out(self, platform: str, reason: str) -> None:
        """Tell all."""
        for part in self._parts:
            part.left_out(platform, reason)

    def note(self, text: str) -> None:
        """Tell all."""
        for part in self._parts:
            part.note(text)


def progress_for(stream: TextIO | None = None, format: LogFormat = "text") -> Progress:
    """Return JSON lines, or bars if the stream (default: standard output) is a terminal, or lines."""
    target = sys.stdout if stream is None else stream
    if format == "json":
        return JsonProgress(target)
    return BarProgress(Console(file=target)) if target.isatty() else PlainProgress(target)
