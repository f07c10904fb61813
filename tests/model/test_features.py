"""Content tokens of titles in several scripts, prices and categories."""

from __future__ import annotations

import pytest

from crossrec_model.data.features import (
    bucket,
    category_tokens,
    price_token,
    sample_grams,
    title_grams,
)


@pytest.mark.parametrize(
    ("title", "grams"),
    [
        ("Tea, 5", ["<te", "tea", "ea>", "<5>"]),
        ("红茶", ["红", "茶", "红茶"]),
        # Full-width letters are the same word.
        ("ＴＥＡ", ["<te", "tea", "ea>"]),
        ("红茶 tea", ["红", "茶", "红茶", "<te", "tea", "ea>"]),
        ("tea红", ["<te", "tea", "ea>", "红"]),
        ("STRASSE straße", ["<st", "str", "tra", "ras", "ass", "sse", "se>"]),
        ("tea tea", ["<te", "tea", "ea>"]),
        ("", []),
        (" ,.!—_ ", []),
    ],
)
def test_titles_become_grams(title: str, grams: list[str]) -> None:
    assert title_grams(title) == grams


def test_a_chinese_and_an_english_title_share_what_they_have_in_common() -> None:
    assert {"红", "茶", "红茶"} <= set(title_grams("云南红茶")) & set(title_grams("红茶 500g"))
    assert set(title_grams("green tea")) & set(title_grams("tea green")) >= {"tea", "gre", "een"}
    assert not set(title_grams("tea")) & set(title_grams("coffee"))


def test_buckets_are_fixed_and_never_padding() -> None:
    found = [bucket(f"token {i}", 16) for i in range(2000)]
    assert set(found) == set(range(1, 16))
    assert found == [bucket(f"token {i}", 16) for i in range(2000)]
    # Pinned: another hash would make an old model meaningless.
    assert bucket("category|tea", 65536) == 41262
    assert max(found.count(b) for b in set(found)) < 2 * 2000 / 15


def test_prices_fall_into_half_octaves() -> None:
    assert price_token(1.0) == price_token(1.4) == "price|0"
    assert price_token(1.42) == "price|1"
    assert price_token(2.0) == "price|2"
    assert price_token(0.5) == "price|-2"
    for nothing in (None, 0.0, -1.0, float("nan"), float("inf")):
        assert price_token(nothing) is None


def test_each_level_of_a_category_names_its_whole_path() -> None:
    assert category_tokens(["Food", "Tea"], 4) == ["category|food", "category|food>tea"]
    assert category_tokens(["a", "b", "c"], 2) == ["category|a", "category|a>b"]
    assert category_tokens(None, 4) == []


def test_similar_titles_keep_the_same_grams() -> None:
    grams = title_grams("organic green tea leaves from the mountains")
    few = sample_grams(grams, 6)
    assert len(few) == 6
    assert set(few) <= set(grams)
    # Taking one away that was not chosen changes nothing.
    left = next(g for g in grams if g not in few)
    assert sample_grams([g for g in grams if g != left], 6) == few
    assert sample_grams(grams[:3], 6) == grams[:3]
