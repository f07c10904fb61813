"""What a private step costs beside a plain one, and beside the two ways that Opacus offers.

A step is one gradient step on the same synthetic batch of users, as `inputs_of` gathers it (that part
is left out of all times). The sides:

- plain: autograd of the mean loss and `torch.optim.SGD`, the table's gradient dense.
- private: what `clients.noisy_training` does in a round, over the round's steps: Opacus' hooks put on,
  the noise owed, each user's clipped gradient, the noised step; at the end all noise still owed
  ("settle", shown by itself too).
- eager: the same, but every row of the table gets its noise in every step.
- frozen: the table is not trained, plain and private.
- hooks, ghost: Opacus' `DPOptimizer` and `DPOptimizerFastGradientClipping` on a network with the same
  weights and losses made of layers that Opacus knows: `nn.Embedding` and a sum for the table,
  `nn.Linear` for all others (the constant `Shift` keeps our sampler, as Opacus has none). Their noise
  is torch's ordinary generator. That their clipped sums are ours is checked first.

Every side has a process of its own with one thread. They run in turn, several times over, while the
others wait; times are CPU times (`time.process_time`), ratios those to the plain side of the same turn,
both medians over the turns. Memory is the peak resident size of the whole process; the table also shows
it above a process that has only imported everything.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping
from torch import Tensor, nn

from crossrec_model.config import ModelConfig, PrivacyConfig, TrainingConfig
from crossrec_model.data.sampling import UserBlock
from crossrec_model.data.users import CONTEXT_SIZE, USER_NUMBERS
from crossrec_model.encoding import ItemTensors
from crossrec_model.evaluation.figures import Figure, write_figures
from crossrec_model.network import GraphConvolution, Network
from crossrec_model.privacy.descent import NoisyDescent
from crossrec_model.privacy.noise import NoiseSource
from crossrec_model.privacy.per_user import (
    TABLE,
    Inputs,
    PerUserGradients,
    UserBatch,
    inputs_of,
    per_user_losses,
)
from crossrec_model.randomness import SystemRandomness

COMMAND = "python benchmarks/dp_step.py"
RESULTS = Path(__file__).parent / "results" / "dp_step.json"
USERS, ITEMS, TOKENS = 256, 20_000, 14
TRAINING, PRIVACY = TrainingConfig(), PrivacyConfig()
CLIP, MULTIPLIER, LEARNING_RATE = 1.0, 1.0, 0.05
#: Steps of a round, over which the settling is spread.
STEPS = PRIVACY.steps
#: Rows and dimension of the table.
SIZES = {
    "demo": (2**15, 32),
    "vocabulary": (100_000, 64),
    "million": (2**20, 32),
    "small": (2**12, 8),
}
AGREE = 1e-4


class World:
    """A network, a public catalogue and batches of users, all from fixed seeds."""

    def __init__(self, size: str, users: int) -> None:
        buckets, d = SIZES[size]
        self.users = users
        self.config = ModelConfig(buckets=buckets, dimension=d, tower=(2 * d, 64, 32, 1))
        self.network = Network(self.config)
        self.network.reset(torch.Generator().manual_seed(1))
        generator = torch.Generator().manual_seed(2)
        shape = (ITEMS, len(self.config.relations), self.config.neighbours)
        self.items = ItemTensors(
            buckets=1 + _skewed((ITEMS, TOKENS), buckets - 1, generator),
            neighbours=_skewed(shape, ITEMS, generator),
            vectors=torch.zeros(ITEMS, 0),
        )

    def batch(self, seed: int) -> Inputs:
        """Users with 1 to 64 items in their history and 1 to 20 positives."""
        b, g = self.users, torch.Generator().manual_seed(1000 + seed)
        used = _first(b, TRAINING.history, g)
        weights = torch.rand((b, TRAINING.history, 2), generator=g) * used[..., None]
        block = UserBlock(
            history=_skewed((b, TRAINING.history), ITEMS, g),
            weights=4.0 * weights / weights.sum(1, keepdim=True).clamp(min=1e-6),
            numbers=torch.zeros(b, len(USER_NUMBERS)),
            context=1 + _skewed((b, CONTEXT_SIZE), self.config.buckets - 1, g),
            positives=_skewed((b, TRAINING.positives), ITEMS, g),
            mask=_first(b, TRAINING.positives, g),
        )
        batch = UserBatch(
            block=block,
            negatives=_skewed((b, PRIVACY.negatives), ITEMS, g),
            numbers=torch.randn((b, len(USER_NUMBERS)), generator=g),
        )
        return inputs_of(self.network, self.items, batch)

    def losses(self, network: Network, inputs: Inputs) -> Tensor:
        """Loss of each user, the table read within autograd."""
        sums = network.look_up(inputs.buckets)
        return per_user_losses(network, self.items, inputs, sums, TRAINING.objective)


def _skewed(shape: tuple[int, ...], below: int, generator: torch.Generator) -> Tensor:
    """Whole numbers below a bound, small ones more often: half of them in the lowest eighth."""
    return (torch.rand(shape, generator=generator) ** 3 * below).long()


def _first(users: int, most: int, generator: torch.Generator) -> Tensor:
    """Masks [users, most] of the first 1 to `most` places."""
    counts = torch.randint(1, most + 1, (users, 1), generator=generator)
    return (torch.arange(most) < counts).float()


class Plain:
    """Ordinary training."""

    def __init__(self, world: World, *, table: bool = True) -> None:
        self._world, self._network = world, world.network
        self._network.items.weight.requires_grad_(table)
        trained = [p for p in self._network.parameters() if p.requires_grad]
        self._optimizer = torch.optim.SGD(trained, lr=LEARNING_RATE)

    def begin(self) -> None:
        """Nothing."""

    def step(self, inputs: Inputs) -> None:
        """One step."""
        self._optimizer.zero_grad(set_to_none=True)
        self._world.losses(self._network, inputs).mean().backward()
        self._optimizer.step()

    def end(self) -> None:
        """Nothing."""


class Private:
    """Ours, as a round of `clients.noisy_training` uses it."""

    def __init__(self, world: World, *, table: bool = True, eager: bool = False) -> None:
        self._world, self._table, self._eager = world, table, eager

    def begin(self) -> None:
        """Put the hooks on."""
        world = self._world
        self._gradients = PerUserGradients(
            world.network, world.items, clip=CLIP, objective=TRAINING.objective, table=self._table
        ).__enter__()
        self._descent = NoisyDescent(
            world.network,
            NoiseSource(SystemRandomness()),
            clip=CLIP,
            multiplier=MULTIPLIER,
            expected=world.users,
            learning_rate=LEARNING_RATE,
            table=self._table,
        )

    def step(self, inputs: Inputs) -> None:
        """One step."""
        self._descent.owed(inputs.buckets)
        self._descent.step([self._gradients.clipped_sum(inputs)])
        if self._eager:
            self._descent.settle()

    def end(self) -> None:
        """Take the hooks off and settle."""
        self._gradients.__exit__(None, None, None)
        self._descent.settle()


class StockTable(nn.Module):
    """The hash table by Opacus' own means: it has no sampler for bags that is right."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(weight.detach().clone(), freeze=False)

    def forward(self, buckets: Tensor) -> Tensor:
        """Look-ups [B, O, F] → [B, O, D]; padding counts nothing."""
        used = (buckets != 0).float()
        return torch.einsum("bofd,bof->bod", self.table(buckets), used)


