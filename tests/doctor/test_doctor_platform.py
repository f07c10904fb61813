"""A platform's doctor: its folder, keys, roster, plan, budget and device, and the command."""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest
import torch
from doctor_folders import (
    BUDGET,
    RUN,
    TINY,
    Federation,
    charge,
    coordinator,
    make_federation,
    now,
    private,
    received,
    told,
)
from platform_rows import write_platform

from clients import doctor
from clients.checks import budget as budgets
from clients.checks import folder as folders
from clients.state import PlatformFolder
from crossrec_model.checkup import Check, Finding, examine
from crossrec_model.config import AggregationConfig
from crossrec_model.privacy.ledger import LEDGER, Budget, Ledger
from crossrec_model.privacy.planning import run_events
from crossrec_model.privacy.pricing import epsilon
from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.identity import Card, IdentityKey
from server.rosters import list_platforms


def _look(check: object, *arguments: object, **named: object) -> list[Finding]:
    """As the doctor does: an error of a check is a line."""
    return list(examine([Check("it", lambda: check(*arguments, **named))]).findings)  # type: ignore[operator]


def _worst(findings: Sequence[Finding]) -> tuple[str, str]:
    return told([replace(f, what="it") for f in findings], "it")


def _state(federation: Federation) -> list[Finding]:
    return _look(folders.state, PlatformFolder(federation.state / "A"), "A")


def test_a_folder_that_is_well(federation: Federation) -> None:
    assert _worst(_state(federation))[0] == "ok"
    PlatformFolder(federation.state / "A").save_received(received(TINY, 2))
    assert any(f.found.endswith("round 2 of 4") for f in _state(federation))


def test_a_folder_with_wrong_modes(federation: Federation) -> None:
    key = federation.state / "A" / "identity.key"
    key.chmod(0o644)
    level, text = _worst(_state(federation))
    assert (level, text.endswith("(mode 0644); chmod 600 it")) == ("fail", True)
    assert _worst(_look(folders.identity, key.parent, "A"))[0] == "fail"
    key.chmod(0o600)
    key.parent.chmod(0o750)
    assert _worst(_state(federation))[1].endswith("(mode 0750); chmod 700 it")


def test_a_long_ledger_is_no_key(federation: Federation) -> None:
    path = federation.state / "A" / LEDGER
    path.write_bytes(bytes(1 << 20))
    path.chmod(0o600)
    assert _worst(_state(federation))[0] == "ok"


def test_a_folder_in_use_is_noted(federation: Federation) -> None:
    folder = PlatformFolder(federation.state / "A")
    with folder.held():
        findings = _state(federation)
    assert _worst(findings)[0] == "ok"
    assert any("a process of this platform holds it now" in f.found for f in findings)
    assert not any("holds it now" in f.found for f in _state(federation))
    # Nor does looking keep anybody out.
    with folder.held(), (folder.path / "lock").open() as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_damaged_state_and_state_of_another(federation: Federation) -> None:
    folder = PlatformFolder(federation.state / "A")
    folder.save_received(received(TINY, 2, platform="B"))
    assert "belongs to platform B, not A; give another --state" in _worst(_state(federation))[1]
    path = folder.path / "received.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    level, text = _worst(_state(federation))
    assert level == "fail"
    assert "received.safetensors is damaged" in text
    path.unlink()
    (folder.path / "opened.json").write_text("{}", encoding="utf-8")
    assert _worst(_state(federation))[0] == "fail"


def test_identity_and_card(federation: Federation) -> None:
    place = federation.state / "A"
    assert _worst(_look(folders.identity, place, "A"))[0] == "ok"
    card = place / "A.join"
    sent = card.read_bytes()
    for content, words in (
        (Card.of("A", IdentityKey.generate(SystemRandomness())).to_json(), "the key here is"),
        (sent[:-2], "can't be used"),
    ):
        card.write_bytes(content)
        level, text = _worst(_look(folders.identity, place, "A"))
        assert level == "fail"
        assert words in text
    card.unlink()
    assert _worst(_look(folders.identity, place, "A"))[0] == "warn"
    # What `keys` writes is a card, too.
    (place / "A.platform").write_bytes(sent)
    assert _worst(_look(folders.identity, place, "A"))[0] == "ok"
    (place / "identity.key").unlink()
    level, text = _worst(_look(folders.identity, place, "A"))
    assert level == "fail"
    assert "does not exist; make it with" in text


