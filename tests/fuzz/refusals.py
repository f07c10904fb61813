"""What the tests of refusals share: odd values, and the rule that a refusal is one printable line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from crossrec_model.errors import CrossrecError

DEEP = "[" * 1200 + "]" * 1200
DEEP_TOML = f"seed = {DEEP}\n"
LONG = "9" * 5000
HEX = "0x" + "f" * 5000


def each(name: str, values: Sequence[Any]) -> pytest.MarkDecorator:
    """Parametrise by values that are too long or odd to name a test."""
    return pytest.mark.parametrize(name, values, ids=[f"{name}{n}" for n in range(len(values))])


def refused(kind: type[CrossrecError], work: Callable[[], object]) -> str:
    """The message of a refusal: one line, short, printable."""
    with pytest.raises(kind) as caught:
        work()
    message = str(caught.value)
    assert message.isprintable()
    assert 0 < len(message) <= 1600
    return message
