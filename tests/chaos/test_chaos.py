"""Real processes and real faults: the right model or a clear stop, every charge kept, no process lost."""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import faults
import numpy as np
import pytest
import truth
from federation_stage import Cast, FederationStage
from invariants import LedgerWatch, check, check_ends
from random_run import run
from supervised import orphans

from clients.state import PlatformFolder
from crossrec_model.privacy.ledger import LEDGER, read_history
from server.checkpoint import CheckpointStore
from server.tls import TlsFiles

pytestmark = pytest.mark.processes
StageOf = Callable[[Cast], FederationStage]
#: Random runs of the long suite; every fifth is one of private platforms.
RUNS = 50


def _equals_the_calm_run(stage: FederationStage) -> None:
    """Bit by bit what it would be without any fault."""
    check(stage)
    last = stage.final()
    everybody = tuple(stage.cast.names)
    assert [record.platforms for record in last.history] == [everybody] * last.round
    model, velocity, _ = truth.after(last.plan, [everybody] * last.round)
    np.testing.assert_array_equal(last.parameters, model)
    np.testing.assert_array_equal(last.optimizer.velocity, velocity)  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_coordinator_killed_in_every_phase(stage_of: StageOf) -> None:
    """At the next round it goes on; the model is the calm run's, bit by bit."""
    stage = stage_of(Cast(rounds=4, seconds=0.1))
    stage.start()
    mark = 0
    for phase in ("train 1", "checkpoint 1", "unmask", "finish"):
        mark = stage.expect(rf"\|@ {phase}", after=mark)
        faults.kill(stage, "coordinator")
    stage.settle()
    assert len(stage.coordinator.runs) == 5
    _equals_the_calm_run(stage)
    # The platforms came back by themselves: none had to be started again.
    assert all(len(role.runs) == 1 for role in stage.platforms.values())


@pytest.mark.slow
def test_platforms_killed_and_stopped(stage_of: StageOf) -> None:
    """Those that are left go on; a straggler is left out at the deadline and comes back."""
    stage = stage_of(Cast(rounds=14, seconds=0.8, deadline=3.0))
    stage.start()
    mark = stage.expect(r"coordinator\|round 1/")
    with faults.paused(stage, "C"):
        stage.expect(r"coordinator\|platform C was left out: no answer in time", after=mark)
    mark = stage.expect(r"coordinator\|round \d+/.* platforms A, B, C, D ", after=mark)
    stage.expect(r"B\|@ unmask", after=mark)
    faults.kill(stage, "B")
    # Its vector had come, so it counts; the shares of the others open the sum.
    mark = stage.expect(r"coordinator\|platform B was left out: while unmasking", after=mark)
    mark = stage.expect(r"coordinator\|round \d+/.* platforms A, B, C, D ", after=mark)
    stage.expect(r"coordinator\|keys agreed between A, B, C, D", after=mark)
    stage.settle()
    check(stage)


@pytest.mark.slow
def test_lines_cut_stalled_and_slowed(stage_of: StageOf) -> None:
    """Nobody has to be started again, and no answer is waited for that can't come."""
    stage = stage_of(Cast(rounds=6, seconds=0.3, deadline=6.0))
    stage.proxy.rules["D"].trickle = 40
    stage.start()
    mark = stage.expect(r"coordinator\|round 1/")
    stage.proxy.cut("A")
    mark = stage.expect(r"coordinator\|round 2/", after=mark)
    stage.proxy.rules["B"].delay_s = 0.05
    stage.proxy.rules["C"].stall = True
    mark = stage.expect(r"coordinator\|platform C was left out", after=mark)
    stage.proxy.rules["C"].heal()
    stage.proxy.cut("C")
    with faults.no_line(stage, "A"):
        stage.expect(r"A\|the coordinator does not answer", after=mark)
    stage.settle()
    check(stage)
    assert all(len(role.runs) == 1 for role in stage.platforms.values())


@pytest.mark.slow
def test_a_full_disk_a_damaged_checkpoint_and_an_older_roster(stage_of: StageOf) -> None:
    """Each stops the coordinator with a line that names the remedy, and doing that is enough."""
    stage = stage_of(Cast(rounds=6, seconds=0.1))
    faults.mount_small(stage, "coordinator")
    faults.mount_small(stage, "B")
    stage.start()
    mark = stage.expect(r"coordinator\|round 1/")
    with faults.full_disk(stage, "coordinator"):
        full = r"coordinator\|error: .*(No space left on device|File too large|disk is full)"
        mark = stage.expect(full, after=mark)
    mark = stage.expect(r"coordinator\|round \d/", after=mark)
    with faults.full_disk(stage, "B"):
        mark = stage.expect(
            r"B\|error: .* can't be written: (No space left on device|File too large); make room",
            after=mark,
        )
    mark = stage.expect(r"coordinator\|round \d/", after=mark)
    assert "nothing" not in faults.damage_newest(stage, random.Random(1))
    stage.expect(r"coordinator\|coordinator on", after=mark)
    faults.older_roster(stage)
    stage.settle()
    check(stage)


