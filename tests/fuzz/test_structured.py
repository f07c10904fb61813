"""Inputs made from the formats' own structure, valid and nearly valid; the same ones each time."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import string
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import targets_http
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from targets import judge

from clients.adapters.files import TableFiles
from clients.adapters.mapping import TableMapping
from clients.connection import Endpoint
from crossrec_model import config
from crossrec_model.config import Plan
from crossrec_model.errors import CrossrecError, WireError
from crossrec_model.privacy import events
from crossrec_model.secagg import messages as frames
from crossrec_model.secagg.errors import SharesError
from crossrec_model.secagg.identity import canonical, parse
from crossrec_model.secagg.shamir import PRIME, SHARE_BYTES, combine_many
from crossrec_model.wire import messages as wire
from server.gate import CLOSED, FLEET, HEALTH, NOTICE

same_each_time = settings(
    max_examples=100,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
texts = st.text(max_size=40) | st.sampled_from(["", "\ud800", "\x1b[2J", "A" * 65, "../x"])
numbers = st.integers(-(2**70), 2**70) | st.floats()
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
ids = st.text(string.ascii_letters + string.digits, min_size=1, max_size=8)
vectors = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=9).map(
    lambda found: np.array(found, dtype=np.float32)
)
words = st.integers(0, 2**32 - 1)
runs = st.binary(min_size=16, max_size=16)

WIRE = st.one_of(
    st.builds(wire.Hello, session=runs),
    st.builds(
        wire.HelloReply,
        platform=ids,
        protocol_version=st.integers(0, 65535),
        software_version=st.just("1.0"),
    ),
    st.builds(wire.Welcome, plan=st.binary(max_size=90)),
    st.builds(
        wire.WelcomeReply,
        dimension=st.integers(1, 2**32 - 1),
        training_metrics=st.lists(st.sampled_from(["loss", "a@1"]), max_size=5).map(tuple),
        evaluation_metrics=st.just(()),
    ),
    st.builds(wire.SumReply, run=runs, round=words, body=st.tuples(st.binary(max_size=50))),
    st.builds(wire.Finish, run=runs, round=words, parameters=vectors),
    st.builds(
        wire.EvaluateRequest,
        run=runs,
        round=words,
        ticket=st.binary(max_size=64),
        parameters=vectors,
    ),
    st.builds(wire.Failure, code=st.sampled_from(wire.FailureCode)),
)
SECURE = st.one_of(
    st.builds(
        frames.Unmask,
        epoch=runs,
        slot=st.integers(0, 65535),
        survivors=st.lists(ids, max_size=6).map(tuple),
        dropped=st.lists(ids, max_size=6).map(tuple),
    ),
    st.builds(
        frames.Delivery, epoch=runs, bundles=st.lists(st.binary(max_size=40), max_size=5).map(tuple)
    ),
    st.builds(
        frames.Reveal,
        epoch=runs,
        slot=st.integers(0, 65535),
        seeds=st.binary(max_size=99),
        keys=st.binary(max_size=99),
    ),
)


@same_each_time
@given(message=WIRE, cut=st.integers(0, 200), extra=st.binary(max_size=9))
def test_a_message_is_read_back_whole_and_in_no_other_length(
    message: wire.Message, cut: int, extra: bytes
) -> None:
    frame = wire.encode(message)
    assert wire.encode(wire.decode(frame)) == frame
    for other in (frame[: cut % len(frame)], frame + extra) if extra else ():
        assert judge(wire.decode, other) is False


@same_each_time
@given(message=SECURE, extra=st.binary(min_size=1, max_size=9))
def test_a_secure_frame_is_read_back_whole_and_in_no_other_length(
    message: frames.Message, extra: bytes
) -> None:
    frame = frames.encode(message)
    assert frames.decode(frame) == message
    assert judge(frames.decode, frame + extra) is False


@same_each_time
@given(
    kind=st.sampled_from([wire.HelloReply, wire.Refuse, wire.WelcomeReply]), found=texts, n=numbers
)
def test_nothing_is_written_that_could_not_be_read(kind: type[Any], found: str, n: Any) -> None:
    made: dict[type[Any], Any] = {
        wire.HelloReply: lambda: wire.HelloReply(
            platform=found, protocol_version=2, software_version="1"
        ),
        wire.Refuse: lambda: wire.Refuse(reason=found),
        wire.WelcomeReply: lambda: wire.WelcomeReply(
            dimension=int(n) if math.isfinite(n) else 0,
            training_metrics=(found,),
            evaluation_metrics=(),
        ),
    }
    try:
        frame = wire.encode(made[kind]())
    except WireError:
        return
    assert wire.encode(wire.decode(frame)) == frame


def _settings(kind: type[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A section with some right and some wrong settings."""
    given_values: dict[str, st.SearchStrategy[Any]] = {}
    for field in dataclasses.fields(kind):
        choices = get_args(getattr(config, str(field.type), None))
        right = st.sampled_from(choices) if choices else st.just(field.default)
        given_values[field.name] = right | values if field.default is not None else values
    return st.fixed_dictionaries({}, optional=given_values)


