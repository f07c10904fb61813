"""What a coordinator and its colluders can compute from all they have, and that it is not enough.

Each attack is also carried out where it works: with one share more, or under a threshold that is one
lower. So a platform's vector is opened here, and the bounds are shown to be needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import pytest
from federation_in_memory import PLAN, SUBJECT, Federation, Part, modulo, plain_sum
from independent import at_zero, unmasked

from crossrec_model.secagg import messages as frames
from crossrec_model.secagg.agreement import Agreed, Terms
from crossrec_model.secagg.coordinator import Collecting
from crossrec_model.secagg.errors import (
    OtherListError,
    OutOfTurnError,
    SecureSumError,
    TooFewPlatformsError,
)
from crossrec_model.secagg.gathering import Agreement
from crossrec_model.secagg.messages import SHARE_BYTES
from crossrec_model.secagg.participant import Opened, Sealed

_HEAD = 26


def _agreed(federation: Federation, name: str) -> Agreed:
    """A platform's keys and shares, as it would give them to whom it colludes with."""
    state = federation.platforms[name].state
    assert isinstance(state, Sealed | Opened)
    return state.agreed


def _integers(part: Part, bits: int) -> list[int]:
    return [number % (1 << bits) for number in part.integers]


@dataclass(frozen=True, kw_only=True)
class Attacker:
    """Tries to take the masks off one platform's vector, from shares of both its secrets."""

    agreement: Agreement
    ticket: frames.Ticket
    target: str
    upload: bytes

    def opened(self, seeds: Mapping[str, bytes], keys: Mapping[str, bytes]) -> list[int]:
        """The vector, as far as these shares by holder give it."""
        t, members = self.ticket, list(self.agreement.members)
        numbers = (t.slot, int(t.kind), t.round, t.bits, t.levels, t.length)
        return unmasked(
            self.upload[_HEAD:],
            self.target,
            t.bits,
            parts=(self.agreement.invite.run, self.agreement.transcript, SUBJECT, *numbers),
            pair_key=at_zero({1 + members.index(name): raw for name, raw in keys.items()}),
            publics={
                name: keys.pair(t.slot)
                for name, keys in self.agreement.members.items()
                if name != self.target
            },
            seed=at_zero({1 + members.index(name): raw for name, raw in seeds.items()}),
        )


@pytest.mark.parametrize("count", [4, 5, 7, 10])
def test_a_late_vector_stays_closed_though_its_pair_key_is_known(count: int) -> None:
    federation = Federation(count)
    least, late = federation.terms.threshold, federation.names[1]
    others = [name for name in federation.names if name != late]
    agreement = federation.agree()
    ticket = federation.ticket(agreement)
    parts = {name: federation.part(name) for name in federation.names}
    collecting = Collecting(agreement=agreement, ticket=ticket, subject=SUBJECT)
    for name in others:
        collecting.add(name, federation.seal(name, ticket, parts[name]))
    unmasking = collecting.close()
    total = federation.open(unmasking)
    upload = federation.seal(late, ticket, parts[late])

    # The coordinator takes it neither into the opened sum nor into another one.
    with pytest.raises(OutOfTurnError, match=f"{late} came too late"):
        collecting.add(late, upload)
    with pytest.raises(OutOfTurnError, match="removed before"):
        unmasking.open()
    assert modulo(unmasking.total, ticket.bits) == total
    assert total == plain_sum([parts[name] for name in others], ticket.bits)

    # The pair key was revealed by all others; of the seed there is what t - 1 colluders hold.
    held = {name: _agreed(federation, name) for name in others}
    keys = {name: agreed.key_share(late, ticket.slot) for name, agreed in held.items()}
    seeds = {name: agreed.seed_share(late, ticket.slot) for name, agreed in held.items()}
    everybody = replace(unmasking.message, survivors=federation.names, dropped=())
    for name in others:
        with pytest.raises(OtherListError):
            federation.ask(name, everybody, frames.Reveal)
    attacker = Attacker(agreement=agreement, ticket=ticket, target=late, upload=upload)
    truth = _integers(parts[late], ticket.bits)
    for few in (others[: least - 1], others[-(least - 1) :]):
        found = attacker.opened({name: seeds[name] for name in few}, keys)
        assert sum(a == b for a, b in zip(found, truth, strict=True)) <= 2
    # The one missing share is all that the attacker lacks.
    assert attacker.opened({name: seeds[name] for name in others[:least]}, keys) == truth


class LooserTerms(Terms):
    """Terms with the highest threshold under which two lists open a platform: (N + c) / 2."""

    @property
    def threshold(self) -> int:
        """One lower than the bound."""
        return (len(self.roster.members) + self.roster.colluding(self.colluding_share)) // 2


