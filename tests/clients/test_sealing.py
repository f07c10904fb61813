"""Which plans a platform seals for: what a coordinator may ask is bounded on the platform's side."""

from __future__ import annotations

import pytest

from clients.guard import OpenGuard
from clients.platform import main
from clients.round import PlatformRound
from clients.sealing import SealerFor, secure_sealer
from crossrec_model.config import AggregationConfig, Plan
from crossrec_model.errors import ConfigError
from crossrec_model.wire import messages as wire
from simulations.sums import OpenedInMemory, identities_for


def _sealer_for(platforms: str, **options: float) -> SealerFor:
    identities, signed = identities_for(platforms)
    name = platforms[0]
    return secure_sealer(name, identities[name], signed.roster, OpenedInMemory(), **options)


def _plan(**changes: float) -> Plan:
    return Plan(aggregation=AggregationConfig(**changes))  # type: ignore[arg-type]


def test_a_plan_that_withstands_fewer_colluding_platforms_is_refused() -> None:
    """With N = 5 and share 0 a sum would need 3 instead of 4, and one colluder could split it."""
    weak = _plan(colluding_share=0.0)
    sealer_for = _sealer_for("ABCDE")
    with pytest.raises(ConfigError, match=r"colluding_share = 0 is below 0.333, .* --colluding-sh"):
        sealer_for(weak)
    platform = PlatformRound(
        "A", lambda model: pytest.fail("nothing is read"), sealer_for, guard=OpenGuard()
    )
    with pytest.raises(ConfigError, match="colluding_share"):
        platform(wire.encode(wire.Welcome(plan=weak.to_json())))
    sealer_for(_plan())
    sealer_for(_plan(colluding_share=0.9))
    # The platform's own operator may accept it, or ask for more.
    _sealer_for("ABCDE", least_share=0.0)(weak)
    with pytest.raises(ConfigError, match=r"below 0\.8"):
        _sealer_for("ABCDE", least_share=0.8)(_plan())


def test_a_plan_with_the_same_threshold_but_less_noise_is_refused() -> None:
    """With N = 7, c = 1 and c = 2 both need 5 platforms; of the noise, 4 and 3 of them count."""
    with pytest.raises(ConfigError, match=r"colluding_share = 0.2 is below 0.333"):
        _sealer_for("ABCDEFG")(_plan(colluding_share=0.2))
    _sealer_for("ABCDEFG", least_share=0.2)(_plan(colluding_share=0.2))


def test_a_grid_too_fine_for_the_roster_is_told_before_any_sum() -> None:
    fine = _plan(levels=(1 << 31) // 3)
    _sealer_for("ABC")(fine)
    with pytest.raises(ConfigError, match=r"4 platforms of \d+ levels need more than 32 bits"):
        _sealer_for("ABCD")(fine)


@pytest.mark.parametrize("share", ["-0.1", "1.1", "nan"])
def test_a_share_outside_its_bounds(share: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--id", "A", "--data", "x", "--server", "https://127.0.0.1:1"]
    assert main([*arguments, "--colluding-share", share]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --colluding-share")
    assert "[0, 1]" in said
    assert said.count("\n") == 1
