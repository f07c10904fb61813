"""Events, budgets and records: their bounds, and their strict documents."""

from __future__ import annotations

import dataclasses
import json
import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossrec_model.errors import ConfigError, CrossrecError
from crossrec_model.privacy.events import (
    Budget,
    DistributedGaussian,
    Event,
    GaussianRelease,
    Record,
    SampledGaussian,
    from_document,
    tally,
    to_document,
)

STEPS = SampledGaussian(multiplier=1.5, rate=0.01, steps=30)
RELEASE = GaussianRelease(multiplier=20.0)
SHARED = DistributedGaussian(multiplier=20.0, honest=3)
BUDGET = Budget(epsilon=4.0, delta=1e-5, life_epsilon=8.0)


def _event(kind: type[Any], **values: Any) -> Event:
    good = {"multiplier": 1.0, "rate": 0.5, "steps": 1, "honest": 1} | values
    return kind(**{field.name: good[field.name] for field in dataclasses.fields(kind)})


@pytest.mark.parametrize("kind", [SampledGaussian, GaussianRelease, DistributedGaussian])
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, 1e-4, 1e10, True, "1", None])
def test_a_multiplier_that_is_no_noise(kind: type[Any], value: Any) -> None:
    with pytest.raises(ConfigError, match=r"multiplier = .* no number in"):
        _event(kind, multiplier=value)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (SampledGaussian, {"rate": 0.0}),
        (SampledGaussian, {"rate": 1.01}),
        (SampledGaussian, {"rate": math.nan}),
        (SampledGaussian, {"steps": 0}),
        (SampledGaussian, {"steps": 1.0}),
        (SampledGaussian, {"steps": True}),
        (SampledGaussian, {"steps": 10**9 + 1}),
        (DistributedGaussian, {"honest": 0}),
        (DistributedGaussian, {"honest": 101}),
    ],
)
def test_other_values_outside_their_bounds(kind: type[Any], values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(values))} = "):
        _event(kind, **values)


@pytest.mark.parametrize("event", [STEPS, RELEASE, SHARED])
def test_a_document_comes_back(event: Event) -> None:
    document = to_document(event)
    assert from_document(json.loads(json.dumps(document))) == event
    for key in document:
        without = {k: v for k, v in document.items() if k != key}
        for spoilt in (without, document | {"more": 1}, document | {key: None}):
            with pytest.raises(ConfigError):
                from_document(spoilt)


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "sampled_gaussian",
        {},
        {"kind": "laplace", "multiplier": 1.0},
        {"kind": ["gaussian_release"], "multiplier": 1.0},
        {"kind": "gaussian_release", "multiplier": 1},
        {"kind": "gaussian_release", "multiplier": "1.0"},
        {"kind": "gaussian_release", "multiplier": math.nan},
        {"kind": "gaussian_release", "multiplier": math.inf},
        {"kind": "gaussian_release", "multiplier": 1.0, 5: 1},
        {"kind": "distributed_gaussian", "multiplier": 1.0, "honest": True},
        {"kind": "sampled_gaussian", "multiplier": 1.0, "rate": 0.1, "steps": 3.0},
    ],
)
def test_documents_that_are_refused(document: object) -> None:
    with pytest.raises(ConfigError):
        from_document(document)


def test_whole_numbers_are_the_same_event() -> None:
    assert to_document(GaussianRelease(multiplier=20)) == to_document(RELEASE)
    assert json.dumps(to_document(GaussianRelease(multiplier=20))) == json.dumps(
        to_document(RELEASE)
    )


def test_a_tally_counts_and_never_mixes_kinds() -> None:
    more = dataclasses.replace(STEPS, steps=70)
    others = (
        dataclasses.replace(SHARED, honest=2),
        dataclasses.replace(STEPS, rate=0.02, steps=5),
    )
    events = [SHARED, STEPS, RELEASE, more, RELEASE, *others]
    counts = tally(events)
    assert counts == {
        dataclasses.replace(STEPS, steps=1): 100,
        dataclasses.replace(others[1], steps=1): 5,
        RELEASE: 2,
        SHARED: 1,
        others[0]: 1,
    }
    assert list(counts.items()) == list(tally(reversed(events)).items())
    assert tally([]) == {}


EVENTS = st.one_of(
    st.builds(
        SampledGaussian,
        multiplier=st.sampled_from([0.5, 1.0]),
        rate=st.sampled_from([0.1, 1.0]),
        steps=st.integers(1, 50),
    ),
    st.builds(GaussianRelease, multiplier=st.sampled_from([0.5, 1.0])),
    st.builds(
        DistributedGaussian, multiplier=st.sampled_from([0.5, 1.0]), honest=st.integers(1, 2)
    ),
)


@settings(max_examples=50, deadline=None)
@given(st.lists(EVENTS, max_size=8), st.integers(1, 4))
def test_n_times_the_events_are_n_times_the_counts(events: list[Event], times: int) -> None:
    once = tally(events)
    assert tally(events * times) == {event: count * times for event, count in once.items()}


@pytest.mark.parametrize(
    "values",
    [
        {"epsilon": 0.0},
        {"epsilon": math.inf},
        {"epsilon": math.nan},
        {"epsilon": True},
        {"epsilon": "4"},
        {"delta": 0.0},
        {"delta": 1.0},
        {"delta": 1},
        {"delta": math.nan},
        {"life_epsilon": 3.9},
        {"life_epsilon": math.inf},
        {"life_epsilon": math.nan},
    ],
)
def test_budgets_that_bound_nothing(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        dataclasses.replace(BUDGET, **values)


def _record(after: Record | None = None, **values: Any) -> Record:
    good = {"run": bytes(16), "round": 3, "what": "training steps", "event": STEPS}
    time = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
    return Record.following(after, time=time, budget=BUDGET, **good | values)


def test_a_record_comes_back_and_only_in_its_place() -> None:
    first = _record()
    second = _record(first, event=SHARED)
    assert (first.sequence, first.previous) == (1, "0" * 64)
    assert (second.sequence, second.previous) == (2, first.digest)
    assert first.time == "2026-05-04T03:02:01Z"
    assert Record.from_line(first.line, None) == first
    assert Record.from_line(second.line, first) == second
    for line, after in ((first.line, first), (second.line, None), (second.line, second)):
        with pytest.raises(CrossrecError):
            Record.from_line(line, after)


@pytest.mark.parametrize(
    "values",
    [
        {"run": b""},
        {"run": bytes(17)},
        {"round": -1},
        {"round": 2**32},
        {"what": ""},
        {"what": " x"},
        {"what": "x" * 65},
        {"what": "two\nlines"},
        {"what": "\x1b[31m"},
    ],
)
def test_records_that_can_not_be_made(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        _record(**values)
