"""What a secure sum costs one platform, beside Flower's SecAgg+ and beside the bare key stream.

All is CPU time (`time.process_time`) of one platform for one sum on the same vector, measured in turn
in one process, medians of several. Inside each side:

- ours: all frames of one platform through the real `Participant`: a whole key agreement for this one
  sum (keys, everybody's signatures, shares to all, their encryption, decryption of the others'),
  check, encoding, masks, packing into wire form, and the shares that open the sum. A federation agrees
  on keys once for up to 64 sums, so this counts more than a round costs.
- Flower's: what `secaggplus_mod` runs on a client in its four stages at the same threshold, by calling
  its own functions: keys, shares, encryption, decryption, weighting, quantisation, masks, modulus, NumPy
  wire form, reveal. Reading the parameters from their wire form is left out, as ours gets an array.
- key stream: AES-256-CTR `update_into` of 4 bytes a number for each mask, the platform's own and one a
  peer, by chunks of 256 KiB.

The encoding (check, scaling, stochastic rounding and its own random stream; Flower: weighting and
quantisation) is timed apart, so that each ratio is there with and without it. Bytes are the frames
that one platform sends for one sum, whole key agreement included, over 4 bytes a parameter.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
from flwr.common import ConfigRecord, ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.symmetric_encryption import encrypt, generate_shared_key
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.secure_aggregation.secaggplus_utils import share_keys_plaintext_concat

from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg import messages as frames
from crossrec_model.secagg.agreement import Terms, plan_digest
from crossrec_model.secagg.gathering import Inviting
from crossrec_model.secagg.grid import Grid
from crossrec_model.secagg.identity import IdentityKey, Member
from crossrec_model.secagg.masking import CHUNK_BYTES, KeyStream
from crossrec_model.secagg.messages import Kind
from crossrec_model.secagg.participant import Participant
from crossrec_model.secagg.roster import Roster
from crossrec_model.wire import messages as wire
from crossrec_model.wire.contribution import Contribution

# The package's attribute of this name is the function inside.
flower: Any = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")

SIZES = (1_000_000, 10_000_000, 50_000_000)
COHORTS = (3, 5, 10, 30, 100)
HEADLINE = (10_000_000, 5)
#: Flower runs where its smallest case, scaled by masks and numbers, foresees less than this.
FLOWER_AT_MOST_S = 60.0
LEVELS = {32: 1 << 24, 16: 6553}
WEIGHT, MAX_WEIGHT = 500.0, 1000.0
SYSTEM = SystemRandomness()
Update = npt.NDArray[np.float32]


class Clock:
    """Adds up CPU seconds under names, as a context or as a decorator."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - start


def update_of(parameters: int) -> Update:
    """An update like a trained one: small, and within the bounds of both sides."""
    values = np.random.default_rng(1).normal(scale=0.05, size=parameters)
    return np.clip(values, -1.0, 1.0).astype(np.float32)


