"""A whole run over the real coordinator in this process, and recommendations from its result."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from clients.dataset import load_dataset
from clients.guard import OpenGuard
from clients.keys import read_roster
from clients.linked import LINKED
from clients.linked_serving import save_weights
from clients.linked_store import ReceivedProfiles
from clients.linked_trial import Added, LinkedWeights
from clients.participation import Participation, Settings
from clients.personal import Gain, Trial, Weighing
from clients.private import train_private
from clients.progress import PlainProgress
from clients.recommend import COLD_REASON, LINKED_REASON, REASONS, Recommender
from clients.scoring import Moment, SharedModel
from clients.standing import sealer_on_disk
from clients.state import PlatformFolder, StateError
from crossrec_model.config import Plan
from crossrec_model.errors import ConfigError, DataError, FederationError
from crossrec_model.linkage.profile import ProfileTerms
from crossrec_model.linkage.profile_batch import ProfileBatch
from crossrec_model.parameters import Layout, initial_vector
from crossrec_model.randomness import ExperimentRandomness
from crossrec_model.ranking import Mixture
from crossrec_model.secagg.errors import RosterError
from crossrec_model.secagg.messages import Kind
from crossrec_model.wire import messages as wire
from server.federation import Federation, RunOptions, fresh_start
from server.flower import GridCourier
from server.openings import Openings
from server.progress import PlainProgress as CoordinatorLines
from server.securesum import SecureSum
from simulations.grid import InProcessGrid
from simulations.plain import PlainSealer
from simulations.processes import make_roster

CPU = torch.device("cpu")


def _participation(home: Path, name: str, prepared, roster: Path | None = None) -> Participation:
    """A platform; with a roster its sums are secure, from what is on its disk."""
    folder = PlatformFolder(home / name)
    folder.path.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        platform=name, data="unused", folder=folder, roster=roster, own_network=True
    )
    progress = PlainProgress(sys.stdout)
    sealer_for = sealer_on_disk(settings, progress.note) if roster else PlainSealer
    return Participation(settings, prepared[name], progress, sealer_for, OpenGuard())


@pytest.fixture(scope="module")
def home(prepared, plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder in which A, B and C have finished one run together."""
    home = tmp_path_factory.mktemp("state")
    roster = make_roster(home, prepared)
    platforms = {name: _participation(home, name, prepared, roster) for name in prepared}
    for name, data in prepared.items():
        (home / name / "data").symlink_to(data.folder)
    grid = InProcessGrid({name: p.handler() for name, p in platforms.items()}, at_once=1)
    start = fresh_start(plan, initial_vector(plan))
    options = RunOptions(platforms=3, evaluate_every=2)
    lines, courier = CoordinatorLines(sys.stdout), GridCourier(grid)
    aggregation = SecureSum(courier, plan, read_roster(roster).roster, Openings(b""), lines.note)
    end = Federation(
        courier,
        start,
        options,
        aggregation=aggregation,
        save=lambda c: None,
        progress=lines,
    ).run()
    grid.close()
    assert end.round == plan.federation.rounds
    assert [record.platforms for record in end.history] == [("A", "B", "C")] * 4
    assert 0 < end.history[-1].evaluation["ndcg@10"] <= 1
    for name, platform in platforms.items():
        # The run is over: only the private part is left, so nothing is asked of a coordinator.
        platform.run(lambda handle: pytest.fail("the run was already finished"))
        received = PlatformFolder(home / name).load_received().received
        np.testing.assert_array_equal(received.vector, end.parameters)
        # What was opened is on its disk: the latest round of each kind, over whom.
        opened = json.loads((home / name / "opened.json").read_text(encoding="utf-8"))["opened"]
        latest = {(Kind(one["kind"]), one["round"]): one["survivors"] for one in opened}
        assert latest == {(kind, 4): ["A", "B", "C"] for kind in Kind}
    return home


def test_the_saved_model_is_what_the_steps_give_one_by_one(home, prepared, plan) -> None:
    trained = PlatformFolder(home / "A").load_trained()
    received = trained.received
    assert received.finished
    dataset = load_dataset(prepared["A"], plan.model, device=CPU)
    private = train_private(
        dataset, plan, ExperimentRandomness(plan.seed, "private", "A"), epochs=2
    )
    for name, parameter in private.network.named_parameters():
        np.testing.assert_array_equal(trained.personal.tensors[name], parameter.detach().numpy())
    network, last = Layout(plan.model).unpack(received.vector, CPU)
    assert np.abs(last.sketch - received.validation.sketch).max() > 1e-4
    shared = SharedModel(plan=plan, network=network, statistics=received.validation)
    mixtures = Weighing(dataset, plan.training, private).against(shared)
    assert trained.personal.mixtures == mixtures


