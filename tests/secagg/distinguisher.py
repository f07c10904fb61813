"""Who tries to tell true transcripts from simulated ones: feature maps, classifiers, tests of bytes.

Every feature of a round is computed from what the observer has: the target's frames, the sum, the
vector without the masks that it can take off, and what a search over weak seeds finds.

Classifiers are validated forwards: each block of key agreements is scored by a classifier that is
trained on all blocks before. If there is nothing to learn, the areas of the blocks are uncorrelated and
each has the known variance; ordinary cross-validation of pure noise scatters 1.4 times as far, because
its folds judge classifiers that were trained on each other's labels. All rounds of one key agreement,
and each round with its simulation, are in the same block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from observer import Integers, Masks, SeedSearch, all_masks, peel
from scipy import special, stats
from transcript import PATTERN, TARGET, Round, Sum

from crossrec_model.secagg import messages as frames
from crossrec_model.secagg.agreement import SLOT_BYTES

Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]
#: Features [f] of one round; `None` stands for no search.
Features = Callable[[Round, SeedSearch | None], Floats]
#: Scores [n] of test rows, from training rows [m, f], their labels [m] and test rows [n, f].
Classifier = Callable[[Floats, npt.NDArray[np.bool_], Floats], Floats]

BLOCKS: Final = 10
#: So many blocks are only trained on.
_FIRST: Final = 3
_RIDGE: Final = 10.0
_STEPS: Final = 60
_HIDDEN: Final = 128
#: No round has more bytes than this.
_LONGEST: Final = 2048
_NO_MASKS: Final = Masks(added=(), subtracted=())


def pieces(one: Sum) -> dict[str, bytes]:
    """Return what came for this sum and this slot alone, of every frame of the target."""
    keys = frames.decode_as(frames.Keys, one.keys.keys)
    shares = frames.decode_as(frames.Shares, one.keys.shares)
    slot = one.ticket.slot
    start = SLOT_BYTES * slot
    return {
        "public key": keys.pair(slot),
        "commitment": keys.commitment(slot),
        "shares": b"".join(bundle[start : start + SLOT_BYTES] for bundle in shares.bundles),
        "vector": one.body,
        "beside": one.beside,
        "reveal": one.reveal,
    }


def raw_bytes(played: Round, _search: SeedSearch | None) -> Floats:
    """Every byte as a number; frames that were not asked for are zeros."""
    joined = b"".join(b"".join(pieces(one).values()) for one in (played.train, played.evaluate))
    row = np.zeros(_LONGEST)
    row[: len(joined)] = np.frombuffer(joined, np.uint8)
    return row


def histograms(played: Round, _search: SeedSearch | None) -> Floats:
    """How often each byte, and each bit at each place of a byte, occurs in the two vectors."""
    body = np.frombuffer(played.train.body + played.evaluate.body, np.uint8)
    counts = np.bincount(body, minlength=256)
    return np.concatenate((counts, np.unpackbits(body).reshape(-1, 8).sum(axis=0)))


def differences(played: Round, _search: SeedSearch | None) -> Floats:
    """The vector as it came, the vector peeled, and both less the sum: values and sizes."""
    rows: list[Floats] = []
    for one in (played.train, played.evaluate):
        bits = one.ticket.bits
        came = peel(one.body, bits, _NO_MASKS)
        for numbers in (came, one.peeled, came - one.total, one.peeled - one.total):
            scaled = numbers / 2.0 ** (bits - 1)
            rows += [scaled, np.log(np.abs(numbers) + 1.0)]
    return np.concatenate(rows)


def lengths(played: Round, _search: SeedSearch | None) -> Floats:
    """How long each frame is."""
    return np.array(
        [
            len(part)
            for one in (played.train, played.evaluate)
            for part in (one.keys.keys, one.keys.shares, one.keys.ready, *pieces(one).values())
        ],
        dtype=np.float64,
    )


def correlations(played: Round, _search: SeedSearch | None) -> Floats:
    """How far the vector, as it came and peeled, looks like the pattern, and like the sum."""
    return np.concatenate(
        [
            likeness(numbers, one.total)
            for one in (played.train, played.evaluate)
            for numbers in (peel(one.body, one.ticket.bits, _NO_MASKS), one.peeled)
        ]
    )


def beside(played: Round, _search: SeedSearch | None) -> Floats:
    """What a number beside the vector says, as a part of the sum's weight."""
    row = np.zeros(2)
    for at, one in enumerate((played.train, played.evaluate)):
        if len(one.beside) == 8:
            told = float(np.frombuffer(one.beside, "<f8")[0])
            row[at] = told / max(float(one.total[-2]), 1.0)
    return row