def test_roster(federation: Federation) -> None:
    place = federation.state / "A"
    level, text = _worst(_look(folders.roster, place, "A"))
    assert level == "ok"
    assert "version 1 of demo" in text
    assert "A is one of 4 on it, 1 may be missing" in text
    # Another's folder is not on it by that name.
    assert "is not on the roster" in _worst(_look(folders.roster, place, "Z"))[1]
    assert "has another key for platform B" in _worst(_look(folders.roster, place, "B"))[1]
    pinned = (place / "roster.json").read_bytes()
    (place / "roster.json").write_bytes(pinned.replace(b'"version":1', b'"version":2'))
    level, text = _worst(_look(folders.roster, place, "A"))
    assert level == "fail"
    assert "can't be trusted" in text
    (place / "roster.json").unlink()
    level, text = _worst(_look(folders.roster, place, "A"))
    assert (level, text.startswith("no roster is pinned; get an invitation")) == ("fail", True)


def test_a_roster_that_is_offered(federation: Federation) -> None:
    place, offered = federation.state / "A", federation.folder / "roster.json"
    assert _worst(_look(folders.roster, place, "A", offered=offered))[0] == "ok"
    list_platforms(federation.folder, federation="demo", cards=(), expel=("D",))
    level, text = _worst(_look(folders.roster, place, "A", offered=offered))
    assert level == "warn"
    assert "is version 2, pinned is 1: removed D; ask the coordinator's operator by phone" in text
    offered.write_bytes(b"{}")
    assert _worst(_look(folders.roster, place, "A", offered=offered))[0] == "fail"


def test_a_roster_of_two(tmp_path: Path) -> None:
    federation = make_federation(tmp_path, "AB", TINY, allow_two=True)
    place = federation.state / "A"
    assert _worst(_look(folders.roster, place, "A"))[0] == "fail"
    level, text = _worst(_look(folders.roster, place, "A", allow_two=True))
    assert level == "warn"
    assert "two platforms alone" in text


def _plan(federation: Federation, **more: object) -> tuple[str, str]:
    chosen = {"colluding_share": 1 / 3, "no_privacy": False} | more
    return _worst(_look(folders.plan, federation.state / "A", **chosen))


def test_plan(federation: Federation) -> None:
    assert _plan(federation) == ("ok", "version 1: 4 rounds, local noise; ")
    federation.give(TINY, version=2)
    level, text = _plan(federation)
    assert level == "fail"
    assert "the plan has no differential privacy" in text
    assert "accept this with --no-privacy" in text
    assert _plan(federation, no_privacy=True)[0] == "ok"
    federation.give(replace(private(), aggregation=AggregationConfig(colluding_share=0.25)))
    level, text = _plan(federation)
    assert level == "fail"
    assert "withstands a colluding share of 0.25, less than 0.333" in text
    assert _plan(federation, colluding_share=0.25)[0] == "ok"
    short = replace(TINY, federation=replace(TINY.federation, rounds=2))
    federation.give(short)
    assert "at least 3 are needed" in _plan(federation, no_privacy=True)[1]


def test_a_plan_that_is_not_the_signer_s(federation: Federation) -> None:
    path = federation.state / "A" / "plan.json"
    signed = path.read_bytes()
    for content, words in (
        (signed.replace(b'rounds\\":4', b'rounds\\":5'), "is not by the key"),
        (signed + b"\n", "not in its canonical form"),
        (b"[", "can't be trusted"),
        (
            replace(federation, signer=IdentityKey.generate(SystemRandomness())).sign(TINY),
            "is not by the key",
        ),
        (federation.sign(TINY, federation="other"), "the plan is of federation other"),
    ):
        path.write_bytes(content)
        level, text = _plan(federation)
        assert level == "fail"
        assert words in text
    path.unlink()
    assert _plan(federation)[0] == "warn"
    (path.parent / "roster.json").unlink()
    assert _plan(federation) == (
        "warn",
        "not checked: there is no roster to verify it by; mend the line roster first",
    )


