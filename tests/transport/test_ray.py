"""The Ray grid gives the numbers of the in-process one; without Ray, one clear line."""

from __future__ import annotations

import importlib
import io
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from counting_platform import make_handler

from crossrec_model.config import FederationConfig, Plan
from crossrec_model.errors import ConfigError
from server.checkpoint import Checkpoint
from server.federation import Federation, RunOptions, fresh_start
from server.flower import GridCourier
from server.progress import PlainProgress
from simulations.grid import InProcessGrid, LocalGrid
from simulations.ray_grid import RayGrid

PLAN = Plan(federation=FederationConfig(rounds=2, min_platforms=2))


def _run(grid: LocalGrid, start: Checkpoint) -> Checkpoint:
    return Federation(
        GridCourier(grid),
        start,
        RunOptions(platforms=3),
        save=lambda _: None,
        progress=PlainProgress(io.StringIO()),
    ).run()


def test_without_ray_the_command_that_installs_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = importlib.import_module

    def missing(name: str, package: str | None = None) -> object:
        if name == "ray":
            raise ModuleNotFoundError(name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r'pip install "crossrec\[ray\]"'):
        RayGrid({})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_ray_gives_the_numbers_of_the_in_process_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    # Ray's workers are new processes: they must find the handler's module.
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", f"{here}:{here.parents[1]}")
    start = fresh_start(PLAN, np.zeros(8, dtype=np.float32))
    local = InProcessGrid({name: make_handler(name, 8) for name in "ABC"})
    expected = _run(local, start)
    local.close()
    grid = RayGrid({name: partial(make_handler, name, 8) for name in "ABC"})
    try:
        actual = _run(grid, start)
    finally:
        grid.close()
    assert actual.parameters.tobytes() == expected.parameters.tobytes()
    assert [r.training for r in actual.history] == [r.training for r in expected.history]
