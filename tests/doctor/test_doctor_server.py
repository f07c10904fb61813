"""The coordinator's doctor: certificates, roster, plan, port, checkpoints, and the command."""

from __future__ import annotations

import json
import os
import socket
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from doctor_folders import (
    DAY,
    TINY,
    Authority,
    Federation,
    coordinator,
    make_federation,
    now,
    private,
    told,
)

from crossrec_model.checkup import Check, Finding, examine
from crossrec_model.errors import FederationError
from crossrec_model.privacy.planning import private_plan
from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.identity import IdentityKey
from server import doctor
from server.checkpoint import Checkpoint, CheckpointStore, state_folder
from server.checks import papers, place
from server.optimizer import initial_state
from server.tls import TlsFiles

Look = Callable[..., Iterator[Finding]]


@pytest.fixture
def federation(federation: Federation) -> Federation:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return federation.on(free.getsockname()[1])


def _look(check: Look, *arguments: object) -> list[Finding]:
    """As the doctor does: an error of a check is a line."""
    return list(examine([Check("it", lambda: check(*arguments))]).findings)


def _worst(check: Look, *arguments: object) -> tuple[str, str]:
    return told([replace(f, what="it") for f in _look(check, *arguments)], "it")


def _certificates(federation: Federation) -> tuple[str, str]:
    return _worst(papers.certificates, federation.folder, now)


def test_certificates_that_are_well(federation: Federation) -> None:
    texts = [f.found for f in _look(papers.certificates, federation.folder, now)]
    assert texts[-1] == "they belong together and are for 127.0.0.1"
    assert _certificates(federation)[0] == "ok"


@pytest.mark.parametrize(
    ("how", "level", "words"),
    [
        ({"last": now() + 9 * DAY}, "warn", "server.pem expires on"),
        ({"first": now() - 9 * DAY, "last": now() - DAY}, "fail", "server.pem expired on"),
        ({"first": now() + DAY}, "fail", "server.pem is not good before"),
        ({"names": ("shop.example.org",)}, "fail", "server.pem is not for 127.0.0.1"),
    ],
)
def test_a_server_certificate_that_will_not_do(
    federation: Federation, how: dict[str, object], level: str, words: str
) -> None:
    federation.authority.write(federation.folder, **how)
    found = _certificates(federation)
    assert found[0] == level
    assert words in found[1]


def test_an_authority_that_expired(federation: Federation) -> None:
    Authority.make(now() - 9 * DAY, now() - DAY).write(federation.folder)
    level, text = _certificates(federation)
    assert level == "fail"
    assert "ca.pem expired on" in text


@pytest.mark.parametrize(
    ("swapped", "words"),
    [
        ("ca.pem", "server.pem was not issued by ca.pem"),
        ("ca.key", "ca.key is not the key of ca.pem"),
        ("server.key", "server.key is not the key of server.pem"),
    ],
)
def test_files_of_another_authority(
    federation: Federation, tmp_path: Path, swapped: str, words: str
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    Authority.make().write(other)
    (federation.folder / swapped).write_bytes((other / swapped).read_bytes())
    findings = _look(papers.certificates, federation.folder, now)
    assert any(f.level == "fail" and words in f.found for f in findings)
    assert not any("belong together" in f.found for f in findings)


@pytest.mark.parametrize(
    ("name", "level", "words"),
    [
        ("ca.pem", "fail", "ca.pem is missing"),
        ("server.pem", "fail", "server.pem is missing"),
        ("server.key", "fail", "server.key is missing"),
        ("ca.key", "warn", "ca.key is not here"),
    ],
)
def test_a_missing_or_damaged_file(
    federation: Federation, name: str, level: str, words: str
) -> None:
    (federation.folder / name).write_bytes(b"nothing")
    assert _certificates(federation)[0] == "fail"
    (federation.folder / name).unlink()
    found = _certificates(federation)
    assert found[0] == level
    assert words in found[1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[coordinator]\nname = "demo"\n', "coordinator.host is missing"),
        ('[coordinator]\nname = "demo"\nhost = ""\n', "coordinator.host = '' is no name"),
        ('[coordinator]\nname = "demo"\nhost = "h"\nport = 70000\n', "port = 70000 is outside 1"),
        ('[coordinator]\nname = "demo"\nhost = "h"\nport = true\n', "port = True is unknown or of"),
        ("name =", "is no TOML"),
        (None, "does not exist; make the federation with: python -m server init"),
    ],
)
def test_settings(federation: Federation, text: str | None, words: str) -> None:
    path = federation.folder / "federation.toml"
    assert _worst(papers.settings, federation.folder)[0] == "ok"
    path.unlink()
    if text is not None:
        path.write_text(text, encoding="utf-8")
    level, found = _worst(papers.settings, federation.folder)
    assert level == "fail"
    assert words in found
    # What needs them says so.
    assert "mend the line settings first" in _certificates(federation)[1]
    assert "mend the line settings first" in _worst(place.port, federation.folder)[1]


