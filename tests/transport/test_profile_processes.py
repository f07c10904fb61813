"""Two linked platforms carry profiles through a real coordinator over TLS, as real processes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from linked_platforms import LINKED, link_id, linked_platform
from process_stage import Process, Stage

from clients.linked_store import ReceivedProfiles
from crossrec_model.privacy.ledger import LEDGER, read_history

pytestmark = pytest.mark.processes


def _profiles(stage: Stage, name: str, partner: str, port: int, *more: object) -> Process:
    return stage.start(
        "linking_platform.py",
        *("profiles", "--id", name, "--with", partner, "--state", stage.platforms),
        *("--roster", stage.roster, "--server", f"127.0.0.1:{port}", "--ca", stage.tls.ca),
        *("--period", "2026-11", "--dimension", 4, *more),
    )


def _links_at(folder: Path, sender: str) -> tuple[str, ...]:
    return ReceivedProfiles(folder).batches(1e9)[sender].links


def test_profiles_are_carried_and_an_interruption_costs_nothing(stage: Stage) -> None:
    port = stage.port(stage.coordinator())
    for seed, (name, partner) in enumerate((("A", "B"), ("B", "A"))):
        linked_platform(stage.platforms, name, seed, partner)
    a = _profiles(stage, "A", "B", port)
    a.expect(r"20 profiles of period 2026-11 are released")
    a.expect("waiting for B")
    a.send(signal.SIGKILL)
    a.wait()
    b = _profiles(stage, "B", "A", port)
    a = _profiles(stage, "A", "B", port)
    assert (a.wait(within_s=120), b.wait(within_s=120)) == (0, 0), a.output + b.output
    assert "going on with the interrupted profiles with B" in a.output
    assert "served from the next period on" in b.output
    expected = tuple(link_id(k) for k in range(LINKED))
    for name, partner in (("A", "B"), ("B", "A")):
        folder = stage.platforms / name
        assert _links_at(folder, partner) == expected
        # However often it was started, it was one release.
        assert len(read_history(folder / LEDGER).records) == 1
        assert not (folder / "linkage" / f"{partner}.profiles").exists()
    alone = _profiles(stage, "A", "C", port)
    assert alone.wait() == 2
    assert "no users are linked with C; run first, on both sides" in alone.output
    assert "Traceback" not in alone.output
