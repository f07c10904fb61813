"""What can go wrong: each function does it to a stage, waits, and puts it right again."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from federation_stage import FederationStage

MOUNT_BYTES = 6 << 20


def kill(stage: FederationStage, who: str) -> None:
    """SIGKILL; the supervisor starts it again."""
    stage.role(who).signal(signal.SIGKILL)


@contextmanager
def paused(stage: FederationStage, who: str) -> Iterator[None]:
    """SIGSTOP while the context lasts, then SIGCONT to the very same process."""
    role = stage.role(who)
    group = role.current.child.pid
    role.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGCONT)


@contextmanager
def broken_line(stage: FederationStage, who: str, chance: random.Random) -> Iterator[str]:
    """One of the proxy's faults between a platform and the coordinator."""
    try:
        yield stage.proxy.random_fault(who, chance)
    finally:
        stage.proxy.rules[who].heal()


@contextmanager
def no_line(stage: FederationStage, who: str) -> Iterator[None]:
    """Nothing passes, new connections are closed."""
    stage.proxy.rules[who].refuse = True
    stage.proxy.cut(who)
    try:
        yield
    finally:
        stage.proxy.rules[who].heal()


@contextmanager
def clock_off(stage: FederationStage, who: str, seconds: float) -> Iterator[None]:
    """One process's wall clock jumps, and jumps back at the end."""
    stage.shift_clock(who, seconds)
    try:
        yield
    finally:
        stage.shift_clock(who, 0.0)


def home_of(stage: FederationStage, who: str) -> Path:
    """Where a role keeps its files."""
    return stage.state if who == "coordinator" else stage.homes / who


@contextmanager
def full_disk(stage: FederationStage, who: str) -> Iterator[None]:
    """No byte more can be written to a role's folder; see `FederationStage.small_disk`."""
    home = home_of(stage, who)
    if os.path.ismount(home):
        ballast = home / "ballast"
        try:
            _fill(ballast)
            yield
        finally:
            # Where not even an empty file could be made, the disk was full without it.
            ballast.unlink(missing_ok=True)
        return
    role = stage.role(who)
    role.tune = _no_bytes
    if role.alive:
        _no_bytes(role.current.child.pid)
    try:
        yield
    finally:
        role.tune = lambda _pid: None
        if role.alive:
            with suppress(ProcessLookupError):
                resource.prlimit(role.current.child.pid, resource.RLIMIT_FSIZE, _limit(None))


def mount_small(stage: FederationStage, who: str) -> bool:
    """Put a role's folder on a small disk of its own, where this user may; before the start."""
    home = home_of(stage, who)
    kept = {path.name: path.read_bytes() for path in home.iterdir() if path.is_file()}
    if os.geteuid() != 0:
        return False
    options = f"size={MOUNT_BYTES},mode=0700"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(home)],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        return False
    stage.undo.append(
        lambda: subprocess.run(["umount", "--lazy", str(home)], capture_output=True, check=False)
    )
    for name, content in kept.items():
        path = home / name
        path.touch(mode=0o600)
        path.write_bytes(content)
    return True


def damage_newest(stage: FederationStage, chance: random.Random) -> str:
    """Stop the coordinator and damage its newest checkpoint; the refusal names the remedy: do that.

    Returns how it was damaged. AssertionError unless the coordinator refuses clearly.
    """
    role, mark = stage.coordinator, stage.said.mark()
    role.restart = False
    role.signal(signal.SIGKILL)
    role.current.child.wait(20)
    documents = sorted((stage.state / "checkpoints").glob("round-*.json"))
    if len(documents) < 2:
        role.restart = True
        return "nothing: there is no checkpoint before the newest"
    how = _damage(documents[-1], chance)
    role.restart = True
    stage.expect(
        r"^coordinator\|error: checkpoint .* is damaged .*remove it to resume from the one before",
        after=mark,
    )
    # What the line says.
    documents[-1].unlink()
    return how


def older_roster(stage: FederationStage) -> None:
    """Run the coordinator with the roster before the present one until a platform refuses it.

    AssertionError unless one does, or if a round ends meanwhile. Where all rounds were over there is no
    sum left to refuse: the final model is handed out, which no roster changes.
    """
    stage.roster_in_use, mark = stage.older_roster, stage.said.mark()
    before = _rounds(stage)
    kill(stage, "coordinator")
    # The platform that is new on the roster is not let in; the others leave the sum.
    refused = r"no longer, on its roster|roster is not this platform's"
    over = r"coordinator\|(?:waiting to hand out|finished after)"
    stage.expect(f"{refused}|{over}", after=mark)
    time.sleep(1.0)
    stage.roster_in_use = stage.roster
    kill(stage, "coordinator")
    assert _rounds(stage) == before, stage.said.text()


def _rounds(stage: FederationStage) -> list[str]:
    return sorted(path.name for path in (stage.state / "checkpoints").glob("round-*.json"))


def _damage(document: Path, chance: random.Random) -> str:
    how = chance.choice(
        ("a bit of the tensors", "no tensors", "half a document", "an empty document")
    )
    tensors = document.with_suffix(".safetensors")
    match how:
        case "a bit of the tensors":
            data = bytearray(tensors.read_bytes())
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            tensors.write_bytes(data)
        case "no tensors":
            tensors.unlink()
        case "half a document":
            document.write_bytes(document.read_bytes()[: document.stat().st_size // 2])
        case _:
            document.write_bytes(b"")
    return how


def _fill(path: Path) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass


def _limit(most: int | None) -> tuple[int, int]:
    return (resource.RLIM_INFINITY if most is None else most, resource.RLIM_INFINITY)


def _no_bytes(pid: int) -> None:
    with suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, _limit(0))
