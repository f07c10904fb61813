"""The coordinator's command line: every mistake is one clear line and a non-zero exit."""

from __future__ import annotations

from pathlib import Path

import pytest

from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.identity import Card, IdentityKey
from server.__main__ import main
from server.rosters import list_platforms
from server.tls import make_certificates
from simulations.processes import make_roster


@pytest.fixture(scope="module")
def roster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_roster(tmp_path_factory.mktemp("federation"), "ABC")


def _error(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(a) for a in arguments]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    return shown.err


def test_without_tls_the_command_that_makes_it_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = _error(capsys, "--state", tmp_path)
    assert "--tls is missing" in line
    assert "python -m server certificates --out tls --host NAME" in line
    line = _error(capsys, "--state", tmp_path, "--tls", tmp_path / "none")
    assert "ca.pem is missing" in line


def test_certificates_are_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tls"
    assert main(["certificates", "--out", str(out), "--host", "shop.example.org"]) == 0
    assert f"give every platform {out / 'ca.pem'}" in capsys.readouterr().out
    assert "exists already" in _error(capsys, "certificates", "--out", out)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[federation]\nrounds = 0\n", "federation.rounds = 0"),
        ("[federation]\nround = 3\n", "federation.round is unknown"),
        ("rounds =", "can't be read"),
    ],
)
def test_a_bad_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], roster: Path, text: str, reason: str
) -> None:
    make_certificates(tmp_path / "tls", [])
    plan = tmp_path / "plan.toml"
    plan.write_text(text, encoding="utf-8")
    common = ("--state", tmp_path / "state", "--tls", tmp_path / "tls", "--roster", roster)
    assert reason in _error(capsys, *common, "--plan", plan)
    assert "does not exist" in _error(capsys, *common, "--plan", tmp_path / "none.toml")
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (("--rounds", "0"), "federation.rounds = 0"),
        (("--rounds", "2"), "the plan has 2 rounds, at least 3 are needed"),
        (("--rounds", "many"), "argument --rounds: invalid int value: 'many'; see"),
        (("--colour", "red"), "unrecognized arguments: --colour red"),
        (("--host", "shop..example"), "on shop..example can't be used"),
        (("--platforms", "0"), "platforms is 0; at least 1"),
        (("--platforms", "2"), "2 platforms are too few for a secure sum, which needs 3"),
        (("--roster", "/nowhere/roster.json"), "roster /nowhere/roster.json does not exist"),
        (("--wait", "-1"), "wait_s is -1.0"),
        (("--resume",), "no run to resume"),
        (("--port", "70000"), "port 70000 on 127.0.0.1 can't be used"),
        (("--host", "192.0.2.1"), "on 192.0.2.1 can't be used"),
        (("--epsilon", "0"), "epsilon"),
        (("--delta", "2"), "delta"),
        (("--noise", "much"), "invalid choice: 'much'"),
    ],
)
def test_options_that_can_not_work(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    roster: Path,
    extra: tuple[str, ...],
    reason: str,
) -> None:
    make_certificates(tmp_path / "tls", [])
    common = ("--state", tmp_path / "state", "--tls", tmp_path / "tls", "--port", 0)
    common += ("--roster", roster)
    assert reason in _error(capsys, *common, *extra)


def test_without_a_roster_the_command_that_makes_it_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = _error(capsys, "--state", tmp_path / "state", "--insecure")
    assert "--roster is missing" in line
    assert "python -m server roster --out federation --name NAME CARD" in line


def test_secure_aggregation_can_not_be_switched_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], roster: Path
) -> None:
    common = ("--state", tmp_path / "state", "--insecure", "--roster", roster)
    assert "unrecognized arguments" in _error(capsys, *common, "--no-secure-aggregation")
    plan = tmp_path / "plan.toml"
    for key in ("secure", "enabled", "off"):
        plan.write_text(f"[aggregation]\n{key} = false\n", encoding="utf-8")
        assert f"aggregation.{key} is unknown" in _error(capsys, *common, "--plan", plan)


def test_a_state_folder_that_is_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], roster: Path
) -> None:
    make_certificates(tmp_path / "tls", [])
    (tmp_path / "state").write_text("", encoding="utf-8")
    common = ("--tls", tmp_path / "tls", "--roster", roster)
    line = _error(capsys, "--state", tmp_path / "state", *common)
    assert "state folder" in line
    assert "give another --state" in line


def test_two_platforms_are_refused_without_privacy_or_without_asking(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cards = [tmp_path / f"{name}.platform" for name in "AB"]
    for path in cards:
        key = IdentityKey.generate(SystemRandomness())
        path.write_bytes(Card.of(path.stem, key).to_json())
    list_platforms(tmp_path / "two", federation="two", cards=cards, expel=(), allow_two=True)
    roster = tmp_path / "two" / "roster.json"
    common = ("--state", tmp_path / "state", "--insecure", "--roster", roster)
    assert "add --allow-two" in _error(capsys, *common)
    line = _error(capsys, *common, "--allow-two", "--no-privacy")
    assert "only the noise of differential privacy protects the users" in line
    assert not (tmp_path / "state" / "checkpoints").exists()


def test_a_plan_with_noise_and_no_privacy_contradict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], roster: Path
) -> None:
    plan = tmp_path / "plan.toml"
    noise = 'noise = "local"\nmultiplier = 1.0\nstatistics_multiplier = 1.0\n'
    plan.write_text(f"[privacy]\n{noise}", encoding="utf-8")
    common = ("--state", tmp_path / "state", "--insecure", "--roster", roster)
    line = _error(capsys, *common, "--plan", plan, "--no-privacy")
    assert "the plan has noise and --no-privacy is given" in line
