"""What was derived for a link goes with it, whatever happens in the midst of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from clients.linking import folder as module
from clients.linking.folder import LinkageFolder, read_links
from crossrec_model.errors import DataError, StateError
from crossrec_model.linkage.links import Links
from crossrec_model.linkage.messages import Purpose

ONE, TWO, THREE = "1" * 32, "2" * 32, "3" * 32


def _links(pairs: dict[str, str], partner: str = "B") -> Links:
    return Links(partner=partner, purpose=Purpose.USERS, session=b"s" * 16, pairs=pairs)


def _filled(tmp_path: Path) -> LinkageFolder:
    folder = LinkageFolder(tmp_path)
    folder.path.mkdir()
    folder.write_links(_links({"u1": ONE, "u2": TWO}))
    folder.write_links(_links({"u1": THREE}, "C"))
    for link in (ONE, TWO, THREE):
        folder.derived(link).mkdir(parents=True)
        (folder.derived(link) / "profile").write_bytes(b"x")
    return folder


def _left(folder: LinkageFolder) -> set[str]:
    return {path.name for path in (folder.path / "derived").iterdir()}


class KilledError(BaseException):
    """Stands for the end of a process."""


@pytest.mark.parametrize("where", ["delete", "write"])
def test_a_revocation_that_was_cut_off_deletes_all_when_it_is_repeated(
    tmp_path: Path, where: str
) -> None:
    folder = _filled(tmp_path)
    write = module.write_file

    def killed(path: Path, content: bytes) -> None:
        if path.name.endswith(".links"):
            raise KilledError
        write(path, content)

    with pytest.MonkeyPatch.context() as patch:
        if where == "delete":
            patch.setattr("shutil.rmtree", _killing)
        else:
            patch.setattr(module, "write_file", killed)
        with pytest.raises(KilledError):
            folder.revoke(["u1"])
    folder.revoke(["u1"])
    assert folder.revoked() == {"u1"}
    assert _left(folder) == {TWO}
    assert read_links(folder.links_path("C", Purpose.USERS)) == {}


def _killing(_path: Path) -> None:
    raise KilledError


def test_what_can_not_be_deleted_is_told_and_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _filled(tmp_path)
    delete = shutil.rmtree

    def stuck(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("shutil.rmtree", stuck)
    with pytest.raises(StateError, match="can't be deleted"):
        folder.revoke(["u1"])
    monkeypatch.setattr("shutil.rmtree", delete)
    folder.revoke(["u1"])
    assert _left(folder) == {TWO}


def test_a_new_linkage_replaces_a_damaged_links_file_and_leaves_nothing_derived(
    tmp_path: Path,
) -> None:
    folder = _filled(tmp_path)
    folder.links_path("B", Purpose.USERS).write_bytes(b"damaged")
    folder.write_links(_links({"u2": TWO}))
    assert _left(folder) == {TWO, THREE}


def test_a_revocation_is_on_the_disk_before_anything_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _filled(tmp_path)
    monkeypatch.setattr("shutil.rmtree", _killing)
    with pytest.raises(KilledError):
        folder.revoke(["u1"])
    assert folder.revoked() == {"u1"}


@pytest.mark.parametrize("link", ["", "..", "../../keys", "1" * 31, "A" * 32, ONE + "/.."])
def test_a_link_id_names_no_other_folder(tmp_path: Path, link: str) -> None:
    with pytest.raises(DataError):
        LinkageFolder(tmp_path).derived(link)


@pytest.mark.parametrize(
    ("times", "marks"), [("-1", [1]), ("true", [1]), ("1.5", [1]), ("1", [2, 1]), ("1", [1, 1])]
)
def test_a_past_that_could_not_have_been_written_is_noticed(
    tmp_path: Path, times: str, marks: list[int]
) -> None:
    folder = LinkageFolder(tmp_path)
    folder.path.mkdir()
    body = b"".join(mark.to_bytes(8, "little") for mark in marks)
    head = f'{{"format":1,"times":[{times}]}}\n'.encode()
    (folder.path / "B.users.past").write_bytes(head + body)
    with pytest.raises(StateError):
        folder.past("B", Purpose.USERS)
