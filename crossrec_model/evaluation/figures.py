"""Benchmark figures: a value, the goal it should meet and the command that makes it again.

A file is a JSON list of `{"figure", "value", "goal", "command", "seeds"}`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from crossrec_model.errors import ConfigError, DataError, shown
from crossrec_model.evaluation.files import write_whole

_COMPARE: Final[dict[str, Callable[[float, float], bool]]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
}
_GOAL: Final = re.compile(r"\s*(>=|<=|==|>|<)\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*")
_NAME: Final = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured figure, such as `Figure(figure="demo.minutes", value=9.5, goal="<=12", …)`."""

    figure: str  # dotted lower-case name
    value: float
    goal: str  # a comparison and a number
    command: str  # makes the figure again
    seeds: int = 1  # how many seeds the value rests on

    def __post_init__(self) -> None:
        if not isinstance(self.figure, str) or not _NAME.fullmatch(self.figure):
            raise ConfigError(
                f"figure name {shown(self.figure)} must be lower-case words joined by dots"
            )
        if not _is_number(self.value) or not abs(self.value) <= sys.float_info.max:
            raise ConfigError(
                f"figure {self.figure}: value {shown(self.value)} must be a finite number; "
                "measure again instead of writing it"
            )
        match = _GOAL.fullmatch(self.goal) if isinstance(self.goal, str) else None
        if match is None or not math.isfinite(float(match[2])):
            raise ConfigError(
                f"figure {self.figure}: goal {shown(self.goal)} must be one of {' '.join(_COMPARE)} "
                "and a finite number, such as '>=20'"
            )
        if (
            not isinstance(self.command, str)
            or not self.command.strip()
            or not self.command.isprintable()
        ):
            raise ConfigError(f"figure {self.figure}: give the command that makes the value again")
        if not isinstance(self.seeds, int) or isinstance(self.seeds, bool) or self.seeds < 1:
            raise ConfigError(
                f"figure {self.figure}: seeds {shown(self.seeds)} must be a whole number ≥ 1"
            )

    @property
    def met(self) -> bool:
        """Whether the value meets the goal."""
        match = _GOAL.fullmatch(self.goal)
        if match is None:  # can't be: refused when made
            return False
        return _COMPARE[match[1]](self.value, float(match[2]))


def write_figures(path: Path, figures: Sequence[Figure]) -> None:
    """Write the figures as a JSON list, whole or not at all; makes the folder.

    Raises:
        DataError: a figure stands twice, or the file can't be written.
    """
    _refuse_repeats(figures, str(path))
    entries = [dataclasses.asdict(figure) for figure in figures]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"can't make the folder {path.parent}: {error.strerror}; choose another"
        ) from None
    text = json.dumps(entries, indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(path, text + "\n")


def read_figures(path: Path) -> list[Figure]:
    """Read a file of `write_figures`, strictly.

    Raises:
        DataError: no such file, not JSON, unknown or missing keys, or a figure twice.
        ConfigError: a value or goal that `Figure` refuses.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}; run the benchmark first") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path} is not JSON; run its benchmark again") from None
    if not isinstance(entries, list):
        raise DataError(f"{path} holds no list of figures; run its benchmark again")
    figures = [_parsed(entry, path) for entry in entries]
    _refuse_repeats(figures, str(path))
    return figures


def merge_figures(older: Iterable[Figure], newer: Iterable[Figure]) -> list[Figure]:
    """All figures, a newer one in the place of an older one of the same name."""
    merged = {figure.figure: figure for figure in older}
    merged |= {figure.figure: figure for figure in newer}
    return list(merged.values())


def check_figures(figures: Iterable[Figure]) -> list[Figure]:
    """Those that miss their goal; an empty list means that all is well."""
    return [figure for figure in figures if not figure.met]


def _parsed(entry: Any, path: Path) -> Figure:
    names = {field.name for field in dataclasses.fields(Figure)}
    if not isinstance(entry, dict) or set(entry) != names:
        raise DataError(f"{path}: an entry must have exactly the keys {', '.join(sorted(names))}")
    return Figure(**entry)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refuse_repeats(figures: Sequence[Figure], where: str) -> None:
    seen: set[str] = set()
    for figure in figures:
        if figure.figure in seen:
            raise DataError(f"{where}: figure {figure.figure} stands twice; keep one of them")
        seen.add(figure.figure)