class Cohort:
    """All platforms of a federation, each through its real `Participant`; one of them is measured."""

    def __init__(self, platforms: int, bits: int) -> None:
        names = [f"platform-{n:03}" for n in range(platforms)]
        self.me = names[platforms // 2]
        keys = {name: IdentityKey.generate(SYSTEM) for name in names}
        roster = Roster(
            federation="benchmark",
            version=1,
            members=tuple(Member(name, key.public) for name, key in keys.items()),
            signer=IdentityKey.generate(SYSTEM).public,
        )
        self.terms = Terms(roster=roster, plan=plan_digest(b"{}"), colluding_share=1 / 3)
        self.grid = Grid(
            levels=LEVELS[bits], bound=1.0, max_weight=MAX_WEIGHT, metric_bounds=(64.0,)
        )
        self.bits = self.grid.bits(platforms)
        self.platforms = {
            name: Participant(
                platform=name,
                identity=key,
                terms=self.terms,
                grids={Kind.TRAIN: self.grid},
                randomness=SYSTEM,
                record=lambda *_: None,
            )
            for name, key in keys.items()
        }

    def one_sum(self, update: Update) -> tuple[float, int]:
        """CPU seconds and sent bytes of the measured platform for one sum; overwrites `update`."""
        clock, sent = Clock(), 0

        def answer(name: str, message: frames.Message) -> bytes:
            nonlocal sent
            frame = frames.encode(message)
            if name != self.me:
                return self.platforms[name].answer(frame)
            with clock("ours"):
                reply = self.platforms[name].answer(frame)
            sent += len(wire.encode(wire.Secure(frame=reply)))
            return reply

        invite = frames.Invite(
            run=SYSTEM.bytes(16),
            epoch=SYSTEM.bytes(16),
            slots=1,
            roster=self.terms.roster.digest,
            plan=self.terms.plan,
        )
        members = self._agree(invite, answer)
        sent += self._seal(invite, update, clock)
        answer(self.me, frames.Unmask(epoch=invite.epoch, slot=0, survivors=members, dropped=()))
        return clock.seconds["ours"], sent

    def _agree(
        self, invite: frames.Invite, answer: Callable[[str, frames.Message], bytes]
    ) -> tuple[str, ...]:
        names = tuple(self.platforms)
        keys = {n: frames.decode_as(frames.Keys, answer(n, invite)) for n in names}
        listing = Inviting(terms=self.terms, invite=invite).close(keys)
        question = listing.message
        shares = {n: frames.decode_as(frames.Shares, answer(n, question)) for n in names}
        deliveries = listing.close(shares).messages()
        answer(self.me, deliveries[self.me])
        return names

    def _seal(self, invite: frames.Invite, update: Update, clock: Clock) -> int:
        """Mask the update, and return how many bytes its frame has."""
        contribution = Contribution(update=update, weight=WEIGHT, metrics=(0.7,))
        ticket = frames.encode(
            frames.Ticket(
                epoch=invite.epoch,
                slot=0,
                kind=Kind.TRAIN,
                round=1,
                bits=self.bits,
                levels=self.grid.levels,
                length=self.grid.length(len(update)),
            )
        )
        with clock("ours"):
            body = self.platforms[self.me].seal(
                ticket, contribution, run=invite.run, kind=Kind.TRAIN, number=1, subject=b""
            )
        return sum(map(len, wire.encode_pieces(wire.SumReply(run=invite.run, round=1, body=body))))

    def encoding(self, update: Update) -> float:
        """CPU seconds of the encoding alone, without masks and wire form."""
        start, bits = time.process_time(), self.bits
        for _ in self.grid.encode_into(update, WEIGHT, (0.7,), bits=bits, randomness=SYSTEM):
            pass
        return time.process_time() - start


def keystream(numbers: int, masks: int) -> float:
    """CPU seconds of the bare key stream: 4 bytes a number for each mask."""
    scratch = np.empty(CHUNK_BYTES, dtype=np.uint8)
    start = time.process_time()
    for _ in range(masks):
        stream = KeyStream(SYSTEM.bytes(32))
        for at in range(0, 4 * numbers, CHUNK_BYTES):
            stream.fill(scratch[: 4 * numbers - at])
    return time.process_time() - start


def flower_sum(update: Update, platforms: int, threshold: int) -> tuple[float, float]:
    """CPU seconds of Flower's client for one sum, and of these its encoding."""
    clock, nodes = Clock(), range(1, platforms + 1)
    settings = ConfigRecord(
        {
            Key.SAMPLE_NUMBER: platforms,
            Key.SHARE_NUMBER: platforms,
            Key.THRESHOLD: threshold,
            Key.CLIPPING_RANGE: 8.0,  # this and the next two are the workflow's defaults
            Key.TARGET_RANGE: 1 << 22,
            Key.MOD_RANGE: 1 << 32,
            Key.MAX_WEIGHT: MAX_WEIGHT,
        }
    )
    states = {node: flower.SecAggPlusState() for node in nodes}
    me = states[platforms // 2 + 1]
    for node, state in states.items():
        state.nid = node
        with clock("flower" if state is me else "peers"):
            flower._setup(state, settings)
    publics: dict[str, Any] = {str(node): [s.pk1, s.pk2] for node, s in states.items()}
    with clock("flower"):
        flower._share_keys(me, ConfigRecord(publics))
    delivered = ConfigRecord(
        {
            Key.SOURCE_LIST: [node for node in nodes if node != me.nid],
            Key.CIPHERTEXT_LIST: [_sealed(s, me) for s in states.values() if s is not me],
        }
    )
    parameters = ndarrays_to_parameters([update])
    parts = dict.fromkeys(("parameters_multiply", "quantize", "factor_combine"), "encoding")
    parts["parameters_to_ndarrays"] = "reading"
    with ExitStack() as stack:
        for name, part in parts.items():
            timed = clock(part)(getattr(flower, name))
            stack.enter_context(patch.object(flower, name, timed))
        with clock("flower"):
            flower._collect_masked_vectors(me, delivered, int(WEIGHT), parameters)
    opened = ConfigRecord({Key.ACTIVE_NODE_ID_LIST: list(nodes), Key.DEAD_NODE_ID_LIST: []})
    with clock("flower"):
        flower._unmask(me, opened)
    seconds = clock.seconds
    return seconds["flower"] - seconds["reading"], seconds["encoding"]


def _sealed(peer: Any, me: Any) -> bytes:
    """A peer's shares as they reach the measured client; it can't tell what they are shares of."""
    key = generate_shared_key(
        flower.bytes_to_private_key(peer.sk2), flower.bytes_to_public_key(me.pk2)
    )
    own = me.rd_seed_share_dict[me.nid], me.sk1_share_dict[me.nid]
    shares = [SYSTEM.bytes(len(share)) for share in own]
    return encrypt(key, share_keys_plaintext_concat(peer.nid, me.nid, *shares))


def measure(parameters: int, platforms: int, repeats: int, *, with_flower: bool) -> dict[str, Any]:
    """One row of the table: medians of all sides, measured in turn."""
    update, cohort = update_of(parameters), Cohort(platforms, 32)
    threshold = cohort.terms.threshold
    times: dict[str, list[float]] = {}
    for _ in range(repeats):
        new = {
            "ours": cohort.one_sum(update.copy())[0],
            "ours_encoding": cohort.encoding(update),
            "keystream": keystream(cohort.grid.length(parameters), platforms),
        }
        if with_flower:
            new["flower"], new["flower_encoding"] = flower_sum(update, platforms, threshold)
        for name, value in new.items():
            times.setdefault(name, []).append(value)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    return {
        "parameters": parameters,
        "platforms": platforms,
        "threshold": threshold,
        "repeats": repeats,
        "cpu_s": {name: round(value, 4) for name, value in seconds.items()},
        **ratios(seconds),
    }


def ratios(seconds: dict[str, float]) -> dict[str, float]:
    """All ratios of a row; `ceiling`s are the speed-ups if ours were nothing but key stream."""
    whole, stream = seconds["ours"], seconds["keystream"]
    bare = whole - seconds["ours_encoding"]
    found = {"to_keystream": bare / stream, "to_keystream_with_encoding": whole / stream}
    if "flower" in seconds:
        theirs = seconds["flower"] - seconds["flower_encoding"]
        found |= {"speedup": theirs / bare, "ceiling": theirs / stream}
        found |= {"speedup_with_encoding": seconds["flower"] / whole}
        found |= {"ceiling_with_encoding": seconds["flower"] / stream}
    return {name: round(value, 2) for name, value in found.items()}


def table(sizes: list[int], cohorts: list[int], repeats: int) -> list[dict[str, Any]]:
    """All rows; Flower's side where it is foreseen to stay under its limit."""
    rows: list[dict[str, Any]] = []
    per_unit = 0.0
    for parameters, platforms in itertools.product(sizes, cohorts):
        units = parameters * (platforms + 2)
        times = repeats if units < 200_000_000 else 3
        foreseen = per_unit * units
        row = measure(parameters, platforms, times, with_flower=foreseen < FLOWER_AT_MOST_S)
        per_unit = row["cpu_s"].get("flower", per_unit * units) / units
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def figures(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The four figures; of the speed-ups with and without the encoding the smaller one."""
    row = next(r for r in rows if (r["parameters"], r["platforms"]) == HEADLINE)
    ours = {name: value for name, value in row.items() if isinstance(value, float)}
    speed = min(row["speedup"], row["speedup_with_encoding"])
    inside = [line for line in (__doc__ or "").splitlines() if line]
    base = {"command": "python benchmarks/secagg.py", "seeds": 1}

    def figure(name: str, value: float, goal: str, **more: Any) -> dict[str, Any]:
        return {"figure": f"secagg.{name}", "value": value, "goal": goal, **base, **more}

    def sent(bits: int) -> float:
        parameters, platforms = HEADLINE
        return Cohort(platforms, bits).one_sum(update_of(parameters))[1] / (4 * parameters)

    return [
        figure("speedup_vs_flower_10m_5", speed, ">=20", **ours, inside=inside, rows=rows),
        figure("ratio_to_keystream_10m_5", row["to_keystream"], "<=2", **ours),
        figure("bytes_ratio_b32", round(sent(32), 5), "<=1.01"),
        figure("bytes_ratio_b16", round(sent(16), 5), "<=0.51"),
    ]


def main() -> None:
    """Measure and write `benchmarks/results/secagg.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--platforms", type=int, nargs="+", default=list(COHORTS))
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    rows = table(arguments.sizes, arguments.platforms, arguments.repeats)
    if (arguments.sizes, arguments.platforms) != (list(SIZES), list(COHORTS)):
        return  # a try-out, not the figures
    found = figures(rows)
    for figure in found:
        print(figure["figure"], figure["value"], figure["goal"])
    target = Path(__file__).parent / "results" / "secagg.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