def after_search(played: Round, search: SeedSearch | None) -> Floats:
    """As `correlations`, of the vector without any mask, if the search finds the target's seed."""
    rows: list[Floats] = []
    for one in (played.train, played.evaluate):
        agreement = one.keys.agreement
        secrets = search.secrets(agreement) if search else None
        found = np.zeros(len(one.total), dtype=np.int64)
        if secrets:
            found = peel(
                one.body, one.ticket.bits, all_masks(agreement, one.ticket, TARGET, secrets)
            )
        rows.append(likeness(found, one.total))
    return np.concatenate(rows)


def likeness(numbers: Integers, total: Integers) -> Floats:
    """Return [correlation with the pattern, with the sum, size, weight's part, metric's part]."""
    update, whole = numbers[:-2].astype(float), total[:-2].astype(float)
    row = [0.0, 0.0]
    if np.any(np.diff(update)) and np.any(np.diff(whole)):
        row = [float(np.corrcoef(update, PATTERN)[0, 1]), float(np.corrcoef(update, whole)[0, 1])]
    parts = numbers[-2:] / np.maximum(np.abs(total[-2:]), 1)
    size = np.log1p(np.abs(numbers).mean())
    return np.array([*row, size, *np.sign(parts) * np.log1p(np.abs(parts))])


MAPS: Final[dict[str, Features]] = {
    "raw bytes": raw_bytes,
    "histograms": histograms,
    "differences": differences,
    "lengths": lengths,
    "correlations": correlations,
    "beside": beside,
    "after search": after_search,
}


def logistic(rows: Floats, labels: npt.NDArray[np.bool_], tests: Floats) -> Floats:
    """Logistic regression with a ridge, by accelerated gradient steps (Nesterov 1983).

    Its small products are `einsum`s, which use no threads: those wait for each other on a busy machine.
    """
    bend = float(np.square(np.einsum("nf,f->n", rows, _direction(rows))).sum())
    rate = 1.0 / (0.5 * bend + _RIDGE)
    weights = ahead = np.zeros(rows.shape[1])
    for step in range(_STEPS):
        missing = labels - special.expit(np.einsum("nf,f->n", rows, ahead))
        slope = np.einsum("nf,n->f", rows, missing) - _RIDGE * ahead
        before, weights = weights, ahead + rate * slope
        ahead = weights + step / (step + 3) * (weights - before)
    return np.asarray(np.einsum("nf,f->n", tests, weights))


def _direction(rows: Floats) -> Floats:
    """The unit vector in feature space along which rows vary most, nearly."""
    vector = np.ones(rows.shape[1])
    for _ in range(10):
        vector = np.einsum("nf,n->f", rows, np.einsum("nf,f->n", rows, vector)) + 1e-9
        vector /= np.sqrt(np.square(vector).sum())
    return vector


def hidden_layer(rows: Floats, labels: npt.NDArray[np.bool_], tests: Floats) -> Floats:
    """Not linear: logistic regression on rectified random combinations of the features."""
    random = np.random.default_rng(3)
    mix = random.normal(size=(rows.shape[1], _HIDDEN)) / math.sqrt(max(1, rows.shape[1]))
    shift = random.normal(size=_HIDDEN)
    made, tested = (np.maximum(part @ mix + shift, 0.0) for part in (rows, tests))
    return logistic(*_scaled(made, labels, tested))


CLASSIFIERS: Final[dict[str, Classifier]] = {"logistic": logistic, "hidden layer": hidden_layer}


def _scaled(
    rows: Floats, labels: npt.NDArray[np.bool_], tests: Floats
) -> tuple[Floats, npt.NDArray[np.bool_], Floats]:
    """Features with the mean 0 and the deviation 1 over the training rows; constant ones are left out."""
    varied = np.flatnonzero(np.ptp(rows, axis=0) > 1e-12)
    rows, tests = rows[:, varied], tests[:, varied]
    middle, spread = rows.mean(axis=0), rows.std(axis=0)
    return (rows - middle) / spread, labels, (tests - middle) / spread


