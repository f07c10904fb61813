"""What monitoring is told: figures that follow the run, on loopback, and nothing about one platform."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from crossrec_model.errors import FederationError
from server.checkpoint import RoundRecord
from server.metrics import MOST_REASONS, OTHER, Metrics, serving_metrics
from server.progress import Progress

CLOCK = 1_700_000_000.0


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(clock=lambda: CLOCK)


@pytest.fixture
def address(metrics: Metrics) -> Iterator[str]:
    with serving_metrics(metrics, 0) as port:
        yield f"http://127.0.0.1:{port}"


def _record(number: int, seconds: float = 3.0) -> RoundRecord:
    return RoundRecord(
        round=number,
        platforms=("A", "B", "C"),
        seconds=seconds,
        training={"loss": 0.123456},
        evaluation={"ndcg@10": 0.654321},
    )


def _samples(address: str) -> dict[str, float]:
    answer = httpx.get(f"{address}/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        sample.name + "".join(f"|{value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def _health(address: str) -> dict[str, object]:
    answer = httpx.get(f"{address}/health")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    return dict(answer.json())


def test_figures_follow_a_run(metrics: Metrics, address: str) -> None:
    metrics.started(4, 9)
    metrics.waiting(("A", "B"), 3)
    now = _samples(address)
    assert now["crossrec_last_round"] == 4
    assert now["crossrec_planned_rounds"] == 9
    assert now["crossrec_platforms_online"] == 2
    assert now["crossrec_platforms_missing"] == 1
    assert now["crossrec_last_round_timestamp_seconds"] == 0
    metrics.round_started(5, 9, ("A", "B", "C"))
    metrics.round_repeated(3, "too few")
    metrics.left_out("A", "late")
    metrics.left_out("B", "late")
    metrics.round_started(5, 9, ("A", "C"))
    metrics.round_finished(_record(5, seconds=3.0), 9)
    metrics.audited(17)
    now = _samples(address)
    assert now["crossrec_last_round"] == 5
    assert now["crossrec_rounds_finished_total"] == 1
    assert now["crossrec_rounds_repeated_total"] == 1
    assert now["crossrec_platforms_left_out_total"] == 2
    assert now["crossrec_platforms_online"] == 2
    assert now["crossrec_platforms_missing"] == 0
    assert {p: now[f"crossrec_platform_online|{p}"] for p in "ABC"} == {"A": 1, "B": 0, "C": 1}
    assert now["crossrec_round_seconds_sum"] == 3.0
    assert now["crossrec_round_seconds_bucket|2.5"] == 0
    assert now["crossrec_round_seconds_bucket|5.0"] == 1
    assert now["crossrec_last_round_timestamp_seconds"] == CLOCK
    assert now["crossrec_audit_lines"] == 17
    assert now["crossrec_run_active"] == 1
    metrics.ended()
    assert _samples(address)["crossrec_run_active"] == 0


def test_the_process_and_the_version_are_told(address: str) -> None:
    now = _samples(address)
    assert now["process_resident_memory_bytes"] > 0
    assert any(name.startswith("python_info|") for name in now)
    assert any(name.startswith("crossrec_build_info|") for name in now)


def test_health_says_where_the_run_stands(metrics: Metrics, address: str) -> None:
    empty = {"status": "starting", "round": 0, "rounds": 0, "platforms_online": []}
    assert _health(address) == empty | {"waiting_for": 0}
    metrics.started(0, 9)
    metrics.waiting(("B", "A"), 3)
    assert _health(address) == {
        "status": "waiting",
        "round": 0,
        "rounds": 9,
        "platforms_online": ["A", "B"],
        "waiting_for": 1,
    }
    metrics.round_started(1, 9, ("A", "B", "C"))
    assert _health(address)["status"] == "running"
    assert _health(address)["waiting_for"] == 0
    metrics.round_finished(_record(1), 9)
    assert _health(address)["round"] == 1
    metrics.ended()
    assert _health(address)["status"] == "ended"


def test_nothing_is_told_of_one_platform_but_that_it_is_online(
    metrics: Metrics, address: str
) -> None:
    metrics.round_started(1, 9, ("Asta", "Bo"))
    metrics.left_out("A", "late")
    metrics.refused("no-pass")
    metrics.note("platform Asta was left out: 4711")
    metrics.round_finished(_record(1), 9)
    text = httpx.get(f"{address}/metrics").text
    about = [line for line in text.splitlines() if "Asta" in line]
    assert about == ['crossrec_platform_online{platform="Asta"} 1.0']
    # Neither texts nor the cohort's means are figures of the coordinator.
    for hidden in ("4711", "0.123456", "0.654321"):
        assert hidden not in text


def test_strangers_can_not_make_up_labels(metrics: Metrics, address: str) -> None:
    for number in range(1000):
        metrics.refused(f"reason-{number}")
    for odd in ("", "A b", 'x"} 1\ncrossrec_last_round 99', "x" * 10**6):
        metrics.refused(odd)
    metrics.refused("reason-0")
    refusals = {
        name: value
        for name, value in _samples(address).items()
        if name.startswith("crossrec_refusals_total")
    }
    assert len(refusals) == MOST_REASONS + 1
    assert refusals["crossrec_refusals_total|reason-0"] == 2
    assert refusals[f"crossrec_refusals_total|{OTHER}"] == 1004 - MOST_REASONS
    assert sum(refusals.values()) == 1005


def test_two_coordinators_in_one_process_keep_their_figures_apart(metrics: Metrics) -> None:
    other = Metrics()
    other.started(3, 9)
    with serving_metrics(metrics, 0) as one, serving_metrics(other, 0) as two:
        assert _samples(f"http://127.0.0.1:{one}")["crossrec_last_round"] == 0
        assert _samples(f"http://127.0.0.1:{two}")["crossrec_last_round"] == 3


def test_it_hears_what_a_progress_hears(metrics: Metrics) -> None:
    listener: Progress = metrics
    with listener:
        listener.note("x")


@pytest.mark.parametrize("path", ["/", "/metricsx", "/../etc/passwd", "/health/x"])
def test_nothing_else_is_served(address: str, path: str) -> None:
    assert httpx.get(f"{address}{path}").status_code == 404


def test_other_methods_change_nothing(address: str) -> None:
    for method in ("POST", "PUT", "DELETE"):
        assert httpx.request(method, f"{address}/metrics").status_code == 501
    head = httpx.head(f"{address}/health")
    assert (head.status_code, head.content) == (200, b"")
    assert "server" not in head.headers


def test_only_loopback_listens(metrics: Metrics) -> None:
    with serving_metrics(metrics, 0) as port:
        # Free on another loopback address: the port is not taken on all of them.
        with socket.socket() as other:
            other.bind(("127.0.0.2", port))


def test_a_busy_port_is_one_line_and_a_closed_one_is_free(metrics: Metrics) -> None:
    with serving_metrics(metrics, 0) as port:
        with pytest.raises(
            FederationError,
            match=rf"metrics port {port} on 127.0.0.1 can't be used: Address already in use; "
            "give another --metrics-port",
        ):
            serving_metrics(metrics, port).__enter__()
    with serving_metrics(metrics, port) as again:
        assert again == port
    assert not [thread for thread in threading.enumerate() if thread.name == "metrics"]


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_is_none_is_refused(metrics: Metrics, port: int) -> None:
    with pytest.raises(FederationError, match=rf"metrics port {port} is outside"):
        serving_metrics(metrics, port).__enter__()


def test_clients_that_say_nothing_or_nonsense_stop_nobody(
    metrics: Metrics, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    port = int(address.rsplit(":", 1)[1])
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    try:
        for nonsense in (b"\x00\xff\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(nonsense)
                client.recv(4096)
        assert _health(address)["status"] == "starting"
    finally:
        for client in silent:
            client.close()
    assert capsys.readouterr().err == ""


def test_figures_hold_while_threads_change_them(metrics: Metrics, address: str) -> None:
    def work() -> None:
        for number in range(200):
            metrics.refused("no-pass")
            metrics.waiting(("A", "B")[: number % 3], 3)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        json.dumps(_health(address))
        _samples(address)
    for thread in threads:
        thread.join()
    assert _samples(address)["crossrec_refusals_total|no-pass"] == 800
