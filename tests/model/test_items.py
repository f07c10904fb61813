"""The item table: tokens, the content graph, the popularity sketch's cells, given vectors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny import MODEL, catalogue, items

from crossrec_model.data.features import bucket
from crossrec_model.data.items import item_table
from crossrec_model.errors import DataError

ROWS = [
    {"item_id": "a", "shared_id": "g1", "title": "Tea", "category": ["Food"], "brand": "X"},
    {"item_id": "b", "title": "Tea", "category": ["Food", "Hot"], "price": 2.0},
    {"item_id": "c", "category": ["Food", "Hot"], "shop_id": "s"},
    {"item_id": "d", "category": ["Food", "Hot"]},
    {"item_id": "e", "brand": "X"},
    {"item_id": "f"},
]


def test_an_item_is_what_its_content_says() -> None:
    table = item_table(catalogue(ROWS), MODEL)
    tokens = ["id0|g1", "id1|g1", "category|food", "brand|x"]
    tokens += [f"title|{gram}" for gram in ("<te", "tea", "ea>")]
    found = [b for b in table.buckets[0].tolist() if b]
    assert sorted(found) == sorted(bucket(token, MODEL.buckets) for token in tokens)
    assert table.index["c"] == 2
    assert len(table) == 6
    # Nothing is known of f: only padding.
    assert not table.buckets[5].any()
    own = item_table(catalogue(ROWS), MODEL, private_ids=True)
    assert np.count_nonzero(own.buckets[5]) == 2
    # A shared id says enough.
    assert {*own.buckets[0].tolist()} - {0} == {*table.buckets[0].tolist()} - {0}


def test_neighbours_share_the_key_and_are_never_the_item_itself() -> None:
    table = item_table(catalogue(ROWS), MODEL)
    category = table.neighbours[:, MODEL.relations.index("category")]
    found = [set(row[row >= 0].tolist()) for row in category]
    assert found == [set(), {2, 3}, {1, 3}, {1, 2}, set(), set()]
    brand = table.neighbours[:, MODEL.relations.index("brand")]
    assert (table.neighbours[:, MODEL.relations.index("self")] == -1).all()
    assert [set(row[row >= 0].tolist()) for row in brand] == [
        {4},
        set(),
        set(),
        set(),
        {0},
        set(),
    ]


def test_a_ring_links_a_whole_group() -> None:
    rows = [{"item_id": f"i{n}", "category": ["same"]} for n in range(7)]
    model = replace(MODEL, neighbours=3)
    ring = item_table(catalogue(rows), model).neighbours[:, model.relations.index("category")]
    assert ring.shape == (7, 3)
    for item, row in enumerate(ring.tolist()):
        assert len(set(row)) == 3
        assert item not in row
    # The first neighbours alone lead from any item to all others.
    seen, at = set(), 0
    while at not in seen:
        seen.add(at)
        at = int(ring[at, 0])
    assert len(seen) == 7


def test_two_platforms_give_a_shared_item_the_same_cells_and_tokens() -> None:
    ours = item_table(catalogue(ROWS), MODEL)
    theirs = item_table(catalogue([{"item_id": "zz", "shared_id": "g1"}]), MODEL)
    assert ours.sketch[0].tolist() == theirs.sketch[0].tolist()
    assert set(theirs.buckets[0].tolist()) <= set(ours.buckets[0].tolist())
    assert (ours.sketch[1:] == -1).all()
    many = items(500)
    assert ((many.sketch[:, 0] >= 0) & (many.sketch[:, 0] < 32)).all()
    assert ((many.sketch[:, 1] >= 32) & (many.sketch[:, 1] < 64)).all()
    assert set(np.unique(many.sketch)) == set(range(64))


def test_given_vectors_stand_side_by_side() -> None:
    rows = [
        {"item_id": "a", "vector_text": [1.0, 2.0], "vector_image": [3.0]},
        {"item_id": "b", "vector_text": None, "vector_image": [4.0]},
    ]
    model = replace(MODEL, vector_size=3)
    table = item_table(catalogue(rows), model)
    np.testing.assert_array_equal(table.vectors, [[1, 2, 3], [0, 0, 4]])
    assert item_table(catalogue(rows), MODEL).vectors.shape == (2, 0)
    with pytest.raises(DataError, match=r"have 3 numbers an item, .*vector_size is 4"):
        item_table(catalogue(rows), replace(MODEL, vector_size=4))
