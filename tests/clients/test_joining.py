"""What a platform pins, and that nothing changes without its operator."""

from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from pathlib import Path

import pytest

from clients.joining import Pinned, accept_invitation, accept_notice, load_pinned, load_plan
from clients.keys import load_roster, make_identity, put_identity_aside
from clients.participation import Settings
from clients.standing import guard_on_disk, terms_on_disk
from clients.state import PlatformFolder, StateError
from clients.terms import asking, changes, explainer
from crossrec_model.config import FederationConfig, Plan
from crossrec_model.durable import write_durably
from crossrec_model.errors import ConfigError
from crossrec_model.privacy.events import Budget, GaussianRelease
from crossrec_model.privacy.planning import private_plan
from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg.errors import RosterError, SignatureError
from crossrec_model.secagg.identity import IdentityKey, Member
from crossrec_model.secagg.invitation import Invitation, Notice, SignedPlan
from crossrec_model.secagg.roster import Roster, sign

SIGNER = IdentityKey.generate(SystemRandomness())
OTHERS = {name: IdentityKey.generate(SystemRandomness()) for name in "BCD"}
PLAN = Plan(federation=FederationConfig(rounds=5))
BUDGET = Budget(epsilon=8.0, delta=1e-5, life_epsilon=24.0)
CA = "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----\n"


class Stage:
    """A platform's folder, and a coordinator's operator who signs for it."""

    def __init__(self, home: Path) -> None:
        self.home, self.folder = home, home / "A"
        self.key, _ = make_identity(self.folder, SystemRandomness())
        self.asked: list[list[str]] = []
        self.says = True

    def notice(
        self,
        *,
        version: int = 1,
        plan: Plan = PLAN,
        plan_version: int = 1,
        names: str = "ABC",
        signer: IdentityKey = SIGNER,
    ) -> Notice:
        keys = {"A": self.key} | OTHERS
        members = tuple(Member(name, keys[name].public) for name in names)
        roster = Roster(
            federation="north",
            version=version,
            members=members,
            signer=signer.public,
            allow_two=True,
        )
        return Notice(sign(roster, signer), SignedPlan.sign(roster, plan_version, plan, signer))

    def ask(self, lines: list[str], question: str) -> bool:
        self.asked.append(lines)
        assert question.endswith("?")
        return self.says

    def invite(
        self,
        notice: Notice,
        platform: str = "A",
        address: str = "one.org:9092",
        named: str | None = None,
    ) -> None:
        invitation = Invitation.sign(platform, address=address, ca=CA, notice=notice, key=SIGNER)
        path = self.home / "file.invitation"
        path.write_bytes(invitation.to_json())
        accept_invitation(
            self.folder,
            "A",
            path,
            ask=self.ask,
            explain=explainer(BUDGET, []),
            allow_two=False,
            signer=named,
        )

    def take(self, notice: Notice) -> bool:
        explain = explainer(BUDGET, [])
        return accept_notice(
            self.folder, "A", notice, ask=self.ask, explain=explain, allow_two=False
        )


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_an_invitation_is_shown_and_pinned(stage: Stage) -> None:
    assert load_pinned(stage.folder) is None
    notice = stage.notice()
    stage.invite(notice)
    (shown,) = stage.asked
    text = "\n".join(shown)
    assert "federation north at one.org:9092" in text
    assert SIGNER.public.fingerprint in text
    assert "roster version 1: A, B, C" in text
    assert "no differential privacy" in text
    assert load_pinned(stage.folder) == Pinned(
        address="one.org:9092", ca=stage.folder / "ca.pem", plan=notice.plan
    )
    assert load_roster(stage.folder) == notice.roster
    assert (stage.folder / "ca.pem").read_text("ascii") == CA
    stage.invite(notice)
    assert len(stage.asked) == 1  # nothing new, nothing asked


def test_an_invitation_must_be_of_the_signer_that_was_named(stage: Stage) -> None:
    notice, other = stage.notice(), OTHERS["B"].public.fingerprint
    with pytest.raises(
        ConfigError, match=f"not by --signer {other}; ask the coordinator's operator"
    ):
        stage.invite(notice, named=other)
    assert stage.asked == []
    assert load_pinned(stage.folder) is None
    stage.invite(notice, named=SIGNER.public.fingerprint.lower())
    assert load_pinned(stage.folder) is not None


def test_who_declines_keeps_everything_as_it_was(stage: Stage) -> None:
    stage.says = False
    with pytest.raises(ConfigError, match="was not accepted; nothing was changed"):
        stage.invite(stage.notice())
    assert sorted(path.name for path in stage.folder.iterdir()) == ["identity.key", "identity.lock"]
    stage.says = True
    stage.invite(stage.notice())
    before = {path.name: path.read_bytes() for path in stage.folder.iterdir()}
    stage.says = False
    with pytest.raises(ConfigError):
        stage.take(stage.notice(version=2, names="ABCD", plan=Plan(), plan_version=2))
    assert {path.name: path.read_bytes() for path in stage.folder.iterdir()} == before