PLANS = st.fixed_dictionaries(
    {},
    optional={
        "model": _settings(config.ModelConfig),
        "training": _settings(config.TrainingConfig),
        "federation": _settings(config.FederationConfig),
        "aggregation": _settings(config.AggregationConfig),
        "privacy": _settings(config.PrivacyConfig),
        "seed": numbers | st.just(1),
    },
)


@same_each_time
@given(document=PLANS | values)
def test_a_plan_is_refused_or_comes_back(document: Any) -> None:
    def check(_data: bytes) -> None:
        plan = Plan.from_document(document)
        assert Plan.from_json(plan.to_json()) == plan

    judge(check, b"")


@same_each_time
@given(
    document=st.fixed_dictionaries(
        {"kind": st.sampled_from(list(events._KINDS)) | texts},
        optional={"multiplier": numbers, "rate": numbers, "steps": values, "honest": values},
    )
    | values
)
def test_an_event_is_refused_or_comes_back(document: Any) -> None:
    def check(_data: bytes) -> None:
        event = events.from_document(document)
        assert events.from_document(events.to_document(event)) == event

    judge(check, b"")


@same_each_time
@given(document=st.dictionaries(texts, values, max_size=5))
def test_canonical_json_is_read_back_or_not_written(document: dict[str, Any]) -> None:
    try:
        raw = canonical(document)
    except ValueError:  # NaN and infinities
        return
    assert canonical(dict(parse(raw, "it"))) == raw  # type: ignore[call-overload]


SECTIONS = st.fixed_dictionaries(
    {},
    optional={
        "files": texts | values,
        "format": st.sampled_from(["csv", "jsonl", "parquet"]) | values,
        "separator": texts,
        "quote": texts,
        "columns": st.dictionaries(st.sampled_from(["user_id", "item_id", "time"]) | texts, texts),
        "event": st.sampled_from(["view", "purchase"]) | values,
        "events": st.dictionaries(texts, st.sampled_from(["view", "ignore"]) | texts, max_size=3),
        "time_format": st.sampled_from(["iso", "unix_s", "%Y"]) | texts,
        "time_zone": st.sampled_from(["UTC", "Europe/Berlin"]) | texts,
        "decimal_comma": st.booleans() | values,
        "other": values,
    },
)


@same_each_time
@given(table=st.sampled_from(["interactions", "catalogue", "users"]), section=SECTIONS)
def test_a_mapping_is_refused_or_parsed(table: str, section: Mapping[str, Any]) -> None:
    judge(lambda _data: _parsed(table, section), b"")


def _parsed(table: str, section: Mapping[str, Any]) -> None:
    TableFiles.parse(table, section)
    TableMapping.parse(table, {k: v for k, v in section.items() if k != "files"})


SCOPES = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["http", "websocket"]),
        "path": st.sampled_from([HEALTH, NOTICE, f"{FLEET}pull", *CLOSED, "/"]) | texts,
        "headers": st.lists(
            st.tuples(
                st.sampled_from([
                    b"content-length", b"transfer-encoding", b"flwr-public-key", b"crossrec-pass"
                ])
                | st.binary(max_size=20),
                st.integers().map(lambda n: str(n).encode()) | st.binary(max_size=60),
            ),
            max_size=5,
        ),
        "client": st.none() | st.tuples(texts, st.integers()),
    }
)  # fmt: skip


@same_each_time
@given(scope=SCOPES, bodies=st.lists(st.binary(max_size=20), max_size=4))
def test_every_request_is_answered_once(scope: dict[str, Any], bodies: list[bytes]) -> None:
    gate = targets_http.Gate(
        targets_http._inner,
        targets_http.Doorkeeper(lambda: targets_http.signed_roster().roster, clock=lambda: 0.0),
    )
    assert asyncio.run(targets_http._asked(gate, scope, bodies)) >= 200


@same_each_time
@given(host=texts, port=st.integers(-1, 70_000) | texts, slashes=st.sampled_from(["", "/", "//"]))
def test_an_address_is_refused_or_can_be_resolved(host: str, port: Any, slashes: str) -> None:
    try:
        found = Endpoint(address=f"{host}:{port}{slashes}", insecure=True)
    except CrossrecError:
        return
    assert found.host.encode("idna")
    assert 0 < int(found.port) < 65536


@same_each_time
@given(
    shares=st.dictionaries(
        st.integers(-1, 256),
        st.lists(st.integers(0, PRIME + 2), min_size=1, max_size=2).map(
            lambda found: b"".join(value.to_bytes(SHARE_BYTES, "little") for value in found)
        )
        | st.binary(max_size=70),
        max_size=5,
    ),
    threshold=st.integers(-1, 6),
)
def test_shares_give_secrets_or_are_refused(shares: dict[int, bytes], threshold: int) -> None:
    try:
        secrets = combine_many(shares, threshold=threshold)
    except SharesError:
        return
    assert {len(secret) for secret in secrets} <= {32}


def test_the_strategies_reach_what_is_valid() -> None:
    """A plan of right settings only is accepted: the strategies are not refused as a whole."""
    found = {field.name: field.default for field in dataclasses.fields(config.TrainingConfig)}
    assert json.loads(Plan.from_document({"training": found}).to_json())["training"] == found