def area(scores: Floats, labels: npt.NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve; ties count half."""
    positives = int(labels.sum())
    ranks = stats.rankdata(scores)[labels].sum() - positives * (positives + 1) / 2
    return float(ranks / (positives * (len(labels) - positives)))


def deviation(value: float, positives: int, negatives: int) -> float:
    """Return the standard deviation of an area (Hanley and McNeil 1982)."""
    one, two = value / (2 - value), 2 * value**2 / (1 + value)
    variance = value * (1 - value)
    variance += (positives - 1) * (one - value**2) + (negatives - 1) * (two - value**2)
    return math.sqrt(variance / (positives * negatives))


@dataclass(frozen=True, kw_only=True)
class Area:
    """The mean area under the ROC curve over blocks, and its standard deviation without any signal."""

    value: float
    chance: float


def areas(
    true: Sequence[Round], simulated: Sequence[Round], search: SeedSearch | None
) -> dict[str, Area]:
    """Return the validated area of every classifier on every feature map of rounds."""
    agreements = [played.agreement for played in true]
    found: dict[str, Area] = {}
    for name, features in MAPS.items():
        rows = [[features(played, search) for played in rounds] for rounds in (true, simulated)]
        for kind, classifier in CLASSIFIERS.items():
            found[f"{name}, {kind}"] = validated(classifier, rows[0], rows[1], agreements)
    return found


def areas_of_agreements(true: Sequence[Round], simulated: Sequence[Round]) -> dict[str, Area]:
    """Return the same of whole key agreements: all bytes of their three frames."""
    rows = [
        [
            np.frombuffer(keys.keys + keys.shares + keys.ready, np.uint8).astype(np.float64)
            for keys in {played.agreement: played.train.keys for played in rounds}.values()
        ]
        for rounds in (true, simulated)
    ]
    return {
        f"key agreement, {kind}": validated(classifier, rows[0], rows[1], range(len(rows[0])))
        for kind, classifier in CLASSIFIERS.items()
    }


def validated(
    classifier: Classifier,
    true: Sequence[Floats],
    simulated: Sequence[Floats],
    agreements: Sequence[int],
) -> Area:
    """Validate forwards; row i of both is of the key agreement i, counted from 0 without gaps."""
    labels = np.arange(2 * len(true)) < len(true)
    rows = np.array([*true, *simulated])
    blocks = np.array([*agreements, *agreements]) * BLOCKS // (max(agreements) + 1)
    values: list[float] = []
    variance = 0.0
    for block in range(_FIRST, BLOCKS):
        past, held = blocks < block, blocks == block
        scores = classifier(*_scaled(rows[past], labels[past], rows[held]))
        values.append(area(scores, labels[held]))
        variance += deviation(0.5, int(held.sum()) // 2, int(held.sum()) // 2) ** 2
    return Area(value=float(np.mean(values)), chance=math.sqrt(variance) / len(values))


def randomness_of(data: bytes) -> dict[str, float]:
    """Return p-values of the bytes' counts, of neighbours' correlation and of the bits' runs."""
    values = np.frombuffer(data, np.uint8)
    counts = np.bincount(values, minlength=256)
    return {
        "counts": float(stats.chisquare(counts).pvalue),
        "neighbours": _neighbours(values),
        "runs": _runs(np.unpackbits(values)),
    }


def _neighbours(values: Bytes) -> float:
    """Serial correlation at distance 1; of n independent numbers it has the variance 1 / n."""
    centred = values - values.mean()
    scale = float(centred @ centred)
    if scale == 0:
        return 0.0
    z = float(centred[1:] @ centred[:-1]) / scale * math.sqrt(len(values))
    return float(2 * stats.norm.sf(abs(z)))


def _runs(bits: Bytes) -> float:
    """Wald and Wolfowitz (1940): how often neighbouring bits differ, for the share of ones."""
    ones = int(bits.sum())
    zeros, count = len(bits) - ones, len(bits)
    if not ones or not zeros:
        return 0.0
    runs = 1 + int(np.count_nonzero(bits[1:] != bits[:-1]))
    mean = 1 + 2 * ones * zeros / count
    variance = (mean - 1) * (mean - 2) / (count - 1)
    return float(2 * stats.norm.sf(abs(runs - mean) / math.sqrt(variance)))


def bodies(rounds: Sequence[Round]) -> dict[str, bytes]:
    """Return the masked vectors of all rounds one after the other: as they came; as the observer has
    them; and the step from each even round to the next, where a mask used twice would vanish.
    """
    found: dict[str, bytes] = {}
    for kind in ("train", "evaluate"):
        sums: list[Sum] = [getattr(played, kind) for played in rounds]
        bits = sums[0].ticket.bits
        came = [peel(one.body, bits, _NO_MASKS) for one in sums]
        found[kind] = b"".join(one.body for one in sums)
        found[f"{kind}, peeled"] = b"".join(_packed(one.peeled, bits) for one in sums)
        steps = (after - before for before, after in zip(came[::2], came[1::2], strict=False))
        found[f"{kind}, steps"] = b"".join(_packed(step, bits) for step in steps)
    return found


def _packed(numbers: Integers, bits: int) -> bytes:
    wide = (numbers % (1 << bits)).astype("<u4").view(np.uint8).reshape(-1, 4)
    return wide[:, : bits // 8].tobytes()