def test_an_invitation_of_another_platform_or_key_is_refused(stage: Stage) -> None:
    with pytest.raises(ConfigError, match="is for platform B, not A"):
        stage.invite(stage.notice(), platform="B")
    notice = stage.notice()
    put_identity_aside(stage.folder)
    make_identity(stage.folder, SystemRandomness())
    with pytest.raises(RosterError, match="another key for platform A"):
        stage.invite(notice)
    assert stage.asked == []
    path = stage.home / "bad"
    path.write_bytes(b"{}")
    for file in (path, stage.home / "none"):
        with pytest.raises(ConfigError, match=f"invitation {file} can't be"):
            accept_invitation(
                stage.folder,
                "A",
                file,
                ask=stage.ask,
                explain=explainer(BUDGET, []),
                allow_two=False,
            )


def test_changes_are_named_before_they_are_followed(stage: Stage) -> None:
    stage.invite(stage.notice())
    assert not stage.take(stage.notice())
    private = private_plan(PLAN, noise="local", epsilon=8.0, delta=1e-5, honest=2)
    assert stage.take(stage.notice(version=2, names="ABCD", plan=private, plan_version=2))
    text = "\n".join(stage.asked[-1])
    assert "roster version 2 instead of 1: added D" in text
    assert "plan version 2:" in text
    assert "costs each user epsilon = " in text
    assert "changed: privacy.noise: none -> local" in text
    plan = load_plan(stage.folder)
    assert plan is not None
    assert plan.plan == private
    # A moved coordinator is no other federation.
    stage.invite(
        stage.notice(version=2, names="ABCD", plan=private, plan_version=2), address="two.org:1"
    )
    pinned = load_pinned(stage.folder)
    assert pinned is not None
    assert pinned.address == "two.org:1"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"version": 1, "plan_version": 2}, "roster version 1 is older than the pinned version 2"),
        ({"version": 2, "plan_version": 1}, "plan version 1 is older than the accepted version 2"),
        ({"version": 2, "names": "ABCD"}, "two rosters of version 2"),
        ({"version": 2, "plan": Plan()}, "two plans of version 2"),
        ({"version": 3, "names": "ABC", "plan_version": 1}, "older than the accepted"),
    ],
)
def test_what_does_not_follow_is_refused_unasked(
    stage: Stage, changed: dict[str, object], said: str
) -> None:
    first = {"version": 2, "plan_version": 2}
    stage.invite(stage.notice(**first))
    asked = len(stage.asked)
    with pytest.raises(RosterError, match=said):
        stage.take(stage.notice(**(first | changed)))
    stranger = IdentityKey.generate(SystemRandomness())
    with pytest.raises(RosterError, match="is signed by"):
        stage.take(stage.notice(version=3, plan_version=3, signer=stranger))
    assert len(stage.asked) == asked


def test_two_alone_are_refused_unless_allowed(stage: Stage) -> None:
    with pytest.raises(ConfigError, match="--allow-two"):
        stage.invite(stage.notice(names="AB"))
    stage.invite(stage.notice())
    with pytest.raises(ConfigError, match="--allow-two"):
        stage.take(stage.notice(version=2, names="AB"))


@pytest.mark.parametrize("name", ["plan.json", "address", "ca.pem", "roster.json"])
def test_what_is_damaged_or_missing_is_named(stage: Stage, name: str) -> None:
    stage.invite(stage.notice())
    path = stage.folder / name
    if name == "plan.json":
        other = SignedPlan.sign(stage.notice().roster.roster, 1, replace(PLAN, seed=9), SIGNER)
        path.write_bytes(replace(other, version=2).to_json())
    else:
        path.unlink()
    with pytest.raises(StateError, match=f"{name}|plan.json"):
        load_pinned(stage.folder)


def test_nobody_to_ask_is_a_clear_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(ConfigError, match="accept it with --yes"):
        asking(yes=False, note=said.append)(["line"], "sure?")
    assert said == ["line"]
    assert asking(yes=True, note=said.append)(["line"], "sure?")
    assert said[-1] == "accepted (--yes)"

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for answer, taken in (("y", True), ("Yes", True), ("n", False), ("", False)):
        monkeypatch.setattr("sys.stdin", Terminal(answer + "\n"))
        assert asking(yes=False, note=said.append)([], "sure?") is taken


def test_the_price_counts_what_was_spent() -> None:
    plan = private_plan(PLAN, noise="local", epsilon=8.0, delta=1e-5, honest=2)
    members = tuple(Member(name, key.public) for name, key in OTHERS.items())
    roster = Roster(federation="n", version=1, members=members, signer=SIGNER.public)
    signed = SignedPlan.sign(roster, 1, plan, SIGNER)
    spent = [GaussianRelease(multiplier=1.0)]
    text = "\n".join(explainer(BUDGET, spent)(signed, roster, None))
    assert "with the 4.38 spent so far" in text
    assert changes(plan, plan) == []
    assert changes(plan, replace(plan, seed=3)) == ["seed: 0 -> 3"]


