"""The coordinator and its platforms as real processes, over TLS on loopback."""

from __future__ import annotations

import http.client
import re
import signal
import socket
import ssl
import sys

import numpy as np
import pytest
from counting_platform import make_handler
from process_stage import Process, Stage

from clients.keys import make_identity
from crossrec_model.config import Plan
from crossrec_model.randomness import SystemRandomness
from server.checkpoint import Checkpoint, CheckpointStore
from server.federation import Federation, RunOptions, fresh_start
from server.flower import GridCourier
from server.progress import PlainProgress
from server.tls import make_certificates
from simulations.grid import InProcessGrid
from simulations.plain import PlainSum
from simulations.processes import make_roster

pytestmark = pytest.mark.processes
#: Weights are up to 7 here: a grid made for them rounds finely.
FEDADAM = (
    "[aggregation]\nmax_weight = 16\n"
    '[federation]\noptimizer = "fedadam"\nserver_lr = 0.1\nrounds = 3\nround_timeout_s = 30\n'
)


def _simulated(plan: Plan, platforms: str) -> Checkpoint:
    grid = InProcessGrid({name: make_handler(name, 8) for name in platforms}, at_once=2)
    start = fresh_start(plan, np.zeros(8, dtype=np.float32))
    try:
        courier = GridCourier(grid)
        return Federation(
            courier,
            start,
            RunOptions(platforms=len(platforms)),
            aggregation=PlainSum(courier, plan),
            save=lambda _: None,
            progress=PlainProgress(sys.stderr),
        ).run()
    finally:
        grid.close()


def _assert_close(real: Checkpoint, simulated: Checkpoint) -> None:
    """Equal but for rounding: a coordinate's step is 2^-24 · 16 / 21, a loss's 64 times that."""
    np.testing.assert_allclose(real.parameters, simulated.parameters, atol=1e-5)
    for ours, theirs in zip(real.history, simulated.history, strict=True):
        assert ours.training == pytest.approx(theirs.training, abs=1e-4)
        assert ours.evaluation == pytest.approx(theirs.evaluation, abs=1e-5)


def _final(stage: Stage) -> Checkpoint:
    last = CheckpointStore(stage.state).latest()
    assert last is not None
    return last


def test_a_run_of_three_processes_equals_the_simulation(stage: Stage) -> None:
    path = stage.plan(FEDADAM)
    coordinator = stage.coordinator("--plan", path, "--platforms", 3)
    port = stage.port(coordinator)
    platforms = [stage.platform(name, port) for name in "CAB"]
    assert coordinator.wait() == 0, coordinator.output
    assert [p.wait() for p in platforms] == [0, 0, 0], platforms[0].output
    assert re.search(
        r"round 3/3  loss 0\.\d+  ndcg@10 0\.\d+  platforms A, B, C", coordinator.output
    )
    _assert_close(_final(stage), _simulated(Plan.from_toml(path), "ABC"))
    # Nothing that the libraries said reaches the operator.
    expected = (
        r"coordinator on|waiting for|platform [ABC] joined|keys agreed between A, B, C|"
        r"round \d/3|finished after round 3|warning: no differential privacy"
    )
    assert all(re.match(expected, line) for line in coordinator.output.splitlines())
    assert all(p.output.count("\n") == 0 for p in platforms), [p.output for p in platforms]


def test_a_killed_platform_holds_nobody_up(stage: Stage) -> None:
    path = stage.plan("[federation]\nrounds = 3\nround_timeout_s = 2\n")
    coordinator = stage.coordinator("--plan", path, "--platforms", 4)
    port = stage.port(coordinator)
    platforms = {name: stage.platform(name, port, "--seconds", 0.5) for name in "ABCD"}
    coordinator.expect("round 1/3")
    platforms["B"].send(signal.SIGKILL)
    assert coordinator.wait() == 0, coordinator.output
    assert [platforms[name].wait() for name in "ACD"] == [0, 0, 0]
    # Left out once: after that nobody waits for it again.
    assert coordinator.output.count("platform B was left out") == 1
    assert re.search(r"round 3/3 .* platforms A, C, D ", coordinator.output)


