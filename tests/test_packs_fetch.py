"""Packs on their way: right bytes in any order by many threads, few held at a time."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostbackup.errors import Damaged
from hostbackup.vault import pool
from hostbackup.vault.packs.catalog import Blob, Found
from hostbackup.vault.packs.fetch import PackReader
from hostbackup.vault.packs.pack import Member


class Loads:
    """Packs of eight pieces of four bytes; counts what is asked for."""

    def __init__(self) -> None:
        self.whole: list[str] = []
        self.ranges = 0
        self._lock = threading.Lock()

    def __call__(self, blob: Blob, offset: int, size: int | None) -> bytes:
        with self._lock:
            if size is None:
                self.whole.append(blob.key)
            else:
                self.ranges += 1
        data = bytes([int(blob.key)]) * 32
        return data if size is None else data[offset : offset + size]


def found(pack: int, piece: int) -> Found:
    return Found(Blob(str(pack), 32, hashlib.sha256(b"").hexdigest(), "objects"), Member("a" * 64, 4 * piece, 4, 4))


@pytest.fixture
def loads() -> Iterator[Loads]:
    yield Loads()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 7)), max_size=80), st.booleans(), st.booleans())
def test_any_order_by_many_threads_gives_the_right_bytes(wanted: list[tuple[int, int]], whole_only: bool, expected: bool) -> None:
    reader = PackReader(Loads(), whole_only=whole_only)
    if expected:
        reader.expect(found(*one) for one in wanted)

    def read(one: tuple[int, int]) -> bool:
        return reader.piece(found(*one)) == bytes([one[0]]) * 4 and len(reader._held) <= 4

    assert all(pool.each(read, reversed(wanted), workers=8))
    reader.close()


def test_what_is_expected_comes_once_a_pack(loads: Loads) -> None:
    reader = PackReader(loads, whole_only=False)
    wanted = [found(pack, piece) for pack in range(10) for piece in range(8)]
    reader.expect(wanted)
    for one in wanted:
        reader.piece(one)
    reader.close()
    assert len(loads.whole) + loads.ranges == 10


def test_a_single_piece_comes_alone(loads: Loads) -> None:
    reader = PackReader(loads, whole_only=False)
    reader.expect([found(1, 0)])
    reader.piece(found(1, 0))
    reader.close()
    assert (loads.whole, loads.ranges) == ([], 1)


def test_a_pack_that_could_not_be_had_is_asked_for_again() -> None:
    left = [1]

    def load(_blob: Blob, _offset: int, _size: int | None) -> bytes:
        if left:
            left.pop()
            raise Damaged("cut")
        return bytes(32)

    reader = PackReader(load, whole_only=True)
    with pytest.raises(Damaged):
        reader.piece(found(1, 0))
    assert reader.piece(found(1, 0)) == bytes(4)
    reader.close()