def test_a_signature_of_someone_else_is_no_plan(stage: Stage) -> None:
    stage.invite(stage.notice())
    other = IdentityKey.generate(SystemRandomness())
    foreign = stage.notice(signer=other).plan
    with pytest.raises(SignatureError):
        Notice(stage.notice().roster, foreign)


def _stop_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The process ends before the `number`-th file is written, counted from 0."""
    written: list[Path] = []

    def stopping(path: Path, content: bytes, *, mode: int) -> None:
        if len(written) == number:
            raise KeyboardInterrupt
        written.append(path)
        write_durably(path, content, mode=mode)

    monkeypatch.setattr("clients.keys.write_durably", stopping)


@pytest.mark.parametrize("number", range(4))
def test_a_kill_between_two_files_locks_nobody_out(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as patched:
        _stop_at(patched, number)
        with pytest.raises(KeyboardInterrupt):
            stage.invite(stage.notice())
    # Whatever was left, nothing is followed that was not accepted with a roster beside it.
    if load_roster(stage.folder) is None:
        with contextlib.suppress(StateError):
            assert load_pinned(stage.folder) is None
    stage.invite(stage.notice())
    assert load_pinned(stage.folder) is not None


@pytest.mark.parametrize("number", range(2))
def test_a_kill_amid_a_change_leaves_only_what_was_accepted(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    stage.invite(stage.notice())
    later = stage.notice(version=2, names="ABCD", plan=Plan(), plan_version=2)
    with monkeypatch.context() as patched:
        _stop_at(patched, number)
        with pytest.raises(KeyboardInterrupt):
            stage.take(later)
    plan, roster = load_plan(stage.folder), load_roster(stage.folder)
    assert plan is not None
    assert roster is not None
    # The plan never lags behind a roster: the one before could be another run's.
    assert (roster.roster.version, plan.version) == (1, (1, 2)[number])
    assert stage.take(later)
    assert load_roster(stage.folder) == later.roster


def test_a_roster_with_another_key_for_this_platform_is_refused_unasked(stage: Stage) -> None:
    stage.invite(stage.notice())
    mine, stage.key = stage.key, OTHERS["D"]
    later = stage.notice(version=2)
    stage.key = mine
    asked = len(stage.asked)
    with pytest.raises(RosterError, match="another key for platform A"):
        stage.take(later)
    with pytest.raises(RosterError, match="'A' is not on the roster"):
        stage.take(stage.notice(version=2, names="BCD"))
    assert len(stage.asked) == asked
    assert load_roster(stage.folder) == stage.notice().roster


def test_the_guard_follows_the_plan_on_disk_and_no_other(stage: Stage) -> None:
    stage.invite(stage.notice())
    settings = Settings(
        platform="A", data="x", folder=PlatformFolder(stage.folder), no_privacy=True
    )
    with guard_on_disk(settings) as guard:
        guard.accept(PLAN, None)
        with pytest.raises(ConfigError, match="not the signed version 1"):
            guard.accept(replace(PLAN, seed=5), None)
        later = replace(PLAN, seed=5)
        assert stage.take(stage.notice(plan=later, plan_version=2))
        guard.accept(later, None)
        with pytest.raises(ConfigError, match="not the signed version 2"):
            guard.accept(PLAN, None)


@pytest.mark.parametrize("refused", ["signer", "older", "other key"])
def test_yes_accepts_no_other_signer_and_no_way_back(stage: Stage, refused: str) -> None:
    stage.invite(stage.notice(version=2, plan_version=2))
    before = {path.name: path.read_bytes() for path in stage.folder.iterdir()}
    stranger = IdentityKey.generate(SystemRandomness())
    notice = {
        "signer": lambda: stage.notice(version=3, plan_version=3, signer=stranger),
        "older": lambda: stage.notice(version=1, plan_version=3),
        "other key": lambda: stage.notice(version=3, names="BCD"),
    }[refused]()
    settings = Settings(platform="A", data="x", folder=PlatformFolder(stage.folder), yes=True)
    take = terms_on_disk(settings, asking(yes=True, note=lambda line: None))
    with pytest.raises(RosterError):
        take(notice.to_json())
    after = {path.name: path.read_bytes() for path in stage.folder.iterdir()}
    assert after == before


def test_yes_accepts_no_plan_beyond_the_budget_and_none_without_privacy(stage: Stage) -> None:
    stage.invite(stage.notice())
    folder = PlatformFolder(stage.folder)
    settings = Settings(platform="A", data="complete-journey", folder=folder, yes=True)
    take = terms_on_disk(settings, asking(yes=True, note=lambda line: None))
    dear = private_plan(PLAN, noise="local", epsilon=9.0, delta=1e-5, honest=2)
    with guard_on_disk(settings) as guard:
        with pytest.raises(ConfigError, match="no differential privacy"):
            guard.accept(PLAN, None)
        assert take(stage.notice(plan=dear, plan_version=2).to_json())
        with pytest.raises(ConfigError, match="more than --epsilon = 8"):
            guard.accept(dear, None)