def test_ctrl_c_saves_and_resume_goes_on(stage: Stage) -> None:
    path = stage.plan(FEDADAM.replace("rounds = 3", "rounds = 5"))
    coordinator = stage.coordinator("--plan", path, "--platforms", 3)
    port = stage.port(coordinator)
    platforms = [stage.platform(name, port, "--seconds", 0.3) for name in "ABC"]
    coordinator.expect("round 2/5")
    coordinator.send(signal.SIGINT)
    assert coordinator.wait() == 130, coordinator.output
    assert "--resume" in coordinator.output.splitlines()[-1]
    assert 2 <= _final(stage).round < 5
    platforms[0].expect("the coordinator does not answer .* trying again")
    again = stage.coordinator("--resume", "--platforms", 3, port=port)
    assert again.wait() == 0, again.output
    assert [p.wait() for p in platforms] == [0, 0, 0], platforms[0].output
    _assert_close(_final(stage), _simulated(Plan.from_toml(path), "ABC"))


def test_sigterm_while_waiting_and_ctrl_c_on_a_platform(stage: Stage) -> None:
    coordinator = stage.coordinator("--platforms", 3, "--rounds", 2)
    port = stage.port(coordinator)
    platform = stage.platform("A", port)
    coordinator.expect(r"waiting for platforms: 1 of 3 \(A\)")
    platform.send(signal.SIGINT)
    assert platform.wait(within_s=30) == 130
    assert platform.output.endswith("stopped")
    # The platform said goodbye: its place is free at once, not only after a time-out.
    coordinator.expect(r"waiting for platforms: 0 of 3$", times=2, within_s=5)
    coordinator.send(signal.SIGTERM)
    assert coordinator.wait(within_s=30) == 143
    assert _final(stage).round == 0


def test_an_id_given_twice_is_refused(stage: Stage) -> None:
    coordinator = stage.coordinator("--platforms", 3, "--rounds", 1)
    port = stage.port(coordinator)
    first = stage.platform("A", port)
    coordinator.expect("platform A joined")
    second = stage.platform("A", port)
    assert second.wait(within_s=30) == 2
    assert second.output.splitlines()[-1] == (
        "error: the coordinator refused: platform id A is taken by a platform that is here; "
        "choose another --id"
    )
    others = [stage.platform(name, port) for name in "BC"]
    assert coordinator.wait() == 0, coordinator.output
    assert [first.wait(), *(other.wait() for other in others)] == [0, 0, 0]


def test_only_the_fleet_interface_and_health_answer(stage: Stage) -> None:
    coordinator = stage.coordinator("--platforms", 3, "--rounds", 1)
    port = stage.port(coordinator)
    context = ssl.create_default_context(cafile=stage.tls.ca)

    def status(method: str, path: str, body: bytes | None = None) -> int:
        client = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=10)
        try:
            client.request(method, path, body=body)
            return client.getresponse().status
        finally:
            client.close()

    assert status("GET", "/health") == 200
    assert status("POST", "/v1/fleet/pull-messages", b"") not in {200, 404}
    for path in (
        "/",
        "/docs",
        "/openapi.json",
        "/health/../v1/control/start-run",
        "/v1/control/start-run",
        "/v1/runtime/push-messages",
        "/v1/fleet/get-fab",
        "/v1/fleetx",
        "/v1//fleet/get-fab",
        "/responses",
    ):
        assert status("POST", path) == status("GET", path) == 404, path
    assert status("POST", "/v1/fleet/push-object", b"x" * ((8 << 20) + 1)) == 413
    plain = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    plain.request("GET", "/health")
    with pytest.raises((http.client.HTTPException, OSError)):
        plain.getresponse()
    plain.close()
    platform = stage.platform("A", port, "--insecure")
    assert platform.wait() == 2
    assert "it may expect TLS: give --ca instead of --insecure" in platform.output