class SplitView:
    """A coordinator that says "D dropped" to the first honest platforms, and "D survived" to the rest.

    D itself has uploaded, is honest, and last in the order.
    """

    def __init__(self, federation: Federation, colluders: int, slots: int) -> None:
        self.federation, self.colluders = federation, federation.names[:colluders]
        *self.honest, self.target = federation.names[colluders:]
        self.agreement = federation.agree(slots=slots)

    def attack(
        self, slot: int, told_dropped: int
    ) -> tuple[Attacker, dict[str, bytes], dict[str, bytes]]:
        """Return an attacker on D, and all shares of D's seed and of its pair key, by holder."""
        federation = self.federation
        ticket = federation.ticket(self.agreement, slot, number=slot + 1)
        uploads = {
            name: federation.seal(name, ticket, federation.part(name, slot))
            for name in federation.names
        }
        survived = frames.Unmask(
            epoch=ticket.epoch, slot=slot, survivors=federation.names, dropped=()
        )
        dropped = replace(survived, survivors=federation.names[:-1], dropped=(self.target,))
        keys = self._answers(self.honest[:told_dropped], dropped)
        seeds = self._answers([*self.honest[told_dropped:], self.target], survived)
        for name in self.colluders:
            agreed = _agreed(federation, name)
            keys[name] = agreed.key_share(self.target, slot)
            seeds[name] = agreed.seed_share(self.target, slot)
        attacker = Attacker(
            agreement=self.agreement, ticket=ticket, target=self.target, upload=uploads[self.target]
        )
        return attacker, seeds, keys

    def _answers(self, names: Iterable[str], asked: frames.Unmask) -> dict[str, bytes]:
        """The shares of D in the answers; D stands last in either list."""
        answers = ((name, self.federation.ask(name, asked, frames.Reveal)) for name in names)
        return {name: (a.keys or a.seeds)[-SHARE_BYTES:] for name, a in answers}

    def truth(self, slot: int) -> list[int]:
        """D's integers."""
        part = self.federation.part(self.target, slot)
        return _integers(part, self.federation.grid.bits(len(self.federation.names)))


@pytest.mark.parametrize("count", range(4, 13))
def test_no_split_view_opens_a_platform(count: int) -> None:
    """For every number of colluders that the threshold allows for, and every split of the honest."""
    allowed = Federation(count).roster.colluding(1 / 3)
    assert allowed < count / 3
    closest = 0
    for colluders in range(allowed + 1):
        federation = Federation(count)
        least = federation.terms.threshold
        splits = count - colluders
        view = SplitView(federation, colluders, splits)
        for told_dropped in range(splits):
            attacker, seeds, keys = view.attack(told_dropped, told_dropped)
            assert len(keys) + len(seeds) == count + colluders
            fewer = min(len(keys), len(seeds))
            assert fewer < least
            closest = max(closest, fewer)
            if fewer == least - 1:
                assert attacker.opened(seeds, keys) != view.truth(told_dropped)
    # The bound is tight: one share more, and it would be open.
    assert closest == least - 1


@pytest.mark.parametrize("count", range(3, 13))
def test_a_split_view_opens_a_platform_under_a_threshold_one_lower(count: int) -> None:
    federation = Federation(
        count, terms=lambda roster: LooserTerms(roster=roster, plan=PLAN, colluding_share=1 / 3)
    )
    real = Federation(count).terms.threshold
    assert federation.terms.threshold == real - 1 or count == 3
    colluders = federation.roster.colluding(1 / 3)
    view = SplitView(federation, colluders, slots=1)
    least = federation.terms.threshold
    attacker, seeds, keys = view.attack(0, told_dropped=least - colluders)
    assert min(len(keys), len(seeds)) >= least
    assert attacker.opened(seeds, keys) == view.truth(0)


@pytest.mark.parametrize("count", range(4, 9))
def test_with_as_many_colluders_as_two_quorums_share_a_platform_is_open(count: int) -> None:
    federation = Federation(count)
    least = federation.terms.threshold
    colluders = 2 * least - count
    assert colluders > federation.roster.colluding(1 / 3)
    view = SplitView(federation, colluders, slots=1)
    attacker, seeds, keys = view.attack(0, told_dropped=least - colluders)
    assert min(len(keys), len(seeds)) == least
    assert attacker.opened(seeds, keys) == view.truth(0)


def test_of_three_platforms_none_can_be_called_dropped() -> None:
    federation = Federation(3)
    view = SplitView(federation, 0, slots=1)
    with pytest.raises(TooFewPlatformsError, match=r"too few platforms .*: 2 of 3, need 3"):
        view.attack(0, told_dropped=1)


@pytest.mark.parametrize("count", range(3, 13))
def test_two_lists_of_one_round_under_two_agreements_have_no_two_quorums(count: int) -> None:
    """The difference of two sums would show a platform: an honest one in both quorums refuses.

    The colluders answer everything. The honest ones are asked for one list or the other, in every split;
    how many answer both is what their records allow.
    """
    federation = Federation(count)
    least, everybody = federation.terms.threshold, federation.names
    colluders = everybody[: federation.roster.colluding(1 / 3)]
    honest = everybody[len(colluders) :]
    answers = {0: set(colluders), 1: set(colluders)}
    for which, dropped in ((0, ()), (1, everybody[-1:])):
        agreement = federation.agree(slots=1)
        ticket = federation.ticket(agreement)
        survivors = tuple(name for name in everybody if name not in dropped)
        asked = frames.Unmask(epoch=ticket.epoch, slot=0, survivors=survivors, dropped=dropped)
        # First half as many as are needed, then all that are left.
        enough = least - len(colluders)
        for name in honest[:enough] if which == 0 else honest:
            federation.seal(name, ticket, federation.part(name))
            try:
                federation.ask(name, asked, frames.Reveal)
                answers[which].add(name)
            except SecureSumError:
                continue
    assert len(answers[0]) == least
    assert answers[0] & answers[1] <= set(colluders)
    assert len(answers[1]) < least