def test_roster(federation: Federation, tmp_path: Path) -> None:
    level, text = _worst(papers.roster, federation.folder)
    assert level == "ok"
    assert text.startswith("version 1 of demo: A, B, C, D; 1 of 4 may be missing")
    three = tmp_path / "three"
    three.mkdir()
    level, text = _worst(papers.roster, make_federation(three, "ABC", TINY).folder)
    assert level == "warn"
    assert "0 of 3 may be missing; python -m server admit another platform" in text
    two = tmp_path / "two"
    two.mkdir()
    level, text = _worst(papers.roster, make_federation(two, "AB", TINY, allow_two=True).folder)
    assert level == "warn"
    assert "two platforms alone" in text


def test_a_roster_that_waits_for_platforms(federation: Federation) -> None:
    (federation.folder / "roster.json").unlink()
    (federation.folder / "pending").mkdir()
    (federation.folder / "pending" / "A.join").touch()
    level, text = _worst(papers.roster, federation.folder)
    assert level == "fail"
    assert "there is no roster yet, 1 join requests of 3 are here" in text
    assert "mend the line roster first" in _worst(papers.plan, federation.folder)[1]


def test_a_signing_key_that_is_another_or_open(federation: Federation) -> None:
    key = federation.folder / "roster.key"
    key.write_bytes(IdentityKey.generate(SystemRandomness()).to_pem())
    level, text = _worst(papers.roster, federation.folder)
    assert level == "fail"
    assert "roster.json is signed by" in text
    key.chmod(0o644)
    assert "is open to others (mode 0644)" in _worst(papers.roster, federation.folder)[1]
    assert _worst(place.files, federation.folder)[0] == "fail"
    key.unlink()
    assert (
        "restore it, since platforms trust no other" in _worst(papers.roster, federation.folder)[1]
    )


def test_a_roster_that_is_damaged_or_of_another_federation(federation: Federation) -> None:
    federation.set(name="other")
    assert (
        "the roster is of demo, federation.toml names other"
        in _worst(papers.roster, federation.folder)[1]
    )
    path = federation.folder / "roster.json"
    path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":2'))
    assert _worst(papers.roster, federation.folder)[0] == "fail"


def test_plan(federation: Federation) -> None:
    level, text = _worst(papers.plan, federation.folder)
    assert level == "ok"
    assert "version 1: 4 rounds, local noise, costs a user epsilon 7.99 at 1e-05" in text
    federation.give(TINY, version=2)
    assert _worst(papers.plan, federation.folder)[0] == "warn"
    less = private()
    federation.give(replace(less, privacy=replace(less.privacy, epsilon=4.0)))
    level, text = _worst(papers.plan, federation.folder)
    assert level == "fail"
    assert "more than the 4 it says" in text
    federation.give(replace(TINY, federation=replace(TINY.federation, min_platforms=5)))
    assert "waits for 5 platforms, the roster has 4" in _worst(papers.plan, federation.folder)[1]
    federation.give(replace(TINY, federation=replace(TINY.federation, rounds=2)))
    assert "at least 3 are needed" in _worst(papers.plan, federation.folder)[1]


def test_settings_that_ask_for_another_plan(federation: Federation) -> None:
    path = federation.folder / "federation.toml"
    path.write_text(path.read_text("utf-8").replace("rounds = 4", "rounds = 5"), "utf-8")
    level, text = _worst(papers.plan, federation.folder)
    assert level == "fail"
    assert "asks for another plan than the signed version 1; sign it: python -m server plan" in text