def _refused(child: Process, *texts: str) -> None:
    """One clear line, a non-zero exit, no traceback."""
    assert child.wait() == 2, child.output
    errors = [line for line in child.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, child.output
    assert "Traceback" not in child.output
    for text in texts:
        assert text in errors[0]


def test_a_port_in_use_and_a_state_folder_in_use(stage: Stage) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        _refused(stage.coordinator(port=port), f"port {port} on 127.0.0.1 is in use", "--port")
    first = stage.coordinator("--platforms", 3)
    stage.port(first)
    _refused(stage.coordinator(), "is in use by another coordinator", "--state")


def test_a_wrong_ca_ends_at_once(stage: Stage) -> None:
    port = stage.port(stage.coordinator("--platforms", 3))
    wrong = make_certificates(stage.folder / "other", []).ca
    platform = stage.platform("A", port, "--connect-timeout", 60, ca=wrong)
    _refused(platform, f"CA file {wrong} did not sign", "give its own ca.pem as --ca")


def test_a_coordinator_that_is_not_there(stage: Stage) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    platform = stage.platform("A", port, "--connect-timeout", 1)
    _refused(platform, "was not there for 1 s (Connection refused)", "--connect-timeout")
    assert "is not there (Connection refused); trying again" in platform.output


def test_plain_http_works_only_when_both_ask_for_it(stage: Stage) -> None:
    coordinator = stage.coordinator("--platforms", 3, "--rounds", 1, tls=False)
    port = stage.port(coordinator)
    assert "warning: plain HTTP" in coordinator.output
    secure = stage.platform("A", port)
    _refused(secure, "does not speak TLS", "--tls")
    platforms = [stage.platform(name, port, "--insecure") for name in "ABC"]
    assert [p.wait() for p in platforms] == [0, 0, 0]
    assert coordinator.wait() == 0


def test_a_platform_killed_while_training_comes_back_in_the_next_round(stage: Stage) -> None:
    path = stage.plan("[federation]\nrounds = 12\nround_timeout_s = 2\n")
    coordinator = stage.coordinator("--plan", path, "--platforms", 4)
    port = stage.port(coordinator)
    platforms = {name: stage.platform(name, port, "--seconds", 0.4) for name in "ABCD"}
    coordinator.expect("round 1/12")
    platforms["D"].send(signal.SIGKILL)
    coordinator.expect("platform D was left out")
    platforms["D"] = stage.platform("D", port, "--seconds", 0.4)
    coordinator.expect(r"round \d+/12 .* platforms A, B, C, D ", times=2, within_s=100)
    coordinator.expect("keys agreed between A, B, C, D", times=2)
    assert coordinator.wait(within_s=100) == 0, coordinator.output
    assert [platforms[name].wait() for name in "ABCD"] == [0] * 4


def test_too_few_platforms_wait_and_show_nothing(stage: Stage) -> None:
    path = stage.plan("[federation]\nrounds = 3\nround_timeout_s = 2\n")
    coordinator = stage.coordinator("--plan", path, "--platforms", 3, "--wait", 20)
    port = stage.port(coordinator)
    platforms = {name: stage.platform(name, port, "--seconds", 0.5) for name in "ABC"}
    coordinator.expect("round 1/3")
    platforms["B"].send(signal.SIGKILL)
    coordinator.expect(r"round 2 is repeated: too few platforms with a vector: 2 of 4, need 3")
    _refused(coordinator, "2 of 3 platforms came within 20 s (here: A, C)", "--resume")


def test_fewer_than_three_platforms_are_refused(stage: Stage) -> None:
    _refused(stage.coordinator("--platforms", 2), "2 platforms are too few for a secure sum", "3")


def test_a_platform_that_is_not_on_the_roster_is_refused(stage: Stage) -> None:
    coordinator = stage.coordinator("--platforms", 3)
    port = stage.port(coordinator)
    make_roster(stage.platforms, "XYZ")
    stranger = stage.platform("X", port)
    _refused(stranger, "this platform is not, or no longer, on its roster", "admit it")
    # It never got as far as being asked who it is.
    assert "platform X" not in coordinator.output


def test_a_platform_with_another_key_than_the_rosters_is_refused(stage: Stage) -> None:
    coordinator = stage.coordinator("--platforms", 3)
    port = stage.port(coordinator)
    (stage.platforms / "A" / "identity.key").unlink()
    make_identity(stage.platforms / "A", SystemRandomness())
    _refused(stage.platform("A", port), "there with another key")
