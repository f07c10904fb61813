"""Founding a federation, admitting and expelling platforms, signing plans, from the command line."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from crossrec_model.privacy.planning import run_events
from crossrec_model.privacy.pricing import epsilon
from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.identity import Card, IdentityKey
from crossrec_model.secagg.invitation import Invitation
from server.__main__ import main
from server.folder import FederationFolder, Settings
from server.setup import federation_setup
from server.tls import TlsFiles

PLAN = "[model]\nbuckets = 64\ndimension = 4\ntower = [8, 1]\nsketch_width = 64\n[federation]\nrounds = 4\n"


class Operator:
    """Runs commands in a folder of its own."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self._capsys = home, capsys
        self.path = home / "federation"
        self.folder = FederationFolder(self.path)

    def run(self, *words: object, code: int = 0) -> str:
        assert main([str(word) for word in words]) == code
        shown = self._capsys.readouterr()
        if code:
            assert shown.err.startswith("error: ")
            assert shown.err.count("\n") == 1
            return shown.err
        return shown.out

    def init(self, *more: object) -> str:
        (self.home / "plan.toml").write_text(PLAN, encoding="utf-8")
        plan = ("--plan", self.home / "plan.toml")
        words = ("init", "--out", self.path, "--name", "north", "--host", "127.0.0.1")
        return self.run(*words, *plan, *more)

    def request(self, name: str) -> Path:
        path = self.home / f"{name}.join"
        key = IdentityKey.generate(SystemRandomness())
        path.write_bytes(Card.of(name, key).to_json())
        return path

    def admit(self, names: str, *more: object) -> str:
        requests = [self.request(name) for name in names]
        return self.run("admit", "--federation", self.path, *requests, *more)

    def invitation(self, name: str) -> Invitation:
        path = self.path / "invitations" / f"{name}.invitation"
        return Invitation.from_json(path.read_bytes())

    def events(self) -> list[tuple[str, str]]:
        lines = (self.path / "audit.jsonl").read_text("utf-8").splitlines()
        found = [json.loads(line) for line in lines]
        return [(line["event"], line["fields"]["subject"]) for line in found]


@pytest.fixture
def operator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Operator:
    return Operator(tmp_path, capsys)


def test_a_federation_is_founded_with_all_that_it_needs(operator: Operator) -> None:
    shown = operator.init("--port", 1234)
    assert "platforms will connect to 127.0.0.1:1234" in shown
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in operator.path.iterdir()
        if path.suffix in {".key", ".toml"}
    }
    assert modes == dict.fromkeys(("ca.key", "server.key", "roster.key", "federation.toml"), 0o600)
    assert stat.S_IMODE(operator.path.stat().st_mode) == 0o700
    settings = operator.folder.settings()
    assert (settings.name, settings.port, settings.plan.federation.rounds) == ("north", 1234, 4)
    assert Settings.from_toml(settings.to_toml()) == settings
    TlsFiles.in_folder(operator.path).check()
    line = operator.run("init", "--out", operator.path, "--name", "x", "--host", "h", code=2)
    assert "holds a federation already" in line


def test_a_roster_is_signed_when_there_are_three(operator: Operator) -> None:
    operator.init()
    shown = operator.admit("A")
    assert "noted: A; a roster needs 3 platforms, 2 more must come" in shown
    assert operator.folder.roster() is None
    shown = operator.admit("BC")
    assert "roster of north, version 1: new" in shown
    assert "plan version 1: signed; epsilon 8 at delta 1e-05, local noise" in shown
    notice = operator.folder.notice()
    assert notice.roster.roster.platforms == ("A", "B", "C")
    assert notice.plan.plan.privacy.on
    for name in "ABC":
        invitation = operator.invitation(name)
        assert (invitation.platform, invitation.address) == (name, "127.0.0.1:9092")
        assert invitation.ca == operator.folder.tls.ca.read_text("ascii")
        assert invitation.notice == notice
    assert list((operator.path / "pending").iterdir()) == []
    assert operator.events() == [("admitted", "A"), ("admitted", "B"), ("admitted", "C")]


