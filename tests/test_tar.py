"""The tar format: what is written is read back, here and by the real tar; what is broken is said."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostbackup.protocols.tar import BLOCK, END, FILE, Archive, Member, TarBroken, header, padding

short_names = st.binary(min_size=1, max_size=100).filter(lambda name: b"\0" not in name)
contents = st.binary(max_size=2000)


def archive_of(files: dict[bytes, bytes], mtime: int = 5, mode: int = 0o640) -> bytes:
    return b"".join(header(name, len(data), mtime, mode) + data + padding(len(data)) for name, data in files.items()) + END


def chopped(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    at = 0
    for size in sizes:
        yield data[at : at + size]
        at += size
    yield data[at:]


def taken(archive: Archive) -> dict[Member, bytes]:
    return {member: b"".join(archive.pieces()) for member in archive}


@given(st.dictionaries(short_names, contents, max_size=8), st.lists(st.integers(0, 1500), max_size=20))
def test_what_is_written_is_read_back_however_it_is_chopped(files: dict[bytes, bytes], sizes: list[int]) -> None:
    archive = Archive(chopped(archive_of(files), sizes))
    assert taken(archive) == {Member(name, FILE, len(data), 5, 0o640): data for name, data in files.items()}
    assert archive.ended


@given(st.dictionaries(short_names, contents, min_size=1, max_size=5), st.data())
def test_an_archive_that_ends_early_is_never_taken_for_whole(files: dict[bytes, bytes], data: st.DataObject) -> None:
    whole = archive_of(files)
    cut = data.draw(st.integers(0, len(whole) - len(END)))
    archive = Archive([whole[:cut]])
    with pytest.raises(TarBroken):
        taken(archive)
    assert not archive.ended


@given(st.binary(min_size=BLOCK, max_size=3 * BLOCK))
def test_noise_is_no_archive(noise: bytes) -> None:
    if noise[:BLOCK] != bytes(BLOCK):
        with pytest.raises(TarBroken):
            taken(Archive([noise]))


@given(st.integers(0, BLOCK - 1), st.integers(1, 255))
def test_any_changed_byte_of_a_header_is_noticed(place: int, change: int) -> None:
    whole = bytearray(archive_of({b"name": b"data"}))
    whole[place] ^= change
    try:
        found = taken(Archive([bytes(whole)]))
    except TarBroken:
        return
    # The checksum's own digits may be written in more than one way.
    assert 148 <= place < 156
    assert found == {Member(b"name", FILE, 4, 5, 0o640): b"data"}


def test_contents_nobody_takes_are_passed_over() -> None:
    archive = Archive([archive_of({b"one": b"1" * 700, b"two": b"2"})])
    assert [member.name for member in archive] == [b"one", b"two"]


@pytest.mark.parametrize(("size", "mtime"), [(0, 0), (1, -1), (8 << 30, 1 << 33), ((1 << 40) + 7, -(1 << 40)), (63, (1 << 33) - 1)])
def test_numbers_of_any_size_are_exact(size: int, mtime: int) -> None:
    (member,) = list(_headers([header(b"f", size, mtime, 0o7777)]))
    assert (member.size, member.mtime, member.mode) == (size, mtime, 0o7777)
    told = tarfile.TarInfo.frombuf(header(b"f", size, mtime, 0o644), "utf-8", "strict")
    assert (told.size, told.mtime, told.mode) == (size, mtime, 0o644)


def _headers(blocks: list[bytes]) -> Iterator[Member]:
    archive = Archive(blocks)
    yield next(iter(archive))


def test_what_does_not_fit_is_refused() -> None:
    for name, size in ((b"", 0), (b"a" * 101, 0), (b"a", -1)):
        with pytest.raises(ValueError, match="fit"):
            header(name, size, 0, 0)


@pytest.mark.parametrize("style", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_archives_made_elsewhere_are_read(style: int) -> None:
    made = io.BytesIO()
    names = ["short", "d" * 90 + "/" + "f" * 90] + (["x" * 150 + "/" + "y" * 1000] if style == tarfile.GNU_FORMAT else [])
    with tarfile.open(fileobj=made, mode="w", format=style) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 3, 77
            tar.addfile(info, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "t" * 300 if style == tarfile.GNU_FORMAT else "t"
        tar.addfile(link)
    found = taken(Archive([made.getvalue()]))
    assert [member.name for member in found] == [*(name.encode() for name in names), b"link"]
    assert list(found.values()) == [b"abc"] * len(names) + [b""]
    assert [member.kind for member in found] == [FILE] * len(names) + [b"2"]


def test_headers_that_could_rename_what_follows_are_refused() -> None:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("x" * 150)
        tar.addfile(info)
    with pytest.raises(TarBroken, match="extended"):
        taken(Archive([made.getvalue()]))


def test_a_name_without_end_takes_no_memory() -> None:
    made = bytearray(header(b"././@LongLink", 1 << 40, 0, 0))
    made[156:157] = b"L"
    made[148:156] = b"%06o\0 " % (sum(made) - sum(made[148:156]) + 256)
    with pytest.raises(TarBroken, match="name"):
        taken(Archive([bytes(made)]))


def test_the_real_tar_takes_what_is_written(tmp_path: Path) -> None:
    made = archive_of({b"0": b"", b"1": b"x" * 513, b"2" * 100: b"long name"}, mtime=1_600_000_000, mode=0o604)
    subprocess.run(["tar", "-x", "-p", "-f", "-", "-C", str(tmp_path)], input=made, check=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"0": b"", "1": b"x" * 513, "2" * 100: b"long name"}
    assert {path.stat().st_mtime for path in tmp_path.iterdir()} == {1_600_000_000}
    assert {path.stat().st_mode & 0o7777 for path in tmp_path.iterdir()} == {0o604}


@given(
    st.dictionaries(short_names, contents, min_size=1, max_size=4),
    st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=12), st.integers(0, 600)), min_size=1, max_size=3),
)
def test_a_mangled_archive_is_refused_or_ends(files: dict[bytes, bytes], deeds: list[tuple[float, bytes, int]]) -> None:
    stream = archive_of(files)
    for where, put_in, left_out in deeds:
        place = int(where * len(stream))
        stream = stream[:place] + put_in + stream[place + left_out :]
    archive = Archive([stream])
    given_out = 0
    try:
        for member in archive:
            came = sum(len(piece) for piece in archive.pieces())
            assert came == member.size
            given_out += came
    except TarBroken:
        return
    assert archive.ended
    assert given_out <= len(stream)
