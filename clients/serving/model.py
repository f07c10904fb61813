"""What is served: a trained model and prepared data, with all that no user changes worked out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl
import scipy.sparse as sp
import torch

from clients.dataset import Dataset
from clients.item_graph import ItemGraph
from clients.private import PrivateModel, restore_private
from clients.recommend import trained_on_disk
from clients.scoring import OWN, OWN_MODEL, Moment, SharedModel
from clients.serving.events import RecordedEvent
from clients.serving.networks import LiveNetwork
from clients.serving.past import Past, past_of
from clients.state import PlatformFolder, Trained
from crossrec_model.config import TrainingConfig
from crossrec_model.data.histories import Histories, read_histories
from crossrec_model.data.items import ItemTable, item_table
from crossrec_model.data.prepared import open_prepared
from crossrec_model.data.splits import split_by_weeks
from crossrec_model.errors import StateError
from crossrec_model.parameters import Layout
from crossrec_model.ranking import Mixture
from crossrec_model.statistics import item_counts, log_popularity, shared_log_popularity

Float = npt.NDArray[np.float32]
Wide = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

NEIGHBOURS = "own neighbours"
OWN_GRAPH = "own graph"
SHARED_GRAPH = "shared graph"
OWN_ORDER = "own order"
SHARED_MODEL = "shared model"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Edges:
    """A graph's edges by the item that they come from, in the types that are summed without a conversion.

    Item i has those from `start`[i] to `start`[i + 1], each to the candidate `column` with a `weight`.
    """

    start: Int
    column: Int
    weight: Wide
    width: int

    @classmethod
    def of(cls, graph: sp.csr_matrix) -> Edges:
        """From csr [items, C]."""
        return cls(
            start=graph.indptr.astype(np.int64),
            column=graph.indices.astype(np.int64),
            weight=graph.data.astype(np.float64),
            width=graph.shape[1],
        )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LiveModel:
    """One version of what a platform serves; nothing in it changes once it is made.

    `graphs` are csr [items, C] by name, with edges from an item that was taken to a candidate;
    `networks` and `popularities` ([C]) by the component that they give; `own_popularity` float64
    [items] is the log popularity of every item on this platform.
    """

    platform: str
    version: str
    items: ItemTable
    histories: Histories
    config: TrainingConfig
    buckets: int
    day: float
    candidates: Int
    mixture: Mixture
    own_popularity: Wide
    shared_popularity: Wide
    popularities: Mapping[str, Float]
    graphs: Mapping[str, sp.csr_matrix]
    networks: Mapping[str, LiveNetwork]
    #: Content vectors of all items, of length 1 each, float32 [items, D].
    content: Float

    @cached_property
    def row(self) -> dict[str, int]:
        """Each known user's row of the histories."""
        return {user: row for row, user in enumerate(self.histories.user_ids)}

    @cached_property
    def column(self) -> Int:
        """Each item's place among the candidates, int64 [items], -1 = none."""
        column = np.full(len(self.items), -1, dtype=np.int64)
        column[self.candidates] = np.arange(len(self.candidates))
        return column

    @cached_property
    def edges(self) -> dict[str, Edges]:
        """The graphs as a user's scores read them."""
        return {name: Edges.of(graph) for name, graph in self.graphs.items()}

    @cached_property
    def titles(self) -> list[str]:
        """Each item's title, empty where it has none."""
        return [title or "" for title in self._text("title")]

    @cached_property
    def categories(self) -> list[tuple[str, ...]]:
        """Each item's category path, root first."""
        if "category" not in self.items.catalogue.columns:
            return [()] * len(self.items)
        paths = self.items.catalogue["category"].to_list()
        return [tuple(level for level in path or () if level) for path in paths]

    @cached_property
    def shops(self) -> npt.NDArray[np.object_]:
        """Each item's shop, None where it has none."""
        return np.array(self._text("shop_id"), dtype=object)

    @cached_property
    def prices(self) -> Wide:
        """Each item's price, NaN where it has none."""
        if "price" not in self.items.catalogue.columns:
            return np.full(len(self.items), np.nan)
        prices: Wide = self.items.catalogue["price"].cast(pl.Float64).fill_null(np.nan).to_numpy()
        return prices

    def past(self, user: str, recorded: Sequence[RecordedEvent]) -> Past:
        """What is known of a user, with the events recorded of her."""
        return past_of(
            self.histories,
            self.row.get(user),
            recorded,
            user=user,
            items=self.items.index,
            buckets=self.buckets,
            day=self.day,
        )

    def _text(self, column: str) -> list[str | None]:
        if column not in self.items.catalogue.columns:
            return [None] * len(self.items)
        return self.items.catalogue[column].cast(pl.String).to_list()