def test_later_ones_come_and_go_and_the_plan_stays(operator: Operator) -> None:
    operator.init()
    operator.admit("ABC")
    shown = operator.admit("D")
    assert "version 2: added D" in shown
    assert "plan version 1: unchanged" in shown
    assert operator.invitation("A").roster.version == 2
    shown = operator.run("expel", "--federation", operator.path, "D")
    assert "version 3: removed D" in shown
    assert not (operator.path / "invitations" / "D.invitation").exists()
    line = operator.run("expel", "--federation", operator.path, "D", code=2)
    assert "platform D is not on the roster" in line
    line = operator.run("expel", "--federation", operator.path, "A", code=2)
    assert "a roster of 2 platforms is refused" in line
    assert operator.folder.notice().roster.roster.version == 3
    assert operator.events()[-2:] == [("admitted", "D"), ("expelled", "D")]


def test_who_was_expelled_does_not_come_back_by_a_request_that_was_left(
    operator: Operator,
) -> None:
    operator.init()
    operator.admit("ABCD")
    # As after a crash between the signed roster and the end of `admit`.
    left = operator.path / "pending" / "D.join"
    left.write_bytes((operator.home / "D.join").read_bytes())
    operator.run("expel", "--federation", operator.path, "D")
    assert not left.exists()
    operator.admit("E")
    assert operator.folder.notice().roster.roster.platforms == ("A", "B", "C", "E")


def test_two_requests_under_one_id_are_told_apart(operator: Operator) -> None:
    operator.init()
    first = operator.request("A")
    shown = operator.run("admit", "--federation", operator.path, first)
    card = Card.from_json(first.read_bytes())
    assert card.member.public.fingerprint in shown
    before = first.read_bytes()
    # Somebody else's under the same id, by itself and beside the first.
    line = operator.run("admit", "--federation", operator.path, operator.request("A"), code=2)
    assert "another key for platform A" in line
    assert "pending/A.join" in line
    assert (operator.path / "pending" / "A.join").read_bytes() == before
    (operator.home / "one.join").write_bytes(before)
    operator.request("A")
    (operator.path / "pending" / "A.join").unlink()
    both = (operator.home / "one.join", operator.home / "A.join")
    line = operator.run("admit", "--federation", operator.path, *both, code=2)
    assert "another key for platform A" in line
    assert list((operator.path / "pending").iterdir()) == []


@pytest.mark.parametrize("name", ["a/b", " north", "n\u00f6rd", "x" * 65])
def test_a_name_that_no_roster_can_carry_is_told_at_once(operator: Operator, name: str) -> None:
    words = ("init", "--out", operator.path, "--name", name, "--host", "127.0.0.1")
    assert "federation name" in operator.run(*words, code=2)
    assert not operator.path.exists()


def test_a_host_that_no_invitation_can_carry_is_told_at_once(operator: Operator) -> None:
    for host in ("b\u00fccher.example", "a b", "x\x1b[8m"):
        words = ("init", "--out", operator.path, "--name", "north", "--host", host)
        assert "coordinator.host" in operator.run(*words, code=2)
        assert not operator.path.exists()


def test_with_distributed_noise_the_plan_holds_for_more_platforms_too(operator: Operator) -> None:
    operator.init("--noise", "distributed")
    operator.admit("ABC")
    before = operator.folder.notice()
    # The whole noise is the plan's, each platform's share of it follows from the roster.
    assert "plan version 1: unchanged" in operator.admit("DEFG")
    after = operator.folder.notice()
    assert after.plan == before.plan
    shares = [notice.roster.roster.honest() for notice in (before, after)]
    assert shares == [2, 3]
    for honest in shares:
        assert epsilon(run_events(after.plan.plan, honest), 1e-5) <= 8.0


def test_another_plan_is_signed_on_command_and_only_then_run(operator: Operator) -> None:
    operator.init()
    operator.admit("ABC")
    path = operator.path / "federation.toml"
    text = path.read_text("utf-8").replace("rounds = 4", "rounds = 6")
    path.write_text(text, encoding="utf-8")
    line = operator.run("--federation", operator.path, code=2)
    assert "asks for another plan than the signed version 1" in line
    assert "python -m server plan --federation" in line
    assert "plan version 2: signed" in operator.run("plan", "--federation", operator.path)
    assert operator.folder.notice().plan.plan.federation.rounds == 6
    assert "plan version 2: unchanged" in operator.run("plan", "--federation", operator.path)


