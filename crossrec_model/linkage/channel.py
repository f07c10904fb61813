"""A sealed channel between two platforms, through a courier that neither trusts.

Each side signs a fresh X25519 key with its pinned Ed25519 identity; the acceptance's signature covers the
offer. HKDF-SHA256 of the shared secret, bound to everything that was said, gives a key for each direction
and stream; ChaCha20-Poly1305 seals block `number` under the nonce `number`. As in HPKE's authenticated mode
(RFC 9180), but with fresh keys on both sides, so that a stolen identity opens no earlier session.

What is sealed under one nonce is always the same bytes (see `blinding.py`), so that a block may be sealed
again after an interruption.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from crossrec_model.linkage.errors import (
    HandshakeError,
    OtherSessionError,
    TamperedError,
    UnknownPlatformError,
)
from crossrec_model.linkage.messages import (
    PROTOCOL,
    VERSION,
    Accept,
    Offer,
    Purpose,
    Sealed,
    Stream,
    encode,
)
from crossrec_model.secagg.derive import derive, digest, domain
from crossrec_model.secagg.errors import RosterError, SignatureError
from crossrec_model.secagg.identity import IdentityKey, PublicIdentity
from crossrec_model.secagg.node_pass import federation_of
from crossrec_model.secagg.roster import Roster

SESSION_BYTES: Final = 16
_OFFER: Final = "linkage offer"
_ACCEPT: Final = "linkage acceptance"


@dataclass(frozen=True, kw_only=True)
class Parties:
    """Who links what with whom, in which federation (32 bytes)."""

    federation: bytes
    initiator: str
    responder: str
    purpose: Purpose


def partner_key(roster: Roster, own: str, partner: str) -> PublicIdentity:
    """Return the pinned key of a partner.

    Raises:
        UnknownPlatformError: for one that is not on the roster, or the platform itself.
    """
    if own == partner:
        raise UnknownPlatformError(f"platform {own} can't be linked with itself; name another")
    try:
        return roster.public(partner)
    except RosterError:
        raise UnknownPlatformError(
            f"platform {partner[:80]!r} is not on the pinned roster; ask the coordinator's operator"
        ) from None


@dataclass(frozen=True, kw_only=True)
class Channel:
    """Both directions of one session, seen from one side. `root` is secret."""

    parties: Parties
    session: bytes
    initiates: bool
    root: bytes = field(repr=False)

    def seal(self, stream: Stream, number: int, plain: bytes) -> Sealed:
        """Encrypt frame `number` of a stream for the partner; it must always be the same bytes."""
        key = ChaCha20Poly1305(self._key(stream, by_initiator=self.initiates))
        sealed = key.encrypt(_nonce(number), plain, self._bound(stream, number))
        return Sealed(session=self.session, stream=stream, number=number, ciphertext=sealed)

    def open(self, frame: Sealed) -> bytes:
        """Decrypt the partner's frame.

        Raises:
            OtherSessionError: for a frame of another session.
            TamperedError: if it was changed, cut, or sealed for another place.
        """
        if frame.session != self.session:
            raise OtherSessionError("a frame of another session came; it is left aside")
        key = ChaCha20Poly1305(self._key(frame.stream, by_initiator=not self.initiates))
        bound = self._bound(frame.stream, frame.number)
        try:
            return key.decrypt(_nonce(frame.number), frame.ciphertext, bound)
        except InvalidTag:
            raise TamperedError(
                f"block {frame.number} of {frame.stream.name.lower()} does not open: it was changed "
                "on its way, or is for another place"
            ) from None

    def secret(self, purpose: str) -> bytes:
        """Return 32 secret bytes that both sides share, for a purpose of this session."""
        return derive(self.root, f"linkage {purpose}", PROTOCOL, VERSION, self.session)

    def _key(self, stream: Stream, *, by_initiator: bool) -> bytes:
        parties = self.parties
        return derive(
            self.root,
            "linkage channel",
            *(PROTOCOL, VERSION, parties.federation, parties.initiator, parties.responder),
            *(int(parties.purpose), self.session, int(by_initiator), int(stream)),
        )

    def _bound(self, stream: Stream, number: int) -> bytes:
        return domain("linkage block", PROTOCOL, VERSION, self.session, int(stream), number)


@dataclass(frozen=True, kw_only=True)
class OfferSecret:
    """What an initiator keeps until its offer is accepted."""

    parties: Parties
    offer: Offer
    partner: PublicIdentity
    secret: bytes = field(repr=False)

    def opened(self, accept: Accept) -> Channel:
        """Return the channel that an acceptance opens.

        Raises:
            HandshakeError: if it is for another offer, or not signed by the partner.
        """
        offered = offer_digest(self.offer)
        if accept.offer != offered:
            raise HandshakeError("an acceptance of another offer came; it is left aside")
        _verify(self.partner, _ACCEPT, accept.signature, offered, accept.ephemeral)
        shared = _exchange(self.secret, accept.ephemeral)
        return _channel(self.parties, offered, accept, shared, initiates=True)


def make_offer(
    roster: Roster, own: str, partner: str, purpose: Purpose, key: IdentityKey, secret: bytes
) -> OfferSecret:
    """Sign a fresh key for a linkage with `partner`; `secret` are 32 fresh random bytes.

    Raises:
        UnknownPlatformError: for a partner that is not on the roster.
    """
    public = partner_key(roster, own, partner)
    federation, ephemeral = federation_of(roster), _public(secret)
    signature = key.sign(_OFFER, _offered(federation, own, partner, purpose, ephemeral))
    offer = Offer(
        federation=federation,
        initiator=own,
        responder=partner,
        purpose=purpose,
        ephemeral=ephemeral,
        signature=signature,
    )
    return OfferSecret(parties=_parties(offer), offer=offer, partner=public, secret=secret)


def accept_offer(
    roster: Roster, own: str, offer: Offer, key: IdentityKey, secret: bytes
) -> tuple[Channel, Accept]:
    """Check an offer and answer it; `secret` are 32 fresh random bytes.

    Raises:
        UnknownPlatformError: for an initiator that is not on the roster.
        HandshakeError: if it is for another platform or federation, or not signed by its initiator.
    """
    if offer.responder != own or offer.federation != federation_of(roster):
        raise HandshakeError("an offer to another platform or in another federation came")
    public = partner_key(roster, own, offer.initiator)
    parties = _parties(offer)
    said = _offered(
        offer.federation, offer.initiator, offer.responder, offer.purpose, offer.ephemeral
    )
    _verify(public, _OFFER, offer.signature, said)
    shared, offered, ephemeral = (
        _exchange(secret, offer.ephemeral),
        offer_digest(offer),
        _public(secret),
    )
    signature = key.sign(_ACCEPT, offered + ephemeral)
    accept = Accept(offer=offered, ephemeral=ephemeral, signature=signature)
    return _channel(parties, offered, accept, shared, initiates=False), accept


def offer_digest(offer: Offer) -> bytes:
    """32 bytes that name an offer."""
    return digest("linkage offer", PROTOCOL, VERSION, encode(offer))


def _parties(offer: Offer) -> Parties:
    return Parties(
        federation=offer.federation,
        initiator=offer.initiator,
        responder=offer.responder,
        purpose=offer.purpose,
    )


def _offered(
    federation: bytes, initiator: str, responder: str, purpose: Purpose, ephemeral: bytes
) -> bytes:
    parts = (federation, initiator, responder, int(purpose), ephemeral)
    return digest("linkage offer", PROTOCOL, VERSION, *parts)


def _verify(by: PublicIdentity, purpose: str, signature: bytes, *said: bytes) -> None:
    try:
        by.verify(purpose, b"".join(said), signature)
    except SignatureError:
        raise HandshakeError(
            f"the {purpose} is not signed by the partner's pinned key {by.fingerprint}; "
            "somebody else answers in its name"
        ) from None


def _public(secret: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def _exchange(secret: bytes, ephemeral: bytes) -> bytes:
    try:
        public = X25519PublicKey.from_public_bytes(ephemeral)
        return X25519PrivateKey.from_private_bytes(secret).exchange(public)
    except ValueError:
        raise HandshakeError("the partner's ephemeral key is of small order; it cheats") from None


def _channel(
    parties: Parties, offered: bytes, accept: Accept, shared: bytes, *, initiates: bool
) -> Channel:
    said = digest("linkage transcript", offered, encode(accept))
    root = derive(
        shared,
        "linkage root",
        *(PROTOCOL, VERSION, parties.federation, parties.initiator, parties.responder),
        *(int(parties.purpose), said),
    )
    return Channel(parties=parties, session=said[:SESSION_BYTES], initiates=initiates, root=root)


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "little")