class StockConvolution(GraphConvolution):
    """The graph layer as one `nn.Linear`."""

    def __init__(self, layer: GraphConvolution) -> None:
        nn.Module.__init__(self)
        self.relations = layer.relations
        r, d, _ = layer.weight.shape
        self.linear = nn.Linear(r * d, d)
        with torch.no_grad():
            self.linear.weight.copy_(_flat(layer.weight))
            self.linear.bias.copy_(layer.bias)

    def forward(self, means: Tensor) -> Tensor:
        """[..., R, D] → [..., D]."""
        return self.linear(means.flatten(-2))


def _flat(weight: Tensor) -> Tensor:
    """Weights a relation [R, D, D] as those of one layer [D, R·D]."""
    return weight.permute(1, 0, 2).flatten(1)


def stock(network: Network) -> Network:
    """A copy made of layers that Opacus knows."""
    made = copy.deepcopy(network)
    made.items = StockTable(network.items.weight)
    made.graph = nn.ModuleList(StockConvolution(layer) for layer in network.layers())
    return made.train()


class Hooks:
    """Opacus' default: every user's whole gradient."""

    def __init__(self, world: World, clip: float = CLIP) -> None:
        self._world, self.network = world, stock(world.network)
        self._wrap(clip)

    def _wrap(self, clip: float) -> None:
        self._wrapped = GradSampleModule(self.network, loss_reduction="mean")
        self.optimizer: Any = DPOptimizer(**self._settings(clip))

    def _settings(self, clip: float) -> dict[str, Any]:
        return {
            "optimizer": torch.optim.SGD(self.network.parameters(), lr=LEARNING_RATE),
            "noise_multiplier": MULTIPLIER,
            "max_grad_norm": clip,
            "expected_batch_size": self._world.users,
        }

    def begin(self) -> None:
        """Nothing: the hooks stay on."""

    def backward(self, inputs: Inputs) -> None:
        """Gradients per user."""
        self.optimizer.zero_grad(set_to_none=True)
        self._world.losses(self.network, inputs).mean().backward()

    def step(self, inputs: Inputs) -> None:
        """One step."""
        self.backward(inputs)
        self.optimizer.step()

    def end(self) -> None:
        """Nothing."""

    def clipped(self) -> dict[str, Tensor]:
        """The clipped sums after `backward`, by name."""
        self.optimizer.clip_and_accumulate()
        return {n: p.summed_grad for n, p in self.network.named_parameters()}


