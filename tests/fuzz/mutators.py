"""Seeded changes of valid inputs: bits, slices, numbers, texts, and JSON as a tree."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

#: No mutated input is longer, in bytes.
MOST_BYTES: Final = 1 << 19
#: Integers at which a width, a sign or a bound changes.
EXTREMES: Final = (
    *(0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 1 << 24, (1 << 27) + 1),
    *(0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32, (1 << 53) + 1, 1 << 60, (1 << 63) - 1, 1 << 63),
    (1 << 64) - 1,
)
#: Numbers as a text may write them, valid or not.
NUMBERS: Final = (
    *("0", "-0", "-1", "1.5", "0.1e1", "1e-400", "1e308", "1e309", "-1e999", "NaN", "Infinity"),
    *("-Infinity", "nan", "inf", "+1", "01", "1_000", "0x10", "1.", ".5", "1e", "true", "null"),
    *(str(extreme) for extreme in EXTREMES),
    *("9" * 19, "9" * 400, "9" * 4300, "9" * 5000, "0x" + "f" * 5000, "0." + "0" * 400 + "1"),
)
#: Texts that readers, terminals and file systems may stumble over.
TEXTS: Final = (
    *("", " ", "\0", "\x1b[2J", "\x7f", "\u202e", "\ufeff", "\ufffd", "\U0001f600", "a\u0301"),
    *("\ud800", "\udfff\ud800", "\r\n", "\x85", "\u2028", "\u0661", "\u0130", "../../etc/passwd"),
    *(
        "/dev/zero",
        "%s%n",
        "{0}",
        "A" * 65,
        "A" * 300,
        "é" * 5000,
        "9" * 5000,
        "-1",
        "1e999",
        "None",
        "=1+1",
    ),
    *("\x1f", "\t", "'", '"', "\\", "*/" * 30, "**/" * 60, "xn--" + "a" * 60, "." * 64),
)
#: Bytes that are not UTF-8, or are it in a way that is forbidden.
BYTES: Final = (
    *(b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x28", b"\x80", b"\0"),
    *(b"\xef\xbb\xbf", b"\xff\xfe", b"\x1f\x8b\x08", b"PAR1", b"\n\n", b"\r", b'"', b'""', b","),
)
DEPTHS: Final = (2, 30, 200, 1000, 3000, 100_000)
_NUMBER: Final = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_TEXT: Final = re.compile(rb'"(?:[^"\\]|\\.)*"')

Change = Callable[[bytes, random.Random], bytes]


def _place(data: bytes, rng: random.Random) -> int:
    return rng.randrange(len(data) + 1)


def _slice(data: bytes, rng: random.Random) -> tuple[int, int]:
    start = _place(data, rng)
    return start, min(len(data), start + rng.choice((1, 2, 4, 8, 16, 64, 256, 4096)))


def _flip(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return b"\0"
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: _place(data, rng)]


def _insert(data: bytes, rng: random.Random) -> bytes:
    at = _place(data, rng)
    return data[:at] + rng.randbytes(rng.choice((1, 2, 4, 9, 33))) + data[at:]


def _insert_odd(data: bytes, rng: random.Random) -> bytes:
    at = _place(data, rng)
    return data[:at] + rng.choice(BYTES) + data[at:]


def _duplicate(data: bytes, rng: random.Random) -> bytes:
    start, end = _slice(data, rng)
    return data[:end] + data[start:end] * rng.choice((1, 1, 2, 50)) + data[end:]


def _remove(data: bytes, rng: random.Random) -> bytes:
    start, end = _slice(data, rng)
    return data[:start] + data[end:]


def _integer(data: bytes, rng: random.Random) -> bytes:
    """Put an extreme integer over 1, 2, 4 or 8 bytes."""
    width = rng.choice((1, 2, 4, 4, 8))
    value = rng.choice(EXTREMES) % (1 << 8 * width)
    at = _place(data, rng)
    raw = value.to_bytes(width, rng.choice(("little", "little", "big")))
    return data[:at] + raw + data[at + width :]


def _nudge(data: bytes, rng: random.Random) -> bytes:
    """Make a byte one more or less: lengths and counts that are just wrong."""
    if not data:
        return data
    changed, at = bytearray(data), rng.randrange(len(data))
    changed[at] = (changed[at] + rng.choice((1, -1))) % 256
    return bytes(changed)


def _number(data: bytes, rng: random.Random) -> bytes:
    found = list(_NUMBER.finditer(data))
    if not found:
        return _insert(data, rng)
    match = rng.choice(found)
    return data[: match.start()] + rng.choice(NUMBERS).encode() + data[match.end() :]


def _quoted(data: bytes, rng: random.Random) -> bytes:
    """Put another text, escaped or raw, in place of one in quotes; or a number, or a list."""
    found = list(_TEXT.finditer(data))
    if not found:
        return _insert_odd(data, rng)
    match, text = rng.choice(found), rng.choice(TEXTS)
    new = rng.choice((
        json.dumps(text).encode(),
        b'"' + text.encode("utf-8", "surrogatepass") + b'"',
        rng.choice(NUMBERS).encode(),
        b"[]",
        b"{}",
        b'"' + rng.choice(BYTES) + b'"',
    ))  # fmt: skip
    return data[: match.start()] + new + data[match.end() :]


def _deep(data: bytes, rng: random.Random) -> bytes:
    depth = rng.choice((*DEPTHS, rng.randrange(900, 1010)))
    opening, closing = rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"{a=", b"}")))
    whole = opening * depth + b"1" + (closing * depth if rng.random() < 0.8 else b"")
    found = [*_NUMBER.finditer(data), *_TEXT.finditer(data)]
    if not found or rng.random() < 0.1:
        return whole
    match = rng.choice(found)
    return data[: match.start()] + whole + data[match.end() :]


def _lines(data: bytes, rng: random.Random) -> bytes:
    """Repeat, drop, swap or split lines."""
    lines = data.split(b"\n")
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(4):
        case 0:
            lines.insert(other, lines[one])
        case 1:
            del lines[one]
        case 2:
            lines[one], lines[other] = lines[other], lines[one]
        case _:
            at = _place(lines[one], rng)
            lines[one : one + 1] = [lines[one][:at], lines[one][at:]]
    return rng.choice((b"\n", b"\n", b"\n", b"\r\n")).join(lines)


OF_BYTES: Final[tuple[Change, ...]] = (
    *(_flip, _flip, _truncate, _insert, _insert_odd, _duplicate, _remove),
    *(_integer, _integer, _nudge),
)
OF_TEXT: Final[tuple[Change, ...]] = (
    *(_number, _number, _quoted, _quoted, _lines, _deep),
    *(_flip, _truncate, _insert_odd, _duplicate, _remove),
)


def _odd_value(rng: random.Random) -> Any:
    match rng.randrange(8):
        case 0:
            return rng.choice(EXTREMES) * rng.choice((1, -1))
        case 1:
            return rng.choice((0.0, -0.0, 1e308, 5e-324, float("nan"), float("inf"), -1.5, 1e22))
        case 2 | 3:
            return rng.choice(TEXTS)
        case 4:
            return rng.choice((None, True, False))
        case 5:
            return rng.choice(([], {}, [[]], [None], {"": None}, [1] * 1000))
        case 6:
            return 10 ** rng.choice((20, 310, 4299))
        case _:
            return rng.randbytes(rng.choice((0, 1, 16, 31, 32, 64))).hex()


def _nodes(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a document, the outer ones first; without recursion."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting and len(found) < 2000:
        one = waiting.pop(0)
        keys: Any = (
            one if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else ()
        )
        for key in keys:
            found.append((one, key))
            waiting.append(one[key])
    return found


def _change_tree(value: Any, rng: random.Random) -> Any:
    nodes = _nodes(value)
    if not nodes:
        return _odd_value(rng)
    holder, key = rng.choice(nodes)
    other, other_key = rng.choice(nodes)
    match rng.randrange(9):
        case 0 | 1 | 2:
            holder[key] = _odd_value(rng)
        case 3:
            holder[key] = json.loads(json.dumps(other[other_key]))
        case 4:
            del holder[key]
        case 5 if isinstance(holder, dict):
            holder[rng.choice((*TEXTS, str(other_key)))] = _odd_value(rng)
        case 5:
            holder.insert(key, holder[key])
        case 6 if isinstance(holder[key], list):
            holder[key] = holder[key] * rng.choice((0, 2, 40))
        case 6 if isinstance(holder[key], str):
            holder[key] = holder[key] + rng.choice(TEXTS)
        case 7 if type(holder[key]) is float or (
            type(holder[key]) is int and abs(holder[key]) < 1 << 64
        ):
            holder[key] += rng.choice((1, -1, 0.5, 1e-9))
        case 8 if isinstance(holder[key], str) and holder[key]:
            at = rng.randrange(len(holder[key]))
            holder[key] = holder[key][:at] + rng.choice(TEXTS)[:3] + holder[key][at + 1 :]
        case _:
            holder[key] = [holder[key]]
    return value


def _twice(text: str, rng: random.Random) -> str:
    """Put a key into an object a second time."""
    places = [match.end() for match in re.finditer(r"\{", text)]
    keys = re.findall(r'("(?:[^"\\]|\\.)*"):', text)
    if not places or not keys:
        return text
    at = rng.choice(places)
    return f"{text[:at]}{rng.choice(keys)}:{rng.choice(NUMBERS[:5])},{text[at:]}"


def _tree(data: bytes, rng: random.Random) -> bytes:
    """Change a JSON document, or one line of many, as a tree."""
    lines = data.split(b"\n") if b"}\n{" in data or data.endswith(b"}\n") else [data]
    at = rng.randrange(len(lines))
    try:
        document = json.loads(lines[at])
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            document = _change_tree(document, rng)
        compact = rng.random() < 0.8
        text = json.dumps(
            document,
            sort_keys=compact,
            separators=(",", ":") if compact else None,
            ensure_ascii=rng.random() < 0.9,
        )
    except (ValueError, RecursionError):
        return rng.choice(OF_TEXT)(data, rng)
    if rng.random() < 0.05:
        text = _twice(text, rng)
    lines[at] = text.encode("utf-8", "surrogatepass")
    return b"\n".join(lines)


OF_JSON: Final[tuple[Change, ...]] = (_tree,) * 14 + OF_TEXT


def mutate(
    seeds: Sequence[bytes], found: Sequence[bytes], changes: Sequence[Change], rng: random.Random
) -> bytes:
    """Return a changed input made from one or two of the seeds, or of what was accepted before."""
    data = rng.choice(found if found and rng.random() < 0.3 else seeds)
    if rng.random() < 0.08:
        other = rng.choice(seeds)
        data = data[: _place(data, rng)] + other[_place(other, rng) :]
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        data = rng.choice(changes)(data, rng)[:MOST_BYTES]
    return data
