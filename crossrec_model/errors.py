"""Errors that a user can cause. Each message names the value, the bound and the remedy."""


class CrossrecError(Exception):
    """A user's mistake or a refused operation; shown as one line, never as a traceback."""

    exit_code = 2


class DataError(CrossrecError):
    """Input rows, files or mappings that can't be used."""


class ConfigError(CrossrecError):
    """A setting outside its bounds."""


class ConnectionRefusedByPeerError(CrossrecError):
    """The other side could not be reached, or it refused us."""


class WireError(CrossrecError):
    """Bytes that are not a valid message."""


class FederationError(CrossrecError):
    """A federation that can't start or go on."""
