"""How much memory a long frame takes on both sides, in processes of their own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from process_stage import Process, Stage

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(
        not Path("/proc/self/clear_refs").exists(), reason="Linux tells a process its peak memory"
    ),
]


def _figures(child: Process) -> list[dict[str, float]]:
    return [json.loads(line) for line in child.output.splitlines() if line.startswith("{")]


def _exchange(
    stage: Stage, mebibytes: int
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Return the coordinator's figures and the platform's, for a short request and a long one."""
    folder = stage.tls.ca.parent
    coordinator = stage.start("bulky_exchange.py", "coordinator", folder, mebibytes)
    port = coordinator.expect(r"^(\d+)$").group(1)
    platform = stage.start(
        "bulky_exchange.py", "platform", f"127.0.0.1:{port}", mebibytes, stage.tls.ca
    )
    assert coordinator.wait(within_s=200) == 0, coordinator.output
    assert platform.wait() == 0, platform.output
    # The platform's first figure is of its start.
    return _figures(coordinator), _figures(platform)[1:]


@pytest.mark.parametrize("mebibytes", [64, pytest.param(400, marks=pytest.mark.slow)])
def test_a_long_frame_is_held_once_a_side(stage: Stage, mebibytes: int) -> None:
    (short, long), (reply, both) = _exchange(stage, mebibytes)
    print(f"{mebibytes} MiB: coordinator {short} {long}, platform {reply} {both}", file=sys.stderr)
    assert min(short["arrived"], long["arrived"]) > mebibytes << 20
    # A platform's reply is sent out of its own buffer, piece by piece.
    assert reply["peak"] < 0.1 * mebibytes + 30
    # A request is held once, and let go before the reply is sent; looking for NaN takes a quarter.
    assert both["peak"] < 1.3 * mebibytes + 40
    # The coordinator holds the arriving reply once, and the request once while nodes need it.
    assert short["peak"] < 1.25 * mebibytes + 100
    assert long["peak"] < 1.25 * mebibytes + 100
    # Nothing stays in the link, or in memory beyond what the allocator keeps for later.
    assert short["stored"] == long["stored"] == 0
    assert max(short["left"], long["left"]) < 0.2 * mebibytes + 100
