"""The intersection is that of plain sets, for sets of every shape, and both sides derive the same ids."""

from __future__ import annotations

import random

import pytest
from sides import digests, link

from crossrec_model.linkage.compared import Compared
from crossrec_model.linkage.group import Cores


def _common(words: list[str], end: Compared) -> set[str]:
    return {words[place] for place in end.elements}


@pytest.mark.parametrize(
    ("own", "other", "common"),
    [
        (0, 0, 0),
        (0, 40, 0),
        (1, 1, 1),
        (60, 60, 60),
        (60, 70, 0),
        (1, 1000, 1),
        (5, 5000, 3),
        (300, 500, 117),
        (4100, 4200, 2000),
    ],
)
def test_both_learn_what_plain_sets_say(own: int, other: int, common: int) -> None:
    shared = [f"both{k}" for k in range(common)]
    one = [*shared, *(f"a{k}" for k in range(own - common))]
    two = [*shared, *(f"b{k}" for k in range(other - common))]
    random.Random(own).shuffle(one)
    random.Random(other).shuffle(two)
    with Cores(2) as cores:
        a, b = link(digests(one), digests(two), cores)
    assert _common(one, a) == _common(two, b) == set(one) & set(two)
    at_a = {one[e]: a.links[k].tobytes() for k, e in enumerate(a.elements)}
    at_b = {two[e]: b.links[k].tobytes() for k, e in enumerate(b.elements)}
    assert at_a == at_b
    assert len(set(at_a.values())) == len(at_a) == common
