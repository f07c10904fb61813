"""What a coordinator runs: from the federation's folder, or named part by part."""

from __future__ import annotations

import argparse
import datetime
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from crossrec_model.config import Plan
from crossrec_model.errors import ConfigError, CrossrecError, FederationError
from crossrec_model.secagg.roster import FEWEST, OF_TWO, Roster
from server.audit import AUDIT, AuditLog
from server.folder import FederationFolder
from server.metrics import Metrics
from server.tls import TlsFiles

if TYPE_CHECKING:
    from server.checkpoint import Checkpoint

#: Options that the federation's folder answers.
_ANSWERED: Final = (
    ("plan", "plan"),
    ("roster", "roster"),
    ("tls", "tls"),
    ("state", "state"),
    ("rounds", "plan"),
)

_LOG = logging.getLogger("crossrec.coordinator")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One run's plan, roster, certificate, place and address; `plan` None: as the run began.

    `current_roster` gives the roster that counts for the door now: it may have lost members since.
    `notice` is what platforms may read, `audit` the log of who was refused and what was done.
    """

    plan: Plan | None
    roster: Roster
    tls: TlsFiles | None
    state: Path
    host: str
    port: int
    resume: bool
    notice: Callable[[], bytes] | None = None
    door: Callable[[], Roster] | None = None
    audit: Path | None = None
    database: str = ""

    @contextmanager
    def refusals(self, metrics: Metrics) -> Iterator[Callable[[str, str, str], None]]:
        """Yield what counts and takes down (reason, platform, address) of each refusal."""
        if self.audit is None:
            yield lambda reason, platform, address: metrics.refused(reason)
            return
        with AuditLog.open(self.audit) as log:
            metrics.audited(log.head.sequence)

            def record(reason: str, platform: str, address: str) -> None:
                metrics.refused(reason)
                try:
                    log.record("refused", reason=reason, platform=platform, address=address)
                except FederationError as error:
                    # Who was refused stays refused; a full disk must not open or close the door.
                    _LOG.error("a refusal was not written down: %s", error)
                metrics.audited(log.head.sequence)

            yield record

    def linkages(self) -> Callable[[str, str, str], None]:
        """Return what takes down (sender, receiver, purpose) of each linkage that begins."""

        def record(sender: str, receiver: str, purpose: str) -> None:
            _LOG.info("%s offers %s a linkage of %s", sender, receiver, purpose)
            if self.audit is None:
                return
            try:
                with AuditLog.open(self.audit) as log:
                    log.record("linkage", sender=sender, receiver=receiver, purpose=purpose)
            except FederationError as error:
                _LOG.error("a linkage was not written down: %s", error)

        return record

    def current_roster(self) -> Roster:
        """The roster that counts for the door now."""
        return self.door() if self.door else self.roster


def federation_setup(options: argparse.Namespace) -> Setup:
    """Read what a federation's folder says to run, and say what its operator should know.

    An unfinished run goes on; a finished one is left alone until another is asked for.

    Raises:
        ConfigError: for options that the folder answers, or a folder that is not complete.
    """
    for name, place in _ANSWERED:
        if getattr(options, name) is not None:
            raise ConfigError(
                f"--{name} and --federation exclude each other: the folder holds the {place}"
            )
    if options.resume or options.insecure or options.no_privacy or options.allow_two:
        raise ConfigError(
            "--resume, --insecure, --no-privacy and --allow-two don't go with --federation; what they "
            "say stands in federation.toml and the roster"
        )
    folder = FederationFolder(options.federation)
    settings, notice = folder.settings(), folder.notice()
    plan, roster = notice.plan.plan, notice.roster.roster
    if settings.signed_for(roster) != plan:
        raise ConfigError(
            f"federation.toml asks for another plan than the signed version {notice.plan.version}; "
            f"sign it with: python -m server plan --federation {folder.path}"
        )
    tls = folder.tls
    tls.check()
    if warning := tls.expiry_warning(datetime.datetime.now(datetime.UTC)):
        print(f"warning: {warning}", flush=True)
    if len(roster.members) < FEWEST:
        print(f"warning: {OF_TWO}", flush=True)
    return Setup(
        plan=plan,
        roster=roster,
        tls=tls,
        state=folder.state,
        host=options.host or settings.bind,
        port=settings.port if options.port is None else options.port,
        resume=_goes_on(folder, plan, new_run=options.new_run),
        notice=notice.to_json,
        door=_Watched(folder, roster),
        audit=folder.path / AUDIT,
        database=settings.database,
    )


def _goes_on(folder: FederationFolder, plan: Plan, *, new_run: bool) -> bool:
    """Whether there is a run to go on with; with `new_run` the earlier one is put aside."""
    from server.checkpoint import CheckpointStore

    last = CheckpointStore(folder.state).latest()
    if last is None:
        return False
    if new_run:
        CheckpointStore(folder.state).put_aside(last.run)
        return False
    if last.round >= last.plan.federation.rounds and _has_everybody(folder.state, last):
        raise ConfigError(
            f"the run in {folder.state} is finished after {last.round} rounds; begin another, which "
            "costs every user's privacy anew, with --new-run"
        )
    if last.plan != plan:
        raise ConfigError(
            f"the unfinished run in {folder.state} follows another plan than the signed one; put it "
            "aside and begin another with --new-run"
        )
    return True


def _has_everybody(state: Path, last: Checkpoint) -> bool:
    """Whether every platform of the last round has the final model."""
    from server.handover import Handover

    return Handover(last.run, state).confirmed.issuperset(last.history[-1].platforms)


class _Watched:
    """The roster as its file stands now; as it was before if the file can't be read."""

    def __init__(self, folder: FederationFolder, roster: Roster) -> None:
        self._folder, self._roster = folder, roster
        self._stamp: tuple[int, int] | None = None

    def __call__(self) -> Roster:
        """Return the latest roster; read again only if its file changed."""
        try:
            status = (self._folder.path / "roster.json").stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp != self._stamp:
                found = self._folder.roster()
                if found is not None and found.roster != self._roster:
                    found.roster.check_follows(self._roster)
                    self._roster = found.roster
                self._stamp = stamp
        except (OSError, CrossrecError):
            return self._roster
        return self._roster
