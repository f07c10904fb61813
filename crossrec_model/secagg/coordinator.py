"""Steps 4 and 5, seen from the coordinator: add masked vectors, open their sum, see nothing else.

    Collecting --close--> Unmasking --open--> the sum

The running total is changed in place: one vector in memory, however many platforms there are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from crossrec_model.secagg import messages as frames
from crossrec_model.secagg.agreement import commitment, exchange, public_of
from crossrec_model.secagg.errors import (
    OldSlotError,
    OutOfTurnError,
    ParametersError,
    SharesError,
)
from crossrec_model.secagg.gathering import Agreement
from crossrec_model.secagg.masking import Masker, Numbers, add_packed, zeros
from crossrec_model.secagg.messages import SHARE_BYTES
from crossrec_model.secagg.shamir import combine_many
from crossrec_model.secagg.sums import SumDomain

#: Sets of reveals that are tried before a sum is given up.
_MOST_SETS: Final = 500


@dataclass(kw_only=True, eq=False)
class Collecting:
    """Step 4: add each masked vector as it comes, and forget it."""

    agreement: Agreement
    ticket: frames.Ticket
    subject: bytes
    total: Numbers = field(init=False)
    _added: set[str] = field(default_factory=set, init=False)
    _closed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.total = zeros(self.ticket.length, self.ticket.bits)

    def add(self, platform: str, frame: bytes | memoryview) -> None:
        """Add the vector of a member.

        Raises:
            WireError: for bytes that are no upload.
            SharesError: for a platform that is no member, or whose vector is there already.
            OldSlotError, ParametersError: for a vector of another sum, modulus or length.
            OutOfTurnError: after `close`: the platform counts as dropped. Nothing is added in all
                these cases.
        """
        if self._closed:
            raise OutOfTurnError(f"the vector of platform {platform} came too late")
        head, body = frames.decode_upload(frame)
        if platform not in self.agreement.members or platform in self._added:
            raise SharesError(f"no vector of platform {platform} is due")
        asked = self.ticket
        if (head.epoch, head.slot) != (asked.epoch, asked.slot):
            raise OldSlotError(f"the vector of platform {platform} is of another sum")
        if (head.bits, head.length) != (asked.bits, asked.length):
            raise ParametersError(
                f"the vector of platform {platform} has {head.length} numbers of {head.bits} bits, "
                f"not {asked.length} of {asked.bits}"
            )
        self._added.add(platform)
        add_packed(self.total, body, asked.bits)

    def close(self) -> Unmasking:
        """Go on to step 5 with those that came; raises TooFewPlatformsError under the threshold."""
        terms = self.agreement.terms
        if len(self._added) < terms.threshold:
            raise terms.too_few(len(self._added), "with a vector")
        self._closed = True
        return Unmasking(
            agreement=self.agreement,
            ticket=self.ticket,
            subject=self.subject,
            total=self.total,
            survivors=tuple(sorted(self._added)),
        )


@dataclass(kw_only=True, eq=False)
class Unmasking:
    """Step 5: gather shares of the survivors' seeds and of the dropped platforms' pair keys."""

    agreement: Agreement
    ticket: frames.Ticket
    subject: bytes
    total: Numbers
    survivors: tuple[str, ...]
    _reveals: dict[str, frames.Reveal] = field(default_factory=dict, init=False)
    _opened: bool = field(default=False, init=False)

    @property
    def dropped(self) -> tuple[str, ...]:
        """The members whose vector did not come."""
        return tuple(name for name in self.agreement.members if name not in self.survivors)

    @property
    def message(self) -> frames.Unmask:
        """The question to every survivor."""
        return frames.Unmask(
            epoch=self.ticket.epoch,
            slot=self.ticket.slot,
            survivors=self.survivors,
            dropped=self.dropped,
        )

    def add(self, platform: str, reveal: frames.Reveal) -> None:
        """Take a survivor's shares.

        Raises:
            SharesError: for a platform that was not asked, answered already, or gave other shares
                than were asked for.
        """
        if platform not in self.survivors or platform in self._reveals:
            raise SharesError(f"no shares of platform {platform} are due")
        wanted = (SHARE_BYTES * len(self.survivors), SHARE_BYTES * len(self.dropped))
        given = (len(reveal.seeds), len(reveal.keys))
        of = (reveal.epoch, reveal.slot)
        if of != (self.ticket.epoch, self.ticket.slot) or given != wanted:
            raise SharesError(f"platform {platform} gave other shares than were asked for")
        self._reveals[platform] = reveal

    def open(self) -> Numbers:
        """Remove all masks and return the sum of the survivors' integers, mod 2^bits.

        Raises:
            TooFewPlatformsError: for fewer reveals than the threshold; nothing is shown.
            SharesError: for shares that don't give what their owner committed to.
            OutOfTurnError: once it was opened.
        """
        if self._opened:
            raise OutOfTurnError("the masks of this sum were removed before")
        terms = self.agreement.terms
        if len(self._reveals) < terms.threshold:
            raise terms.too_few(len(self._reveals), "with shares")
        slot = self.ticket.slot
        seeds = self._secrets(self.survivors, lambda reveal: reveal.seeds, self._is_seed)
        keys = self._secrets(self.dropped, lambda reveal: reveal.keys, self._is_key)
        domain = SumDomain(
            run=self.agreement.invite.run,
            transcript=self.agreement.transcript,
            ticket=self.ticket,
            subject=self.subject,
        )
        add: list[bytes] = []
        subtract = [domain.self_key(seeds[name], name) for name in self.survivors]
        for gone, name in itertools.product(self.dropped, self.survivors):
            public = self.agreement.members[name].pair(slot)
            key = domain.pair_key(exchange(keys[gone], public, name), gone, name)
            # A survivor added the mask if its id is the lower one.
            (subtract if name < gone else add).append(key)
        Masker(self.ticket.bits, add=add, subtract=subtract).apply(self.total)
        self._opened = True
        return self.total

    def _secrets(
        self,
        owners: tuple[str, ...],
        part: Callable[[frames.Reveal], bytes],
        fits: Callable[[str, bytes], bool],
    ) -> dict[str, bytes]:
        """Rebuild one secret of each owner, from the first set of reveals that fits them all."""
        if not owners:
            return {}
        threshold = self.agreement.terms.threshold
        numbers = {name: x for x, name in enumerate(self.agreement.members, start=1)}
        shares = {numbers[name]: part(reveal) for name, reveal in self._reveals.items()}
        found: dict[str, bytes] = {}
        # All honest, the first set fits; the limit bounds the work that liars can cause.
        sets = itertools.combinations(sorted(shares), threshold)
        for chosen in itertools.islice(sets, _MOST_SETS):
            some = {x: shares[x] for x in chosen}
            try:
                secrets = combine_many(some, threshold=threshold)
            except SharesError:
                continue
            found = dict(zip(owners, secrets, strict=True))
            if all(fits(name, secret) for name, secret in found.items()):
                return found
        bad = min((name for name, s in found.items() if not fits(name, s)), default=owners[0])
        raise SharesError(
            f"no set of {threshold} answers gives the secret that platform {bad} committed to: it "
            "shared another one, or too many answers are false"
        )

    def _is_seed(self, owner: str, secret: bytes) -> bool:
        slot = self.ticket.slot
        return commitment(secret, owner, slot) == self.agreement.members[owner].commitment(slot)

    def _is_key(self, owner: str, secret: bytes) -> bool:
        return public_of(secret) == self.agreement.members[owner].pair(self.ticket.slot)
