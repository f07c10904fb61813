"""What the coordinator receives from a platform says no more than the sum, over 200 rounds.

A classifier that is trained to tell true transcripts from ones that are simulated from the sums alone stays
at chance. It does not where masks are weak or where a number travels beside the vector.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pytest
from distinguisher import (
    CLASSIFIERS,
    Area,
    area,
    areas,
    areas_of_agreements,
    bodies,
    deviation,
    pieces,
    randomness_of,
    validated,
)
from observer import SeedSearch, all_masks, equal_masks, few_seeds, peel, reused_masks
from scipy import stats
from transcript import (
    DIMENSION,
    LEVELS,
    MAX_WEIGHT,
    NAMES,
    ROUNDS_AN_AGREEMENT,
    TARGET,
    Federation,
    Round,
    Stage,
    Sum,
    TellingParticipant,
    grids,
    play,
    survivors_of,
    telling_inputs,
    true_and_simulated,
)

from crossrec_model.secagg import messages as frames
from crossrec_model.secagg.agreement import Secrets
from crossrec_model.secagg.messages import Kind
from crossrec_model.secagg.participant import Opened, Participant, Sealed

ROUNDS, WEAK_ROUNDS = 200, 50
#: Bits of the seeds that are searched. 32 bits are the same pass over 2^20 times as many seeds.
SEED_BITS = 12
#: How often a test of sound masks may fail by chance.
FALSE_ALARM = 1e-6

Pair = tuple[list[Round], list[Round]]


@pytest.fixture(scope="module")
def search() -> SeedSearch:
    return SeedSearch(TARGET, SEED_BITS)


@pytest.fixture(scope="module")
def transcripts() -> Pair:
    return true_and_simulated(ROUNDS, seed=1)


def _beyond_chance(found: dict[str, Area]) -> dict[str, Area]:
    """The areas outside the interval that all of them leave by chance once in a million times."""
    limit = stats.norm.isf(FALSE_ALARM / 2 / len(found))
    return {n: one for n, one in found.items() if abs(one.value - 0.5) > limit * one.chance}


def _not_random(rounds: list[Round]) -> dict[str, float]:
    """The tests of the vectors' bytes that fail, by the same measure."""
    p_values = {
        f"{name}, {test}": p
        for name, data in bodies(rounds).items()
        for test, p in randomness_of(data).items()
    }
    return {name: p for name, p in p_values.items() if p < FALSE_ALARM / len(p_values)}


def test_true_and_simulated_transcripts_can_not_be_told_apart(
    transcripts: Pair, search: SeedSearch
) -> None:
    found = areas(*transcripts, search) | areas_of_agreements(*transcripts)
    assert not _beyond_chance(found)


def test_bytes_of_masked_vectors_look_random(transcripts: Pair) -> None:
    for rounds in transcripts:
        assert not _not_random(rounds)


def test_both_have_the_same_sums_and_the_true_one_has_much_to_find(transcripts: Pair) -> None:
    """Otherwise the test above would say nothing."""
    inputs, shares = telling_inputs(1), []
    for true, simulated in zip(*transcripts, strict=True):
        assert np.array_equal(true.train.total, simulated.train.total)
        assert np.array_equal(true.evaluate.total, simulated.evaluate.total)
        if TARGET in true.train.survivors:
            weight = float(true.train.total[-2]) * MAX_WEIGHT / LEVELS[Kind.TRAIN]
            shares.append(inputs(true.number, Kind.TRAIN, TARGET).weight / weight)
    assert np.mean(shares) > 0.5
    assert {survivors_of(number) for number in range(3)} == {
        tuple(NAMES),
        tuple("ACDE"),
        tuple("ABDE"),
    }


def _sums(rounds: list[Round]) -> list[Sum]:
    return [one for played in rounds for one in (played.train, played.evaluate)]


def test_nothing_but_the_protocols_fields_is_sent(transcripts: Pair) -> None:
    """Whatever is not in `pieces` or in a key agreement's frames is what the coordinator asked for."""
    for one in _sums(transcripts[0]):
        ticket = one.ticket
        head = frames.Upload(
            epoch=ticket.epoch, slot=ticket.slot, bits=ticket.bits, length=ticket.length
        )
        assert one.upload == frames.encode(head) + pieces(one)["vector"]
        assert one.beside == b""
        assert bool(one.reveal) == (TARGET in one.survivors)
        if one.reveal:
            reveal = frames.decode_as(frames.Reveal, one.reveal)
            assert (reveal.epoch, reveal.slot) == (ticket.epoch, ticket.slot)
            assert len(reveal.seeds) == 33 * len(one.survivors)
            assert len(reveal.keys) == 33 * (len(NAMES) - len(one.survivors))
    lengths = [
        [len(b) for one in _sums(rounds) for b in (one.keys.keys, one.keys.shares, one.upload)]
        for rounds in transcripts
    ]
    assert lengths[0] == lengths[1]


