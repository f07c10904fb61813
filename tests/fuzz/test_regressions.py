"""Inputs that once ended in a traceback, a hang or an unclear refusal."""

from __future__ import annotations

import asyncio
import base64
import importlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import targets_coordinator
import targets_http
import targets_keys
from refusals import DEEP, DEEP_TOML, HEX, LONG, each, refused

from clients.adapters import open_source
from clients.connection import Endpoint
from clients.joining import accept_invitation
from crossrec_model import errors
from crossrec_model.config import Plan
from crossrec_model.errors import ConfigError, DataError, WireError
from crossrec_model.evaluation.figures import Figure
from crossrec_model.privacy import pricing
from crossrec_model.privacy.events import GaussianRelease, SampledGaussian
from crossrec_model.secagg.errors import IdentityError, RosterError
from crossrec_model.secagg.identity import IdentityKey
from crossrec_model.secagg.invitation import Invitation, Notice, SignedPlan
from crossrec_model.secagg.node_pass import NodePass
from crossrec_model.wire.pieces import assemble
from server.folder import Settings
from server.gate import Gate

RUN = targets_coordinator.RUN


@each("quoted", ["a\nb", "\x1b[2J", "\x00", "\ud800", "\u2028"])
def test_a_message_shows_what_it_quotes_as_one_line(quoted: str) -> None:
    message = str(WireError(f"name {quoted} is unknown; use another"))
    assert message.isprintable()
    assert message.endswith("is unknown; use another")


def test_a_long_message_keeps_its_beginning_and_its_remedy() -> None:
    message = str(ConfigError(f"key {'x' * 10**6} is unknown; known: a, b"))
    assert len(message) < 1600
    assert message.startswith("key xxx")
    assert message.endswith("known: a, b")


@each("value", [10**5000, "x" * 10**6, json.loads("[" * 500 + "]" * 500), [1] * 999])
def test_a_value_is_shown_shortly(value: object) -> None:
    assert len(errors.shown(value)) < 200


def test_a_frame_whose_piece_is_missing_is_refused() -> None:
    assert "one is missing" in refused(WireError, lambda: assemble(3, ["a", "b"], [b"a"]))


@each("side", ["server.records", "clients.records"])
@each(
    "content",
    [
        *(b"", b"\0", b"Array", b"Array\0", b"\xff 1\0", b"Message a x\0", b"Message  3\0abc"),
        *(b"Array a 2\0{}", b"RecordDict  2\0{}", b"Message a 0\0", b"Unknown  0\0"),
        b'Array  9\0{"shape":[1],"arraychunk_ids":[0],"stype":"crossrec.bytes"}',
        f"Array  9\0{DEEP}".encode(),
    ],
)
def test_objects_that_are_no_message_are_refused(side: str, content: bytes) -> None:
    records = importlib.import_module(side)

    def read() -> None:
        payload = records.to_payload({"x": content}, lambda _names: iter(()))
        records.to_message("x", {"x": content}, payload)

    refused(WireError, read)


@each(
    "plan",
    [
        f'{{"aggregation":{{"bound":1{"0" * 400}}}}}',
        f'{{"model":{{"tower":[128{",1" * 50_000},1]}}}}',
        json.dumps({"model": {"relations": ["self"] * 9999}}),
        f'{{"model":{{"tower":{"[" * 900}{"]" * 900}}}}}',
        json.dumps({"model": {"\x1b[2J": 1}}),
        json.dumps({"\ud800": 1}),
        f'{{"seed":{LONG[:4300]}}}',
        json.dumps({"training": {"optimizer": "x" * 99_999}}),
    ],
)
def test_plans_that_are_no_plans_are_refused(plan: str) -> None:
    refused(ConfigError, lambda: Plan.from_json(plan.encode()))


@each(
    "text",
    [
        DEEP_TOML,
        f"seed = {LONG}",
        f"seed = {HEX}",
        f"[aggregation]\nbound = {HEX}",
        f"[aggregation]\nlevels = {HEX}",
        f'[coordinator]\nname = "a"\nhost = "b"\nport = {HEX}',
        f'[coordinator]\nname = {HEX}\nhost = "b"',
        f'[coordinator]\nname = "a"\nhost = "b"\n[privacy]\nepsilon = {HEX}',
    ],
)
def test_toml_that_is_too_deep_or_long_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text, encoding="utf-8")
    refused(ConfigError, lambda: Plan.from_toml(path))
    refused(ConfigError, lambda: Settings.from_toml(text))
    refused(DataError, lambda: open_source(str(path), "A"))


@each(
    "change",
    [
        *({"name": "\U0001f600"}, {"name": ""}, {"host": "ü"}, {"host": "a b"}, {"host": "a\x7f"}),
        *({"listen": "\x7f"}, {"database": "a\nb"}, {"epsilon": float("nan")}, {"delta": 1.0}),
        {"epsilon": float("inf")},
    ],
)
def test_settings_that_no_file_or_roster_can_carry_are_refused(change: dict[str, Any]) -> None:
    refused(ConfigError, lambda: Settings(**{"name": "demo", "host": "localhost", **change}))


def test_settings_with_letters_beyond_the_first_plane_come_back() -> None:
    made = Settings(name="demo", host="localhost", database="sqlite:////\U0001f600/ü.db")
    assert Settings.from_toml(made.to_toml()) == made


