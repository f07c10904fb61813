"""How both sides write their logs: plain lines, or one JSON object a line.

What a record may carry beside its message is a fixed list of names, none of which tells about a user
or about how many users one platform has.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any, Final, Literal, TextIO

from crossrec_model.errors import FederationError

LogFormat = Literal["text", "json"]

#: Fields that `extra=` may add; the value of any other one is withheld.
FIELDS: Final = frozenset({
    "address", "code", "event", "file", "folder", "here", "listener", "needed", "next_try_s", "number",
    "phase", "plan_version", "platform", "platforms", "port", "reason", "roster_version", "round",
    "rounds", "run", "seconds", "stage", "total", "url", "version",
})  # fmt: skip
_PLAIN: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_MOST_TEXT: Final = 4096
#: Characters that a terminal or a reader of lines obeys instead of showing.
_CONTROLS: Final = {c: f"\\x{c:02x}" for c in (*range(0x20), *range(0x7F, 0xA0))} | {
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    ord("\t"): "\\t",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}


class PlainLines(logging.Formatter):
    """Time in UTC, level, logger, message: one line, whatever the message holds.

    A traceback follows indented, so that nothing in it can pass for a record.
    """

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__(_PLAIN)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Return the line, with control characters written out."""
        return super().formatMessage(record).translate(_CONTROLS)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Return the traceback, indented."""
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        """Return the stack, indented."""
        return _indented(stack_info)


class JsonLines(logging.Formatter):
    """One JSON object a line, in ASCII.

    Its keys are `time` (UTC, ISO 8601, milliseconds), `level`, `logger`, `message`, where there was
    one `exception`, and the record's extra fields. Those that are not among `FIELDS` are named in
    `withheld`, without their values. NaN and infinities are texts.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line."""
        document: dict[str, Any] = {
            "time": _instant(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        extra = {k: v for k, v in vars(record).items() if k not in _OWN}
        document |= {k: _json_value(v) for k, v in extra.items() if k in FIELDS}
        if withheld := sorted(extra.keys() - FIELDS):
            document["withheld"] = withheld
        trace = [self.formatException(record.exc_info)] if record.exc_info else []
        trace += [record.stack_info] if record.stack_info else []
        if trace:
            document["exception"] = "\n".join(trace)
        return json.dumps(document, allow_nan=False)


class _JournalFile(WatchedFileHandler):
    """Goes on in a new file after a rotation, and says once that it can't write, in one line."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if self._told:
            return
        self._told = True
        error = sys.exc_info()[1]
        reason = getattr(error, "strerror", None) or type(error).__name__
        # Standard error may be closed; a log must never end the run.
        if sys.stderr is not None:
            print(f"warning: log file {self.baseFilename}: {reason}", file=sys.stderr)


def log_handler(target: Path | TextIO, format: LogFormat = "text") -> logging.Handler:
    """Return a handler that appends to a file, or writes to a stream.

    A file is made at once, for its owner alone, and followed when it is rotated.

    Raises:
        FederationError: if the file can't be written.
    """
    handler: logging.Handler
    if isinstance(target, Path):
        try:
            target.touch(mode=0o600)
            handler = _JournalFile(target, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise FederationError(
                f"log file {target} can't be written: {error.strerror}; free the disk or give "
                "another --state"
            ) from None
    else:
        handler = logging.StreamHandler(target)
    handler.setFormatter(JsonLines() if format == "json" else PlainLines())
    return handler


def _instant(seconds: float) -> str:
    text = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _json_value(value: object) -> object:
    """Numbers and texts as they are, lists of them too; anything else as a bounded text."""
    if value is None or type(value) in {bool, int}:
        return value
    if type(value) is float and math.isfinite(value):
        return value
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value[:100]]
    return str(value)[:_MOST_TEXT]


def _indented(text: str) -> str:
    # As a reader of lines splits them, not only at "\n".
    return "\n".join(f"    {line.translate(_CONTROLS)}" for line in text.splitlines())
