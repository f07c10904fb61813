"""The command `profiles`: from a model and links on disk to what lies at the partner and is weighed."""

from __future__ import annotations

import stat
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from linked_platforms import LINKED, link_id, linked_platform

from clients.linked_serving import load_weights
from clients.linked_store import ReceivedProfiles
from clients.linking.folder import LinkageFolder
from clients.linking.profile_command import carry_profiles
from clients.profiles import WHAT, ProfileReleases, ReleasedProfiles
from crossrec_model.errors import ConfigError
from crossrec_model.linkage import channel
from crossrec_model.linkage.profile_batch import ProfileBatch
from crossrec_model.privacy.events import Budget, GaussianRelease
from crossrec_model.privacy.ledger import LEDGER, BudgetExceededError, Ledger, read_history
from server.linking import PostOffice
from simulations.processes import make_roster

PERIOD = "2026-11"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    make_roster(tmp_path, "ABC")
    for seed, (name, partner) in enumerate((("A", "B"), ("B", "A"))):
        linked_platform(tmp_path, name, seed, partner)
    return tmp_path


@pytest.fixture
def office(monkeypatch: pytest.MonkeyPatch) -> PostOffice:
    """Every platform's requests go to one office in memory."""
    made = PostOffice(lambda: ("A", "B", "C"))

    class Asking:
        def __init__(self, _endpoint: Any, passport: Any) -> None:
            self._platform = passport.platform

        def __call__(self, request: bytes) -> bytes:
            return made.answer(self._platform, request)

        def close(self) -> None:
            pass

    monkeypatch.setattr("clients.linking.line.HttpAsk", Asking)
    return made


def _run(home: Path, name: str, partner: str, *more: str) -> int:
    return carry_profiles(
        [
            *("--id", name, "--with", partner, "--state", str(home)),
            *(
                "--roster",
                str(home / "roster" / "roster.json"),
                "--server",
                "localhost:1",
                "--insecure",
            ),
            *("--period", PERIOD, "--dimension", "4", "--wait", "60", *more),
        ]
    )


def _both(home: Path, *more: str) -> None:
    failed: list[BaseException] = []

    def work(name: str, partner: str) -> None:
        try:
            assert _run(home, name, partner, *more) == 0
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in (("A", "B"), ("B", "A"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert not failed, failed


def _at(home: Path, name: str, sender: str) -> ProfileBatch:
    return ReceivedProfiles(home / name).batches(1e9)[sender]


def _charges(home: Path, name: str) -> list[str]:
    return [record.what for record in read_history(home / name / LEDGER).records]


def test_what_arrives_is_what_was_released_and_a_second_time_costs_nothing(
    home: Path, office: PostOffice, capsys: pytest.CaptureFixture[str]
) -> None:
    _both(home)
    assert _charges(home, "A") == _charges(home, "B") == [WHAT]
    first = _at(home, "B", "A")
    assert first.links == tuple(link_id(k) for k in range(LINKED))
    assert (first.sender, first.period, first.terms.clip) == ("A", PERIOD, 3.0)
    assert first.terms.multiplier > 0
    assert np.linalg.norm(first.vectors, axis=1).min() > 0
    path = home / "B" / "linked" / "A" / f"{PERIOD}.profiles"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    said = capsys.readouterr().out
    assert "served from the next period on" in said
    assert "20 profiles of period 2026-11 came from A, for 21 linked users" in said
    assert office.waiting == 0

    with LinkageFolder(home / "A").held():
        LinkageFolder(home / "A").revoke(["u3"])
    at_a = ReleasedProfiles(home / "A")._read(PERIOD)
    assert at_a is not None
    assert (at_a.withdrawn, "u3" in at_a.users) == (("u3",), False)
    _both(home)
    assert _charges(home, "A") == _charges(home, "B") == [WHAT]
    second = _at(home, "B", "A")
    # Who has revoked is not in the batch, and what was released of her is gone.
    assert second.links == tuple(link_id(k) for k in range(LINKED) if k != 3)
    kept = [number for number in range(LINKED) if number != 3]
    np.testing.assert_array_equal(second.vectors, first.vectors[kept])
    # What the partner says of her finds no link here.
    assert link_id(3) not in _at(home, "A", "B").links
    assert link_id(3) in first.links


def test_profiles_that_end_before_the_validation_weeks_are_weighed(
    home: Path, office: PostOffice, capsys: pytest.CaptureFixture[str]
) -> None:
    _both(home, "--before", "2024-05-01", "--no-noise")
    said = capsys.readouterr().out
    for name in "AB":
        assert load_weights(home / name) is not None
        assert _charges(home, name) == []  # no noise stands on no ledger
    assert said.count("nats of fit for") >= 4
    assert "served" in said


def test_the_ledger_is_charged_before_anything_is_sealed(
    home: Path, office: PostOffice, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SealedError(Exception):
        pass

    def offer(*_given: object) -> None:
        assert _charges(home, "A") == [WHAT]
        raise SealedError

    monkeypatch.setattr("clients.linking.carrying.offer_profiles", offer)
    with pytest.raises(SealedError):
        _run(home, "A", "B")

    def release(*_given: object) -> None:
        raise BudgetExceededError("no", spent=0.0, asked=1.0, limit=0.5)

    sealed: list[object] = []
    monkeypatch.setattr(channel.Channel, "seal", lambda *given: sealed.append(given))
    monkeypatch.setattr(ProfileReleases, "release", release)
    with pytest.raises(BudgetExceededError):
        _run(home, "A", "B", "--restart")
    assert not sealed
    assert office.waiting == 0


def test_what_can_not_be_done_is_told_in_a_line(
    home: Path, office: PostOffice, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cases = (
        (("A", "C"), "no users are linked with C; run first, on both sides: .* link --id A"),
        (("A", "B", "--epsilon", "inf"), "asked for by --no-noise"),
        (("A", "B", "--epsilon", "2", "--no-noise"), "not both"),
        (("A", "B", "--epsilon", "9", "--life-epsilon", "8.5"), "life_epsilon"),
        (("A", "B", "--period", "no/where"), "period"),
    )
    for (name, partner, *more), words in cases:
        with pytest.raises(ConfigError, match=words) as caught:
            _run(home, name, partner, *more)
        assert "\n" not in str(caught.value)
    # Another period has used the life's budget up.
    _spend(home)
    with pytest.raises(BudgetExceededError, match="nothing was released"):
        _run(home, "A", "B", "--epsilon", "8", "--life-epsilon", "8")
    other = tmp_path_factory.mktemp("plain")
    make_roster(other, "ABC")
    linked_platform(other, "A", 0, "B", pairs=0)
    with pytest.raises(ConfigError, match="has summed no pairs"):
        _run(other, "A", "B")
    assert office.waiting == 0


def _spend(home: Path) -> None:
    with Ledger.open(home / "A" / LEDGER) as ledger:
        budget = Budget(epsilon=8.0, delta=1e-5, life_epsilon=24.0)
        event = GaussianRelease(multiplier=1.0)
        ledger.charge(event, run=b"x" * 16, round=0, what="profile", budget=budget)
