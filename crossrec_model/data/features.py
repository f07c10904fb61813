"""Content features of items as hashed tokens: what one platform can say about an item to another.

Every token falls into one of `buckets` rows of the shared embedding table, so that no vocabulary ever
has to be agreed on or sent (feature hashing, Weinberger et al. 2009). Bucket 0 is padding.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from typing import Final

PADDING: Final = 0
#: Scripts written without spaces: their single characters and pairs carry the meaning.
_UNSPACED: Final = re.compile(r"[぀-ヿ㐀-䶿一-鿿豈-﫿가-힯]+")
_WORD: Final = re.compile(r"[^\W_]+")


def bucket(token: str, buckets: int) -> int:
    """Row of a token in a table of `buckets` rows: 1 to buckets - 1."""
    digest = hashlib.blake2b(token.encode(), digest_size=8, person=b"crossrec/feature").digest()
    return 1 + int.from_bytes(digest, "little") % (buckets - 1)


def title_grams(title: str) -> list[str]:
    """Character n-grams of a title: 1 and 2 for scripts without spaces, 3 within marked words else.

    >>> title_grams("红茶")
    ['红', '茶', '红茶']
    >>> title_grams("Tea, 5")
    ['<te', 'tea', 'ea>', '<5>']
    """
    grams: list[str] = []
    for word in _WORD.findall(unicodedata.normalize("NFKC", title).casefold()):
        position = 0
        for run in _UNSPACED.finditer(word):
            grams += _spaced(word[position : run.start()])
            text = run.group()
            grams += [*text, *(text[i : i + 2] for i in range(len(text) - 1))]
            position = run.end()
        grams += _spaced(word[position:])
    return list(dict.fromkeys(grams))


def _spaced(word: str) -> list[str]:
    marked = f"<{word}>"
    return [marked[i : i + 3] for i in range(len(marked) - 2)] if word else []


def price_token(price: float | None) -> str | None:
    """Half-octave price bucket; none for an absent, zero, negative or non-finite price."""
    if price is None or not (math.isfinite(price) and price > 0):
        return None
    return f"price|{math.floor(2 * math.log2(price))}"


def category_tokens(path: list[str] | None, depth: int) -> list[str]:
    """One token a level of a category path, each naming the whole path down to it."""
    levels = [level.casefold() for level in path or []][:depth]
    return ["category|" + ">".join(levels[: i + 1]) for i in range(len(levels))]


def sample_grams(grams: list[str], count: int) -> list[str]:
    """At most `count` grams, the lowest by hash: similar titles keep the same ones (Broder 1997)."""
    if len(grams) <= count:
        return grams
    return sorted(grams, key=_rank)[:count]


_RANKS: dict[str, bytes] = {}


def _rank(gram: str) -> bytes:
    # The few thousand distinct grams of a catalogue are hashed once.
    if gram not in _RANKS:
        _RANKS[gram] = hashlib.blake2b(gram.encode(), digest_size=8).digest()
    return _RANKS[gram]