def test_distributed_noise_is_priced_too(federation: Federation) -> None:
    plan = replace(TINY, privacy=replace(TINY.privacy, rate=1.0, steps=1))
    noised = private_plan(plan, noise="distributed", epsilon=8.0, delta=1e-5, honest=2)
    federation.give(noised)
    level, text = _worst(papers.plan, federation.folder)
    assert level == "ok"
    assert "distributed noise, costs a user epsilon" in text
    federation.give(replace(noised, privacy=replace(noised.privacy, multiplier=0.5)))
    assert _worst(papers.plan, federation.folder)[0] == "fail"


def test_a_plan_that_can_not_be_trusted(federation: Federation) -> None:
    path = federation.folder / "plan.json"
    path.write_bytes(path.read_bytes().replace(b'rounds\\":4', b'rounds\\":5'))
    assert "can't be trusted" in _worst(papers.plan, federation.folder)[1]
    path.write_bytes(federation.sign(TINY, federation="other"))
    assert "it is of other, the roster of demo" in _worst(papers.plan, federation.folder)[1]
    path.unlink()
    assert _worst(papers.plan, federation.folder)[0] == "fail"


def test_a_port_that_is_free_or_held(federation: Federation, tmp_path: Path) -> None:
    findings = _look(place.port, federation.folder)
    assert told(findings, "port") == ("ok", f"{federation.port} is free; ")
    assert told(findings, "address")[0] == "ok"
    with coordinator(federation.tls) as port:
        assert _worst(place.port, federation.on(port).folder)[0] == "ok"
        assert (
            "held by our own coordinator" in told(_look(place.port, federation.folder), "port")[1]
        )
        # It shows what it was started with until it is started again.
        federation.authority.write(federation.folder)
        level, text = _worst(place.port, federation.folder)
        assert level == "warn"
        assert "start the coordinator again" in text
    other = tmp_path / "other"
    other.mkdir()
    for tls in (Authority.make().write(other), None):
        with coordinator(tls) as port:
            level, text = _worst(place.port, federation.on(port).folder)
            assert level == "fail"
            assert "is held by something else than our coordinator; stop what holds it" in text