def test_recommendations_are_the_best_scores_of_the_mixture_over_all_events(
    home, prepared, plan
) -> None:
    found = Recommender(PlatformFolder(home / "A"), "A", CPU).recommend("u7", k=5)
    assert (found.known, found.notes) == (True, ())
    assert [item.place for item in found.items] == [1, 2, 3, 4, 5]
    scores = [item.score for item in found.items]
    assert scores == sorted(scores, reverse=True)
    dataset = load_dataset(prepared["A"], plan.model, device=CPU)
    # The last event of all is known to the model that serves.
    moment = Moment.at(dataset, plan.training, dataset.split.end)
    assert dataset.split.end > dataset.histories.day.max()
    trained = PlatformFolder(home / "A").load_trained()
    recommender = Recommender(PlatformFolder(home / "A"), "A", CPU)
    network, statistics = Layout(plan.model).unpack(trained.received.vector, CPU)
    users = np.array([dataset.histories.user_ids.index("u7")])
    parts = moment.own_components(users, recommender._private)
    shared = SharedModel(plan=plan, network=network, statistics=statistics)
    parts |= moment.shared_components(users, shared, moment.shared_graph(shared))
    mixture = trained.personal.mixtures.served
    mixed = mixture.scores(moment.components(users, parts).select(mixture.names))[0]
    best = np.argsort(-mixed, kind="stable")[:5]
    expected = [dataset.items.item_ids[moment.candidates[column]] for column in best]
    assert [item.item_id for item in found.items] == expected
    assert all(item.title == f"Title {item.item_id[1:]} 红茶" for item in found.items)
    assert all(item.category == (f"kind{int(item.item_id[1:]) % 3}",) for item in found.items)


def test_reasons_and_new_only(home, prepared, plan) -> None:
    dataset = load_dataset(prepared["A"], plan.model, device=CPU)
    row = dataset.histories.user_ids.index("u7")
    mine = slice(*dataset.histories.offsets[row : row + 2])
    had = {dataset.items.item_ids[item] for item in dataset.histories.item[mine]}
    recommender = Recommender(PlatformFolder(home / "A"), "A", CPU)
    everything = recommender.recommend("u7", k=100)
    new = recommender.recommend("u7", k=100, new_only=True)
    assert had <= {item.item_id for item in everything.items}
    assert {i.item_id for i in new.items} == {i.item_id for i in everything.items} - had
    assert {item.reason for item in new.items} <= set(REASONS.values())
    for item in everything.items:
        if item.reason.startswith("taken "):
            assert item.item_id in had


def test_a_linked_profile_changes_its_own_users_list_and_nobody_elses(home, tmp_path: Path) -> None:
    shutil.copytree(home / "A", tmp_path / "A")
    folder, width = PlatformFolder(tmp_path / "A"), 3
    before = Recommender(folder, "A", CPU)
    users = [f"u{number}" for number in range(60) if number != 8] + ["stranger"]
    links = {f"{number:032x}": user for number, user in enumerate(users)}
    # Each profile says which kind of item its user takes; the stranger is of the second kind.
    kinds = [1 if user == "stranger" else int(user[1:]) % 3 for user in users]
    batch = ProfileBatch(
        sender="B",
        period="2024-07",
        day=float(before._moment.day) - 1,
        terms=ProfileTerms(dimension=width, clip=5.0),
        cells=tuple(range(5)),
        basis=np.eye(5, width, dtype=np.float32),
        links=tuple(sorted(links)),
        vectors=3 * np.eye(width, dtype=np.float32)[kinds],
    )
    ReceivedProfiles(folder.path).take(batch.to_bytes(), sender="B", links=links)
    weights = [0.0] * (2 * len(LINKED) + 3)
    weights[LINKED.index("linked taste")] = weights[LINKED.index("linked taste") + len(LINKED)] = (
        9.0
    )
    good = Trial(users=9, fit=Gain(mean=1, error=0.1), ndcg=Gain(mean=1, error=0.1), least=2.0)
    added = Added(mixture=Mixture(names=LINKED, weights=tuple(weights)), trial=good)
    save_weights(folder.path, LinkedWeights(known=added, newcomer=added, middle=5.0))
    after = Recommender(folder, "A", CPU, links={"B": links})
    assert after.recommend("u7", k=9) != before.recommend("u7", k=9)
    for user in ("u8", "nobody"):
        assert after.recommend(user, k=30) == before.recommend(user, k=30)
    new = after.recommend("stranger", k=5)
    assert [item.category for item in new.items] == [("kind1",)] * 5
    assert {item.reason for item in new.items} == {LINKED_REASON}
    # Without the links, what was received is of nobody.
    assert Recommender(folder, "A", CPU).recommend("u7", k=9) == before.recommend("u7", k=9)


