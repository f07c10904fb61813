"""A sum is exact over its survivors or ends with a named error, whatever the network does."""

from __future__ import annotations

from collections import Counter
from typing import Final

import pytest
from federation_in_memory import DIMENSION, LEVELS_OF_WIDTH, Federation, plain_sum
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test
from lossy_network import Network

from crossrec_model.secagg.errors import TooFewPlatformsError
from crossrec_model.secagg.grid import CHUNK
from crossrec_model.secagg.messages import Kind

_FAR: Final = settings(deadline=None, suppress_health_check=list(HealthCheck), database=None)


def _run(kind: type[Network], examples: int, steps: int, *, again: bool) -> None:
    """Run examples, with `again` the same ones each time."""
    bounds = settings(_FAR, max_examples=examples, stateful_step_count=steps, derandomize=again)
    run_state_machine_as_test(kind, settings=bounds)


def _class(bits: int) -> type[Network]:
    """A machine of its own for a width, with counts of its own."""
    return type(f"Network{bits}", (Network,), {"width": bits, "events": Counter()})


def _check_events(events: Counter[str]) -> None:
    """The machine must have come everywhere, or it shows nothing."""
    wanted = ("opened", "opened without all", "opened with an addition")
    refused = ("Inviting", "Collecting", "Unmasking")
    assert all(events[name] for name in wanted), events
    assert all(events[f"{name}: TooFewPlatformsError"] for name in refused), events


@pytest.mark.timeout(280)
def test_any_network_gives_the_exact_sum_or_a_named_error() -> None:
    events: Counter[str] = Counter()
    for bits, examples in ((16, 40), (24, 80), (32, 40)):
        kind = _class(bits)
        _run(kind, examples, 12, again=True)
        assert kind.events["opened"], kind.events
        events += kind.events
    # That it comes everywhere is the long run's to show: few examples need not meet every event.
    assert sum(events.values()) > events["opened"], events


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("bits", [16, 24, 32])
def test_any_network_for_long(bits: int) -> None:
    kind = _class(bits)
    _run(kind, 1500, 40, again=False)
    _check_events(kind.events)


@settings(_FAR, max_examples=40)
@given(data=st.data())
def test_the_sum_over_any_survivors_is_the_plain_sum(data: st.DataObject) -> None:
    bits = data.draw(st.sampled_from((16, 24, 32)))
    federation = Federation(data.draw(st.integers(3, 7)), levels=LEVELS_OF_WIDTH[bits])
    least = federation.terms.threshold
    some = st.sets(st.sampled_from(federation.names), min_size=least)
    members = sorted(data.draw(some))
    agreement = federation.agree(members)
    number = 0
    for slot in sorted(data.draw(st.sets(st.integers(0, 2), min_size=1))):
        number += 1
        survivors = sorted(data.draw(some.map(lambda s: s & set(members))))
        ticket = federation.ticket(agreement, slot, number=number)
        assert ticket.bits <= bits
        parts = {name: federation.part(name, slot) for name in survivors}
        if len(survivors) < least:
            with pytest.raises(TooFewPlatformsError, match=_few(federation, len(survivors))):
                federation.collect(agreement, ticket, parts)
            continue
        unmasking = federation.collect(agreement, ticket, parts)
        asked = data.draw(st.permutations(survivors))[: data.draw(st.integers(least - 1, 7))]
        if len(asked) < least:
            with pytest.raises(TooFewPlatformsError, match=_few(federation, len(asked))):
                federation.open(unmasking, asked)
        else:
            assert federation.open(unmasking, asked) == plain_sum(parts.values(), ticket.bits)


def _few(federation: Federation, here: int) -> str:
    return (
        f"too few platforms.*: {here} of {len(federation.names)}, need {federation.terms.threshold}"
    )


@pytest.mark.parametrize("bits", [16, 24, 32])
def test_a_long_vector_is_summed_exactly(bits: int) -> None:
    """Longer than two chunks, packed over the update's own memory, with a platform gone."""
    federation = Federation(4, levels=LEVELS_OF_WIDTH[bits])
    agreement = federation.agree()
    dimension = 2 * CHUNK + 1001
    ticket = federation.ticket(agreement, 1, dimension=dimension)
    assert ticket.bits == bits
    parts = {
        name: federation.part(name, dimension=dimension)
        for name in federation.names
        if name != "p02"
    }
    unmasking = federation.collect(agreement, ticket, parts)
    assert federation.open(unmasking) == plain_sum(parts.values(), bits)


def test_the_sums_mean_is_the_parts_mean() -> None:
    federation = Federation(3)
    agreement = federation.agree()
    ticket = federation.ticket(agreement, kind=Kind.EVALUATE)
    parts = {name: federation.part(name) for name in federation.names}
    unmasking = federation.collect(agreement, ticket, parts)
    federation.open(unmasking)
    mean = federation.grid.decode(unmasking.total, DIMENSION, bits=ticket.bits, members=3)
    weight = sum(part.weight for part in parts.values())
    assert mean.weight == weight
    for at in range(DIMENSION):
        exact = sum(part.weight * part.values[at] / 256 for part in parts.values()) / weight
        assert mean.update[at] == pytest.approx(exact, abs=1e-12)
    exact = sum(part.weight * part.metric / 4 for part in parts.values()) / weight
    assert mean.metrics[0] == pytest.approx(exact, abs=1e-12)