def _left(federation: Federation, budget: Budget = BUDGET) -> tuple[str, str]:
    return _worst(_look(budgets.left, federation.state / "A", budget))


def test_a_budget_that_suffices(federation: Federation) -> None:
    level, text = _left(federation)
    assert level == "ok"
    assert text.startswith("epsilon 0 of 24 is spent, the plan costs 7.99")
    # Looking makes no ledger.
    assert not (federation.state / "A" / LEDGER).exists()


def test_a_plan_above_the_budget_of_a_run(federation: Federation) -> None:
    asked = epsilon(run_events(private(), 2), 1e-5)
    level, text = _left(federation, Budget(epsilon=4.0, delta=1e-5, life_epsilon=24.0))
    assert level == "fail"
    assert text == (
        f"the plan costs each user epsilon = {asked:.3g} at delta = 1e-05, more than --epsilon = 4; "
        "ask for a plan with more noise, or raise --epsilon"
    )


def test_a_budget_that_is_spent(federation: Federation) -> None:
    life = Budget(epsilon=8.0, delta=1e-5, life_epsilon=10.0)
    level, text = _left(federation, life)
    # One run fits, a second would not.
    assert level == "warn"
    assert "another run like it would not" in text
    charge(federation, private(), run=RUN, rounds=4)
    level, text = _left(federation, life)
    assert level == "fail"
    assert "with all that was spent before at delta = 1e-05, more than --life-epsilon = 10" in text


def test_the_rest_of_a_run_that_was_begun(federation: Federation) -> None:
    life = Budget(epsilon=8.0, delta=1e-5, life_epsilon=10.0)
    folder, plan = PlatformFolder(federation.state / "A"), private()
    charge(federation, plan, run=RUN, rounds=3)
    folder.save_received(received(plan, 3))
    level, text = _left(federation, life)
    assert level == "warn"
    assert "the rest of the run costs" in text
    # What the run was charged before counts towards its own budget.
    level, text = _left(federation, Budget(epsilon=6.0, delta=1e-5, life_epsilon=24.0))
    assert level == "fail"
    assert "more than --epsilon = 6" in text
    # A round that was charged and lost is charged again.
    folder.save_received(received(plan, 1))
    assert _left(federation, life)[0] == "fail"
    folder.save_received(received(plan, 4, finished=True))
    assert "--life-epsilon = 10" in _left(federation, life)[1]


def test_budget_without_plan_and_without_privacy(federation: Federation) -> None:
    federation.give(TINY)
    assert "has no differential privacy and spends none of it" in _left(federation)[1]
    (federation.state / "A" / "plan.json").unlink()
    assert _left(federation) == (
        "ok",
        "epsilon 0 of 24 is spent; there is no plan yet to compare with what is left; ",
    )


def test_a_damaged_ledger(federation: Federation) -> None:
    charge(federation, private(), run=RUN, rounds=2)
    path = federation.state / "A" / LEDGER
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"round":1', b'"round":2', 1))
    level, text = _left(federation)
    assert level == "fail"
    assert "is damaged in line 1" in text
    path.write_bytes(whole[:-20])
    level, text = _left(federation)
    assert level == "warn"
    assert "was not finished" in text
    assert path.read_bytes() == whole[:-20]
    path.chmod(0o644)
    assert "chmod 600" in _left(federation)[1]


def test_a_ledger_that_is_held_is_read_all_the_same(federation: Federation) -> None:
    charge(federation, private(), run=RUN, rounds=1)
    with Ledger.open(federation.state / "A" / LEDGER):
        assert _left(federation)[0] == "ok"


def test_the_day_on_which_data_end(federation: Federation) -> None:
    place = federation.state / "A"
    (finding,) = budgets.data_end(place, "rows", None)
    assert finding.level == "warn"
    for data, day in (("rows", date(2024, 1, 1)), ("complete-journey", None), (None, None)):
        assert list(budgets.data_end(place, data, day)) == []
    federation.give(TINY)
    assert list(budgets.data_end(place, "rows", None)) == []


