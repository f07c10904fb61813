"""Steps 1 to 3, seen from one platform: fresh keys, their list, everybody's shares.

A state is a type; each has exactly the step that may follow. See docs/secagg.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from crossrec_model.errors import WireError
from crossrec_model.randomness import SystemRandomness
from crossrec_model.secagg import messages as frames
from crossrec_model.secagg.derive import KEY_BYTES, derive, digest
from crossrec_model.secagg.errors import (
    KeyListError,
    ParametersError,
    SharesError,
    SignatureError,
    TooFewPlatformsError,
)
from crossrec_model.secagg.identity import IdentityKey
from crossrec_model.secagg.messages import MAX_SLOTS, SHARE_BYTES
from crossrec_model.secagg.roster import Roster
from crossrec_model.secagg.shamir import share_many

if TYPE_CHECKING:
    from crossrec_model.config import Plan

#: Every bundle has a key of its own, so the nonce may be the same in all.
_NONCE = bytes(12)
_SIGNATURE_BYTES = 64
_ANY_PRIVATE = bytes(range(32))
#: Two shares a slot: of the pair key, then of the self mask's seed.
SLOT_BYTES = 2 * SHARE_BYTES


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What every party must agree on before keys: the roster, the plan's digest, the threshold."""

    roster: Roster
    plan: bytes
    colluding_share: float

    @classmethod
    def of(cls, roster: Roster, plan: Plan) -> Terms:
        """The terms of a plan under a roster."""
        share = plan.aggregation.colluding_share
        return cls(roster=roster, plan=plan_digest(plan.to_json()), colluding_share=share)

    @property
    def threshold(self) -> int:
        """Survivors and reveals that every sum needs."""
        return self.roster.threshold(self.colluding_share)

    def too_few(self, here: int, where: str) -> TooFewPlatformsError:
        """The error of a step with `here` platforms."""
        return TooFewPlatformsError(here, len(self.roster.members), self.threshold, where)


@dataclass(frozen=True, kw_only=True)
class Secrets:
    """A platform's secrets of one key agreement, all derived from one fresh seed."""

    seed: bytes = field(repr=False)

    @classmethod
    def fresh(cls, randomness: SystemRandomness) -> Secrets:
        """Draw a new seed from the operating system."""
        return cls(seed=randomness.bytes(KEY_BYTES))

    @property
    def channel(self) -> X25519PrivateKey:
        """The key under which other members' shares come."""
        return X25519PrivateKey.from_private_bytes(derive(self.seed, "channel key"))

    def pair(self, slot: int) -> bytes:
        """The private X25519 key of a slot, 32 bytes."""
        return derive(self.seed, "pair key", slot)

    def mask(self, slot: int) -> bytes:
        """The seed of a slot's self mask, 32 bytes."""
        return derive(self.seed, "self mask seed", slot)


def plan_digest(plan: bytes) -> bytes:
    """Return the digest of a plan's canonical JSON, 32 bytes."""
    return digest("plan", plan)


