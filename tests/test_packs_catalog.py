"""What is known of a copy: found again whatever happens to the file it is kept in."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostbackup.errors import VaultError
from hostbackup.vault.packs.catalog import Blob, Catalog, Dropped
from hostbackup.vault.packs.pack import Member

DIGEST = "ab" * 32


def pack(number: int, size: int = 10) -> Blob:
    return Blob(f"packs/{number:02d}/x.tar", size, f"{number:064d}", "objects", "sum-2", "20300101T000000Z")


def member(number: int = 0) -> Member:
    return Member(f"{number:064x}", 0, 5, 5)


def stands(catalog: Catalog, *blobs: Blob, size: int | None = None) -> None:
    catalog.begin_listing()
    catalog.standing([(blob.key, blob.size if size is None else size) for blob in blobs])
    catalog.settle()


def has(catalog: Catalog, digest: str) -> bool:
    return catalog.there("objects", [digest]) == {digest}


def test_what_is_learnt_is_kept_and_only_what_is_listed_counts(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "c", "here")
    catalog.add(pack(1), [member()])
    catalog.close()
    catalog = Catalog(tmp_path / "c", "here")
    assert [found.blob for found in catalog.find("objects", member().digest)] == [pack(1)]
    catalog.listed([pack(1).key], "000001-x")
    stands(catalog)
    assert (catalog.find("objects", member().digest), list(catalog.blobs())) == ([], [])
    stands(catalog, pack(1))
    assert list(catalog.blobs()) == [pack(1)]
    catalog.close()


def test_a_blob_of_another_size_is_not_relied_on_but_its_members_are_told() -> None:
    catalog = Catalog(None, "here")
    catalog.take_in("000001-x", [(pack(1), [member()]), (pack(2), [member()])])
    catalog.begin_listing()
    catalog.standing([(pack(1).key, 10), (pack(2).key, 3)])
    catalog.settle()
    assert [found.blob.key for found in catalog.find("objects", member().digest)] == [pack(1).key, pack(2).key]
    stands(catalog, pack(1), pack(2), size=3)
    assert not has(catalog, member().digest)
    assert catalog.want("objects", [(member().digest, 5)]) == (0, 1, 5)
    catalog.close()


def test_a_content_of_another_size_is_wanted() -> None:
    catalog = Catalog(None, "here")
    catalog.add(pack(1), [member()])
    assert catalog.want("objects", [(member().digest, 5)]) == (1, 0, 0)
    assert catalog.want("objects", [(member().digest, 6)]) == (0, 1, 6)
    catalog.close()


def test_a_pack_that_was_about_to_go_up_is_known_by_the_next_listing_alone(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "c", "here")
    catalog.expect(pack(1), [member(1)])
    catalog.expect(pack(2), [member(2)])
    assert not has(catalog, member(1).digest)
    catalog.close()
    catalog = Catalog(tmp_path / "c", "here")
    stands(catalog, pack(1))
    assert (has(catalog, member(1).digest), has(catalog, member(2).digest)) == (True, False)
    assert catalog.members(pack(2).key) == []
    assert [blob.key for blob, _ in catalog.unlisted()] == [pack(1).key]
    catalog.close()


def test_an_upload_that_failed_takes_nothing_away() -> None:
    catalog = Catalog(None, "here")
    catalog.add(pack(1), [member()])
    catalog.expect(pack(1), [member()])
    catalog.unexpect(pack(1).key)
    assert has(catalog, member().digest)
    catalog.close()


def test_what_was_dropped_is_left_over_while_it_stands_and_may_come_back() -> None:
    catalog = Catalog(None, "here")
    stands(catalog, pack(1))
    catalog.take_in("000001-x", [(pack(1), [member()])])
    catalog.drop([Dropped(pack(1).key, "20300101T000000Z")])
    assert (catalog.leftovers(), has(catalog, member().digest)) == ([Dropped(pack(1).key, "20300101T000000Z")], False)
    catalog.add(pack(1), [member()])
    assert catalog.leftovers() == []
    catalog.close()


def test_of_another_target_what_names_vouch_for_is_kept(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "c", "/media/usb")
    catalog.take_in("000001-x", [(pack(1), [member()])])
    catalog.close()
    catalog = Catalog(tmp_path / "c", "/media/usb1")
    assert catalog.indexes() == set()
    stands(catalog, pack(1))
    assert [found.blob for found in catalog.find("objects", member().digest)] == [pack(1)._replace(checksum="", until="")]
    stands(catalog)
    assert catalog.members(pack(1).key) == []
    catalog.close()


def test_one_who_is_not_alone_reads_what_is_known_and_changes_nothing(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "c", "here")
    catalog.add(pack(1), [member()])
    catalog.close()
    before = (tmp_path / "c").read_bytes()
    other = Catalog(tmp_path / "c", "here", alone=False)
    assert has(other, member().digest)
    other.drop([Dropped(pack(1).key)])
    other.close()
    assert (tmp_path / "c").read_bytes() == before


@settings(max_examples=60, deadline=None)
@given(st.data(), st.booleans())
def test_a_damaged_file_is_begun_anew_or_told(tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject, alone: bool) -> None:
    path = tmp_path_factory.mktemp("catalog") / "c"
    catalog = Catalog(path, "here")
    catalog.add(pack(1), [member(number) for number in range(200)])
    catalog.close()
    data = bytearray(path.read_bytes())
    start = draw.draw(st.integers(0, len(data) - 1))
    if draw.draw(st.booleans()):
        del data[start:]
    else:
        data[start : start + 300] = draw.draw(st.binary(min_size=300, max_size=300))
    path.write_bytes(data)
    try:
        catalog = Catalog(path, "here", alone=alone)
        stands(catalog, pack(1))
        list(catalog.unknown())
        catalog.close()
    except VaultError as error:
        assert error.hint
