"""Plain tables from TOML or JSON as frozen settings: known keys, exact types."""

from __future__ import annotations

import dataclasses
from typing import Any

from crossrec_model.errors import ConfigError, shown


def table(name: str, value: object) -> dict[str, Any]:
    """Return a table of settings; raises ConfigError for anything else."""
    if not isinstance(value, dict):
        raise ConfigError(f"{name} must be a table of settings, not {type(value).__name__}")
    return value


def section(name: str, kind: type[Any], value: object) -> Any:
    """Return the settings `kind` that a table gives; absent keys take their defaults.

    Raises:
        ConfigError: for an unknown key, a value of another type, or one that `kind` refuses.
    """
    given = table(name, value)
    known = {f.name: f for f in dataclasses.fields(kind)}
    for key in given:
        if key not in known:
            raise ConfigError(f"{name}.{key[:80]} is unknown; known: {', '.join(known)}")
    return kind(
        **{key: _coerce(f"{name}.{key}", known[key].default, v) for key, v in given.items()}
    )


def _coerce(name: str, default: object, value: object) -> object:
    """Take exactly the default's type (an int may stand for a float); never a bool for a number."""
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        return tuple(_coerce(name, default[0], item) for item in value)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{name} = {shown(value)} is too large; choose less") from None
    if type(value) is not type(default):
        raise ConfigError(f"{name} = {shown(value)} must be of type {type(default).__name__}")
    return value
