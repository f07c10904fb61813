"""Who said no goes out under nobody's name."""

from __future__ import annotations

import pytest

from crossrec_model.linkage.elements import LeftOut, Person, people
from crossrec_model.linkage.identifiers import Rules

RULES = Rules()


def _person(user: str, email: str, *, consent: bool = True) -> Person:
    return Person(user=user, email=email, phone="", consent=consent)


@pytest.mark.parametrize("revoked", [True, False])
def test_an_identifier_shared_with_one_who_said_no_links_neither(revoked: bool) -> None:
    rows = [
        _person("yes", "yes@example.org"),
        _person("yes", "home@example.org"),
        _person("no", "HOME@example.org", consent=revoked),
        _person("no", "unusable", consent=revoked),
    ]
    found = people(rows, RULES, frozenset({"no"} if revoked else ()))
    alone = people(rows[:1], RULES)
    assert found.digests.tolist() == alone.digests.tolist()
    assert found.left_out == {
        LeftOut.CONFLICT: 1,
        LeftOut.REVOKED if revoked else LeftOut.NO_CONSENT: 2,
    }