@pytest.mark.parametrize(
    ("weakened", "platform", "by"),
    [
        (lambda: few_seeds(SEED_BITS), Participant, "after search"),
        (nullcontext, TellingParticipant, "beside"),
        (equal_masks, Participant, "correlations"),
    ],
    ids=["masks from few seeds", "the weight beside the vector", "equal masks"],
)
def test_weak_variants_are_told_apart(
    weakened: Callable[[], AbstractContextManager[None]],
    platform: type[Participant],
    by: str,
    search: SeedSearch,
) -> None:
    with weakened():
        true, simulated = true_and_simulated(WEAK_ROUNDS, seed=2, platform=platform)
        found = areas(true, simulated, search)
    seen = _beyond_chance(found)
    assert seen[f"{by}, logistic"].value > 0.9
    assert seen[f"{by}, hidden layer"].value > 0.9


def test_bytes_of_weak_masks_do_not_look_random() -> None:
    with equal_masks():
        rounds = play(Stage(Federation(), Participant, grids()), WEAK_ROUNDS, telling_inputs(3))
    failed = _not_random(rounds)
    assert {"train, counts", "train, neighbours", "train, runs", "evaluate, counts"} <= set(failed)


def test_masks_that_serve_twice_show_in_the_steps() -> None:
    with reused_masks():
        rounds = play(Stage(Federation(), Participant, grids()), WEAK_ROUNDS, telling_inputs(4))
    assert {"train, steps, counts", "train, steps, runs"} <= set(_not_random(rounds))


def test_the_observer_peels_right() -> None:
    """With the target's secrets as well it reads the contribution; without them it is far off."""
    stage, inputs = Stage(Federation(), Participant, grids()), telling_inputs(5)
    rounds = play(stage, ROUNDS_AN_AGREEMENT, inputs)
    state = stage.platforms[TARGET].state
    assert isinstance(state, Sealed | Opened)
    for played in rounds:
        true = inputs(played.number, Kind.TRAIN, TARGET)
        one, part = played.train, true.weight / MAX_WEIGHT
        masks = all_masks(one.keys.agreement, one.ticket, TARGET, state.agreed.secrets)
        expected = np.append(true.update.astype(float), 1.0) * part * LEVELS[Kind.TRAIN]
        found = peel(one.body, one.ticket.bits, masks)[: DIMENSION + 1]
        assert np.abs(found - expected).max() <= 1
        assert np.abs(one.peeled[: DIMENSION + 1] - expected).mean() > LEVELS[Kind.TRAIN]


def test_the_search_finds_weak_seeds_only(search: SeedSearch) -> None:
    with few_seeds(SEED_BITS):
        weak = Stage(Federation(), Participant, grids())
        agreement = weak.agree().agreement
        state = weak.platforms[TARGET].state
        assert isinstance(search.secrets(agreement), Secrets)
        assert search.secrets(agreement) == getattr(state, "secrets", None)
    sound = Stage(Federation(), Participant, grids())
    assert search.secrets(sound.agree().agreement) is None


def test_the_area_is_how_often_a_true_one_scores_higher() -> None:
    random = np.random.default_rng(1)
    scores, labels = random.integers(0, 9, 70).astype(float), random.random(70) < 0.4
    wins = [
        (a > b) + 0.5 * (a == b) for a in scores[labels] for b in scores[~labels]
    ]  # ties count half
    assert area(scores, labels) == pytest.approx(np.mean(wins))
    assert deviation(0.5, 20, 30) == pytest.approx((51 / 12 / 20 / 30) ** 0.5)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_classifier_finds_what_is_there_and_nothing_else(kind: str) -> None:
    random = np.random.default_rng(2)
    agreements = [number // ROUNDS_AN_AGREEMENT for number in range(ROUNDS)]

    def found(shift: float, spread: float) -> Area:
        noise = random.normal(size=(2 * ROUNDS, 12))
        true = noise[:ROUNDS] * spread + shift * (np.arange(12) == 3)
        return validated(CLASSIFIERS[kind], list(true), list(noise[ROUNDS:]), agreements)

    assert found(2.0, 1.0).value > 0.85
    # A mere difference in spread is beyond what is linear.
    assert kind == "logistic" or found(0.0, 3.0).value > 0.85
    none = [found(0.0, 1.0) for _ in range(25)]
    assert not _beyond_chance({str(at): one for at, one in enumerate(none)})
    assert np.std([one.value for one in none]) == pytest.approx(none[0].chance, rel=0.5)