class Ghost(Hooks):
    """Opacus' ghost clipping: norms without gradients, then a second backward pass."""

    def _wrap(self, clip: float) -> None:
        self._wrapped: Any = GradSampleModuleFastGradientClipping(
            self.network, max_grad_norm=clip, loss_reduction="mean"
        )
        self.optimizer = DPOptimizerFastGradientClipping(**self._settings(clip))

    def backward(self, inputs: Inputs) -> None:
        """Clipped gradients."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._world.losses(self.network, inputs)
        DPTensorFastGradientClipping(self._wrapped, self.optimizer, losses, "mean").backward()

    def clipped(self) -> dict[str, Tensor]:
        """The clipped sums after `backward`, by name."""
        return {n: p.grad for n, p in self.network.named_parameters()}


SIDES: dict[str, Callable[[World], Any]] = {
    "plain": Plain,
    "private": Private,
    "eager": lambda world: Private(world, eager=True),
    "plain, frozen": lambda world: Plain(world, table=False),
    "private, frozen": lambda world: Private(world, table=False),
    "hooks": Hooks,
    "ghost": Ghost,
}


def difference(world: World, kind: type[Hooks], clip: float) -> float:
    """How far Opacus' clipped sum is from ours, relative to it."""
    peer, inputs, network = kind(world, clip), world.batch(0), world.network
    peer.backward(inputs)
    theirs = peer.clipped()
    with PerUserGradients(
        network, world.items, clip=clip, objective=TRAINING.objective
    ) as gradients:
        found = gradients.clipped_sum(inputs)
    ours = dict(found.dense)
    ours[TABLE] = torch.zeros_like(network.items.weight)
    ours[TABLE].index_add_(0, found.table.rows, found.table.values)
    wanted, got = [], []
    for name, total in ours.items():
        if name == TABLE:
            name = "items.table.weight"
        if name.startswith("graph."):
            name = name.replace("weight", "linear.weight").replace("bias", "linear.bias")
            total = _flat(total) if total.dim() == 3 else total
        wanted.append(total.flatten())
        got.append(theirs.pop(name).flatten())
    if theirs:
        raise RuntimeError(f"not compared: {', '.join(theirs)}")
    return float((torch.cat(got) - torch.cat(wanted)).norm() / torch.cat(wanted).norm())


