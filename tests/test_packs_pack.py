"""Packs: any contents round trip, common tools open them, and damage never yields wrong bytes."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostbackup.errors import Damaged
from hostbackup.vault.packs.pack import KINDS, Member, PackBuilder, footprint, read_pack, unpacked

CONTENTS = st.lists(st.one_of(st.binary(max_size=700), st.integers(1, 3000).map(lambda size: b"a line\n" * size)), max_size=8, unique=True)


def pack(contents: list[bytes], kind: str = "objects") -> tuple[bytes, list[Member]]:
    builder = PackBuilder(kind)
    for data in contents:
        builder.add(hashlib.sha256(data).hexdigest(), data)
    members = builder.members
    return builder.finish(), members


def content(member: Member, data: bytes) -> bytes:
    return unpacked(member, data[member.offset : member.offset + member.length], "here")


@given(CONTENTS, st.sampled_from(KINDS))
def test_what_is_packed_is_found_by_the_headers_alone(contents: list[bytes], kind: str) -> None:
    data, members = pack(contents, kind)
    assert list(read_pack(data)) == [(kind, member) for member in members]
    assert [content(member, data) for member in members] == contents
    assert len(data) == sum(map(footprint, members)) + 1024


@given(CONTENTS, st.data())
def test_damage_never_yields_wrong_bytes(contents: list[bytes], draw: st.DataObject) -> None:
    data, members = pack(contents)
    start = draw.draw(st.integers(0, len(data) - 1))
    harmed = data[:start] + draw.draw(st.binary(max_size=600)) + data[start + draw.draw(st.integers(0, 600)) :]
    whole = {hashlib.sha256(one).hexdigest(): one for one in contents}
    for member in [*members, *(member for _, member in read_pack(harmed))]:
        try:
            assert content(member, harmed) == whole[member.digest]
        except Damaged as error:
            assert error.where == "here"


@given(st.binary(max_size=3000))
def test_no_pack_at_all_is_read_without_a_traceback(data: bytes) -> None:
    assert list(read_pack(data)) == []


def test_members_behind_a_damaged_header_are_found() -> None:
    data, members = pack([b"first" * 300, b"second", b"third"])
    harmed = b"\0" * 512 + data[512:]
    assert [member for _, member in read_pack(harmed)] == members[1:]


@pytest.mark.parametrize("size", [-1, 1 << 40, 1 << 62])
def test_a_size_that_nothing_can_have_is_damage(size: int) -> None:
    data, [member] = pack([b"a line\n" * 100])
    with pytest.raises(Damaged):
        unpacked(member._replace(size=size), data[member.offset :], "here")


def test_common_tools_open_a_pack(tmp_path: Path) -> None:
    contents = [b"", b"x", b"a line\n" * 500, bytes(range(256)) * 3]
    data, members = pack(contents)
    assert {member.packing for member in members} == {"", "zstd"}
    (tmp_path / "a.tar").write_bytes(data)
    subprocess.run(["tar", "-xf", "a.tar"], cwd=tmp_path, check=True, timeout=60)
    packed = sorted(tmp_path.rglob("*.zst"))
    subprocess.run(["zstd", "-q", "-d", *packed], check=True, timeout=60)
    for one in contents:
        digest = hashlib.sha256(one).hexdigest()
        path = tmp_path / "objects" / digest[:2] / digest
        assert path.read_bytes() == one
    assert all(path.stat().st_mode & 0o777 == 0o400 for path in packed)
