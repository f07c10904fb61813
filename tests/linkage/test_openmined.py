"""The intersection is the one that openmined-psi finds."""

from __future__ import annotations

import random

import pytest
from sides import digests, link

from crossrec_model.linkage.group import Cores

psi = pytest.importorskip(
    "private_set_intersection.python",
    reason="openmined-psi is not installed: it pins a protobuf that Flower can't be with",
)


def _theirs(one: list[str], two: list[str]) -> set[str]:
    client, server = psi.client.CreateWithNewKey(True), psi.server.CreateWithNewKey(True)
    setup = server.CreateSetupMessage(1e-9, len(one), two, psi.DataStructure.RAW)
    answer = server.ProcessRequest(client.CreateRequest(one))
    return {one[place] for place in client.GetIntersection(setup, answer)}


@pytest.mark.parametrize(
    ("own", "other", "common"),
    [(0, 30, 0), (40, 40, 40), (40, 50, 0), (1, 1000, 1), (3, 3000, 2), (400, 300, 123)],
)
def test_both_find_the_same(own: int, other: int, common: int, cores: Cores) -> None:
    stream = random.Random(own + other)
    words = [f"{stream.getrandbits(64):x}@example.org" for _ in range(own + other - common)]
    one, two = words[:own], words[own - common :]
    a, b = link(digests(one), digests(two), cores)
    found = _theirs(one, two) if one else set()
    assert {one[place] for place in a.elements} == found == set(one) & set(two)
    assert {two[place] for place in b.elements} == found
