"""Seeded streams and the system's source are two kinds that can't be exchanged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny import MODEL

from crossrec_model.parameters import initial_network
from crossrec_model.randomness import ExperimentRandomness, SystemRandomness

ROOT = Path(__file__).parent.parent.parent


def _number(stream: ExperimentRandomness) -> int:
    return int(stream.numpy().integers(2**62))


def test_the_same_labels_give_the_same_stream_and_others_another() -> None:
    assert _number(ExperimentRandomness(1, "a").child("b", 2)) == _number(
        ExperimentRandomness(1, "a", "b", 2)
    )
    streams = [
        ExperimentRandomness(1),
        ExperimentRandomness(2),
        ExperimentRandomness(1, "a"),
        ExperimentRandomness(1, "a", "bc"),
        ExperimentRandomness(1, "ab", "c"),
        ExperimentRandomness(1, "round", 1),
        ExperimentRandomness(1, "round", "1"),
    ]
    assert len({_number(stream) for stream in streams}) == len(streams)
    seeds = {stream.torch().initial_seed() for stream in streams}
    assert len(seeds) == len(streams)
    with pytest.raises(ValueError, match="-1 is negative"):
        ExperimentRandomness(-1)


def test_a_stream_starts_over_each_time_it_is_opened() -> None:
    stream = ExperimentRandomness(7, "x")
    assert _number(stream) == _number(stream)


def test_the_systems_source_takes_no_seed_and_never_repeats() -> None:
    with pytest.raises(TypeError):
        SystemRandomness(1)
    source = SystemRandomness()
    drawn = {source.bytes(16) for _ in range(100)}
    assert len(drawn) == 100
    assert {len(d) for d in drawn} == {16}
    assert len(source.bytes(0)) == 0


def test_neither_kind_can_stand_for_the_other_at_run_time() -> None:
    with pytest.raises(AttributeError):
        initial_network(MODEL, SystemRandomness())
    assert not hasattr(ExperimentRandomness(0), "bytes")
    for kind in (ExperimentRandomness, SystemRandomness):
        assert kind.__final__


def test_the_type_checker_refuses_the_exchange(tmp_path: Path) -> None:
    source = tmp_path / "exchange.py"
    source.write_text(
        "from crossrec_model.randomness import ExperimentRandomness, SystemRandomness\n"
        "def key(source: SystemRandomness) -> bytes:\n"
        "    return source.bytes(32)\n"
        "def draw(stream: ExperimentRandomness) -> int:\n"
        "    return int(stream.numpy().integers(9))\n"
        "key(SystemRandomness())\n"
        "draw(ExperimentRandomness(1))\n"
        "key(ExperimentRandomness(1))\n"
        "draw(SystemRandomness())\n",
        encoding="utf-8",
    )
    # Only the two modules in question: the heavy libraries' types play no part.
    options = ["--follow-imports=skip", "--config-file=", f"--cache-dir={tmp_path / 'cache'}"]
    modules = [str(source), "crossrec_model/randomness.py"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *modules],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    errors = [line for line in done.stdout.splitlines() if "exchange.py" in line]
    assert len(errors) == 2, done.stdout + done.stderr
    assert ":8: error" in errors[0]
    assert "[arg-type]" in errors[0]
    assert ":9: error" in errors[1]
