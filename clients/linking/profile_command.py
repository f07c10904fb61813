"""The command `profiles` of a platform: profiles of linked users to a partner, and the partner's back."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from clients.linking.commands import PROGRAM, add_line, endpoint_of, pinned_roster
from clients.options import Parser, add_place, check_id, day
from crossrec_model.errors import ConfigError

if TYPE_CHECKING:
    from datetime import date

    from clients.dataset import Dataset
    from clients.linking.folder import LinkageFolder
    from clients.state import PlatformFolder, Trained
    from crossrec_model.linkage.profile import ProfileTerms
    from crossrec_model.linkage.profile_batch import ProfileBatch

EPSILON: Final = 8.0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=f"{PROGRAM} profiles",
        description="Send a partner the profiles of the users linked with it, clipped, noised and sealed "
        "for it alone, and take its own. Both run this command.",
    )
    add = parser.add_argument
    add_place(parser)
    add("--with", dest="partner", required=True, metavar="ID", help="the partner's id")
    add("--period", help="a name that profiles are charged and kept under (default: this month)")
    add("--before", type=day, metavar="DAY", help="leave out what happened from this day on")
    add("--epsilon", type=float, help=f"what a profile costs a user a period ({EPSILON:g})")
    add("--delta", type=float, default=1e-5, help="at this delta (1e-5)")
    add("--life-epsilon", type=float, default=24.0, help="most all charges may cost a user (24)")
    add("--no-noise", action="store_true", help="no noise, epsilon = infinity: tells histories")
    add("--dimension", type=int, default=64, help="directions of a profile (default %(default)s)")
    add("--clip", type=float, default=3.0, help="longest profile (default %(default)s)")
    add_line(parser)
    return parser


def carry_profiles(arguments: Sequence[str]) -> int:
    """Run `profiles`: what was interrupted goes on where it stopped."""
    options = _parser().parse_args(arguments)
    check_id(options.id)
    check_id(options.partner)
    if not 0 < options.wait < float("inf"):
        raise ConfigError("--wait must be above 0 and finite")
    terms = _terms(options)
    from clients.keys import load_identity
    from clients.linking.carrying import Delivery, carry
    from clients.linking.fitting import fit_received
    from clients.linking.folder import LinkageFolder
    from clients.linking.line import HttpAsk
    from clients.passport import Passport
    from clients.progress import progress_for
    from clients.recommend import trained_on_disk
    from clients.state import PlatformFolder
    from crossrec_model.linkage.intersection import Side
    from crossrec_model.linkage.messages import Purpose

    folder = PlatformFolder(options.state / options.id)
    linkage, purpose = LinkageFolder(folder.path), Purpose.PROFILES
    linked_with(linkage, options.partner, options.id)
    roster, endpoint = pinned_roster(options, folder.path), endpoint_of(options, folder.path)
    trained = trained_on_disk(folder, options.id)
    dataset = dataset_of(folder, trained)
    with ExitStack() as held:
        progress = held.enter_context(progress_for())
        held.enter_context(linkage.held(linkage.session_path(options.partner, purpose).name))
        if options.restart:
            linkage.clear_session(options.partner, purpose)
        batch = own_batch(options, terms, folder, trained, dataset)
        progress.note(f"{len(batch.links)} profiles of period {batch.period} are released")
        identity = load_identity(folder.path)
        ask = HttpAsk(
            endpoint, Passport(platform=options.id, identity=identity, roster=lambda: roster)
        )
        held.callback(ask.close)
        carriage = carry(
            Delivery(
                side=Side(roster=roster, platform=options.id, key=identity),
                partner=options.partner,
                batch=batch.to_bytes(),
                take=taking(linkage, options.partner, options.id, progress.note),
                folder=linkage,
                ask=ask,
                patience_s=options.wait,
                report=progress.note,
                show=lambda done, total: progress.done("profiles", done, total, "blocks"),
            )
        )
        carriage.settle()
        links = linkage.linked_users()
        progress.note(fit_received(folder.path, trained, dataset, links, progress.note))
    return 0


def linked_with(linkage: LinkageFolder, partner: str, own: str) -> dict[str, str]:
    """Link id → own user id; raises ConfigError if no users are linked with the partner."""
    found = linkage.linked_users().get(partner)
    if not found:
        raise ConfigError(
            f"no users are linked with {partner}; run first, on both sides: "
            f"{PROGRAM} link --id {own} --with {partner} --data …"
        )
    return found


def taking(
    linkage: LinkageFolder, partner: str, own: str, note: Callable[[str], None]
) -> Callable[[bytes], None]:
    """What keeps the partner's batch, but for links that are not there now."""
    from clients.linked_store import ReceivedProfiles

    def take(data: bytes) -> None:
        # Who revokes meanwhile waits, and is deleted from what was kept.
        with linkage.held():
            links = linked_with(linkage, partner, own)
            store = ReceivedProfiles(linkage.path.parent)
            batch = store.take(data, sender=partner, links=links)
        note(
            f"{len(batch.links)} profiles of period {batch.period} came from {partner}, for "
            f"{len(links)} linked users"
        )

    return take