def public_of(private: bytes) -> bytes:
    """Return the public X25519 key of a private one."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def commitment(seed: bytes, platform: str, slot: int) -> bytes:
    """Return the commitment to the seed of a self mask."""
    return digest("self mask commitment", seed, platform, slot)


def transcript_of(keys: tuple[bytes, ...]) -> bytes:
    """Return the digest of a whole key list: all members, all their keys and signatures."""
    return digest("key list", *keys)


def exchange(private: bytes, public: bytes, whose: str) -> bytes:
    """Return the X25519 shared secret (RFC 7748); raises KeyListError for a weak public key."""
    key = X25519PrivateKey.from_private_bytes(private)
    try:
        return key.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise KeyListError(f"a key of platform {whose} is weak; it must not take part") from None


def signed_part(keys: frames.Keys) -> bytes:
    """Return what the signature in a frame of keys covers: all of it but the signature."""
    blank = replace(keys, signature=bytes(_SIGNATURE_BYTES))
    return frames.encode(blank)[:-_SIGNATURE_BYTES]


def check_invite(terms: Terms, message: frames.Invite) -> None:
    """Raise ParametersError for an invitation under another roster or plan, or too many slots."""
    if message.roster != terms.roster.digest:
        raise ParametersError(
            "the coordinator's roster is not this platform's; compare their fingerprints"
        )
    if message.plan != terms.plan:
        raise ParametersError("the keys are for another plan than the one that was accepted")
    if message.slots > MAX_SLOTS:
        raise ParametersError(f"{message.slots} slots are asked for; at most {MAX_SLOTS} allowed")


def check_keys(terms: Terms, invite: frames.Invite, keys: frames.Keys) -> None:
    """Check one member's keys against the invitation, the roster and its signature.

    Raises:
        KeyListError: for a platform outside the roster, or keys of another agreement.
        SignatureError: for a signature that is missing or not by the identity in the roster.
    """
    identities = {m.platform: m.public for m in terms.roster.members}
    if keys.platform not in identities:
        raise KeyListError(f"platform {keys.platform} is not in the roster; admit it first")
    asked = (invite.run, invite.epoch, invite.slots, invite.roster, invite.plan)
    if (keys.run, keys.epoch, keys.slots, keys.roster, keys.plan) != asked:
        raise KeyListError(f"the keys of platform {keys.platform} are of another agreement")
    if not len(keys.pairs) == len(keys.commitments) == 32 * keys.slots:
        raise KeyListError(f"platform {keys.platform} did not give one key for each slot")
    try:
        identities[keys.platform].verify("keys", signed_part(keys), keys.signature)
    except SignatureError:
        raise SignatureError(
            f"the keys of platform {keys.platform} are not signed by its identity in the roster"
        ) from None
    for public in (keys.channel, *(keys.pair(slot) for slot in range(keys.slots))):
        # With any private key: weak keys give the same secret to everybody.
        exchange(_ANY_PRIVATE, public, keys.platform)


@dataclass(frozen=True, kw_only=True, eq=False)
class Invited:
    """After step 1: own keys are made and signed."""

    terms: Terms
    invite: frames.Invite
    secrets: Secrets
    own: frames.Keys

    @classmethod
    def accept(
        cls,
        terms: Terms,
        message: frames.Invite,
        platform: str,
        identity: IdentityKey,
        randomness: SystemRandomness,
    ) -> Invited:
        """Step 1: make fresh keys; raises ParametersError as `check_invite`."""
        check_invite(terms, message)
        secrets, slots = Secrets.fresh(randomness), range(message.slots)
        seeds = [commitment(secrets.mask(slot), platform, slot) for slot in slots]
        own = frames.Keys(
            platform=platform,
            run=message.run,
            epoch=message.epoch,
            slots=message.slots,
            roster=message.roster,
            plan=message.plan,
            channel=secrets.channel.public_key().public_bytes_raw(),
            pairs=b"".join(public_of(secrets.pair(slot)) for slot in slots),
            commitments=b"".join(seeds),
            signature=bytes(_SIGNATURE_BYTES),
        )
        own = replace(own, signature=identity.sign("keys", signed_part(own)))
        return cls(terms=terms, invite=message, secrets=secrets, own=own)

    def share(
        self, message: frames.KeyList, randomness: SystemRandomness
    ) -> tuple[Listed, frames.Shares]:
        """Step 2: check everybody's keys, share the own secrets of every slot.

        Raises:
            KeyListError, SignatureError: as `check_keys`, and for a list that is not in strict
                order of platform id, or does not hold the own keys as they were sent.
            TooFewPlatformsError: for fewer members than the threshold.
        """
        members = self._members(message)
        names = tuple(members)
        secrets: list[bytes] = []
        for slot in range(self.invite.slots):
            secrets += (self.secrets.pair(slot), self.secrets.mask(slot))
        shares = share_many(
            secrets,
            threshold=self.terms.threshold,
            holders=len(names),
            randomness=randomness,
        )
        listed = Listed(
            terms=self.terms,
            invite=self.invite,
            secrets=self.secrets,
            platform=self.own.platform,
            members=members,
            transcript=transcript_of(message.keys),
            own_shares=shares[names.index(self.own.platform)],
        )
        bundles = tuple(
            listed.sealed(name, bundle)
            for name, bundle in zip(names, shares, strict=True)
            if name != self.own.platform
        )
        reply = frames.Shares(
            epoch=self.invite.epoch, transcript=listed.transcript, bundles=bundles
        )
        return listed, reply

    def _members(self, message: frames.KeyList) -> dict[str, frames.Keys]:
        members: dict[str, frames.Keys] = {}
        last = ""
        for raw in message.keys:
            try:
                keys = frames.decode_as(frames.Keys, raw)
            except WireError as error:
                raise KeyListError(f"the key list holds a malformed entry: {error}") from None
            if keys.platform <= last:
                raise KeyListError("the key list is not in strict order of platform id")
            check_keys(self.terms, self.invite, keys)
            members[keys.platform] = keys
            last = keys.platform
        if members.get(self.own.platform) != self.own:
            raise KeyListError("the key list does not hold this platform's keys as it sent them")
        if len(members) < self.terms.threshold:
            raise self.terms.too_few(len(members), "in the key list")
        return members


@dataclass(frozen=True, kw_only=True, eq=False)
class Listed:
    """After step 2: all members and their keys are fixed by the transcript."""

    terms: Terms
    invite: frames.Invite
    secrets: Secrets
    platform: str
    members: Mapping[str, frames.Keys]
    transcript: bytes
    own_shares: bytes = field(repr=False)

    def sealed(self, receiver: str, bundle: bytes) -> bytes:
        """Encrypt a bundle of shares to a member."""
        cipher = self._cipher(receiver, sender=self.platform, receiver=receiver)
        return cipher.encrypt(_NONCE, bundle, self.transcript)

    def deliver(self, message: frames.Delivery) -> Agreed:
        """Step 3: open what the others sent.

        Raises:
            SharesError: for a bundle that is missing, was changed, is meant for somebody else, or
                was made under another key list.
        """
        others = [name for name in self.members if name != self.platform]
        if len(message.bundles) != len(others):
            raise SharesError(f"{len(message.bundles)} bundles of shares came, not {len(others)}")
        held = {self.platform: self.own_shares}
        for name, sealed in zip(others, message.bundles, strict=True):
            cipher = self._cipher(name, sender=name, receiver=self.platform)
            try:
                bundle = cipher.decrypt(_NONCE, sealed, self.transcript)
            except InvalidTag:
                raise SharesError(
                    f"the shares of platform {name} are not its own, or of another key list", name
                ) from None
            if len(bundle) != SLOT_BYTES * self.invite.slots:
                raise SharesError(f"platform {name} did not share the secrets of each slot", name)
            held[name] = bundle
        return Agreed(
            terms=self.terms,
            invite=self.invite,
            secrets=self.secrets,
            platform=self.platform,
            members=self.members,
            transcript=self.transcript,
            held=held,
        )

    def _cipher(self, other: str, *, sender: str, receiver: str) -> ChaCha20Poly1305:
        own = self.secrets.channel.private_bytes_raw()
        secret = exchange(own, self.members[other].channel, other)
        return ChaCha20Poly1305(derive(secret, "shares", self.transcript, sender, receiver))


@dataclass(frozen=True, kw_only=True, eq=False)
class Agreed:
    """After step 3: one platform's part of a finished key agreement.

    `held` are the shares of every member by platform id, `SLOT_BYTES` a slot.
    """

    terms: Terms
    invite: frames.Invite
    secrets: Secrets
    platform: str
    members: Mapping[str, frames.Keys]
    transcript: bytes
    held: Mapping[str, bytes] = field(repr=False)

    def key_share(self, member: str, slot: int) -> bytes:
        """The share of a member's pair key, 33 bytes."""
        start = SLOT_BYTES * slot
        return self.held[member][start : start + SHARE_BYTES]

    def seed_share(self, member: str, slot: int) -> bytes:
        """The share of the seed of a member's self mask, 33 bytes."""
        start = SLOT_BYTES * slot + SHARE_BYTES
        return self.held[member][start : start + SHARE_BYTES]