def test_a_port_that_may_not_be_used_and_a_host_that_nobody_knows(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(_number: int) -> None:
        raise PermissionError(13, "Permission denied")

    def unknown(*_arguments: object, **_named: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(place, "_bind", forbidden)
    level, text = _worst(place.port, federation.folder)
    assert level == "fail"
    assert "can't be used (Permission denied); give one above 1023" in text
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert told(_look(place.port, federation.folder), "address")[0] == "warn"


def _save(federation: Federation, number: int = 2) -> Path:
    size = 5
    checkpoint = Checkpoint(
        run=bytes(16),
        plan=TINY,
        round=number,
        parameters=np.zeros(size, np.float32),
        optimizer=initial_state(TINY.federation, size),
        history=(),
    )
    return CheckpointStore(federation.folder / "state").save(checkpoint)


def test_checkpoints(federation: Federation) -> None:
    assert _worst(place.checkpoints, federation.folder)[0] == "ok"
    # Looking makes no folder.
    assert not (federation.folder / "state").exists()
    path = _save(federation)
    assert "round 2 of 4 is whole" in _worst(place.checkpoints, federation.folder)[1]
    tensors = path.with_suffix(".safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"x")
    level, text = _worst(place.checkpoints, federation.folder)
    assert level == "fail"
    assert "is damaged" in text
    assert "remove it to resume from the one before it" in text


def test_room_for_the_next_checkpoints(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    slack = 64 << 20
    path = _save(federation)
    one = path.stat().st_size + path.with_suffix(".safetensors").stat().st_size
    needed = 4 * one + slack
    for left, level in ((needed - 1, "fail"), (needed, "warn"), (5 * needed, "ok")):
        monkeypatch.setattr("crossrec_model.checkup_machine._existing", lambda path: path)
        usage = types.SimpleNamespace(free=left)
        monkeypatch.setattr("shutil.disk_usage", lambda _path, usage=usage: usage)
        assert _worst(place.room, federation.folder)[0] == level


def test_room_before_the_first_checkpoint_goes_by_the_plan(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = types.SimpleNamespace(free=65 << 20)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage)
    assert _worst(place.room, federation.folder)[0] == "warn"
    large = replace(TINY.model, buckets=2**20, dimension=64, tower=(128, 1))
    federation.give(replace(TINY, model=large))
    assert _worst(place.room, federation.folder)[0] == "fail"


def test_a_clock_that_went_back(federation: Federation) -> None:
    assert _worst(place.clock, federation.folder, now)[0] == "ok"
    path = _save(federation)
    assert _worst(place.clock, federation.folder, now)[0] == "ok"
    late = (now() + timedelta(hours=1)).timestamp()
    os.utime(path, (late, late))
    level, text = _worst(place.clock, federation.folder, now)
    assert level == "warn"
    assert "s in its future; set the clock" in text

    def back() -> datetime:
        return now() - 30 * DAY

    level, text = _worst(place.clock, federation.folder, back)
    assert level == "fail"
    assert "ca.pem was made later" in text


def test_a_running_coordinator_is_noted(federation: Federation) -> None:
    with state_folder(federation.folder / "state"):
        findings = _look(place.files, federation.folder)
    assert {f.level for f in findings} == {"ok"}
    assert findings[-1].found == "a coordinator runs on it now"


def test_records_of_modules_that_are_not_there_have_no_line(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _look(place.records, "audit", federation.folder, "server.not_there") == []
    # One that offers no check.
    assert _look(place.records, "audit", federation.folder, "server.rosters") == []
    module = types.ModuleType("server.kept")
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "server.kept", module)
    module.checkup = lambda folder: f"12 lines in {folder.name}"  # type: ignore[attr-defined]
    (finding,) = _look(place.records, "audit", federation.folder, "server.kept")
    assert (finding.level, finding.found) == ("ok", "12 lines in federation")

    def broken(_folder: Path) -> str:
        raise FederationError("line 3 was changed; restore the log")

    module.checkup = broken  # type: ignore[attr-defined]
    assert _worst(place.records, "audit", federation.folder, "server.kept") == (
        "fail",
        "line 3 was changed; restore the log",
    )


def _run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int, **named: object) -> str:
    assert doctor.main(arguments, **named) == code  # type: ignore[arg-type]
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err
    return shown.err if code == 2 else shown.out


def test_the_command(federation: Federation, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--federation", str(federation.folder))
    before = {p: p.stat().st_mtime_ns for p in federation.folder.rglob("*")}
    text = _run(capsys, *where, code=0)
    document = json.loads(_run(capsys, *where, "--json", code=0))
    assert before == {p: p.stat().st_mtime_ns for p in federation.folder.rglob("*")}
    assert text.splitlines()[-1].endswith("ok, 0 warn, 0 fail")
    assert {f["what"] for f in document["findings"]} >= {
        *("libraries", "folder", "settings", "certificates", "roster", "plan"),
        *("address", "port", "checkpoints", "disk", "clock"),
    }
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    assert all(f"| {f['what']} |" in page for f in document["findings"])
    federation.folder.chmod(0o755)
    text = _run(capsys, *where, code=1)
    assert "fail  folder" in text
    assert "chmod 700 it" in text
    federation.folder.chmod(0o700)
    text = _run(capsys, *where, code=1, now=lambda: now() - 30 * DAY)
    assert "fail  clock" in text


def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = _run(capsys, "--federation", str(tmp_path / "none"), code=1)
    assert "does not exist; make it: python -m server init --out" in text
    assert "fail" not in text.replace("fail  folder", "").replace("1 fail", "")
    # An empty one is many failures and nothing worse.
    (tmp_path / "empty").mkdir(mode=0o700)
    text = _run(capsys, "--federation", str(tmp_path / "empty"), code=1)
    assert "broke" not in text


def test_a_mistake_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    line = _run(capsys, "--unknown", code=2)
    assert line == (
        "error: unrecognized arguments: --unknown; see python -m server doctor --help\n"
    )


def test_no_private_key_is_ever_shown(
    federation: Federation, capsys: pytest.CaptureFixture[str]
) -> None:
    tls = TlsFiles.in_folder(federation.folder)
    secrets = [
        p.read_text("utf-8").splitlines()[1] for p in (tls.key, federation.folder / "roster.key")
    ]
    tls.key.write_bytes(tls.key.read_bytes()[:-40])
    text = _run(capsys, "--federation", str(federation.folder), code=1)
    assert not any(secret in text for secret in secrets)