@pytest.mark.slow
def test_clocks_that_jump(stage_of: StageOf) -> None:
    stage = stage_of(Cast(rounds=6, seconds=0.3, platforms=3))
    stage.start()
    mark = stage.expect(r"coordinator\|round 1/")
    with faults.clock_off(stage, "A", 4000.0):
        stage.expect(r"A\|error: .* clock .* differ by more than 5 minutes", after=mark)
    with faults.clock_off(stage, "coordinator", 4000.0):
        stage.expect(r"B\|error: .* clock .* differ by more than 5 minutes", after=mark)
    mark = stage.expect(r"coordinator\|round \d/", after=mark)
    with faults.clock_off(stage, "coordinator", -200.0):
        stage.expect(r"coordinator\|round \d/", after=mark)
        stage.settle()
    check(stage)


def test_the_end_is_reached_by_everybody(stage_of: StageOf) -> None:
    """A coordinator and a platform killed while the final model is handed out."""
    stage = stage_of(Cast(rounds=3, seconds=0.1, evaluate_every=0))
    stage.start()
    stage.expect(r"[ABD]\|@ finish 3")
    faults.kill(stage, "C")
    faults.kill(stage, "coordinator")
    # A coordinator that has all confirmations before it is killed does not wait for anybody.
    assert stage.settle(90) == 0
    _equals_the_calm_run(stage)


@pytest.mark.slow
def test_too_few_platforms_end_with_everything_saved(stage_of: StageOf) -> None:
    stage = stage_of(Cast(rounds=4, seconds=0.2, wait=6.0))
    stage.coordinator.restart = False
    stage.start()
    stage.expect(r"coordinator\|round 1/")
    for name in "AB":
        stage.platforms[name].restart = False
        faults.kill(stage, name)
    stage.expect(r"coordinator\|waiting for platforms: 2 of 3")
    stage.expect(
        r"coordinator\|error: 2 of 3 platforms came within 6 s \(here: C, D\); start the others, "
        r"then start again with --resume"
    )
    stage.coordinator.current.child.wait(30)
    saved = CheckpointStore(stage.state).latest()
    assert saved is not None
    assert 1 <= saved.round < 4
    for role in stage.roles:
        role.restart = True
    stage.settle()
    check(stage)
    assert stage.final().run == saved.run


@pytest.mark.slow
def test_private_platforms_charge_what_they_send(stage_of: StageOf) -> None:
    """ε never shrinks; noise that was drawn again is charged again, and the same noise is not."""
    stage = stage_of(Cast(private=True, rounds=5, deadline=30.0))
    watch = LedgerWatch(stage)
    stage.start()
    mark = stage.expect(r"A\|round 2/5")
    watch.look()
    # What it has drawn is gone with it: in this round or a later one it draws anew.
    faults.kill(stage, "A")
    faults.kill(stage, "coordinator")
    mark = stage.expect(r"coordinator\|round 2/", after=mark)
    watch.look()
    # These have not been restarted, and send what they had.
    stage.expect(r"B\|round 2/5: sent the same noised update again", after=0)
    stage.expect(r"B\|round 3/5", after=mark)
    faults.kill(stage, "coordinator")
    stage.settle()
    watch.look()
    check(stage)
    charges = Counter(r.round for r in read_history(stage.homes / "B" / LEDGER).records)
    assert charges == {1: 1, 2: 1, 3: 1, 4: 1, 5: 1}
    # Nothing of its state was lost with the process.
    assert PlatformFolder(stage.homes / "A").load_trained() is not None


@pytest.mark.slow
def test_signals_end_a_whole_federation(stage_of: StageOf) -> None:
    """What a service manager sends: each role ends with its own code, and goes on when started."""
    stage = stage_of(Cast(rounds=4, seconds=0.3))
    stage.start()
    stage.expect(r"coordinator\|round 1/")
    for role in stage.roles:
        role.restart = False
    for role in stage.roles:
        role.signal(signal.SIGTERM if role.name == "coordinator" else signal.SIGINT)
    codes = [role.current.child.wait(60) for role in stage.roles]
    assert codes == [143, 130, 130, 130, 130]
    assert not orphans(stage.marker)
    for role in stage.roles:
        role.restart = True
    stage.settle()
    _equals_the_calm_run(stage)
    check_ends(stage)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(RUNS))
def test_random_faults(tmp_path: Path, chaos_tls: TlsFiles, seed: int) -> None:
    outcome = run(tmp_path / "run", chaos_tls, seed, private=seed % 5 == 4)
    assert not outcome.problem, f"{outcome.line()}\n{outcome.problem}\n{outcome.log}"