def _signed_plan(change: dict[str, Any]) -> bytes:
    document = json.loads(targets_keys.signed_plan().to_json()) | change
    return targets_keys.written(targets_keys.sealed_plan(document)) or b""


@each("text", ["\ud800", "ü", "\U0001f600"])
def test_signed_documents_whose_inner_text_is_not_ascii_are_refused(text: str) -> None:
    refused(RosterError, lambda: SignedPlan.from_json(_signed_plan({"plan": text})))
    for key in ("plan", "roster"):
        notice = json.dumps(json.loads(targets_keys.notice().to_json()) | {key: text}).encode()
        refused(RosterError, partial(Notice.from_json, notice))
    invitation = json.loads(targets_keys.invitation().to_json()) | {"notice": text}
    refused(RosterError, lambda: Invitation.from_json(json.dumps(invitation).encode()))


@each("name", ["\x1b[2J", "\ud800", "", "é" * 5000])
def test_a_plan_of_a_federation_with_no_possible_name_is_refused(name: str) -> None:
    refused(RosterError, lambda: SignedPlan.from_json(_signed_plan({"federation": name})))


@each("platform", ["\ud800", "", "\x1b[2J", "é"])
def test_a_pass_of_no_possible_platform_is_refused(platform: str) -> None:
    document = targets_keys._made_pass()._document() | {"platform": platform}
    raw = targets_keys.written(targets_keys._sealed_pass(document)) or b""
    refused(RosterError, lambda: NodePass.from_header(base64.b64encode(raw).decode()))


def test_a_pass_in_another_base64_of_the_same_bytes_is_refused() -> None:
    made = targets_keys._made_pass()
    headers = (replace(made, platform="A" * count).to_header() for count in (1, 2, 3))
    text = next(header for header in headers if header.endswith("=="))
    other = f"{text[:-3]}{chr(ord(text[-3]) + 1)}=="
    assert base64.b64decode(text) == base64.b64decode(other)
    NodePass.from_header(text)
    refused(RosterError, lambda: NodePass.from_header(other))


@each(
    "change",
    [{"ca": "a\u0301"}, {"ca": "\ud800"}, {"address": "ü.example:9092"}, {"address": "a:\u0661"}],
)
def test_an_invitation_that_can_not_be_kept_is_refused_before_it_is_accepted(
    tmp_path: Path, change: dict[str, str]
) -> None:
    document = json.loads(targets_keys.invitation().to_json()) | change
    path = tmp_path / "A.invitation"
    path.write_bytes(targets_keys.written(targets_keys.sealed_all(document)) or b"")

    def accept() -> None:
        accept_invitation(
            tmp_path,
            "A",
            path,
            ask=lambda _lines, _question: True,
            explain=lambda *_: [],
            allow_two=False,
        )

    refused(ConfigError, accept)
    assert not (tmp_path / "plan.json").exists()


@each(
    "address",
    [
        *(
            "a\0b:1",
            "a b:1",
            "a\n:1",
            "a@b:1",
            "a/b:1",
            "a[b:1",
            f"a:{LONG}",
            "a:\u0661",
            ":1",
            "a:0",
        ),
        *("a:65536", f"{'a.' * 200}:1", f"{'ü' * 100_000}:1", "\ud800:1", "a\u202e:1"),
    ],
)
def test_addresses_that_no_resolver_may_get_are_refused(address: str) -> None:
    refused(ConfigError, lambda: Endpoint(address=address, insecure=True))


def test_a_request_of_a_length_of_thousands_of_digits_is_refused() -> None:
    headers = [(b"content-length", LONG.encode())]
    scope = {"type": "http", "path": "/health", "headers": headers, "client": None}
    gate = Gate(targets_http._inner)
    assert asyncio.run(targets_http._asked(gate, scope, [b""])) == 413


@each(
    "change",
    [{"value": 10**400}, {"value": float("nan")}, {"command": "\ud800"}, {"figure": [[[]]] * 999}],
)
def test_figures_that_can_not_be_written_are_refused(change: dict[str, Any]) -> None:
    whole = {"figure": "a.b", "value": 1.0, "goal": ">=1", "command": "python x.py"}
    refused(ConfigError, lambda: Figure(**(whole | change)))


def test_a_plan_of_very_many_steps_is_priced_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> float:
        raise AssertionError("minutes of convolutions")

    monkeypatch.setattr(pricing, "_loss_epsilon", never)
    events = (SampledGaussian(multiplier=1e6, rate=0.5, steps=10**7), GaussianRelease(multiplier=9))
    assert 0 < pricing.epsilon(events, 1e-5) < 10


def test_a_key_file_that_openssl_stumbles_over_is_refused() -> None:
    pem = b"-----BEGIN PRIVATE KEY-----\n%s\n-----END PRIVATE KEY-----\n" % (
        # One bit of the algorithm's name is another: an error that OpenSSL gives no reason for.
        b"MC4CAQAwBQYDK2VvBCIEIAf7FJWZYSikZf0hWilR04w0p9ZgWdGjvmNaTXQMgAWS"
    )
    assert "no unencrypted private key" in refused(IdentityError, lambda: IdentityKey.from_pem(pem))
