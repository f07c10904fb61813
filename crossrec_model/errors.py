"""Errors that a user can cause. Each message names the value, the bound and the remedy."""

from __future__ import annotations

import reprlib
from typing import Final

#: Characters of a message: its beginning and its end, where the remedy stands.
_BEGINNING: Final = 1200
_END: Final = 300
#: Longer numbers are told by their length: Python refuses to write some of them.
_MOST_BITS: Final = 256


class CrossrecError(Exception):
    """A user's mistake or a refused operation; shown as one line, never as a traceback."""

    exit_code = 2

    def __str__(self) -> str:
        """One printable line, whatever it quotes: no peer's text steers a terminal or fills a log."""
        text = super().__str__()
        if len(text) > _BEGINNING + _END:
            text = f"{text[:_BEGINNING]} … {text[-_END:]}"
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class DataError(CrossrecError):
    """Input rows, files or mappings that can't be used."""


class ConfigError(CrossrecError):
    """A setting outside its bounds."""


class ConnectionRefusedByPeerError(CrossrecError):
    """The other side could not be reached, or it refused us."""


class WireError(CrossrecError):
    """Bytes that are not a valid message."""


class StateError(CrossrecError):
    """A platform's folder that can't be used."""


class FederationError(CrossrecError):
    """A federation that can't start or go on."""


class _Brief(reprlib.Repr):
    """Texts of at most 100 characters, lists and tables of a few, nothing deep."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, 100, 100

    def repr_int(self, x: int, level: int) -> str:
        """Return the number, or how long it is."""
        return f"a number of {x.bit_length()} bits" if x.bit_length() > _MOST_BITS else repr(x)


def shown(value: object) -> str:
    """Return a value from outside for a message: short, however long, deep or large it is."""
    return _BRIEF.repr(value)


_BRIEF: Final = _Brief()
