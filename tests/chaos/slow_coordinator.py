"""The real coordinator that says when it saves, on a disk as slow as asked for.

The first model is a few zeros, or the plan's own network where `CROSSREC_CHAOS_MODEL` is "plan".
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np

from crossrec_model.config import Plan
from crossrec_model.wire.codec import FloatVector
from server.__main__ import main
from server.checkpoint import Checkpoint, CheckpointStore

DIMENSION = 8


def zeros(_plan: Plan) -> FloatVector:
    return np.zeros(DIMENSION, dtype=np.float32)


def slow_disk(seconds: float) -> None:
    """Let each flush take a while, so that a fault can fall between any two steps of a save."""
    flush, save = os.fsync, CheckpointStore.save

    def slow_flush(file: int) -> None:
        flush(file)
        time.sleep(seconds)

    def telling_save(store: CheckpointStore, checkpoint: Checkpoint) -> Path:
        print(f"@ checkpoint {checkpoint.round}", flush=True)
        return save(store, checkpoint)

    os.fsync = slow_flush
    CheckpointStore.save = telling_save  # type: ignore[method-assign]


if __name__ == "__main__":
    slow_disk(float(os.environ.get("CROSSREC_CHAOS_FLUSH_S", "0.03")))
    own = os.environ.get("CROSSREC_CHAOS_MODEL") == "plan"
    sys.exit(main(sys.argv[1:], initial=None if own else zeros))
