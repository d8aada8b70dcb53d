"""Mailbox names and UID sets on the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostbackup.protocols.imap import names, sets

_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(_TEXT)
def test_any_text_survives_modified_utf7(text: str) -> None:
    encoded = names.encode(text)
    assert names.decode(encoded) == text
    assert all(0x20 <= byte <= 0x7E for byte in encoded)


@given(st.binary(max_size=60))
def test_a_name_that_decodes_is_exactly_what_its_text_encodes_to(name: bytes) -> None:
    try:
        text = names.decode(name)
    except ValueError:
        return
    assert names.encode(text) == name


@given(st.binary(max_size=60))
def test_any_name_at_all_can_be_shown(name: bytes) -> None:
    names.display(name).encode("utf-8")


@pytest.mark.parametrize(
    ("wire", "text"),
    [
        (b"INBOX", "INBOX"),
        (b"&kAFP4W4IMH8wojCkMMYw4A-", "送信済みアイテム"),
        (b"&Tgtm+DBN-", "下書き"),
        (b"~peter/mail/&U,BTFw-/&ZeVnLIqe-", "~peter/mail/台北/日本語"),
        (b"R&-D", "R&D"),
        (b"&2D3eAA-", "\U0001f600"),
    ],
)
def test_known_names(wire: bytes, text: str) -> None:
    assert names.decode(wire) == text
    assert names.encode(text) == wire


@pytest.mark.parametrize("wire", [b"&Jjo!", b"&U,BTFw-&ZeVnLIqe-", b"&AGE-", b"&", b"&/w-", b"\xe9\x80\x81", b"&2AA-", b"a\x00b&"])
def test_names_that_are_not_canonical_are_refused_but_shown(wire: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        names.decode(wire)
    assert names.display(wire)


def test_raw_utf8_names_are_shown_as_what_they_mean() -> None:
    assert names.display("送信済み".encode()) == "送信済み"
    assert names.display(b"\xff&ZeVnLIqe-") == "\\xff日本語"


@given(st.binary())
def test_quoting_keeps_a_name_whole_or_leaves_it_to_a_literal(name: bytes) -> None:
    quoted = names.quote(name)
    if quoted is None:
        assert any(byte in b"\0\r\n" or byte > 127 for byte in name)
    else:
        assert b"\r" not in quoted
        assert b"\n" not in quoted
        inner = quoted[1:-1].replace(b"\\\\", b"\0").replace(b'\\"', b'"').replace(b"\0", b"\\")
        assert inner == name


@given(st.sets(st.integers(1, 2**32 - 1), min_size=1) | st.sets(st.integers(1, 50), min_size=1))
def test_a_uid_set_holds_exactly_its_uids(uids: set[int]) -> None:
    text = sets.compress(uids)
    assert sorted(sets.expand(text)) == sorted(uids)


def test_runs_become_ranges() -> None:
    assert sets.compress([3, 1, 2, 7, 9, 8, 7]) == b"1:3,7:9"
    assert len(sets.compress(range(1, 200_001))) < 10


@pytest.mark.parametrize("text", [b"", b"*", b"1:", b":2", b"1,,2", b"a", b"1:99999999999"])
def test_what_is_no_uid_set_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="UID set"):
        sets.expand(text)


def test_no_uids_make_no_set() -> None:
    with pytest.raises(ValueError, match="from 1"):
        sets.compress([])
    with pytest.raises(ValueError, match="from 1"):
        sets.compress([0, 1])
