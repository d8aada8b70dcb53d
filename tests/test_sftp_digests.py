"""Digests of the vault's own bytes, as servers compute theirs."""

from __future__ import annotations

import hashlib
import io
import subprocess
import zlib
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostbackup.errors import Damaged
from hostbackup.places.digests import Cksum, Crc32, local


@given(st.lists(st.binary(max_size=2000), max_size=5))
@settings(max_examples=40, deadline=None)
def test_cksum_is_what_the_systems_cksum_prints(parts: list[bytes]) -> None:
    ours = Cksum()
    for part in parts:
        ours.update(part)
    told = subprocess.run(["cksum"], input=b"".join(parts), capture_output=True, check=True).stdout
    assert ours.hexdigest() == told.decode().strip()


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65536, 1 << 24])
def test_cksum_counts_lengths_of_any_size(size: int) -> None:
    ours = Cksum()
    ours.update(b"x" * size)
    told = subprocess.run(["cksum"], input=b"x" * size, capture_output=True, check=True).stdout
    assert ours.hexdigest() == told.decode().strip()


def test_crc32_is_eight_digits_of_the_usual_crc() -> None:
    ours = Crc32()
    for part in (b"one", b"two"):
        ours.update(part)
    assert ours.hexdigest() == f"{zlib.crc32(b'onetwo'):08x}"
    assert Crc32().hexdigest() == "00000000"


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 20, 25])
def test_there_is_one_digest_a_block_and_one_of_nothing(size: int) -> None:
    data = bytes(range(size))
    blocks = [data[at : at + 10] for at in range(0, size, 10)] or [b""]
    found = local(lambda _: io.BytesIO(data), hashlib.sha256(data).hexdigest(), "sha256", block=10)
    assert found == tuple(hashlib.sha256(block).hexdigest() for block in blocks)
    assert local(lambda _: io.BytesIO(data), hashlib.sha256(data).hexdigest(), "md5") == (hashlib.md5(data).hexdigest(),)


def test_damaged_or_missing_bytes_of_the_vault_prove_nothing() -> None:
    def missing(_: str) -> BinaryIO:
        raise Damaged("the object is gone")

    digest = hashlib.sha256(b"good").hexdigest()
    assert local(lambda _: io.BytesIO(b"good"), digest, "sha1") is not None
    assert local(lambda _: io.BytesIO(b"evil"), digest, "sha1") is None
    assert local(missing, digest, "sha1") is None
