"""No number of a single platform is in anything that a coordinator writes, in a run of real processes.

Run as a script, this file is one of those processes.
"""

from __future__ import annotations

import logging
import signal
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "transport"))

from canaries import (  # noqa: E402
    DIMENSION,
    PLATFORMS,
    Canaries,
    canaries,
    files_below,
    found,
    scalar,
    vector,
)
from counting_platform import make_handler  # noqa: E402
from process_stage import Process, Stage  # noqa: E402

from clients.sealing import Sealer, SealerFor  # noqa: E402
from crossrec_model.config import Plan  # noqa: E402
from crossrec_model.secagg.messages import Kind  # noqa: E402
from crossrec_model.wire.codec import FloatVector, Pieces  # noqa: E402
from crossrec_model.wire.contribution import Contribution  # noqa: E402
from server.checkpoint import Checkpoint, CheckpointStore  # noqa: E402
from server.tls import make_certificates  # noqa: E402
from simulations import plain  # noqa: E402

ROUNDS = 3


class Planted:
    """Seals a platform's canaries, whatever the handler contributes."""

    def __init__(self, sealer: Sealer, platform: str) -> None:
        self._sealer, self._canaries = sealer, canaries(platform)

    def answer(self, frame: bytes) -> bytes:
        return self._sealer.answer(frame)

    def seal(
        self,
        ticket: bytes,
        contribution: Contribution,
        *,
        run: bytes,
        kind: Kind,
        number: int,
        subject: bytes,
    ) -> Pieces:
        own = self._canaries.contribution(training=kind is Kind.TRAIN)
        return self._sealer.seal(ticket, own, run=run, kind=kind, number=number, subject=subject)

    def check(self, ticket: bytes, dimension: int, *, run: bytes, kind: Kind, number: int) -> None:
        self._sealer.check(ticket, dimension, run=run, kind=kind, number=number)


def planted(platform: str, sealer_for: SealerFor) -> SealerFor:
    return lambda plan: Planted(sealer_for(plan), platform)


class UnprotectedSum(plain.PlainSum):
    """Weak on purpose: a coordinator that sees each contribution."""

    def __init__(self, courier: object, plan: Plan, *_of_secure_sums: object) -> None:
        super().__init__(courier, plan, least=3)  # type: ignore[arg-type]


def logged(body: bytes | memoryview, length: int) -> FloatVector | str:
    """Weak on purpose: the weight of whoever sent this goes to the log."""
    vector = _vector(body, length)
    if length > DIMENSION:
        logging.getLogger("crossrec").info("a vector of weight %.1f came", vector[DIMENSION])
    return vector


_vector = plain._vector


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path, make_certificates(tmp_path / "tls", []))
    try:
        yield stage
    finally:
        stage.end()


class Run:
    """A coordinator whose home and temporary folder are watched too, and its planted platforms."""

    def __init__(self, stage: Stage, monkeypatch: pytest.MonkeyPatch, *weak: str) -> None:
        self._stage, self._weak = stage, weak
        plan = stage.plan(f"[federation]\nrounds = {ROUNDS}\nround_timeout_s = 2\n")
        self._folders = [stage.state, *(stage.folder / name for name in ("home", "temporary"))]
        for folder in self._folders:
            folder.mkdir()
        with monkeypatch.context() as patched:
            for name, folder in zip(("HOME", "TMPDIR"), self._folders[1:], strict=True):
                patched.setenv(name, str(folder))
            self.coordinator = stage.start(
                __file__,
                *("coordinator", *weak, "--port", 0, "--state", stage.state, "--plan", plan),
                *("--roster", stage.roster, "--tls", stage.tls.ca.parent, "--no-privacy"),
                *("--platforms", 3 if weak else 4),
            )
        self._port = stage.port(self.coordinator)

    def platform(self, name: str) -> Process:
        return self._stage.start(
            __file__,
            *("platform", *self._weak, "--id", name, "--address", f"127.0.0.1:{self._port}"),
            *("--ca", self._stage.tls.ca, "--seconds", 0.5),
            *("--state", self._stage.platforms, "--roster", self._stage.roster),
        )

    def look(self) -> dict[str, bytes]:
        """Everything that the coordinator has written and not yet deleted, and its output."""
        return {**files_below(*self._folders), "output": self.coordinator.output.encode()}

    def checkpoint(self) -> Checkpoint:
        last = CheckpointStore(self._stage.state).latest()
        assert last is not None
        return last


def _of_platforms(names: Sequence[str], files: dict[str, bytes]) -> dict[str, list[str]]:
    return {
        f"{pattern} of {name}": where
        for name in names
        for pattern, where in found(files, canaries(name).patterns()).items()
    }


def _mean(names: Sequence[str], number: Callable[[Canaries], float]) -> float:
    planted = [canaries(name) for name in names]
    return sum(one.weight * number(one) for one in planted) / sum(one.weight for one in planted)


