"""All decoders and importers, by name: what is fuzzed, from which valid inputs, and how it is judged.

A target gets bytes. It decodes them as the product does; if they are accepted, it writes the result
anew and compares. Refusing is raising a `CrossrecError` whose message is one line that a terminal and
a log can show. Anything else (another exception, a warning, a round trip that differs, more memory
than the target may take, no end) is a defect.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final

from mutators import OF_BYTES, OF_JSON, OF_TEXT, Change

from crossrec_model.errors import CrossrecError

#: Longest message of a refusal, in characters: a screen, not a megabyte of what was sent.
MOST_MESSAGE: Final = 2000

Check = Callable[[bytes], object]


class RoundTripError(Exception):
    """What was accepted is not what is written for it."""


class UnclearRefusalError(Exception):
    """A refusal whose message is not one printable line."""


class Cost(Enum):
    """How many inputs a target gets beside the others, by how long each takes."""

    CHEAP = 48  # up to a millisecond
    MEDIUM = 16  # a few
    DEAR = 4  # tens
    SLOW = 1  # starts a process


@dataclass(frozen=True, kw_only=True)
class Target:
    """One decoder or importer.

    Attributes:
        name: dotted; also the name of its folder of saved inputs.
        seeds: valid inputs; every one must be accepted.
        check: makes, in a folder of its own, what judges one input.
        bombs: small inputs that announce or unpack to something huge.
        memory_mib: the most that one input may add to the process's largest memory.
    """

    name: str
    seeds: Callable[[], Sequence[bytes]]
    check: Callable[[Path], Check]
    changes: tuple[Change, ...] = OF_BYTES
    cost: Cost = Cost.CHEAP
    bombs: Callable[[], Sequence[bytes]] = field(default=lambda: ())
    memory_mib: int = 64


def judge(check: Check, data: bytes) -> bool:
    """Return whether an input was accepted, False if it was refused; any exception is a defect."""
    try:
        check(data)
    except CrossrecError as error:
        message = str(error)
        odd = [c for c in message if unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"}]
        if odd or not message or len(message) > MOST_MESSAGE:
            found = f"holds {odd[0]!r}" if odd else f"has {len(message)} characters"
            raise UnclearRefusalError(f"{found}: {message[:300]!r}") from None
        return False
    return True


def same(written: object, read: object, what: str) -> None:
    """Raise RoundTripError unless both are equal."""
    if written != read:
        raise RoundTripError(f"{what}: {str(written)[:300]} is not {str(read)[:300]}")


def all_targets() -> tuple[Target, ...]:
    """Every target, the dear ones last."""
    import targets_coordinator
    import targets_data
    import targets_database
    import targets_http
    import targets_keys
    import targets_linkage
    import targets_plans
    import targets_platform
    import targets_settings
    import targets_state
    import targets_sums
    import targets_wire

    modules = (
        *(targets_wire, targets_keys, targets_sums, targets_linkage),
        *(targets_plans, targets_platform, targets_state, targets_coordinator, targets_database),
        *(targets_settings, targets_http, targets_data),
    )
    found = [target for module in modules for target in module.TARGETS]
    return tuple(sorted(found, key=lambda target: -target.cost.value))


__all__ = [
    "OF_BYTES",
    "OF_JSON",
    "OF_TEXT",
    "Check",
    "Cost",
    "RoundTripError",
    "Target",
    "UnclearRefusalError",
    "all_targets",
    "judge",
    "same",
]
