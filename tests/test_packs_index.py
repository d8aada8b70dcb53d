"""Index files: any blobs round trip, and anything else is Damaged."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostbackup.errors import Damaged, VaultTooNew
from hostbackup.vault.packs import index as module
from hostbackup.vault.packs.catalog import Blob, Dropped
from hostbackup.vault.packs.index import Index, index_bytes, index_digest, index_name, index_number, parse_index, portions
from hostbackup.vault.packs.pack import KINDS, Member

DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)
SIZES = st.integers(0, (1 << 63) - 1)
MEMBERS = st.builds(Member, DIGESTS, SIZES, SIZES, SIZES, st.sampled_from(["", "zstd"]))
KEYS = DIGESTS.map(lambda digest: f"packs/{digest[:2]}/{digest}.tar")
TIMES = st.sampled_from(["", "20300101T000000Z"])
BLOBS = st.builds(Blob, KEYS, SIZES, DIGESTS, st.sampled_from(KINDS), st.sampled_from(["", "abc=-3"]), TIMES)
INDEXES = st.builds(
    Index, st.lists(st.tuples(BLOBS, st.lists(MEMBERS, max_size=4)), max_size=4), st.lists(st.builds(Dropped, KEYS, TIMES), max_size=3)
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2), max_leaves=5)


@given(INDEXES)
def test_an_index_round_trips(index: Index) -> None:
    assert parse_index(index_bytes(index), "here") == index


@given(INDEXES, st.data())
def test_damage_is_told_or_harmless_in_kind(index: Index, draw: st.DataObject) -> None:
    data = bytearray(index_bytes(index))
    for _ in range(draw.draw(st.integers(1, 3))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        found = parse_index(bytes(data), "here")
    except (Damaged, VaultTooNew):
        return
    assert all(member.size < 1 << 63 for _, members in found.rows for member in members)


@given(st.sampled_from(["key", "size", "sha256", "kind", "members", "checksum", "until", "dropped"]), JSON)
def test_values_of_the_wrong_kind_are_damage_or_taken(key: str, value: Any) -> None:
    blob: dict[str, Any] = {"key": "packs/x", "size": 1, "sha256": "a" * 64, "kind": "objects", "members": [["b" * 64, 0, 1, 1, ""]]}
    text = '{"type":"index","version":1}\n' + json.dumps(blob | {key: value}) + "\n"
    try:
        parse_index(text.encode(), "here")
    except Damaged as error:
        assert error.where == "here"


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b'{"type":"index"}', b'{"type":"index","version":"x"}', b"\xff", b"[" * 100_000, b'{"a":' * 100_000]
)
def test_what_is_no_index_is_damage(data: bytes) -> None:
    with pytest.raises(Damaged):
        parse_index(data, "here")


def test_an_index_of_a_newer_program_is_told() -> None:
    with pytest.raises(VaultTooNew):
        parse_index(b'{"type":"index","version":2}\n', "here")


def test_names_tell_number_and_digest() -> None:
    name = index_name(7, b"stored", ".age")
    assert (index_number(name), len(index_digest(name)), name.endswith(".jsonl.age")) == (7, 64, True)
    for other in ("x", "000001-abc.jsonl", name + "x"):
        assert (index_number(other), index_digest(other)) == (0, "")


def test_a_large_index_is_written_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEMBERS", 3)
    rows = [(Blob(f"packs/{number}", 1, "a" * 64, "objects"), [Member("b" * 64, 0, 1, 1)] * 2) for number in range(5)]
    assert [len(some) for some in portions(rows)] == [2, 2, 1]
    assert [row for some in portions(rows) for row in some] == rows