@pytest.mark.processes
def test_no_number_of_one_platform_is_written(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(stage, monkeypatch)
    platforms = {name: run.platform(name) for name in PLATFORMS}
    for number in range(1, ROUNDS + 1):
        run.coordinator.expect(f"round {number}/{ROUNDS}")
        if number == 1:
            platforms["D"].send(signal.SIGKILL)
        assert _of_platforms(PLATFORMS, run.look()) == {}
    assert run.coordinator.wait() == 0, run.coordinator.output
    assert [platforms[name].wait() for name in "ABC"] == [0, 0, 0], platforms["A"].output
    files = run.look()
    assert _of_platforms(PLATFORMS, files) == {}
    _assert_sums_are_written(run.checkpoint(), files)


def _assert_sums_are_written(last: Checkpoint, files: dict[str, bytes]) -> None:
    """The cohorts' means, which the coordinator may know, are found by the same search."""
    cohorts = [record.platforms for record in last.history]
    assert (cohorts[0], cohorts[-1]) == (tuple("ABCD"), tuple("ABC"))
    for record in last.history:
        loss = _mean(record.platforms, lambda one: one.loss)
        score = _mean(record.platforms, lambda one: one.score)
        assert record.training["loss"] == pytest.approx(loss, abs=1e-4)
        assert record.evaluation["ndcg@10"] == pytest.approx(score, abs=1e-5)
        for name, value in (("loss", loss), ("ndcg@10", score)):
            assert found({"": files["output"]}, scalar(name, value)), name
            exact = (record.training | record.evaluation)[name]
            assert len(found(files, scalar(name, exact))[f"{name} as text"]) >= 2
    steps = [
        _mean(record.platforms, lambda one, at=at: float(one.update[at]))  # type: ignore[misc]
        for record in last.history
        for at in range(DIMENSION)
    ]
    moved = np.reshape(steps, (ROUNDS, DIMENSION)).sum(axis=0)
    np.testing.assert_allclose(last.parameters, moved, atol=1e-4)
    places = found(files, vector("parameters", last.parameters.tolist()))["parameters as bytes"]
    assert any(place.endswith(f"round-{ROUNDS:06d}.safetensors") for place in places)


@pytest.mark.processes
def test_a_weight_in_the_log_is_found(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(stage, monkeypatch, "--weak")
    for name in "ABC":
        run.platform(name)
    run.coordinator.expect(f"round 1/{ROUNDS}")
    log = str(stage.state / "coordinator.log")
    seen = _of_platforms(PLATFORMS, run.look())
    assert seen == {f"weight as text of {name}": [log] for name in "ABC"}


A = canaries("A")
WEIGHTED = A.update.astype(np.float64) * A.weight


@pytest.mark.parametrize(
    ("leak", "name"),
    [
        (b"n=48611.", "weight as text"),
        (b'{"weight": 48611.0}', "weight as text"),
        (b"weight 48,611 of A", "weight as text"),
        (b"48_611", "weight as text"),
        (b"4.8611e+04", "weight as text"),
        (b"loss 23.7189  ndcg", "loss as text"),
        (b"loss=23.72", "loss as text"),
        (repr(A.loss).encode(), "loss as text"),
        (repr(float(np.float32(A.loss))).encode(), "loss as text"),
        (b"[0.31726459]", "score as text"),
        (f"{A.weight * A.loss:.1f}".encode(), "weighted loss as text"),
        (b"12444416", "weight on the grid as text"),
        (str(A.update).encode(), "update as text"),
        (repr(A.update.tolist()).encode(), "update as text"),
        (" ".join(f"{x:.4f}" for x in A.update).encode(), "update as text"),
        (A.update[4:6].tobytes(), "update as bytes"),
        (A.update[4:6].astype(">f4").tobytes(), "update as bytes"),
        (A.update[4:6].astype("<f8").tobytes(), "update as bytes"),
        (WEIGHTED.astype("<f4").tobytes(), "weighted update as bytes"),
        (np.floor(WEIGHTED * 256).astype("<i4").tobytes(), "update on the grid as bytes"),
        (np.ceil(WEIGHTED * 256).astype(">i8").tobytes(), "update on the grid as bytes"),
        (struct.pack("<f", A.loss), "loss as bytes"),
        (struct.pack(">d", A.score), "score as bytes"),
        (struct.pack("<q", 48611), "weight as bytes"),
        (struct.pack(">i", 48611), "weight as bytes"),
        (struct.pack("<d", 48611).hex().encode(), "weight as hexadecimal"),
    ],
)
def test_the_search_finds_a_canary_in_each_form(leak: bytes, name: str) -> None:
    assert name in found({"file": b"\x00before\n" + leak + b"\x01after"}, A.patterns())


@pytest.mark.parametrize(
    "other", [b"1948611", b"0.48611", b"a48611b", b"23.7289", b"124444160", b"0.31736459"]
)
def test_the_search_finds_no_other_number(other: bytes) -> None:
    assert found({"file": b" " + other + b" "}, A.patterns()) == {}


def zeros(_plan: Plan) -> FloatVector:
    return np.zeros(DIMENSION, dtype=np.float32)


def main(arguments: list[str]) -> int:
    """Be the coordinator or a platform, `--weak` for one without secure sums."""
    weak = "--weak" in arguments
    rest = [argument for argument in arguments[1:] if argument != "--weak"]
    with ExitStack() as stack:
        if arguments[0] == "coordinator":
            from server.__main__ import main as coordinate

            if weak:
                stack.enter_context(patch("server.federation.SecureSum", UnprotectedSum))
                stack.enter_context(patch.object(plain, "_vector", logged))
            return coordinate(rest, initial=zeros)
        import counting_platform

        name = rest[rest.index("--id") + 1]

        def handler(*given: object, sealer_for: SealerFor, **named: object) -> object:
            sealer_for = planted(name, plain.PlainSealer if weak else sealer_for)
            return make_handler(*given, sealer_for=sealer_for, **named)  # type: ignore[arg-type]

        stack.enter_context(patch.object(counting_platform, "make_handler", handler))
        sys.argv = ["counting_platform.py", *rest, "--dimension", str(DIMENSION)]
        return counting_platform.main()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
