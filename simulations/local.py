"""A federation inside this process: the real coordinator and the real platforms' code, no network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from clients.connection import Handler
from crossrec_model.config import Plan
from crossrec_model.parameters import initial_vector
from crossrec_model.wire.codec import FloatVector
from server.checkpoint import Checkpoint, RoundRecord
from server.federation import Federation, RunOptions, fresh_start
from server.flower import GridCourier
from server.progress import Progress
from simulations.grid import InProcessGrid
from simulations.ray_grid import RayGrid


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """What a run leaves: the vector after the first (statistics) round and the final one, each [d]."""

    first: FloatVector
    final: FloatVector
    history: tuple[RoundRecord, ...]


def federate(
    plan: Plan,
    handlers: Mapping[str, Handler],
    progress: Progress,
    *,
    at_once: int = 2,
    evaluate_every: int = 1,
) -> Trained:
    """Run the plan over handlers in this process, `at_once` platforms at the same time."""
    grid = InProcessGrid(handlers, at_once=at_once)
    try:
        return _run(plan, GridCourier(grid), len(handlers), progress, evaluate_every)
    finally:
        grid.close()


def federate_on_ray(
    plan: Plan,
    makers: Mapping[str, Callable[[], Handler]],
    progress: Progress,
    *,
    address: str | None = None,
    evaluate_every: int = 1,
) -> Trained:
    """Run the plan with every platform in a Ray actor, on this machine or on a cluster."""
    grid = RayGrid(makers, address=address)
    try:
        return _run(plan, GridCourier(grid), len(makers), progress, evaluate_every)
    finally:
        grid.close()


def _run(
    plan: Plan,
    courier: GridCourier,
    platforms: int,
    progress: AbstractContextManager[Progress],
    evaluate_every: int,
) -> Trained:
    first: list[FloatVector] = []

    def keep(checkpoint: Checkpoint) -> None:
        if checkpoint.round == 1:
            first.append(checkpoint.parameters)

    options = RunOptions(platforms=platforms, evaluate_every=evaluate_every)
    with progress as shown:
        start = fresh_start(plan, initial_vector(plan))
        end = Federation(courier, start, options, save=keep, progress=shown).run()
    return Trained(first=first[0], final=end.parameters, history=end.history)