def test_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _worst(_look(doctor._device, "cpu"))[0] == "ok"
    level, text = _worst(_look(doctor._device, "tpu"))
    assert (level, text) == ("fail", "device 'tpu' is unknown; choose cpu, cuda or auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "there is none; choose cpu or auto" in _worst(_look(doctor._device, "cuda"))[1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    for free, level in ((1 << 34, "ok"), (1 << 29, "warn")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, 1 << 35))
        assert _worst(_look(doctor._device, "auto"))[0] == level


def _run(
    capsys: pytest.CaptureFixture[str],
    federation: Federation,
    *more: str,
    code: int,
    platform: str = "A",
    **named: object,
) -> str:
    arguments = ["--id", platform, "--state", str(federation.state), *more]
    assert doctor.main(arguments, **named) == code  # type: ignore[arg-type]
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err
    return shown.err if code == 2 else shown.out


def test_the_command_on_a_platform_that_is_well(
    federation: Federation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_platform(tmp_path / "rows", 0)
    with coordinator(federation.tls) as port:
        federation.on(port)
        before = {p: p.stat().st_mtime_ns for p in federation.state.rglob("*")}
        more = ("--data", str(rows), "--data-end", "2024-08-01")
        text = _run(capsys, federation, *more, code=0)
        document = json.loads(_run(capsys, federation, *more, "--json", code=0))
        shifted = _run(capsys, federation, code=1, now=lambda: now() - timedelta(seconds=300))
    assert text.splitlines()[-1].endswith("ok, 0 warn, 0 fail")
    assert document["level"] == "ok"
    assert {f["what"] for f in document["findings"]} >= {
        *("libraries", "device", "disk", "folder", "identity", "roster", "plan", "budget"),
        *("certificates", "address", "TLS", "health", "clock", "data mapping"),
    }
    assert re.search(
        r"fail  clock +this clock is \d+ s behind the coordinator's, beyond 240", shifted
    )
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    assert all(f"| {f['what']} |" in page for f in document["findings"])
    # It changes nothing.
    assert before == {p: p.stat().st_mtime_ns for p in federation.state.rglob("*")}


def test_the_command_finds_what_is_wrong(
    federation: Federation, capsys: pytest.CaptureFixture[str]
) -> None:
    (federation.state / "A" / "plan.json").write_bytes(b"{}")
    (federation.state / "A" / "roster.json").write_bytes(b"{}")
    (federation.state / "A" / "ca.pem").unlink()
    text = _run(capsys, federation, code=1)
    assert "fail  address" in text
    assert "fail  roster" in text
    assert "warn  plan" in text
    assert "warn  certificates" in text
    document = json.loads(_run(capsys, federation, "--json", code=1))
    assert document["level"] == "fail"
    assert all(f["remedy"] for f in document["findings"] if f["level"] != "ok")


def test_the_command_before_there_is_a_folder(
    federation: Federation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_platform(tmp_path / "rows", 0)
    text = _run(capsys, federation, "--data", str(rows), platform="Z", code=1)
    assert "make it: python -m clients.platform init --id Z" in text
    assert "interactions: of all 720 rows none would be dropped" in text
    assert not (federation.state / "Z").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--colour", "red"), "unrecognized arguments: --colour red; see"),
        (("--epsilon", "0"), "epsilon = 0.0 must be above 0"),
        (("--max-bad", "2"), "--max-bad 2.0 is outside [0, 1]"),
        (("--colluding-share", "-1"), "--colluding-share -1.0 is outside [0, 1]"),
        (("--data-end", "soon"), "'soon' is no day"),
    ],
)
def test_a_mistake_on_the_command_line(
    federation: Federation, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], words: str
) -> None:
    line = _run(capsys, federation, *more, code=2)
    assert line.startswith("error: ")
    assert words in line
    assert line.count("\n") == 1


def test_a_wrong_id(federation: Federation, capsys: pytest.CaptureFixture[str]) -> None:
    assert "platform id '../B' is not" in _run(capsys, federation, platform="../B", code=2)
