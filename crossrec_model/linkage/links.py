"""What a linkage leaves behind: for each linked user or item its opaque link id, shared by both platforms.

The file is UTF-8 text. Its first line is a JSON object (format, purpose, partner, session); each further
line is a JSON list of the own id and the link id (32 hexadecimal digits), sorted by own id. Link ids differ
for every session and pair, so that two partners can't compare theirs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from crossrec_model.errors import DataError
from crossrec_model.linkage.compared import Compared
from crossrec_model.linkage.elements import Elements, owner_of
from crossrec_model.linkage.messages import Purpose
from crossrec_model.wire.messages import PLATFORM_ID

FORMAT: Final = 1
MOST_ID: Final = 1024
_LINK: Final = re.compile(r"[0-9a-f]{32}")
_SESSION: Final = re.compile(r"[0-9a-f]{32}")
_HEAD: Final = {"format": int, "partner": str, "purpose": str, "session": str}


@dataclass(frozen=True, kw_only=True)
class Links:
    """Own id → link id, of one session with one partner."""

    partner: str
    purpose: Purpose
    session: bytes
    pairs: Mapping[str, str]

    def to_bytes(self) -> bytes:
        """The file."""
        head = {
            "format": FORMAT,
            "partner": self.partner,
            "purpose": self.purpose.name.lower(),
            "session": self.session.hex(),
        }
        lines = [json.dumps(head, sort_keys=True)]
        lines += [json.dumps(pair, ensure_ascii=True) for pair in sorted(self.pairs.items())]
        return "".join(line + "\n" for line in lines).encode("ascii")

    @classmethod
    def from_bytes(cls, data: bytes) -> Links:
        """Read `to_bytes` back; raises DataError for anything else."""
        try:
            lines = [json.loads(line) for line in data.decode("ascii").splitlines()]
        except (ValueError, RecursionError):
            raise DataError("a links file is damaged (no JSON lines); link again") from None
        if not lines or not _is_head(lines[0]):
            raise DataError(
                "a links file is damaged (first line), or of another format; link again"
            )
        head = lines[0]
        pairs: dict[str, str] = {}
        for line in lines[1:]:
            if not _is_pair(line) or line[0] in pairs:
                raise DataError("a links file is damaged (a pair); link again")
            pairs[line[0]] = line[1]
        found = cls(
            partner=head["partner"],
            purpose=Purpose[head["purpose"].upper()],
            session=bytes.fromhex(head["session"]),
            pairs=pairs,
        )
        if found.to_bytes() != data:
            raise DataError("a links file is not in its canonical form; link again")
        return found

    def without(self, ids: Iterable[str]) -> Links:
        """Return the links without these own ids."""
        gone = set(ids)
        pairs = {own: link for own, link in self.pairs.items() if own not in gone}
        return Links(partner=self.partner, purpose=self.purpose, session=self.session, pairs=pairs)


def linked(elements: Elements, end: Compared, names: Iterable[str]) -> dict[str, str]:
    """Return own id → link id; `names` are the ids of the file that the elements came from, again.

    Where two elements of one owner are common, the address's link counts, then the smaller id; an owner
    whose file row is not found is not linked.
    """
    best: dict[bytes, tuple[bool, str]] = {}
    owners, first = elements.owners[end.elements], elements.first[end.elements]
    for place in range(len(owners)):
        owner, found = owners[place], (not bool(first[place]), end.links[place].tobytes().hex())
        if owner not in best or found < best[owner]:
            best[owner] = found
    pairs: dict[str, str] = {}
    for name in names:
        owner = np.bytes_(owner_of(name))
        if owner in best:
            pairs[name] = best[owner][1]
    return pairs


def _is_head(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == _HEAD.keys()
        and all(type(value[key]) is kind for key, kind in _HEAD.items())
        and value["format"] == FORMAT
        and value["purpose"] in {purpose.name.lower() for purpose in Purpose}
        and re.fullmatch(PLATFORM_ID, value["partner"]) is not None
        and _SESSION.fullmatch(value["session"]) is not None
    )


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(isinstance(part, str) for part in value)
        and 0 < len(value[0]) <= MOST_ID
        and _LINK.fullmatch(value[1]) is not None
    )
