"""From an empty folder to a finished run with the commands of both operators, as real processes."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from process_stage import Process

from clients.platform import main as platform_main
from crossrec_model.secagg.invitation import Invitation
from server.__main__ import main as coordinator_main

pytestmark = pytest.mark.processes
PLAN = "[aggregation]\nmax_weight = 16\n[federation]\nrounds = 3\nround_timeout_s = 30\n"


class Folders:
    """A coordinator's and some platforms' folders, and the processes started from them."""

    def __init__(self, home: Path) -> None:
        self.home, self.federation, self.state = home, home / "federation", home / "platforms"
        self.children: list[Process] = []
        (home / "plan.toml").write_text(PLAN, encoding="utf-8")

    def operator(self, *words: object) -> None:
        assert coordinator_main([str(word) for word in words]) == 0

    def request(self, name: str) -> Path:
        path = self.home / f"{name}.join"
        words = ("init", "--id", name, "--state", self.state, "--out", path)
        assert platform_main([str(word) for word in words]) == 0
        return path

    def start(self, script: str, *words: object) -> Process:
        child = Process(script, *words)
        self.children.append(child)
        return child

    def coordinator(self, *words: object) -> tuple[Process, int]:
        child = self.start(
            "small_coordinator.py", "--federation", self.federation, "--port", 0, *words
        )
        return child, int(child.expect(r"coordinator on https://127.0.0.1:(\d+)").group(1))

    def platform(self, name: str, port: int) -> Process:
        roster = self.federation / "roster.json"
        return self.start(
            "counting_platform.py",
            *("--id", name, "--address", f"127.0.0.1:{port}", "--state", self.state),
            *("--roster", roster, "--ca", self.federation / "ca.pem"),
        )

    def audit(self) -> list[dict[str, str]]:
        lines = (self.federation / "audit.jsonl").read_text("utf-8").splitlines()
        return [{"event": x["event"], **x["fields"]} for x in map(json.loads, lines)]


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Folders]:
    made = Folders(tmp_path)
    try:
        yield made
    finally:
        for child in made.children:
            child.end()


def test_from_empty_folders_to_a_finished_run(folders: Folders, capsys) -> None:
    plan = folders.home / "plan.toml"
    init = ("init", "--out", folders.federation, "--name", "demo", "--host", "127.0.0.1")
    folders.operator(*init, "--plan", plan, "--noise", "none")
    requests = [folders.request(name) for name in "ABCD"]
    folders.operator("admit", "--federation", folders.federation, *requests)
    assert "platforms must accept this with --no-privacy" in capsys.readouterr().out
    path = folders.federation / "invitations" / "A.invitation"
    assert Invitation.from_json(path.read_bytes()).roster.platforms == ("A", "B", "C", "D")

    coordinator, port = folders.coordinator()
    coordinator.expect(r"waiting for platforms: 0 of 3")
    folders.operator("expel", "--federation", folders.federation, "D")
    expelled = folders.platform("D", port)
    assert expelled.wait() == 2
    assert "this platform is not, or no longer, on its roster" in expelled.output
    refused = [entry for entry in folders.audit() if entry["event"] == "refused"]
    assert [(e["reason"], e["platform"], e["address"]) for e in refused][:1] == [
        ("not-on-roster", "D", "127.0.0.1")
    ]
    coordinator.send(signal.SIGTERM)
    assert coordinator.wait() == 143
    assert coordinator.output.endswith("stopped; the state is saved: start it again to go on")

    coordinator, port = folders.coordinator()
    platforms = [folders.platform(name, port) for name in "ABC"]
    assert coordinator.wait() == 0, coordinator.output
    assert [platform.wait() for platform in platforms] == [0, 0, 0]
    assert re.search(r"round 3/3 .* A, B, C", coordinator.output)
    again = folders.start("small_coordinator.py", "--federation", folders.federation)
    assert again.wait() == 2
    assert "is finished after 3 rounds; begin another" in again.output
    coordinator, port = folders.coordinator("--new-run")
    coordinator.expect(r"waiting for platforms: 0 of 3")
    assert len(list((folders.federation / "state").glob("checkpoints-*"))) == 1
