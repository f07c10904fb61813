"""A federation's and its platforms' folders, as onboarding leaves them."""

from __future__ import annotations

from pathlib import Path

import pytest
from doctor_folders import Federation, make_federation


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return make_federation(tmp_path)