def test_two_platforms_are_admitted_when_asked_for_and_never_without_noise(
    operator: Operator,
) -> None:
    operator.init()
    assert "a roster needs 3" in operator.admit("AB")
    again = operator.home / "A.join"
    shown = operator.run("admit", "--federation", operator.path, again, "--allow-two")
    assert "warning: two platforms alone" in shown
    path = operator.path / "federation.toml"
    path.write_text(path.read_text("utf-8").replace('noise = "local"', 'noise = "none"'), "utf-8")
    line = operator.run("plan", "--federation", operator.path, code=2)
    assert "only the noise of differential privacy protects the users" in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "plan key 'x' is unknown"),
        ("[coordinator", "is no TOML"),
        ('[coordinator]\nname = "n"', "coordinator.host is missing"),
        ('[coordinator]\nname = "n"\nhost = "h"\nprot = 1', "prot = 1 is unknown"),
        (
            '[coordinator]\nname = "n"\nhost = "h"\nport = "1"',
            "port = '1' is unknown or of another",
        ),
        ('[coordinator]\nname = "n"\nhost = "h"\nport = 0', "port = 0 is outside"),
        ('[coordinator]\nname = "n"\nhost = "a b"', "no name or address"),
        ('[coordinator]\nname = "n"\nhost = "h"\nepsilon = 1.0', "epsilon = 1.0 is unknown"),
        ('[coordinator]\nname = "n"\nhost = "h"\n[privacy]\nmultiplier = 1.0', "is worked out"),
        ('[coordinator]\nname = "n"\nhost = "h"\n[privacy]\nnoise = "loud"', "choose local"),
        ("coordinator = 1", "must be tables"),
    ],
)
def test_mistakes_in_federation_toml(operator: Operator, text: str, said: str) -> None:
    operator.init()
    (operator.path / "federation.toml").write_text(text, encoding="utf-8")
    line = operator.run("admit", "--federation", operator.path, operator.request("A"), code=2)
    assert said in line


def test_what_is_missing_is_said_with_the_command_that_makes_it(operator: Operator) -> None:
    line = operator.run("--federation", operator.path, code=2)
    assert "python -m server init --out" in line
    operator.init()
    line = operator.run("--federation", operator.path, code=2)
    assert "python -m server admit --federation" in line
    line = operator.run("admit", "--federation", operator.path, operator.home / "none", code=2)
    assert "none can't be read" in line
    (operator.home / "bad.join").write_bytes(b"{}")
    line = operator.run("admit", "--federation", operator.path, operator.home / "bad.join", code=2)
    assert "bad.join can't be used" in line
    line = operator.run("--federation", operator.path, "--rounds", 3, code=2)
    assert "--rounds and --federation exclude each other" in line
    line = operator.run("--federation", operator.path, "--no-privacy", code=2)
    assert "don't go with --federation" in line


def test_a_renewed_certificate_needs_nothing_of_the_platforms(operator: Operator) -> None:
    operator.init()
    files = TlsFiles.in_folder(operator.path)
    before = [path.read_bytes() for path in (files.ca, files.certificate, files.key)]
    assert "new certificate for 127.0.0.1" in operator.run("renew", "--federation", operator.path)
    files.check()
    after = [path.read_bytes() for path in (files.ca, files.certificate, files.key)]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, False]
    files.authority.write_bytes(b"x")
    line = operator.run("renew", "--federation", operator.path, code=2)
    assert "restore ca.key" in line


def test_who_is_expelled_while_the_coordinator_runs_is_out_at_once(operator: Operator) -> None:
    import argparse

    operator.init()
    operator.admit("ABCD")
    names = ("plan", "roster", "tls", "state", "rounds", "host", "port")
    options = argparse.Namespace(
        federation=operator.path,
        new_run=False,
        **dict.fromkeys(names),
        **dict.fromkeys(("resume", "insecure", "no_privacy", "allow_two"), False),
    )
    setup = federation_setup(options)
    assert setup.current_roster().platforms == ("A", "B", "C", "D")
    older = (operator.path / "roster.json").read_bytes()
    operator.run("expel", "--federation", operator.path, "B")
    assert setup.current_roster().platforms == ("A", "C", "D")
    # The sums of this start go on over the roster that they began with.
    assert setup.roster.platforms == ("A", "B", "C", "D")
    (operator.path / "roster.json").write_bytes(b"damaged")
    assert setup.current_roster().platforms == ("A", "C", "D")
    # Nor does an older one let B in again, whoever put it back.
    (operator.path / "roster.json").write_bytes(older)
    assert setup.current_roster().platforms == ("A", "C", "D")
