"""Every identifier has one form, and what is none is refused without being quoted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossrec_model.errors import ConfigError
from crossrec_model.linkage.elements import Article, LeftOut, Person, articles, people
from crossrec_model.linkage.identifiers import IdentifierError, Rules, gtin

RULES = Rules(region="DE")


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (" Ann.Lee@Example.ORG ", "ann.lee@example.org"),
        ("ann@example.org.", "ann@example.org"),
        ("ａｎｎ＠ｅｘａｍｐｌｅ．ｏｒｇ", "ann@example.org"),
        ("STRASSE@example.org", "strasse@example.org"),
        ("straße@bücher.example", "strasse@xn--bcher-kva.example"),
        ("a.n.n+shop@gmail.com", "ann@gmail.com"),
        ("Ann@GoogleMail.com", "ann@gmail.com"),
        ("ann+shop@example.org", "ann+shop@example.org"),
        ("e\u0301@example.org", "\u00e9@example.org"),
    ],
)
def test_an_address_has_one_form(text: str, form: str) -> None:
    assert RULES.email(text) == form
    assert RULES.email(form) == form


def test_gmails_rules_can_be_left_out() -> None:
    assert Rules(gmail=False).email("a.n.n+x@googlemail.com") == "a.n.n+x@googlemail.com"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ann",
        "@example.org",
        "ann@",
        "ann@example",
        "ann@exam ple.org",
        "an n@example.org",
        "a@b@example.org",
        "ann\x00@example.org",
        "+shop@gmail.com",
        "ann@-example-.org",
        "ann@" + "x" * 300 + ".org",
        "a" * 65 + "@example.org",
        "a" * 5000,
    ],
)
def test_what_is_no_address_is_refused_and_not_quoted(text: str) -> None:
    with pytest.raises(IdentifierError) as refused:
        RULES.email(text)
    assert not text or text not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("030 / 901820", "+4930901820"),
        ("+49 (0)30 901820", "+4930901820"),
        ("0049 30 901820", "+4930901820"),
        ("+1 650-253-0000", "+16502530000"),
    ],
)
def test_a_number_becomes_e164(text: str, form: str) -> None:
    assert RULES.phone(text) == form


@pytest.mark.parametrize("text", ["", "12", "+49", "call me", "+1 650 253 0000 ext. 5", "9" * 99])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(IdentifierError):
        RULES.phone(text)


def test_without_a_region_a_number_needs_its_country() -> None:
    assert Rules().phone("+4930901820") == "+4930901820"
    with pytest.raises(IdentifierError):
        Rules().phone("030 901820")
    with pytest.raises(ConfigError, match="region"):
        Rules(region="XX")


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("96385074", "00000096385074"),
        ("036000291452", "00036000291452"),
        ("4006381333931", "04006381333931"),
        ("400-6381 333931", "04006381333931"),
        ("10614141000415", "10614141000415"),
    ],
)
def test_an_item_code_becomes_a_gtin14(text: str, form: str) -> None:
    assert gtin(text) == form


@pytest.mark.parametrize(
    "text", ["", "4006381333930", "123456789", "00000000", "４006381333931", "B00ABC1234", "1" * 99]
)
def test_what_is_no_item_code_is_refused(text: str) -> None:
    with pytest.raises(IdentifierError):
        gtin(text)


@given(st.integers(0, 10**13 - 1), st.integers(0, 13), st.integers(1, 9))
def test_the_check_digit_finds_every_single_wrong_digit(body: int, place: int, by: int) -> None:
    digits = [int(c) for c in f"{body:013d}"]
    # The standard's table: from the right, without the check digit, 3, 1, 3, ...
    total = sum(d * (3 if k % 2 == 0 else 1) for k, d in enumerate(reversed(digits)))
    digits.append(-total % 10)
    code = "".join(map(str, digits))
    if body:
        assert gtin(code) == code
    digits[place] = (digits[place] + by) % 10
    with pytest.raises(IdentifierError):
        gtin("".join(map(str, digits)))


@given(st.text(max_size=80))
def test_any_text_gives_one_stable_form_or_a_named_refusal(text: str) -> None:
    for form in (RULES.email, RULES.phone, gtin):
        try:
            made = form(text)
        except IdentifierError:
            continue
        assert form(made) == made


def _person(user: str, email: str = "", phone: str = "", consent: bool = True) -> Person:
    return Person(user=user, email=email, phone=phone, consent=consent)


def test_only_who_consents_and_has_not_revoked_takes_part() -> None:
    rows = [
        _person("yes", "yes@example.org"),
        _person("no", "no@example.org", consent=False),
        _person("gone", "gone@example.org"),
        # She says yes in one row and no in another.
        _person("torn", "torn@example.org"),
        _person("torn", "torn2@example.org", consent=False),
    ]
    found = people(rows, RULES, frozenset({"gone"}))
    alone = people([_person("yes", "YES@example.org")], RULES)
    assert found.digests.tolist() == alone.digests.tolist()
    assert found.owners.tolist() == alone.owners.tolist()
    assert found.left_out == {LeftOut.NO_CONSENT: 3, LeftOut.REVOKED: 1}


def test_duplicates_count_once_and_conflicts_link_neither() -> None:
    rows = [
        _person("one", "same@example.org", "+4930901820"),
        _person("one", "Same@example.org"),
        _person("two", "both@example.org"),
        _person("three", "both@example.org", "+16502530000"),
        _person("three", "BOTH@example.org"),
        _person("four"),
        _person("five", "none", "none"),
    ]
    found = people(rows, RULES)
    expected = people([_person("one", "same@example.org", "+4930901820")], RULES)
    three = people([_person("three", "", "+16502530000")], RULES)
    wanted = [*expected.digests.tolist(), *three.digests.tolist()]
    assert found.digests.tolist() == wanted
    assert found.first.tolist() == [True, False, False]
    assert found.left_out == {
        LeftOut.DUPLICATE: 1,
        LeftOut.CONFLICT: 3,
        LeftOut.NO_IDENTIFIER: 1,
        LeftOut.BAD_EMAIL: 1,
        LeftOut.BAD_PHONE: 1,
    }
    assert "example.org" not in repr(found)


def test_an_address_and_an_item_code_never_meet() -> None:
    items = articles(
        [
            Article(item="x", code="4006381333931"),
            Article(item="y", code="4006381333931"),
            Article(item="z", code="96385074"),
            Article(item="w", code=""),
            Article(item="v", code="1"),
        ]
    )
    assert len(items.digests) == 1
    assert items.left_out == {
        LeftOut.CONFLICT: 2,
        LeftOut.NO_IDENTIFIER: 1,
        LeftOut.BAD_GTIN: 1,
    }


def test_nobody_is_an_empty_set() -> None:
    found = people([], RULES)
    assert found.digests.shape == (0, 32)
    assert found.left_out == {}
