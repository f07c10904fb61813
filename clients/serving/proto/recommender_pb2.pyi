from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Filters(_message.Message):
    __slots__ = ("new_only", "include_out_of_stock", "exclude", "shops", "category", "price_from", "price_to")
    NEW_ONLY_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_OUT_OF_STOCK_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    SHOPS_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    PRICE_FROM_FIELD_NUMBER: _ClassVar[int]
    PRICE_TO_FIELD_NUMBER: _ClassVar[int]
    new_only: bool
    include_out_of_stock: bool
    exclude: _containers.RepeatedScalarFieldContainer[str]
    shops: _containers.RepeatedScalarFieldContainer[str]
    category: _containers.RepeatedScalarFieldContainer[str]
    price_from: float
    price_to: float
    def __init__(self, new_only: bool = ..., include_out_of_stock: bool = ..., exclude: _Optional[_Iterable[str]] = ..., shops: _Optional[_Iterable[str]] = ..., category: _Optional[_Iterable[str]] = ..., price_from: _Optional[float] = ..., price_to: _Optional[float] = ...) -> None: ...

class RecommendRequest(_message.Message):
    __slots__ = ("user_id", "k", "filters", "diversity", "method", "explore", "allow_unknown")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    DIVERSITY_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    EXPLORE_FIELD_NUMBER: _ClassVar[int]
    ALLOW_UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    k: int
    filters: Filters
    diversity: float
    method: str
    explore: float
    allow_unknown: bool
    def __init__(self, user_id: _Optional[str] = ..., k: _Optional[int] = ..., filters: _Optional[_Union[Filters, _Mapping]] = ..., diversity: _Optional[float] = ..., method: _Optional[str] = ..., explore: _Optional[float] = ..., allow_unknown: bool = ...) -> None: ...

class Item(_message.Message):
    __slots__ = ("place", "item_id", "title", "category", "score", "reason", "source")
    PLACE_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    place: int
    item_id: str
    title: str
    category: _containers.RepeatedScalarFieldContainer[str]
    score: float
    reason: str
    source: str
    def __init__(self, place: _Optional[int] = ..., item_id: _Optional[str] = ..., title: _Optional[str] = ..., category: _Optional[_Iterable[str]] = ..., score: _Optional[float] = ..., reason: _Optional[str] = ..., source: _Optional[str] = ...) -> None: ...

class RecommendReply(_message.Message):
    __slots__ = ("platform", "model", "known", "notes", "items")
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    platform: str
    model: str
    known: bool
    notes: _containers.RepeatedScalarFieldContainer[str]
    items: _containers.RepeatedCompositeFieldContainer[Item]
    def __init__(self, platform: _Optional[str] = ..., model: _Optional[str] = ..., known: bool = ..., notes: _Optional[_Iterable[str]] = ..., items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ...) -> None: ...

class SimilarItemsRequest(_message.Message):
    __slots__ = ("item_id", "k", "filters")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    k: int
    filters: Filters
    def __init__(self, item_id: _Optional[str] = ..., k: _Optional[int] = ..., filters: _Optional[_Union[Filters, _Mapping]] = ...) -> None: ...

class SimilarItemsReply(_message.Message):
    __slots__ = ("platform", "model", "items")
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    platform: str
    model: str
    items: _containers.RepeatedCompositeFieldContainer[Item]
    def __init__(self, platform: _Optional[str] = ..., model: _Optional[str] = ..., items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ...) -> None: ...

class RecordEventRequest(_message.Message):
    __slots__ = ("user_id", "item_id", "event", "time", "quantity", "price", "shop_id", "event_id")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    SHOP_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    item_id: str
    event: str
    time: str
    quantity: float
    price: float
    shop_id: str
    event_id: str
    def __init__(self, user_id: _Optional[str] = ..., item_id: _Optional[str] = ..., event: _Optional[str] = ..., time: _Optional[str] = ..., quantity: _Optional[float] = ..., price: _Optional[float] = ..., shop_id: _Optional[str] = ..., event_id: _Optional[str] = ...) -> None: ...

class RecordEventReply(_message.Message):
    __slots__ = ("number", "again")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    AGAIN_FIELD_NUMBER: _ClassVar[int]
    number: int
    again: bool
    def __init__(self, number: _Optional[int] = ..., again: bool = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("user_id", "item_id", "most")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    MOST_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    item_id: str
    most: int
    def __init__(self, user_id: _Optional[str] = ..., item_id: _Optional[str] = ..., most: _Optional[int] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("component", "item_id", "what", "value")
    COMPONENT_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    component: str
    item_id: str
    what: str
    value: float
    def __init__(self, component: _Optional[str] = ..., item_id: _Optional[str] = ..., what: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

class Carrier(_message.Message):
    __slots__ = ("item_id", "title", "value")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    title: str
    value: float
    def __init__(self, item_id: _Optional[str] = ..., title: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

class ExplainReply(_message.Message):
    __slots__ = ("platform", "model", "score", "explained", "parts", "carriers", "decided_by", "own", "shared", "linked_profile", "words")
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    EXPLAINED_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    CARRIERS_FIELD_NUMBER: _ClassVar[int]
    DECIDED_BY_FIELD_NUMBER: _ClassVar[int]
    OWN_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    LINKED_PROFILE_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    platform: str
    model: str
    score: float
    explained: float
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    carriers: _containers.RepeatedCompositeFieldContainer[Carrier]
    decided_by: str
    own: float
    shared: float
    linked_profile: bool
    words: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, platform: _Optional[str] = ..., model: _Optional[str] = ..., score: _Optional[float] = ..., explained: _Optional[float] = ..., parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ..., carriers: _Optional[_Iterable[_Union[Carrier, _Mapping]]] = ..., decided_by: _Optional[str] = ..., own: _Optional[float] = ..., shared: _Optional[float] = ..., linked_profile: bool = ..., words: _Optional[_Iterable[str]] = ...) -> None: ...
