"""Steps 1 to 3, seen from the coordinator: it passes public keys and sealed shares on.

Each state is closed with the answers that came, and gives the next one. Who is missing is left
out by beginning anew without it, so that all members always have one and the same list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from crossrec_model.secagg import messages as frames
from crossrec_model.secagg.agreement import Terms, check_keys, transcript_of
from crossrec_model.secagg.errors import KeyListError, SecureSumError, SharesError


@dataclass(frozen=True, kw_only=True, eq=False)
class Inviting:
    """Step 1: `invite` goes to every platform that is here."""

    terms: Terms
    invite: frames.Invite

    def check(self, platform: str, keys: frames.Keys) -> None:
        """Check the keys that came from the seat of a platform.

        Raises:
            KeyListError, SignatureError: as `agreement.check_keys`, or for another platform's keys;
                the error names the platform that sent them.
        """
        try:
            if keys.platform != platform:
                raise KeyListError(f"platform {platform} sent the keys of {keys.platform}")
            check_keys(self.terms, self.invite, keys)
        except SecureSumError as error:
            error.platform = platform
            raise

    def close(self, answers: Mapping[str, frames.Keys]) -> Listing:
        """Take the members' keys, by the id under which each sits.

        Raises:
            KeyListError, SignatureError: as `check`.
            TooFewPlatformsError: for fewer than the threshold.
        """
        for platform, keys in answers.items():
            self.check(platform, keys)
        if len(answers) < self.terms.threshold:
            raise self.terms.too_few(len(answers), "with keys")
        return Listing(terms=self.terms, invite=self.invite, members=dict(sorted(answers.items())))


@dataclass(frozen=True, kw_only=True, eq=False)
class Listing:
    """Step 2: `message` goes to every member, in whose order everything else is listed."""

    terms: Terms
    invite: frames.Invite
    members: Mapping[str, frames.Keys]

    @property
    def message(self) -> frames.KeyList:
        """All members' keys."""
        keys = tuple(frames.encode(keys) for keys in self.members.values())
        return frames.KeyList(epoch=self.invite.epoch, keys=keys)

    @property
    def transcript(self) -> bytes:
        """The digest of the key list."""
        return transcript_of(self.message.keys)

    def close(self, answers: Mapping[str, frames.Shares]) -> Delivering:
        """Take every member's sealed bundles.

        Raises:
            SharesError: if a member's are missing, of another list, or not one for each other.
        """
        transcript = self.transcript
        for platform in self.members:
            if platform not in answers:
                raise SharesError(f"platform {platform} sent no shares", platform)
            shares = answers[platform]
            if (shares.epoch, shares.transcript) != (self.invite.epoch, transcript):
                raise SharesError(
                    f"the shares of platform {platform} are for another key list", platform
                )
            if len(shares.bundles) != len(self.members) - 1:
                raise SharesError(
                    f"platform {platform} sent {len(shares.bundles)} bundles, "
                    f"not {len(self.members) - 1}",
                    platform,
                )
        return Delivering(listing=self, transcript=transcript, shares=answers)


@dataclass(frozen=True, kw_only=True, eq=False)
class Delivering:
    """Step 3: each member gets the bundles that are for it."""

    listing: Listing
    transcript: bytes
    shares: Mapping[str, frames.Shares]

    def messages(self) -> dict[str, frames.Delivery]:
        """The message to each member."""
        names = tuple(self.listing.members)
        return {
            receiver: frames.Delivery(
                epoch=self.listing.invite.epoch,
                bundles=tuple(
                    self.shares[sender].bundles[at - (at > names.index(sender))]
                    for sender in names
                    if sender != receiver
                ),
            )
            for at, receiver in enumerate(names)
        }

    def close(self, answers: Mapping[str, frames.Ready]) -> Agreement:
        """Take every member's word that it holds its shares; raises SharesError otherwise."""
        expected = frames.Ready(epoch=self.listing.invite.epoch, transcript=self.transcript)
        for platform in self.listing.members:
            if answers.get(platform) != expected:
                raise SharesError(f"platform {platform} did not confirm its shares", platform)
        return Agreement(
            terms=self.listing.terms,
            invite=self.listing.invite,
            members=self.listing.members,
            transcript=self.transcript,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Agreement:
    """A finished key agreement, all of it public."""

    terms: Terms
    invite: frames.Invite
    members: Mapping[str, frames.Keys]
    transcript: bytes
