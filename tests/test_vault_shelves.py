"""Which objects stand: told by listings, and never later than a change."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hostbackup.errors import VaultError
from hostbackup.vault import shelves
from hostbackup.vault.objects import ObjectFolder
from hostbackup.vault.vault import Vault


@pytest.fixture(params=["listed", "asked one by one"])
def objects(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectFolder]:
    if request.param == "asked one by one":
        monkeypatch.setattr(shelves, "_HELD", 0)
    with Vault.open(tmp_path / "v", "write", create=True, command="test") as vault:
        yield vault.objects


def put(objects: ObjectFolder, data: bytes) -> str:
    receiver = objects.open()
    receiver.write(data)
    digest, _ = receiver.commit()
    return digest


def test_an_object_has_the_inode_of_its_file_and_what_is_none_has_none(objects: ObjectFolder) -> None:
    digest = put(objects, b"x")
    assert objects.has(digest)
    objects.flush()
    assert objects.inode(digest) == Path(objects.where(digest)).stat().st_ino
    other = digest[:-1] + ("0" if digest[-1] != "0" else "1")
    assert objects.inode(other) is None
    assert not objects.has("0" * 64)


def test_an_object_that_comes_to_a_shard_already_listed_is_seen(objects: ObjectFolder) -> None:
    digests = []
    for number in range(600):  # so many that shards hold several
        digests.append(put(objects, b"%d" % number))
        objects.flush() if number % 100 == 0 else None
        assert objects.has(digests[number // 2])
    objects.flush()
    assert all(objects.inode(digest) == Path(objects.where(digest)).stat().st_ino for digest in digests)


def test_an_object_that_was_set_aside_or_removed_is_not_there_any_more(objects: ObjectFolder) -> None:
    aside, removed = put(objects, b"x"), put(objects, b"y")
    objects.flush()
    assert objects.has(aside)
    assert objects.has(removed)
    objects.set_aside(aside, "a test")
    objects.remove(removed)
    assert not objects.has(aside)
    assert not objects.has(removed)


def test_a_listing_that_a_change_overtook_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = "ab" + "0" * 62
    (tmp_path / "ab").mkdir()
    shelf = shelves.Shelves(f"{tmp_path}/")
    scandir = os.scandir

    @contextmanager
    def overtaken(path: str) -> Iterator[list[os.DirEntry[str]]]:
        monkeypatch.setattr(os, "scandir", scandir)
        with scandir(path) as found:
            listed = list(found)
        (tmp_path / "ab" / digest).write_bytes(b"x")  # as another thread would
        shelf.forget("ab")
        yield listed

    monkeypatch.setattr(os, "scandir", overtaken)
    assert shelf.inode(digest) is None
    assert shelf.inode(digest) == (tmp_path / "ab" / digest).stat().st_ino


@pytest.mark.parametrize("digest", ["", "..", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_what_is_no_digest_is_never_looked_up(objects: ObjectFolder, digest: str) -> None:
    with pytest.raises(VaultError, match="not a SHA-256 digest"):
        objects.has(digest)
