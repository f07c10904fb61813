"""One side's blinded set: hashed, padded, shuffled, blinded, all from one fresh seed a session.

A block can be made again at any time and is then the same bytes. Padding elements are digests that nobody
else can know and go through the same steps, so that neither the points nor the time tells them apart.
"""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from crossrec_model.linkage.group import WIDE_BYTES, Cores, Rows, Scalar
from crossrec_model.linkage.messages import BLOCK, POINT_BYTES
from crossrec_model.linkage.policy import padded_size
from crossrec_model.secagg.derive import derive

SEED_BYTES: Final = 32


class Blinding:
    """The elements of one side in the order in which they are sent.

    `digests` uint8 [n, 32], each once; `seed` is fresh and secret, so that no two sessions share a scalar.
    """

    def __init__(self, digests: Rows, seed: bytes) -> None:
        self._digests = digests
        #: How many elements are no padding.
        self.elements = len(digests)
        self.size = padded_size(len(digests))
        self.blocks = -(-self.size // BLOCK)
        self.scalar = Scalar(_stream(derive(seed, "linkage scalar"), WIDE_BYTES))
        self._padding = derive(seed, "linkage padding")
        drawn = _stream(derive(seed, "linkage order"), 8 * self.size)
        #: int32 [size]: which element stands at each place; n and more are padding.
        self.order: npt.NDArray[np.int32] = np.argsort(
            np.frombuffer(drawn, dtype="<u8"), kind="stable"
        ).astype(np.int32)

    def rows(self, number: int) -> slice:
        """Return the places of a block; empty beyond the last."""
        return rows_of(number, self.size)

    def block(self, number: int, cores: Cores) -> bytes:
        """Return block `number`, its points one after the other."""
        chosen = self.order[self.rows(number)]
        own = chosen < len(self._digests)
        digests = np.empty((len(chosen), POINT_BYTES), dtype=np.uint8)
        digests[own] = self._digests[chosen[own]]
        for place in np.flatnonzero(~own):
            word = int(chosen[place]).to_bytes(8, "little")
            made = hashlib.sha256(self._padding + word).digest()
            digests[place] = np.frombuffer(made, dtype=np.uint8)
        return cores.blind(digests, self.scalar).tobytes()


def rows_of(number: int, size: int) -> slice:
    """Return the places of block `number` in a set of `size` elements."""
    return slice(min(number * BLOCK, size), min((number + 1) * BLOCK, size))


def _stream(key: bytes, count: int) -> bytes:
    """Return `count` bytes of a ChaCha20 key stream; each key is used once."""
    return Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(count))
