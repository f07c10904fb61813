"""Write the frozen vectors anew: `python tests/secagg/make_vectors.py`, with the package on the path.

Whoever needs this has changed the protocol, and must raise its version: the tests compare both the package
and the independent arithmetic with the files that are in the repository.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final, cast

from federation_in_memory import LEVELS_OF_WIDTH, PLAN, RUN, SUBJECT, Federation, GivenFirst

from crossrec_model.errors import WireError
from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg import messages as frames
from crossrec_model.secagg.agreement import exchange
from crossrec_model.secagg.coordinator import Collecting
from crossrec_model.secagg.derive import derive, digest, domain
from crossrec_model.secagg.identity import IdentityKey
from crossrec_model.secagg.messages import Kind
from crossrec_model.secagg.participant import Sealed
from crossrec_model.secagg.sums import SumDomain

FOLDER: Final = Path(__file__).parent / "vectors"


def _bytes(count: int, start: int = 0) -> bytes:
    return bytes((start + at) % 256 for at in range(count))


EPOCH, DIGEST = _bytes(16, 16), _bytes(32, 64)
MESSAGES: Final[tuple[frames.Message, ...]] = (
    frames.Invite(run=RUN, epoch=EPOCH, slots=2, roster=DIGEST, plan=_bytes(32, 96)),
    frames.Keys(
        platform="shop-1.example",
        run=RUN,
        epoch=EPOCH,
        slots=2,
        roster=DIGEST,
        plan=_bytes(32, 96),
        channel=_bytes(32, 128),
        pairs=_bytes(64, 1),
        commitments=_bytes(64, 2),
        signature=_bytes(64, 3),
    ),
    frames.KeyList(epoch=EPOCH, keys=(b"first", b"", b"third")),
    frames.Shares(epoch=EPOCH, transcript=DIGEST, bundles=(b"\x01\x02", b"\x03")),
    frames.Delivery(epoch=EPOCH, bundles=(b"\x01\x02", b"\x03")),
    frames.Ready(epoch=EPOCH, transcript=DIGEST),
    frames.Ticket(
        epoch=EPOCH, slot=258, kind=Kind.EVALUATE, round=70000, bits=24, levels=1 << 20, length=515
    ),
    frames.Upload(epoch=EPOCH, slot=258, bits=24, length=515),
    frames.Unmask(epoch=EPOCH, slot=1, survivors=("A", "B", "z_9"), dropped=("C",)),
    frames.Reveal(epoch=EPOCH, slot=1, seeds=_bytes(99), keys=_bytes(33, 5)),
)


def _shown(value: Any) -> Any:
    match value:
        case bytes():
            return value.hex()
        case tuple():
            return [_shown(one) for one in value]
        case Kind():
            return value.name
        case _:
            return value


def _negative() -> list[dict[str, str]]:
    raw = {type(message).__name__: frames.encode(message) for message in MESSAGES}
    invite, ticket, unmask = raw["Invite"], raw["Ticket"], raw["Unmask"]
    cases = {
        "empty": b"",
        "only a version": b"\x01\x00",
        "version 0": b"\0\0" + invite[2:],
        "version 2": b"\2\0" + invite[2:],
        "version in the other byte order": b"\0\1" + invite[2:],
        "type 0": invite[:2] + b"\0" + invite[3:],
        "type 11": invite[:2] + b"\x0b" + invite[3:],
        "another type's body": invite[:2] + b"\x06" + invite[3:],
        "a byte missing": invite[:-1],
        "a byte left over": invite + b"\0",
        "no slots": invite[:35] + b"\0\0" + invite[37:],
        "kind 0": ticket[:21] + b"\0" + ticket[22:],
        "kind 3": ticket[:21] + b"\3" + ticket[22:],
        "no levels": ticket[:27] + bytes(4) + ticket[31:],
        "length 0": ticket[:31] + bytes(4),
        "a platform without a name": unmask[:22] + bytes(4) + unmask[27:],
        "a platform of a name that is not UTF-8": unmask[:26] + b"\xff" + unmask[27:],
        "a platform's name with a space": unmask[:26] + b" " + unmask[27:],
        "one survivor more than there are": unmask[:21] + b"\4" + unmask[22:],
        "a name longer than the frame": unmask[:22] + b"\x40\0\0\0" + unmask[26:],
        "a name of 65 bytes": unmask[:22] + b"\x41\0\0\0" + b"A" * 65 + unmask[27:],
        "a name of 4 GiB": unmask[:22] + b"\xff\xff\xff\xff" + unmask[26:],
        "101 shares": raw["Reveal"][:21] + (33 * 101).to_bytes(4, "little") + bytes(33 * 101 + 4),
    }
    found = []
    for why, frame in cases.items():
        try:
            frames.decode(frame)
        except WireError as error:
            found.append({"why": why, "frame": frame.hex(), "error": str(error)})
        else:
            raise ValueError(f"{why} is taken")
    return found


def messages() -> dict[str, Any]:
    """Frames with their fields, and frames that must be refused with their errors."""
    positive = [
        {
            "type": type(message).__name__,
            "fields": {f.name: _shown(getattr(message, f.name)) for f in fields(message)},
            "frame": frames.encode(message).hex(),
        }
        for message in MESSAGES
    ]
    return {"positive": positive, "negative": _negative()}


def derivations() -> list[dict[str, Any]]:
    """Domains, and what is derived under them."""
    cases: list[tuple[str, tuple[bytes | str | int, ...]]] = [
        ("channel key", ()),
        ("pair key", (0,)),
        ("pair key", (1023,)),
        ("self mask seed", (0,)),
        ("shares", (DIGEST, "A", "B")),
        ("shares", (DIGEST, "B", "A")),
        ("pair mask", (RUN, DIGEST, SUBJECT, 0, 1, 7, 16, 4096, 26, "A", "B")),
        ("self mask", (RUN, DIGEST, SUBJECT, 0, 1, 7, 16, 4096, 26, "A")),
        ("", (b"", "", 0)),
        ("x", (b"1", "1", 1, 2**64 - 1)),
    ]
    return [
        {
            "purpose": purpose,
            "parts": [
                {type(part).__name__: part.hex() if isinstance(part, bytes) else part}
                for part in parts
            ],
            "domain": domain(purpose, *parts).hex(),
            "secret": _bytes(32, 200).hex(),
            "derived": derive(_bytes(32, 200), purpose, *parts).hex(),
            "digest": digest(purpose, *parts).hex(),
        }
        for purpose, parts in cases
    ]


def whole_sum(bits: int) -> dict[str, Any]:
    """A sum of three platforms from given identities, seeds and parts, with all that follows."""
    names = ("p01", "p02", "p03")
    identities = {name: _bytes(32, 10 * at) for at, name in enumerate(names, start=1)}
    seeds = {name: _bytes(32, 100 + 10 * at) for at, name in enumerate(names)}
    signer = _bytes(32, 77)
    federation = Federation(
        3,
        levels=LEVELS_OF_WIDTH[bits],
        identities={name: IdentityKey.from_bytes(raw) for name, raw in identities.items()},
        signer=IdentityKey.from_bytes(signer),
    )
    for name in names:
        source = cast(SystemRandomness, GivenFirst(seeds[name]))
        federation.platforms[name] = federation.made(name, source)
    agreement = federation.agree(invite=replace(federation.invite(slots=2), epoch=EPOCH))
    ticket = federation.ticket(agreement, 1, kind=Kind.EVALUATE, number=7)
    parts = {name: federation.part(name, bits) for name in names}
    uploads = {name: federation.seal(name, ticket, parts[name]) for name in names}
    mask_keys = _mask_keys(federation, ticket)
    collecting = Collecting(agreement=agreement, ticket=ticket, subject=SUBJECT)
    for name, upload in uploads.items():
        collecting.add(name, upload)
    return {
        "identities": {name: raw.hex() for name, raw in identities.items()},
        "signer": signer.hex(),
        "seeds": {name: raw.hex() for name, raw in seeds.items()},
        "roster": federation.roster.to_json().decode(),
        "roster_digest": federation.roster.digest.hex(),
        "plan": PLAN.hex(),
        "invite": frames.encode(agreement.invite).hex(),
        "keys_sha256": {
            name: hashlib.sha256(frames.encode(keys)).hexdigest()
            for name, keys in agreement.members.items()
        },
        "transcript": agreement.transcript.hex(),
        "subject": SUBJECT.hex(),
        "ticket": frames.encode(ticket).hex(),
        "mask_keys": mask_keys,
        "parts": {
            name: {"values": part.values, "weight": part.weight, "metric": part.metric}
            for name, part in parts.items()
        },
        "levels": federation.grid.levels,
        "uploads_sha256": {
            name: hashlib.sha256(upload).hexdigest() for name, upload in uploads.items()
        },
        "total": federation.open(collecting.close()),
    }


def _mask_keys(federation: Federation, ticket: frames.Ticket) -> dict[str, str]:
    """The keys of the self masks by platform, and of the pair masks by "one/other"."""
    found, agreed = {}, {}
    for name in federation.names:
        state = federation.platforms[name].state
        assert isinstance(state, Sealed)
        agreed[name] = state.agreed
    one = agreed[federation.names[0]]
    names = SumDomain(run=RUN, transcript=one.transcript, ticket=ticket, subject=SUBJECT)
    for name, state_of in agreed.items():
        found[name] = names.self_key(state_of.secrets.mask(ticket.slot), name).hex()
    for low, high in itertools.combinations(federation.names, 2):
        private = agreed[low].secrets.pair(ticket.slot)
        secret = exchange(private, one.members[high].pair(ticket.slot), high)
        found[f"{low}/{high}"] = names.pair_key(secret, low, high).hex()
    return found


def main() -> None:
    """Write all files."""
    documents: dict[str, Any] = {
        "messages": messages(),
        "derive": derivations(),
        "sum": {str(bits): whole_sum(bits) for bits in LEVELS_OF_WIDTH},
    }
    for name, document in documents.items():
        text = json.dumps(document, indent=1) + "\n"
        (FOLDER / f"{name}.json").write_text(text)


if __name__ == "__main__":
    main()
