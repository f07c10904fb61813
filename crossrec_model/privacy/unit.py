"""The unit of privacy: one user of one platform, and one person who is a user of several.

What is promised, and what a ledger records, is about a user of one platform with her whole history
there. A person on P platforms moves every sum of theirs by up to P bounds. This module owns that factor.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from crossrec_model.errors import ConfigError
from crossrec_model.privacy.events import DistributedGaussian, Event

#: As many as a roster can name.
MOST_PLATFORMS: Final = 100


def for_person(events: Iterable[Event], platforms: int) -> tuple[Event, ...]:
    """What `platforms` platforms with these same events each do to a person who is a user of all.

    Noise of each platform's own is independent of the others', as is who is sampled: the events
    compose, so each stands `platforms` times. Distributed noise is one for the whole sum, which she
    moves by `platforms` bounds: its multiplier is divided.

    Raises:
        ConfigError: for a number of platforms outside [1, 100], or noise so small that it vanishes.
    """
    if not 1 <= platforms <= MOST_PLATFORMS:
        raise ConfigError(
            f"a person on {platforms} platforms is outside [1, {MOST_PLATFORMS}]; give how many of "
            "the federation's platforms one person may use"
        )
    met: list[Event] = []
    for event in events:
        if isinstance(event, DistributedGaussian):
            met.append(replace(event, multiplier=event.multiplier / platforms))
        else:
            met += [event] * platforms
    return tuple(met)