def load_model(folder: PlatformFolder, platform: str) -> LiveModel:
    """Read a platform's trained model and prepared data, and work out what no user changes.

    Takes as long as solving the item graphs: with items³.

    Raises:
        StateError: if the platform is unknown or not yet trained; the message says what to run.
        DataError: if its prepared data are missing or damaged.
    """
    version, trained = version_on_disk(folder), trained_on_disk(folder, platform)
    plan, prepared = trained.received.plan, open_prepared(folder.data)
    items = item_table(prepared.catalogue(), plan.model)
    with prepared.reading():
        histories = read_histories(prepared.interactions(), items, plan.model.buckets)
    split = split_by_weeks(float(histories.day.max()))
    dataset = Dataset(items=items, histories=histories, split=split, device=torch.device("cpu"))
    return live_model(dataset, trained, platform=platform, version=version, day=split.end)


def live_model(
    dataset: Dataset, trained: Trained, *, platform: str, version: str, day: float
) -> LiveModel:
    """What is served as of a day, of which later events tell nothing.

    Raises:
        StateError: if the trained private network is not of its plan's shape.
    """
    plan, served = trained.received.plan, trained.personal.mixtures.served
    moment, items = Moment.at(dataset, plan.training, day), dataset.items
    network, statistics = Layout(plan.model).unpack(trained.received.vector, dataset.device)
    shared = SharedModel(plan=plan, network=network, statistics=statistics)
    own = log_popularity(item_counts(dataset.histories, len(items), day))
    everywhere = shared_log_popularity(statistics, items)
    networks = {
        SHARED_MODEL: LiveNetwork(
            network, statistics, dataset.tensors, everywhere, moment.candidates, plan.training
        )
    }
    if (private := _private(moment, trained)) is not None:
        networks[OWN_MODEL] = LiveNetwork(
            *(private.network, private.statistics, private.tensors),
            *(own, moment.candidates, plan.training),
        )
    return LiveModel(
        platform=platform,
        version=version,
        items=items,
        histories=dataset.histories.before(day),
        config=plan.training,
        buckets=plan.model.buckets,
        day=day,
        candidates=moment.candidates,
        mixture=served,
        own_popularity=own,
        shared_popularity=everywhere,
        popularities={
            "own popularity": own[moment.candidates].astype(np.float32),
            "shared popularity": everywhere[moment.candidates].astype(np.float32),
        },
        graphs=_graphs(moment, shared, served),
        networks={name: found for name, found in networks.items() if name in served.names},
        content=_unit(networks[SHARED_MODEL].e.numpy()),
    )


def _private(moment: Moment, trained: Trained) -> PrivateModel | None:
    """The platform's own network over its graph of the moment, where it is served."""
    personal = trained.personal
    if OWN_MODEL not in personal.mixtures.served.names or personal.statistics is None:
        return None
    try:
        return restore_private(
            *(moment.dataset, trained.received.plan, personal.tensors, personal.statistics),
            day=moment.day,
        )
    except RuntimeError:
        raise StateError(
            "the private model on disk is not of its plan's shape; take part again"
        ) from None


def version_on_disk(folder: PlatformFolder) -> str:
    """A name for what lies in the folder now: it changes when the model or the data are replaced."""
    total = hashlib.sha256()
    for path in (folder.path / "model.safetensors", folder.data / "checksums.json"):
        try:
            found = path.stat()
            total.update(
                f"{path.name} {found.st_ino} {found.st_size} {found.st_mtime_ns}\n".encode()
            )
        except OSError:
            total.update(f"{path.name} is not there\n".encode())
    return total.hexdigest()[:12]


def _graphs(moment: Moment, shared: SharedModel, served: Mixture) -> dict[str, sp.csr_matrix]:
    """The graphs whose components are served, each csr [items, C]."""
    neighbours = moment.dataset.graph(moment.day)[:, moment.candidates]
    graphs: dict[str, sp.csr_matrix] = {NEIGHBOURS: neighbours.tocsr().astype(np.float32)}
    wanted: dict[str, ItemGraph | None] = {OWN_GRAPH: moment.own_graph}
    if OWN_ORDER in served.names:
        wanted[OWN_ORDER] = moment.order_graph
    if not set(served.names) <= set(OWN):
        wanted[SHARED_GRAPH] = moment.shared_graph(shared)
    for name, graph in wanted.items():
        if graph is not None:
            graphs[name] = graph.weights.tocsr()
    return graphs


def _unit(vectors: Float) -> Float:
    """Rows of length 1; a row of zeros stays."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    rows: Float = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    return rows
