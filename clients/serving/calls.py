"""What the service is asked and what it answers: checked when made, the same over gRPC and HTTP."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Final, Literal, get_args

from crossrec_model.errors import CrossrecError, shown

MOST_ITEMS: Final = 200
#: Longest id of a user, item, shop or event, in characters.
LONGEST_ID: Final = 256
MOST_IN_A_FILTER: Final = 1000
MOST_CARRIERS: Final = 100
#: How JSON is read into a call: unknown fields are refused.
STRICT: Final = {"extra": "forbid"}
Method = Literal["dpp", "mmr"]
Source = Literal["ranked", "explored", "rare", "popular", "graph", "content"]


class Code(Enum):
    """What kind of refusal it is; each interface has its own number for it."""

    NOT_FOUND = "not-found"
    INVALID = "invalid"
    EXHAUSTED = "exhausted"
    UNAUTHENTICATED = "unauthenticated"
    UNAVAILABLE = "unavailable"
    INTERNAL = "internal"


class RefusedCallError(CrossrecError):
    """A call that gets no answer but a code and one line."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


def invalid(message: str) -> RefusedCallError:
    """A call with a value outside its bounds."""
    return RefusedCallError(Code.INVALID, message)


def not_found(message: str) -> RefusedCallError:
    """A call about something that is not here."""
    return RefusedCallError(Code.NOT_FOUND, message)


def check_id(name: str, value: str) -> None:
    """Raise RefusedCallError for an id that is empty, too long or not printable."""
    if not 1 <= len(value) <= LONGEST_ID or not value.isprintable():
        raise invalid(
            f"{name} = {shown(value)} must be 1 to {LONGEST_ID} printable characters; give an id"
        )


def _check_k(k: int) -> None:
    if not 1 <= k <= MOST_ITEMS:
        raise invalid(f"k = {shown(k)} is outside [1, {MOST_ITEMS}]; ask for a number inside it")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise invalid(f"{name} = {shown(value)} is outside [0, 1]; give a number inside it")


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What may be in a list; absent fields filter nothing."""

    __pydantic_config__: ClassVar = STRICT

    new_only: bool = False
    include_out_of_stock: bool = False
    exclude: tuple[str, ...] = ()
    shops: tuple[str, ...] = ()
    category: tuple[str, ...] = ()
    price_from: float | None = None
    price_to: float | None = None

    def __post_init__(self) -> None:
        for name in ("exclude", "shops", "category"):
            values = getattr(self, name)
            if len(values) > MOST_IN_A_FILTER:
                raise invalid(
                    f"filters.{name} has {len(values)} entries; at most {MOST_IN_A_FILTER} are read"
                )
            for value in values:
                check_id(f"filters.{name}", value)
        low, high = self.price_from, self.price_to
        for name, price in (("price_from", low), ("price_to", high)):
            if price is not None and not (math.isfinite(price) and price >= 0):
                raise invalid(f"filters.{name} = {shown(price)} must be a price, 0 or more")
        if low is not None and high is not None and low > high:
            raise invalid(f"filters.price_from = {low} is above price_to = {high}; exchange them")


@dataclass(frozen=True, kw_only=True)
class RecommendCall:
    """Asks for the best `k` items for a user."""

    __pydantic_config__: ClassVar = STRICT

    user_id: str
    k: int
    filters: Filters = field(default_factory=Filters)
    diversity: float = 0.0
    method: str = "dpp"
    explore: float = 0.0
    allow_unknown: bool = False

    def __post_init__(self) -> None:
        check_id("user_id", self.user_id)
        _check_k(self.k)
        _check_share("diversity", self.diversity)
        _check_share("explore", self.explore)
        if self.method not in get_args(Method):
            raise invalid(f"method = {shown(self.method)} is unknown; choose dpp or mmr")


@dataclass(frozen=True, kw_only=True)
class SimilarCall:
    """Asks for the `k` items that go best with an item."""

    __pydantic_config__: ClassVar = STRICT

    item_id: str
    k: int
    filters: Filters = field(default_factory=Filters)

    def __post_init__(self) -> None:
        check_id("item_id", self.item_id)
        _check_k(self.k)


@dataclass(frozen=True, kw_only=True)
class RecordCall:
    """Tells of an event; `time` is ISO 8601 with a time zone, empty for now."""

    __pydantic_config__: ClassVar = STRICT

    user_id: str
    item_id: str
    event: str
    time: str = ""
    quantity: float | None = None
    price: float | None = None
    shop_id: str = ""
    event_id: str = ""

    def __post_init__(self) -> None:
        check_id("user_id", self.user_id)
        check_id("item_id", self.item_id)
        for name in ("shop_id", "event_id"):
            if getattr(self, name):
                check_id(name, getattr(self, name))
        if self.quantity is not None and not (math.isfinite(self.quantity) and self.quantity > 0):
            raise invalid(f"quantity = {shown(self.quantity)} must be a number above 0")
        if self.price is not None and not (math.isfinite(self.price) and self.price >= 0):
            raise invalid(f"price = {shown(self.price)} must be a number, 0 or more")


@dataclass(frozen=True, kw_only=True)
class ExplainCall:
    """Asks what a user's score for an item is made of, naming at most `most` history items."""

    __pydantic_config__: ClassVar = STRICT

    user_id: str
    item_id: str
    most: int = 5

    def __post_init__(self) -> None:
        check_id("user_id", self.user_id)
        check_id("item_id", self.item_id)
        if not 1 <= self.most <= MOST_CARRIERS:
            raise invalid(f"most = {shown(self.most)} is outside [1, {MOST_CARRIERS}]")


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One item of a list; `score` only ranks within its list."""

    place: int
    item_id: str
    title: str
    category: tuple[str, ...]
    score: float
    reason: str
    source: Source


@dataclass(frozen=True, kw_only=True)
class Recommended:
    """A list for one user; `known` is false for the popular items."""

    platform: str
    model: str
    known: bool
    notes: tuple[str, ...]
    items: tuple[Listed, ...]


@dataclass(frozen=True, kw_only=True)
class Similar:
    """Items that go with an item."""

    platform: str
    model: str
    items: tuple[Listed, ...]


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """An event is kept; `again` if one with its `event_id` was here already."""

    number: int
    again: bool


@dataclass(frozen=True, kw_only=True)
class Part:
    """A term of a score: of a component, and of a history item where there is one."""

    component: str
    item_id: str
    what: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Carrier:
    """A history item over all components."""

    item_id: str
    title: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Explained:
    """What a score is made of; `explained` is the sum of the parts."""

    platform: str
    model: str
    score: float
    explained: float
    parts: tuple[Part, ...]
    carriers: tuple[Carrier, ...]
    decided_by: Literal["own", "shared"]
    own: float
    shared: float
    linked_profile: bool
    words: tuple[str, ...]
