"""Numbers that would be known again wherever they turn up, and the search for them in files.

A canary is looked for as text (whole, to some decimals, as hexadecimal) and as bytes: floats and integers
of 4 and 8 bytes, either end first. Coordinates of a vector are looked for two in a row, so that a few
kilobytes of other numbers don't hold one by chance.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path

import numpy as np

from crossrec_model.config import AggregationConfig
from crossrec_model.wire.codec import FloatVector
from crossrec_model.wire.contribution import Contribution

DIMENSION = 16
LIMITS = AggregationConfig()
_LOSS_BOUND = 64.0
#: Weight, loss and ndcg@10 of each platform. A round takes half a second or more and is shown to two
#: decimals, so scores below that are not found in its duration.
_SCALARS = {
    "A": (48611.0, 23.71894063, 0.31726459),
    "B": (39119.0, 41.26073851, 0.18193627),
    "C": (52361.0, 17.93852614, 0.23618294),
    "D": (57193.0, 35.48271906, 0.46971853),
}
PLATFORMS = tuple(_SCALARS)


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """What one platform contributes in every round."""

    weight: float
    loss: float
    score: float
    update: FloatVector

    def contribution(self, *, training: bool) -> Contribution:
        update = self.update.copy() if training else np.zeros(0, dtype=np.float32)
        metric = self.loss if training else self.score
        return Contribution(update=update, weight=self.weight, metrics=(metric,))

    def patterns(self) -> dict[str, re.Pattern[bytes]]:
        """Everything that would show one of these numbers, alone, weighted or on the grid."""
        w, unit = self.weight, LIMITS.levels / LIMITS.max_weight
        weighted = self.update.astype(np.float64) * w
        return {
            **scalar("weight", w),
            **scalar("weight on the grid", w * unit),
            **scalar("loss", self.loss),
            **scalar("weighted loss", w * self.loss),
            **scalar("loss on the grid", w * self.loss * unit / _LOSS_BOUND),
            **scalar("score", self.score),
            **scalar("weighted score", w * self.score),
            **scalar("score on the grid", w * self.score * unit),
            **vector("update", self.update.tolist()),
            **vector("weighted update", weighted.tolist()),
            **vector("update on the grid", (weighted * unit / LIMITS.bound).tolist()),
        }


def canaries(platform: str) -> Canaries:
    """Return the canaries of a platform, the same in every process."""
    weight, loss, score = _SCALARS[platform]
    random = np.random.default_rng(ord(platform))
    update = random.uniform(0.1, 1.0, DIMENSION) * random.choice((-1, 1), DIMENSION)
    return Canaries(weight=weight, loss=loss, score=score, update=update.astype(np.float32))


def scalar(name: str, value: float) -> dict[str, re.Pattern[bytes]]:
    """Return what to look for to find a number, by name and form."""
    return {
        f"{name} as text": re.compile(_text(value)),
        f"{name} as bytes": _any(dict.fromkeys(map(re.escape, _bytes((value,))))),
        f"{name} as hexadecimal": _any(
            raw.hex().encode() for raw in _bytes((value,)) if len(raw) == 8
        ),
    }


def vector(name: str, values: Sequence[float]) -> dict[str, re.Pattern[bytes]]:
    """Return what to look for to find any two neighbours of a vector."""
    return {
        f"{name} as text": _any(
            rb"%s\d*[^0-9]{1,6}%s" % (_digits(one), _digits(other))
            for one, other in pairwise(values)
        ),
        f"{name} as bytes": _any(
            dict.fromkeys(re.escape(raw) for pair in pairwise(values) for raw in _bytes(pair))
        ),
    }


def found(
    files: Mapping[str, bytes], patterns: Mapping[str, re.Pattern[bytes]]
) -> dict[str, list[str]]:
    """Return which patterns occur, and in which files."""
    hits = {
        name: [file for file, data in files.items() if pattern.search(data)]
        for name, pattern in patterns.items()
    }
    return {name: where for name, where in hits.items() if where}


def files_below(*folders: Path) -> dict[str, bytes]:
    """Return the contents of all files, and their names as one more file."""
    contents: dict[str, bytes] = {}
    names: list[str] = []
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            names.append(str(path.relative_to(folder)))
            try:
                if path.is_file():
                    contents[str(path)] = path.read_bytes()
            except FileNotFoundError:
                continue  # It was replaced meanwhile, and the next look finds its successor.
    return {**contents, "names of files": "\n".join(names).encode()}


def _any(options: Iterable[bytes]) -> re.Pattern[bytes]:
    return re.compile(b"|".join(options), re.DOTALL)


def _text(value: float) -> bytes:
    """A number as text: its first six digits, or rounded to some decimals; no part of a longer one."""
    options = {_digits(value, 6)}
    options |= {re.escape(f"{abs(value):.{n}f}").encode() + rb"(?!\d)" for n in range(2, 7)}
    if value == round(value):
        whole = int(abs(value))
        for text in (f"{whole}", f"{whole:,}", f"{whole:_}", f"{whole / 1e4:g}e"):
            options.add(re.escape(text).encode() + rb"(?![0-9a-fA-F])")
    else:
        # Integers on the grid are rounded either way.
        options |= {b"%d(?![0-9a-fA-F.])" % n for n in _rounded(abs(value)) if n > 9999}
    return rb"(?<![0-9a-fA-F.])(?:%s)" % b"|".join(sorted(options))


def _digits(value: float, count: int = 4) -> bytes:
    """The first significant digits of a number, cut or rounded, whatever decimals follow."""
    size = abs(value)
    places = max(0, count - 1 - math.floor(math.log10(size)))
    cut = math.floor(size * 10**places) / 10**places
    texts = {re.escape(f"{number:.{places}f}") for number in (cut, size)}
    end = "" if places else r"(?!\d)"
    return f"(?:{'|'.join(sorted(texts))}){end}".encode()


def _rounded(value: float) -> tuple[int, ...]:
    return tuple(sorted({math.floor(value), math.ceil(value)}))


def _bytes(values: Sequence[float]) -> Iterator[bytes]:
    """Numbers in a row as floats, and as integers (rounded either way) if they are larger than 99."""
    count = len(values)
    for end, kind in product("<>", "fd"):
        yield struct.pack(f"{end}{count}{kind}", *values)
    if min(map(abs, values)) > 99:
        for end, kind in product("<>", "iq"):
            for whole in product(*map(_rounded, values)):
                if kind == "q" or max(map(abs, whole)) < 1 << 31:
                    yield struct.pack(f"{end}{count}{kind}", *whole)
