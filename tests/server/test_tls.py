"""The throw-away authority: what it signs verifies, and its files are checked before use."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

import pytest
from cryptography import x509

from crossrec_model.errors import ConfigError
from server import tls as tls_module
from server.tls import TlsFiles, make_certificates, renew_certificate


def test_names_mode_and_signature(tmp_path: Path) -> None:
    files = make_certificates(tmp_path / "new" / "tls", ["shop.example.org", "10.0.0.7"])
    files.check()
    assert files.key.stat().st_mode & 0o777 == 0o600
    names = sorted(path.name for path in files.ca.parent.iterdir())
    # The authority's own key is nowhere.
    assert names == ["ca.pem", "server.key", "server.pem"]
    server = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    alternatives = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert alternatives.get_values_for_type(x509.DNSName) == ["localhost", "shop.example.org"]
    assert ipaddress.ip_address("10.0.0.7") in alternatives.get_values_for_type(x509.IPAddress)
    assert ipaddress.ip_address("127.0.0.1") in alternatives.get_values_for_type(x509.IPAddress)


def test_an_existing_key_is_never_overwritten(tmp_path: Path) -> None:
    first = make_certificates(tmp_path, []).key.read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        make_certificates(tmp_path, [])
    assert (tmp_path / "server.key").read_bytes() == first


@pytest.mark.parametrize("missing", ["ca.pem", "server.pem", "server.key"])
def test_a_missing_file_names_the_command(tmp_path: Path, missing: str) -> None:
    make_certificates(tmp_path, [])
    (tmp_path / missing).unlink()
    with pytest.raises(ConfigError, match=f"{missing} is missing; .*python -m server certificates"):
        TlsFiles.in_folder(tmp_path).check()


@pytest.mark.parametrize("swapped", ["ca.pem", "server.key"])
def test_files_of_two_authorities_do_not_pass(tmp_path: Path, swapped: str) -> None:
    make_certificates(tmp_path / "one", [])
    make_certificates(tmp_path / "two", [])
    (tmp_path / "two" / swapped).replace(tmp_path / "one" / swapped)
    with pytest.raises(ConfigError, match="don't belong together"):
        TlsFiles.in_folder(tmp_path / "one").check()


def test_an_expired_certificate_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls_module, "LIFETIME", datetime.timedelta(minutes=-1))
    files = make_certificates(tmp_path, [])
    with pytest.raises(ConfigError, match="expired on"):
        files.check()


def test_a_bad_host_or_folder_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no DNS name or address"):
        make_certificates(tmp_path, ["bücher.example"])
    occupied = tmp_path / "file"
    occupied.write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="can't write TLS files"):
        make_certificates(occupied / "tls", [])


def test_where_the_authority_was_kept_the_remedy_is_to_renew(tmp_path: Path) -> None:
    files = make_certificates(tmp_path, [], keep_authority=True)
    # As after a stop between the two files of a renewal.
    files.key.write_bytes(make_certificates(tmp_path / "other", []).key.read_bytes())
    with pytest.raises(ConfigError, match=f"python -m server renew --federation {tmp_path}"):
        files.check()
    renew_certificate(tmp_path, [])
    files.check()
