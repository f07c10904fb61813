"""Two kinds of randomness that can't be exchanged.

`ExperimentRandomness` is a seeded stream: initial weights, shuffles, bootstrap. `SystemRandomness` draws
from the operating system and takes no seed: keys, run ids and, later, noise. A function that needs one
names it in its signature, so that the type checker refuses the other.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING, final

import numpy as np

if TYPE_CHECKING:
    import torch


@final
class ExperimentRandomness:
    """A tree of seeded streams: the same seed and labels give the same numbers in every process."""

    def __init__(self, seed: int, *labels: str | int) -> None:
        if seed < 0:
            raise ValueError(f"seed {seed} is negative; give 0 or more")
        self._seed = seed
        self._labels = labels

    def child(self, *labels: str | int) -> ExperimentRandomness:
        """An independent stream named by `labels`, e.g. `child("round", 3, "platform", "A")`."""
        return ExperimentRandomness(self._seed, *self._labels, *labels)

    def numpy(self) -> np.random.Generator:
        """A fresh NumPy generator at the start of this stream."""
        return np.random.default_rng(np.frombuffer(self._digest(), dtype=np.uint32))

    def torch(self) -> torch.Generator:
        """A fresh CPU generator at the start of this stream (experiments only: 32-bit seed)."""
        import torch

        generator = torch.Generator()
        generator.manual_seed(int.from_bytes(self._digest()[:4], "little"))
        return generator

    def _digest(self) -> bytes:
        # Length-prefixed labels: ("a", "bc") and ("ab", "c") are different streams.
        text = "".join(
            f"{type(x).__name__}:{len(str(x))}:{x};" for x in (self._seed, *self._labels)
        )
        return hashlib.sha256(b"crossrec/experiment/1;" + text.encode()).digest()


@final
class SystemRandomness:
    """The operating system's cryptographic source. It can't be seeded."""

    def bytes(self, count: int) -> bytes:
        """`count` random bytes."""
        return secrets.token_bytes(count)
