"""Both interfaces of a real service: the same answers, and every refusal in its own words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from serving_process import Running, running, stub_of

from clients.serving.proto import recommender_pb2 as pb

pytestmark = pytest.mark.processes
TIMEOUT = 20.0


@pytest.fixture(scope="module")
def process(home: Path) -> Iterator[Running]:
    with running(home, "--log-calls") as process:
        yield process


@pytest.fixture(scope="module")
def stub(process: Running) -> Iterator[Any]:
    with stub_of(process.grpc) as stub:
        yield stub


@pytest.fixture(scope="module")
def web(process: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=process.http, timeout=TIMEOUT) as client:
        yield client


def code_of(call: Any, request: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as refused:
        call(request, timeout=TIMEOUT)
    return refused.value.code(), refused.value.details()


def test_both_interfaces_give_the_same_list(stub, web) -> None:
    ours = stub.Recommend(pb.RecommendRequest(user_id="u1", k=7), timeout=TIMEOUT)
    theirs = web.post("/v1/recommend", json={"user_id": "u1", "k": 7}).json()
    assert [item.item_id for item in ours.items] == [item["item_id"] for item in theirs["items"]]
    assert len(ours.items) == 7
    assert ours.known
    assert ours.platform == theirs["platform"] == "A"
    assert ours.model == theirs["model"]
    first = theirs["items"][0]
    assert first["place"] == 1
    assert first["source"] == "ranked"
    assert first["reason"]


def test_both_interfaces_give_the_same_neighbours(stub, web) -> None:
    ours = stub.SimilarItems(pb.SimilarItemsRequest(item_id="i3", k=5), timeout=TIMEOUT)
    theirs = web.post("/v1/similar-items", json={"item_id": "i3", "k": 5}).json()
    found = [item.item_id for item in ours.items]
    assert found == [item["item_id"] for item in theirs["items"]]
    assert len(found) == 5
    assert "i3" not in found


def test_both_interfaces_explain_alike(stub, web) -> None:
    ours = stub.Explain(pb.ExplainRequest(user_id="u1", item_id="i4"), timeout=TIMEOUT)
    theirs = web.post("/v1/explain", json={"user_id": "u1", "item_id": "i4"}).json()
    assert sum(part.value for part in ours.parts) == pytest.approx(ours.score, abs=1e-4)
    assert sum(part["value"] for part in theirs["parts"]) == pytest.approx(
        theirs["score"], abs=1e-4
    )
    assert theirs["words"][0].startswith("mainly: ")
    assert not ours.linked_profile


def test_filters_pass_over_grpc(stub, model) -> None:
    filters = pb.Filters(shops=["shop1"], category=["kind1"], price_from=2.0, price_to=6.0)
    reply = stub.Recommend(pb.RecommendRequest(user_id="u1", k=3, filters=filters), timeout=TIMEOUT)
    assert reply.items
    for item in reply.items:
        number = model.items.index[item.item_id]
        assert model.shops[number] == "shop1"
        assert item.category[0] == "kind1"
        assert 2 <= model.prices[number] <= 6


def test_an_event_changes_the_next_list_of_its_user_alone(stub, web) -> None:
    def scores(user: str) -> dict[str, float]:
        reply = stub.Recommend(pb.RecommendRequest(user_id=user, k=20), timeout=TIMEOUT)
        return {item.item_id: item.score for item in reply.items}

    before, other = scores("u2"), scores("u3")
    event = {"user_id": "u2", "item_id": "i7", "event": "purchase", "time": "2024-07-21T10:00:00Z"}
    assert web.post("/v1/events", json=event).json()["number"] >= 1
    assert scores("u2") != before
    assert scores("u3") == other


def test_an_event_sent_again_is_kept_once(stub) -> None:
    request = pb.RecordEventRequest(user_id="u4", item_id="i7", event="view", event_id="once")
    first, second = (stub.RecordEvent(request, timeout=TIMEOUT) for _ in range(2))
    assert first.number == second.number
    assert (first.again, second.again) == (False, True)


def test_a_new_user_is_known_from_her_first_event(stub) -> None:
    code, _ = code_of(stub.Recommend, pb.RecommendRequest(user_id="new", k=3))
    assert code is grpc.StatusCode.NOT_FOUND
    popular = pb.RecommendRequest(user_id="new", k=3, allow_unknown=True)
    assert not stub.Recommend(popular, timeout=TIMEOUT).known
    event = pb.RecordEventRequest(user_id="new", item_id="i1", event="view")
    stub.RecordEvent(event, timeout=TIMEOUT)
    assert stub.Recommend(pb.RecommendRequest(user_id="new", k=3), timeout=TIMEOUT).known


RECOMMEND, EVENTS = "/v1/recommend", "/v1/events"
EVENT = {"user_id": "u1", "item_id": "i1", "event": "view"}
WRONG = [
    (RECOMMEND, {"user_id": "nobody", "k": 3}, 404, "allow_unknown"),
    (RECOMMEND, {"user_id": "", "k": 3}, 422, "user_id"),
    (RECOMMEND, {"user_id": "u1", "k": 0}, 422, r"k = 0 is outside \[1, 200\]"),
    (RECOMMEND, {"user_id": "u1", "k": 201}, 422, r"k = 201 is outside \[1, 200\]"),
    (RECOMMEND, {"user_id": "u1", "k": 3, "diversity": 1.5}, 422, "diversity = 1.5"),
    (RECOMMEND, {"user_id": "u1", "k": 3, "explore": -1}, 422, "explore = -1"),
    (RECOMMEND, {"user_id": "u1", "k": 3, "method": "best"}, 422, "choose dpp or mmr"),
    (RECOMMEND, {"user_id": "u1", "k": 3, "filters": {"shops": ["x"]}}, 404, "shop 'x'"),
    (RECOMMEND, {"user_id": "u1", "k": 3, "filters": {"category": ["x"]}}, 404, "category"),
    (RECOMMEND, {"user_id": "u1", "k": 3, "filters": {"price_from": -1}}, 422, "price_from"),
    (EVENTS, {**EVENT, "item_id": "x"}, 404, "item 'x' is not in the catalogue"),
    (EVENTS, {**EVENT, "event": "steal"}, 422, "view, favourite, cart, purchase"),
    (EVENTS, {**EVENT, "time": "yesterday"}, 422, "ISO 8601"),
    (EVENTS, {**EVENT, "time": "2024-01-01T00:00:00"}, 422, "no time zone"),
    (EVENTS, {**EVENT, "time": "2999-01-01T00:00:00Z"}, 422, "between 1990-01-01 and now"),
    (EVENTS, {**EVENT, "price": -1}, 422, "price = -1"),
    (EVENTS, {**EVENT, "quantity": 0}, 422, "quantity = 0"),
    ("/v1/similar-items", {"item_id": "x", "k": 3}, 404, "catalogue"),
    ("/v1/explain", {"user_id": "nobody", "item_id": "i1"}, 404, "no events"),
    ("/v1/explain", {"user_id": "u1", "item_id": "i33"}, 422, "too few takers"),
    ("/v1/explain", {"user_id": "u1", "item_id": "i1", "most": 500}, 422, "most = 500"),
]
REQUESTS = {
    RECOMMEND: ("Recommend", pb.RecommendRequest),
    EVENTS: ("RecordEvent", pb.RecordEventRequest),
    "/v1/similar-items": ("SimilarItems", pb.SimilarItemsRequest),
    "/v1/explain": ("Explain", pb.ExplainRequest),
}
CODES = {404: grpc.StatusCode.NOT_FOUND, 422: grpc.StatusCode.INVALID_ARGUMENT}


@pytest.mark.parametrize(("path", "body", "status", "words"), WRONG)
def test_a_wrong_call_has_its_code_and_one_line(stub, web, path, body, status, words) -> None:
    answer = web.post(path, json=body)
    assert answer.status_code == status
    message = answer.json()["error"]
    assert re.search(words, message)
    assert "\n" not in message
    name, kind = REQUESTS[path]
    code, details = code_of(getattr(stub, name), kind(**body))
    assert code is CODES[status]
    assert re.search(words, details)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "JSON"),
        (b"[]", "the body"),
        (b'{"k": 3}', "user_id: Field required"),
        (b'{"user_id": "u1", "k": "many"}', "k: Input should be a valid integer"),
        (b'{"user_id": "u1", "k": 3, "colour": 1}', "colour: Unexpected"),
        (b'{"user_id": "u1", "k": 3, "diversity": NaN}', "diversity = nan"),
    ],
)
def test_a_malformed_body_is_told_in_one_line(web, body, words) -> None:
    answer = web.post(RECOMMEND, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert words in answer.json()["error"]


def test_large_bodies_are_refused(stub, web) -> None:
    large = {"user_id": "u1", "k": 3, "filters": {"exclude": ["x" * 200] * 400}}
    assert web.post(RECOMMEND, json=large).status_code == 413
    filters = pb.Filters(exclude=["x" * 200] * 400)
    code, _ = code_of(stub.Recommend, pb.RecommendRequest(user_id="u1", k=3, filters=filters))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_other_pages_reach_nothing(web) -> None:
    plain = web.post(RECOMMEND, content=b"{}", headers={"Content-Type": "text/plain"})
    assert plain.status_code == 415
    renamed = web.get("/health", headers={"Host": "evil.example"})
    assert renamed.status_code == 403


def test_health_reflection_and_openapi(process, web) -> None:
    assert web.get("/health").json()["status"] == "serving"
    paths = web.get("/openapi.json").json()["paths"]
    assert set(REQUESTS) <= set(paths)
    with grpc.insecure_channel(process.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "crossrec.v1.Recommender"):
            request = health_pb2.HealthCheckRequest(service=name)
            answer = health.Check(request, timeout=TIMEOUT)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        listed = next(iter(stub.ServerReflectionInfo(asked, timeout=TIMEOUT)))
        names = {service.name for service in listed.list_services_response.service}
    assert "crossrec.v1.Recommender" in names


def test_neither_logs_nor_metrics_name_a_user_or_an_item(process, stub, web, home) -> None:
    secret = "user-of-the-canary"
    stub.Recommend(pb.RecommendRequest(user_id=secret, k=3, allow_unknown=True), timeout=TIMEOUT)
    code_of(stub.Explain, pb.ExplainRequest(user_id=secret, item_id="i1"))
    web.post(RECOMMEND, json={"user_id": secret + "\n", "k": 3})
    text = web.get("/metrics").text
    assert 'crossrec_serving_calls_total{call="Explain",code="not-found",interface="grpc"}' in text
    log = (home / "A" / "serving.log").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in log.splitlines()]
    assert {"Recommend", "Explain"} <= {line.get("event") for line in lines}
    for place in (text, log, process.output):
        assert secret not in place
        assert '"u1"' not in place
        assert "Title" not in place
