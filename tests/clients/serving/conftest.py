"""A tiny trained platform on disk, and its live model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from serving_stage import make_trained

from clients.serving.model import LiveModel, load_model
from clients.serving.service import Service
from clients.state import PlatformFolder


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder with platform A, trained on both sides' components and a network of its own."""
    state = tmp_path_factory.mktemp("served")
    make_trained(state, "A")
    return state


@pytest.fixture(scope="session")
def model(home: Path) -> LiveModel:
    return load_model(PlatformFolder(home / "A"), "A")


@pytest.fixture
def service(model: LiveModel) -> Service:
    return Service(model, [], np.random.default_rng(1))