def check(size: str, users: int) -> None:
    """Refuse to compare sides that don't compute the same."""
    world = World(size, users)
    for kind in (Hooks, Ghost):
        for clip in (0.01, 0.1, 1.0, 10.0):
            found = difference(world, kind, clip)
            print(f"clipped sum, {kind.__name__.lower()} - ours, clip {clip}: {found:.1e}")
            if not found < AGREE:
                raise RuntimeError(f"the clipped sums differ by {found:.1e}, at most {AGREE}")


def peak_mb() -> float:
    """The most memory that this process had; `ru_maxrss` would count its parent's too."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return float(status.split("VmHWM:")[1].split()[0]) / 1024


def serve(side: str, size: str, users: int) -> None:
    """A child: for each line, a number of steps, answer with the CPU seconds a step and the peak."""
    torch.set_num_threads(1)
    if side == "imports":
        print(json.dumps({"peak": peak_mb()}), flush=True)
        return
    world = World(size, users)
    runner, seed = SIDES[side](world), 0

    def timed(call: Callable[..., None], *arguments: Inputs) -> float:
        start = time.process_time()
        call(*arguments)
        return time.process_time() - start

    for line in sys.stdin:
        steps, seconds = int(line), timed(runner.begin)
        for _ in range(steps):
            seed += 1
            seconds += timed(runner.step, world.batch(seed))
        end = timed(runner.end)
        answer = {"step": (seconds + end) / steps, "settle": end / steps, "peak": peak_mb()}
        print(json.dumps(answer), flush=True)


@dataclass
class Child:
    """A side's process, and what it has answered."""

    process: subprocess.Popen[str]
    answers: list[dict[str, float]]

    @classmethod
    def start(cls, *arguments: str) -> Child:
        """Start a side with one thread."""
        process = subprocess.Popen(
            [sys.executable, __file__, "--serve", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
        )
        return cls(process, [])

    def ask(self, steps: int | None) -> None:
        """Have it run some steps; None for a child that answers by itself."""
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("the child has no pipes")
        if steps is not None:
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}")
        self.answers.append(json.loads(line))

    def stop(self) -> None:
        """Let it end."""
        self.process.communicate()


def measure(
    size: str, users: int, sides: dict[str, int], repeats: int
) -> dict[str, dict[str, float]]:
    """Medians of each side, in turn, `sides` naming how many steps a turn; prints the table."""
    children = {side: Child.start(side, size, str(users)) for side in sides}
    try:
        for turn in range(repeats + 1):
            for side, child in list(children.items())[:: -1 if turn % 2 else 1]:
                # The first turn warms up.
                child.ask(sides[side] if turn else 1)
    finally:
        for child in children.values():
            child.stop()
    empty = Child.start("imports", size, str(users))
    empty.ask(None)
    empty.stop()
    base, rows = empty.answers[0]["peak"], {}
    plain = [a["step"] for a in children["plain"].answers[1:]]
    for side, child in children.items():
        timed = child.answers[1:]
        row = {k: statistics.median(a[k] for a in timed) for k in ("step", "settle")}
        each = [a["step"] / p for a, p in zip(timed, plain, strict=True)]
        row |= {"ratio": statistics.median(each), "least": min(a["step"] for a in timed)}
        rows[side] = row | {"peak": timed[-1]["peak"], "base": base}
    show(size, users, rows)
    return rows


