"""Certificates of a real authority, in date and not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from doctor_folders import Authority

from crossrec_model.checkup_certificates import covers, read_certificate, validity
from crossrec_model.errors import ConfigError

DAY, SECOND = timedelta(days=1), timedelta(seconds=1)
NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("first", "last", "level", "words"),
    [
        (-DAY, 365 * DAY, "ok", "server.pem is good until 2027-05-01 (365 days)"),
        (-DAY, 30 * DAY, "ok", "(30 days)"),
        (-DAY, 30 * DAY - SECOND, "warn", "expires on 2026-05-31 (29 days)"),
        (-DAY, DAY, "warn", "(1 day)"),
        (-9 * DAY, -SECOND, "fail", "expired on 2026-05-01 (0 days ago)"),
        (-9 * DAY, -2 * DAY, "fail", "expired on 2026-04-29 (2 days ago)"),
        (SECOND, DAY, "fail", "is not good before 2026-05-01 12:00 UTC, this clock says"),
    ],
)
def test_validity(first: timedelta, last: timedelta, level: str, words: str) -> None:
    certificate = Authority.make(NOW + first, NOW + last).certificate
    finding = validity("server.pem", certificate, NOW, "renew it")
    assert finding.level == level
    assert words in finding.found
    clock = finding.remedy == "set this machine's clock"
    assert clock if first > timedelta() else finding.remedy == ("" if level == "ok" else "renew it")


@pytest.mark.parametrize(
    ("names", "host", "good"),
    [
        (("shop.example.org",), "shop.example.org", True),
        (("shop.example.org",), "SHOP.Example.org.", True),
        (("shop.example.org",), "other.example.org", False),
        (("*.example.org",), "shop.example.org", True),
        (("*.example.org",), "a.shop.example.org", False),
        (("*.example.org",), "example.org", False),
        (("10.0.0.7",), "10.0.0.7", True),
        (("10.0.0.7",), "10.0.0.8", False),
        (("::1",), "0:0:0:0:0:0:0:1", True),
        (("xn--bcher-kva.example",), "bücher.example", True),
        (("shop.example.org",), "shop..example", False),
    ],
)
def test_names(names: tuple[str, ...], host: str, good: bool) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    assert covers(Authority.make().issue(key, names), host) is good
    assert not covers(Authority.make().certificate, host)


def test_a_certificate_that_can_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    with pytest.raises(ConfigError, match=r"ca\.pem is missing; ask"):
        read_certificate(path, "ask for it")
    path.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "utf-8")
    with pytest.raises(ConfigError, match="is no PEM certificate; ask"):
        read_certificate(path, "ask for it")
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError, match="can't be read: Is a directory; ask"):
        read_certificate(path, "ask for it")
