"""The files that a linkage reads: users with identifiers and consent, or items with codes."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from crossrec_model.errors import DataError
from crossrec_model.linkage.elements import Article, Person
from crossrec_model.linkage.links import MOST_ID

USER_COLUMNS: Final = ("user_id", "email", "phone", "consent")
ITEM_COLUMNS: Final = ("item_id", "gtin")
_YES: Final = frozenset({"1", "true", "yes"})
_NO: Final = frozenset({"0", "false", "no", ""})
#: Characters of a field; longer ones are refused by the csv module.
_MOST_FIELD: Final = 4096


def read_users(path: Path) -> Iterator[Person]:
    """Yield the rows of `user_id,email,phone,consent`; consent is true, false, yes, no, 1, 0 or empty.

    Raises:
        DataError: for another header, a row with other columns, no id, or another word for consent.
    """
    for number, (user, email, phone, consent) in _rows(path, USER_COLUMNS):
        word = consent.strip().lower()
        if word not in _YES | _NO:
            raise DataError(f"{path}, line {number}: consent must be true or false")
        yield Person(user=user, email=email.strip(), phone=phone.strip(), consent=word in _YES)


def read_items(path: Path) -> Iterator[Article]:
    """Yield the rows of `item_id,gtin`; raises DataError as `read_users`."""
    for _number, (item, code) in _rows(path, ITEM_COLUMNS):
        yield Article(item=item, code=code.strip())


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, list[str]]]:
    before = csv.field_size_limit(_MOST_FIELD)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            if tuple(next(reader, ())) != columns:
                raise DataError(f"{path}: the first line must be {','.join(columns)}")
            for row in reader:
                if not row:
                    continue
                if len(row) != len(columns):
                    raise DataError(
                        f"{path}, line {reader.line_num}: {len(row)} columns; {len(columns)} needed"
                    )
                if not 0 < len(row[0]) <= MOST_ID or not row[0].isprintable():
                    raise DataError(
                        f"{path}, line {reader.line_num}: the id must be 1 to {MOST_ID} printable "
                        "characters"
                    )
                yield reader.line_num, row
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}; check --data") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8; save it as UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path} is no CSV file ({error}); save it again") from None
    finally:
        csv.field_size_limit(before)
