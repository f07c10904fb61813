"""The real coordinator with a first model of a few zeros: building a network takes seconds."""

from __future__ import annotations

import os
import sys

import numpy as np

from crossrec_model.config import Plan
from crossrec_model.wire.codec import FloatVector
from server.__main__ import main


def zeros(_plan: Plan) -> FloatVector:
    return np.zeros(int(os.environ.get("CROSSREC_TEST_DIMENSION", "8")), dtype=np.float32)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], initial=zeros))