def show(size: str, users: int, rows: dict[str, dict[str, float]]) -> None:
    """Print a table beside the plain side."""
    buckets, d = SIZES[size]
    print(f"\n{size}: table {buckets:,} x {d}, {users} users a step")
    print(f"{'side':16}{'ms':>10}{'ratio':>8}{'of least':>9}{'settle ms':>10}", end="")
    print(f"{'peak MB':>9}{'above imports':>14}")
    for side, row in rows.items():
        plain = rows["plain"]
        print(
            f"{side:16}{row['step'] * 1e3:10.1f}{row['ratio']:8.2f}"
            f"{row['least'] / plain['least']:9.2f}{row['settle'] * 1e3:10.2f}"
            f"{row['peak']:9.0f}{row['peak'] - row['base']:14.0f}",
            flush=True,
        )


def ratio(rows: dict[str, dict[str, float]], key: str, above: str, below: str) -> float:
    """One side's number over another's."""
    return round(rows[above][key] / rows[below][key], 3)


def figures(*, quick: bool) -> list[Figure]:
    """Measure everything."""
    users, repeats = (16, 2) if quick else (USERS, 9)
    steps = {"plain": STEPS, "private": STEPS}
    demo = measure("small" if quick else "demo", users, steps | {"hooks": 2, "ghost": 2}, repeats)
    table = measure("small" if quick else "vocabulary", users, steps | {"hooks": 1}, 1)
    rest = {"eager": 3, "plain, frozen": STEPS, "private, frozen": STEPS}
    million = measure("small" if quick else "million", users, steps | rest, min(repeats, 5))
    lazy = million["private"]["step"] - million["private, frozen"]["step"]
    eager = million["eager"]["step"] - million["private, frozen"]["step"]
    print(
        f"\nA trained table of 2^20 rows adds {lazy * 1e3:.0f} ms a step with noise owed and settled "
        f"once in {STEPS} steps, {eager * 1e3:.0f} ms with noise on every row in every step."
    )

    def figure(name: str, value: float, goal: str, seeds: int = repeats) -> Figure:
        return Figure(figure=f"dp.{name}", value=value, goal=goal, command=COMMAND, seeds=seeds)

    return [
        figure("step_ratio_256", ratio(demo, "ratio", "private", "plain"), "<=3"),
        figure("memory_ratio_256", ratio(demo, "peak", "private", "plain"), "<=1.5", 1),
        figure("speedup_vs_hooks", ratio(demo, "ratio", "hooks", "private"), ">=20"),
        figure("speedup_vs_ghost", ratio(demo, "ratio", "ghost", "private"), ">=5"),
        figure("memory_vs_hooks_100k", ratio(table, "peak", "hooks", "private"), ">=5", 1),
        figure("step_ratio_1m_rows", ratio(million, "ratio", "private", "plain"), "<=3", 5),
    ]


def main() -> None:
    """Check, measure, print; write the figures unless it was a try-out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing is written")
    parser.add_argument("--serve", nargs=3, metavar=("SIDE", "SIZE", "USERS"))
    options = parser.parse_args()
    # Of Opacus' hooks on the stock table, whose input are numbers of rows.
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    if options.serve:
        side, size, users = options.serve
        serve(side, size, int(users))
        return
    torch.set_num_threads(1)
    names = [f"{name} {version(name)}" for name in ("opacus", "torch", "numpy")]
    print(f"Python {platform.python_version()}, {', '.join(names)}, {os.cpu_count()} cores")
    check("small" if options.quick else "demo", 16)
    found = figures(quick=options.quick)
    for figure in found:
        met = "met" if figure.met else "MISSED"
        print(f"{figure.figure} {figure.value} (goal {figure.goal}: {met})")
    if not options.quick:
        write_figures(RESULTS, found)


if __name__ == "__main__":
    main()
