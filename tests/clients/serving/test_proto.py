"""The generated code is that of the published .proto."""

from __future__ import annotations

import re
from pathlib import Path

from clients.serving import calls, rpc, web
from clients.serving.proto import recommender_pb2 as pb

PROTO = Path(pb.__file__).with_name("recommender.proto").read_text(encoding="utf-8")


def test_messages_and_fields_agree() -> None:
    published = {}
    for name, body in re.findall(r"^message (\w+) \{(.*?)^\}", PROTO, re.MULTILINE | re.DOTALL):
        fields = re.findall(r"^\s*(?:repeated |optional )?\w+ (\w+) = (\d+);", body, re.MULTILINE)
        published[name] = {field: int(number) for field, number in fields}
    made = {
        name: {field.name: field.number for field in message.fields}
        for name, message in pb.DESCRIPTOR.message_types_by_name.items()
    }
    assert made == published


def test_calls_agree_on_both_interfaces() -> None:
    published = set(re.findall(r"^\s*rpc (\w+)\(", PROTO, re.MULTILINE))
    made = pb.DESCRIPTOR.services_by_name["Recommender"]
    assert {method.name for method in made.methods} == published == set(web.CALLS.values())
    assert made.full_name == rpc.SERVICE
    assert set(rpc.STATUS) == set(web.STATUS) == set(calls.Code)