def own_batch(
    options: argparse.Namespace,
    terms: ProfileTerms,
    folder: PlatformFolder,
    trained: Trained,
    dataset: Dataset,
) -> ProfileBatch:
    """Charge, noise and keep this platform's profiles for the partner; what was released stands."""
    from clients.linking.folder import LinkageFolder
    from clients.linking.outgoing import Space, batch_for
    from clients.profiles import ProfileReleases
    from crossrec_model.parameters import Layout
    from crossrec_model.privacy.events import Budget
    from crossrec_model.privacy.ledger import LEDGER, Ledger
    from crossrec_model.randomness import SystemRandomness

    plan, linkage = trained.received.plan, LinkageFolder(folder.path)
    _, statistics = Layout(plan.model).unpack(trained.received.vector, dataset.device)
    space = Space.of(plan, statistics, terms.dimension)
    budget = Budget(
        epsilon=options.epsilon or EPSILON, delta=options.delta, life_epsilon=options.life_epsilon
    )
    with Ledger.open(folder.path / LEDGER) as ledger, linkage.held():
        return batch_for(
            dataset,
            space,
            ProfileReleases(
                folder.path, ledger, budget, SystemRandomness(), unprotected=options.no_noise
            ),
            sender=options.id,
            period=options.period or time.strftime("%Y-%m", time.gmtime()),
            terms=terms,
            day=_day(options.before, trained),
            width=plan.model.sketch_width,
            links=linked_with(linkage, options.partner, options.id),
            revoked=linkage.revoked(),
        )


def dataset_of(folder: PlatformFolder, trained: Trained) -> Dataset:
    """The prepared data, split as the model was."""
    import torch

    from clients.dataset import Dataset
    from crossrec_model.data.histories import read_histories
    from crossrec_model.data.items import item_table
    from crossrec_model.data.prepared import open_prepared

    model, prepared = trained.received.plan.model, open_prepared(folder.data)
    items = item_table(prepared.catalogue(), model)
    with prepared.reading():
        histories = read_histories(prepared.interactions(), items, model.buckets)
    cpu = torch.device("cpu")
    return Dataset(items=items, histories=histories, split=trained.kept.split, device=cpu)


def _terms(options: argparse.Namespace) -> ProfileTerms:
    """How profiles are noised; infinity must be asked for by its name."""
    from crossrec_model.linkage.profile import ProfileTerms

    if options.no_noise:
        if options.epsilon is not None:
            raise ConfigError("--no-noise is epsilon = infinity; give it or --epsilon, not both")
        return ProfileTerms(dimension=options.dimension, clip=options.clip)
    epsilon = EPSILON if options.epsilon is None else options.epsilon
    if not 0 < epsilon < math.inf:
        raise ConfigError(
            f"--epsilon is {epsilon}; it must be above 0 and finite: profiles without noise tell whole "
            "histories and are asked for by --no-noise"
        )
    return ProfileTerms.for_epsilon(
        epsilon, options.delta, dimension=options.dimension, clip=options.clip
    )


def _day(before: date | None, trained: Trained) -> float:
    """The day before which everything in a profile happened: the data's end, unless told."""
    from datetime import date

    if before is None:
        return trained.kept.split.end
    return float((before - date(1970, 1, 1)).days)