def test_an_unknown_user_gets_the_popular_items_and_is_told(home) -> None:
    found = Recommender(PlatformFolder(home / "A"), "A", CPU).recommend("no\x1b[2Jbody", k=3)
    assert not found.known
    assert len(found.items) == 3
    assert {item.reason for item in found.items} == {COLD_REASON}
    assert "cold-start" in found.notes[0]
    # Nothing from outside may steer the terminal.
    assert "\x1b" not in "".join(found.lines())
    document = json.loads(found.to_json())
    assert document["user_id"] == "no\x1b[2Jbody"
    assert [item["place"] for item in document["items"]] == [1, 2, 3]
    with pytest.raises(ConfigError, match="k = 0 is below 1"):
        Recommender(PlatformFolder(home / "A"), "A", CPU).recommend("u7", k=0)


@pytest.mark.parametrize("table", ["catalogue", "interactions"])
def test_damaged_prepared_data_are_one_line(home, tmp_path, table) -> None:
    folder = PlatformFolder(tmp_path / "A")
    shutil.copytree(home / "A", folder.path)
    path = folder.data / f"{table}.parquet"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"is damaged .*prepare it again") as caught:
        Recommender(folder, "A", CPU)
    assert "\n" not in str(caught.value)


def test_an_unfinished_run_keeps_the_last_finished_one_in_service(
    home, prepared, plan, tmp_path
) -> None:
    before = Recommender(PlatformFolder(home / "B"), "B", CPU).recommend("u1", k=3)
    platform = _participation(home, "B", prepared)

    def stopped(handle) -> None:
        handle(wire.encode(wire.Welcome(plan=plan.to_json())))
        vector = initial_vector(plan)
        request = wire.TrainRequest(
            run=b"\x07" * 16, round=2, rounds=4, ticket=b"", parameters=vector
        )
        wire.decode_as(wire.SumReply, b"".join(handle(wire.encode(request))))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        platform.run(stopped)
    after = Recommender(PlatformFolder(home / "B"), "B", CPU).recommend("u1", k=3)
    assert after.items == before.items
    assert after.notes == (
        "a newer run stands at round 1 of 4 and is not used; this list is from the last "
        "finished one",
    )


def test_a_platform_stopped_before_its_first_end_says_so(prepared, plan, tmp_path) -> None:
    platform = _participation(tmp_path, "A", prepared)

    def lost(handle) -> None:
        handle(wire.encode(wire.Welcome(plan=plan.to_json())))
        vector = initial_vector(plan)
        request = wire.TrainRequest(run=bytes(16), round=3, rounds=4, ticket=b"", parameters=vector)
        wire.decode_as(wire.SumReply, b"".join(handle(wire.encode(request))))

    with pytest.raises(FederationError, match="ended before the final model came"):
        platform.run(lost)
    with pytest.raises(StateError, match=r"A is not trained yet \(round 2 of 4 .*run first: "):
        Recommender(PlatformFolder(tmp_path / "A"), "A", CPU)
    # The folder belongs to A: another id may not go on in it.
    (tmp_path / "A").rename(tmp_path / "B")
    with pytest.raises(ConfigError, match="belongs to platform A, not B"):
        _participation(tmp_path, "B", prepared)


def test_a_platform_takes_part_only_with_its_identity_and_a_roster_that_holds_it(tmp_path) -> None:
    def sealer(platform: str, roster: Path | None) -> object:
        folder = PlatformFolder(tmp_path / platform)
        settings = Settings(platform=platform, data="unused", folder=folder, roster=roster)
        return sealer_on_disk(settings, said.append)

    said: list[str] = []
    roster = make_roster(tmp_path, "ABC")
    with pytest.raises(StateError, match=r"identity .*Z.* does not exist; make it with: .* init"):
        sealer("Z", roster)
    with pytest.raises(ConfigError, match=r"knows no roster yet; get roster.json .* as --roster"):
        sealer("A", None)
    with pytest.raises(RosterError, match="does not exist; get it from the coordinator's operator"):
        sealer("A", tmp_path / "none.json")
    other = make_roster(tmp_path / "other", "ABC")
    with pytest.raises(RosterError, match="another key for platform A; send this platform's card"):
        sealer("A", other)
    # A roster that was refused is not pinned.
    with pytest.raises(ConfigError, match="knows no roster yet"):
        sealer("A", None)
    assert said == []
    sealer("A", roster)
    assert said[0].startswith("pinned the roster of simulation, version 1 (A, B, C), signed by ")
    # From now on the pinned one is enough, and the same one again says nothing.
    sealer("A", None)
    sealer("A", roster)
    assert len(said) == 1
    # An identity that was exchanged meanwhile is not the one on the roster.
    (tmp_path / "other" / "A" / "identity.key").rename(tmp_path / "A" / "identity.key")
    with pytest.raises(RosterError, match="another key for platform A"):
        sealer("A", None)
