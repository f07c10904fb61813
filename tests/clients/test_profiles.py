"""Releases of profiles: charged first, once a user and period, the same to everybody who asks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from clients import profiles as released
from clients.profiles import WHAT, ProfileReleases, run_of
from crossrec_model.errors import ConfigError, DataError
from crossrec_model.linkage.profile import ProfileTerms
from crossrec_model.privacy.events import Budget
from crossrec_model.privacy.ledger import BudgetExceededError, Ledger
from crossrec_model.randomness import SystemRandomness

TERMS = ProfileTerms.for_epsilon(2.0, 1e-5, dimension=3, clip=1.0)
BUDGET = Budget(epsilon=3.2, delta=1e-5, life_epsilon=3.5)
BASIS = np.eye(5, 3, dtype=np.float32)
PERIOD = "2026-10"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "ledger.jsonl") as opened:
        yield opened


@pytest.fixture
def releases(tmp_path: Path, ledger: Ledger) -> ProfileReleases:
    return ProfileReleases(tmp_path, ledger, BUDGET, SystemRandomness())


def _release(
    releases: ProfileReleases, *users: str, period: str = PERIOD, terms: ProfileTerms = TERMS
) -> tuple[tuple[str, ...], np.ndarray]:
    vectors = np.tile(np.array([0.6, 0.0, 0.0], dtype=np.float32), (len(users), 1))
    return releases.release(period, terms, BASIS[:, : terms.dimension], users, vectors)


def test_the_same_user_gets_the_same_vector_and_costs_once(releases, ledger) -> None:
    users, first = _release(releases, "ann", "bea")
    assert users == ("ann", "bea")
    assert not np.array_equal(first[0], first[1])
    _, again = _release(releases, "bea", "ann")
    assert np.array_equal(again, first[::-1])
    # Others of the same period are released under the same record: each user is in it once.
    _, later = _release(releases, "cat", "ann")
    assert np.array_equal(later[1], first[0])
    assert [(r.what, r.run, r.event) for r in ledger.records] == [
        (WHAT, run_of(PERIOD), TERMS.event)
    ]


def test_a_new_period_costs_anew_and_more_than_the_budget_is_refused(
    releases, ledger, tmp_path: Path
) -> None:
    _release(releases, "ann")
    _release(releases, "ann", period="2026-11")
    assert len(ledger.records) == 2
    with pytest.raises(BudgetExceededError):
        _release(releases, "ann", period="2026-12")
    assert len(ledger.records) == 2
    assert not (tmp_path / "profiles" / "2026-12.safetensors").exists()


def test_the_charge_is_on_the_disk_before_anything_is_noised(
    releases, ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        assert b"profile" in (tmp_path / "ledger.jsonl").read_bytes()
        raise KeyboardInterrupt

    monkeypatch.setattr(released, "noised", killed)
    with pytest.raises(KeyboardInterrupt):
        _release(releases, "ann")
    assert len(ledger.records) == 1
    assert not list((tmp_path / "profiles").glob("*")) if (tmp_path / "profiles").exists() else True


def test_where_the_releases_are_lost_the_period_is_charged_again(
    releases, ledger, tmp_path: Path
) -> None:
    _, first = _release(releases, "ann")
    path = tmp_path / "profiles" / f"{PERIOD}.safetensors"
    path.unlink()
    _, second = _release(releases, "ann")
    assert not np.array_equal(first, second)
    assert len(ledger.records) == 2
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match="is damaged"):
        _release(releases, "ann")


def test_only_the_owner_can_read_what_was_released(releases, tmp_path: Path) -> None:
    _release(releases, "ann")
    folder = tmp_path / "profiles"
    assert folder.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())


def test_who_withdraws_is_forgotten_and_not_released_again_in_the_period(
    releases, tmp_path: Path
) -> None:
    _release(releases, "ann", "bea")
    releases.withdraw(["ann", "nobody"])
    users, vectors = _release(releases, "ann", "bea")
    assert users == ("bea",)
    assert len(vectors) == 1
    assert _release(releases, "ann", period="2026-11")[0] == ("ann",)


def test_a_period_keeps_its_terms(releases) -> None:
    _release(releases, "ann")
    other = ProfileTerms.for_epsilon(1.0, 1e-5, dimension=3, clip=1.0)
    with pytest.raises(ConfigError, match="other terms"):
        _release(releases, "bea", terms=other)
    with pytest.raises(ConfigError, match="another shared model"):
        releases.release(PERIOD, TERMS, BASIS[::-1], ["bea"], np.zeros((1, 3), np.float32))


@pytest.mark.parametrize("period", ["", "../x", "a/b", "x" * 40, "a..b"])
def test_a_period_that_is_no_name_is_refused(releases, period: str) -> None:
    with pytest.raises(ConfigError, match="period"):
        _release(releases, "ann", period=period)


def test_nothing_goes_out_without_noise_unless_that_is_asked_for(
    releases, ledger, tmp_path: Path
) -> None:
    bare = ProfileTerms(dimension=3, clip=1.0)
    with pytest.raises(ConfigError, match="without noise"):
        _release(releases, "ann", terms=bare)
    asked = ProfileReleases(tmp_path, ledger, BUDGET, SystemRandomness(), unprotected=True)
    _, vectors = _release(asked, "ann", terms=bare)
    assert vectors[0] == pytest.approx([0.6, 0, 0])
    assert not ledger.records


def test_users_and_vectors_that_do_not_match_are_refused(releases) -> None:
    with pytest.raises(ConfigError, match="each once"):
        _release(releases, "ann", "ann")
    with pytest.raises(ConfigError, match="longer than its clip"):
        releases.release(PERIOD, TERMS, BASIS, ["ann"], np.full((1, 3), 5, np.float32))
