"""One run with random faults: what is done to it comes from a seed alone."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import faults
from federation_stage import Cast, FederationStage
from invariants import LedgerWatch, check

from server.tls import TlsFiles

#: Lines at which a fault may begin: every phase of a run shows one of them.
MOMENTS: Final = (
    r"\|@ (?:hello|welcome)",
    r"platform \w joined",
    r"\|@ keys",
    r"\|@ shares",
    r"\|@ ready",
    r"keys agreed",
    r"\|@ train \d",
    r"\|@ unmask",
    r"\|@ evaluate \d",
    r"\|@ checkpoint \d",
    r"coordinator\|round \d/",
    r"\|@ finish",
    r"coordinator\|finished",
)
#: The same for private platforms, which say less.
PRIVATE_MOMENTS: Final = (
    r"connected to the coordinator",
    r"platform \w joined",
    r"keys agreed",
    r"^[A-Z]\|round \d+/",
    r"\|@ checkpoint \d",
    r"coordinator\|round \d/",
    r"coordinator\|finished",
    r"private model, epoch 1/",
)
MOST_S: Final = 420.0
#: Kinds of faults, and how often each is drawn.
KINDS: Final = {
    "kill": 4,
    "kill coordinator": 4,
    "pause": 3,
    "pause coordinator": 2,
    "line": 4,
    "all lines": 1,
    "disk": 2,
    "damage": 1,
    "clock": 2,
    "older roster": 1,
}


@dataclass
class Outcome:
    """What was done in a run, and how it ended: `problem` is empty if all that must hold held."""

    seed: int
    private: bool
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    restarts: int = 0
    #: Processes that ended with one clear line.
    clear_stops: list[str] = field(default_factory=list)
    problem: str = ""
    log: str = ""

    def line(self) -> str:
        kind = "private" if self.private else "exact"
        end = "FAILED" if self.problem else "right model"
        return (
            f"run {self.seed:3} {kind:7} {self.seconds:6.1f} s  {end}  restarts {self.restarts}  "
            f"clear stops {len(self.clear_stops)}  [{'; '.join(self.faults)}]"
        )


def run(folder: Path, tls: TlsFiles, seed: int, *, private: bool) -> Outcome:
    """Do one run and check it; never raises for what the federation did."""
    chance, outcome, began = random.Random(seed), Outcome(seed, private), time.monotonic()
    cast = Cast(
        private=private,
        rounds=6 if private else chance.randint(5, 9),
        seconds=chance.choice((0.1, 0.5, 1.0)),
        dawdle=chance.choice((0.02, 0.15)),
        deadline=chance.choice((4.0, 8.0)) if not private else 30.0,
        platforms=chance.choice((3, 4)),
        evaluate_every=chance.choice((0, 1, 2)),
        flush=chance.choice((0.005, 0.05)),
    )
    stage = FederationStage(folder, tls, cast)
    try:
        with stage:
            _do(stage, chance, outcome)
            check(stage)
    except Exception as error:  # the benchmark goes on and tells of it
        outcome.problem = f"{type(error).__name__}: {error}"
    outcome.seconds = time.monotonic() - began
    outcome.restarts = sum(max(0, len(role.runs) - 1) for role in stage.roles)
    outcome.clear_stops = [line for role in stage.roles for one in role.runs for line in one.errors]
    outcome.log = stage.said.text()
    return outcome


def _do(stage: FederationStage, chance: random.Random, outcome: Outcome) -> None:
    planned = _plan(stage, chance)
    watch, over = LedgerWatch(stage), threading.Event()
    wrong: list[str] = []

    def guarded(work: Callable[[], str]) -> None:
        try:
            outcome.faults.append(work())
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {error}")

    def watching() -> None:
        while not over.wait(0.1):
            try:
                watch.look()
            except AssertionError as error:
                wrong.append(str(error))
                return

    threads = [threading.Thread(target=guarded, args=(one,), daemon=True) for one in planned]
    threads.append(threading.Thread(target=watching, daemon=True))
    stage.start()
    for thread in threads:
        thread.start()
    try:
        for thread in threads[:-1]:
            thread.join(200)
            assert not thread.is_alive(), f"a fault did not end:\n{stage.said.text()}"
        stage.settle(MOST_S)
    finally:
        over.set()
    threads[-1].join(10)
    assert not wrong, wrong


def _plan(stage: FederationStage, chance: random.Random) -> list[Callable[[], str]]:
    """Two to four faults, each with its victim and moment; at most one of those that need a coordinator."""
    names = list(stage.cast.names)
    victim = chance.choice([*names, "coordinator"])
    faults.mount_small(stage, victim)
    kinds = chance.choices(list(KINDS), weights=list(KINDS.values()), k=chance.randint(2, 4))
    exclusive = {"damage", "older roster"}
    kept, taken = [], False
    for kind in kinds:
        if kind in exclusive and taken:
            kind = "kill"
        taken = taken or kind in exclusive
        kept.append(kind)
    if taken:
        # They watch what the coordinator says, so nothing else is done to it meanwhile.
        swap = {"kill coordinator": "kill", "pause coordinator": "pause", "disk": "kill"}
        kept = [swap.get(kind, kind) for kind in kept]
    return [_fault(stage, kind, victim, random.Random(chance.random())) for kind in kept]


def _fault(
    stage: FederationStage, kind: str, small: str, chance: random.Random
) -> Callable[[], str]:
    moments = PRIVATE_MOMENTS if stage.cast.private else MOMENTS
    moment, times = chance.choice(moments), chance.randint(1, 3)
    who = chance.choice(stage.cast.names)
    hold, delay = chance.choice((0.5, 3.0, 12.0)), chance.choice((0.0, chance.uniform(0, 0.8)))

    def work() -> str:
        found = stage.said.find(moment, within_s=40, times=times)
        time.sleep(delay)
        at = f"at {moment!r} #{times}" if found else "late"
        done = _apply(stage, kind, who, small, hold, chance)
        return f"{done} {at} +{delay:.2f} s"

    return work


def _apply(
    stage: FederationStage, kind: str, who: str, small: str, hold: float, chance: random.Random
) -> str:
    match kind:
        case "kill":
            faults.kill(stage, who)
            return f"kill {who}"
        case "kill coordinator":
            faults.kill(stage, "coordinator")
            return kind
        case "pause" | "pause coordinator":
            victim = "coordinator" if kind == "pause coordinator" else who
            with faults.paused(stage, victim):
                time.sleep(hold)
            return f"pause {victim} {hold:g} s"
        case "line":
            with faults.broken_line(stage, who, chance) as how:
                time.sleep(hold)
            return f"line of {who}: {how} {hold:g} s"
        case "all lines":
            for name in stage.cast.names:
                stage.proxy.rules[name].stall = True
            time.sleep(hold)
            for name in stage.cast.names:
                stage.proxy.rules[name].heal()
                stage.proxy.cut(name)
            return f"all lines stalled {hold:g} s, then cut"
        case "disk":
            with faults.full_disk(stage, small):
                time.sleep(hold)
            return f"disk of {small} full {hold:g} s"
        case "clock":
            victim = chance.choice([who, "coordinator"])
            off = chance.choice((-4000.0, -120.0, 120.0, 4000.0))
            with faults.clock_off(stage, victim, off):
                time.sleep(hold)
            return f"clock of {victim} {off:+g} s for {hold:g} s"
        case "damage":
            return f"checkpoint damaged ({faults.damage_newest(stage, chance)})"
        case _:
            faults.older_roster(stage)
            return "older roster"
