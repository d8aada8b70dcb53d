"""Names of exported mail: readable, in the order of arrival, and harmless wherever they are carried."""

from __future__ import annotations

import re
from email.header import Header

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hostbackup.jobs.restore_names import Names, Taken, decode
from hostbackup.jobs.restore_titles import FolderNames, component, message_file, title
from hostbackup.model import Message

ILLEGAL = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')
DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


def head(subject: bytes) -> bytes:
    return b"From: a@example.test\r\nSubject: " + subject + b"\r\nTo: b@example.test\r\n\r\nSubject: not this\r\n"


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"plain", "plain"),
        (b'Re: 1/2 <x> \\ "y" | ? *', "Re_ 1_2 _x_ _ _y_ _ _ _"),
        (Header("見積書の件", "iso-2022-jp").encode().encode(), "見積書の件"),
        (b"=?UTF-8?B?6KaL56mN?=\r\n =?UTF-8?B?5pu4?= and more", "見積書 and more"),
        (b"folded\r\n\tline", "folded line"),
        ("生の UTF-8".encode(), "生の UTF-8"),
        ("生の SJIS".encode("cp932"), "生の SJIS"),
        ("生の JIS".encode("iso-2022-jp"), "生の JIS"),
        (b"caf\xe9 \xff\xfe", "caf\xe9 \xff\xfe"),
        (b"=?no-such?B?eA==?=", "=_no-such_B_eA==_="),
        (b"=?UTF-8?B?broken", "=_UTF-8_B_broken"),
        ("evil\u202egnp.exe \u200b\u0007".encode(), "evil gnp.exe"),
        (b"", ""),
        (b"x" * 500, "x" * 60),
        ("見".encode() * 500, "見" * 50),
    ],
)
def test_subjects(raw: bytes, shown: str) -> None:
    assert title(head(raw)) == shown


def test_only_the_header_has_a_subject() -> None:
    assert title(b"From: x\n\nSubject: body") == ""
    assert title(b"") == ""
    assert title(b"subject:no space") == "no space"


@given(st.binary(max_size=300), st.integers(1, 2**32 - 1), st.text(max_size=30))
@example(b" .", 1, " 1-Jul-2026 02:44:25 +0900")
def test_every_name_is_one_harmless_component_of_a_bounded_length(subject: bytes, uid: int, date: str) -> None:
    name = message_file(Message(b"INBOX", 7, uid, internaldate=date), head(subject), uidvalidity=7)
    text = name.decode()
    assert not ILLEGAL.search(text) and not DEVICE.match(text) and not text.startswith((".", " "))
    assert len(name) <= 200 and text.endswith(f"({uid}).eml")
    assert Names(windows=True, utf8=True).fit(re.sub(rb"%", b"", name)) == re.sub(rb"%", b"", name)


@pytest.mark.parametrize(
    ("date", "begins"),
    [
        (" 1-Jul-2026 02:44:25 +0900", "2026-07-01 0244 x (5)"),
        ("31-Dec-1969 23:59:59 -1200", "1969-12-31 2359 x (5)"),
        ("31-Jun-2026 00:00:00 +0000", "undated x (5)"),
        ("", "undated x (5)"),
    ],
)
def test_dates_are_by_the_servers_clock(date: str, begins: str) -> None:
    assert message_file(Message(b"INBOX", 7, 5, internaldate=date), head(b"x"), uidvalidity=7) == begins.encode() + b".eml"


def test_a_message_of_an_earlier_numbering_says_so() -> None:
    assert message_file(Message(b"INBOX", 6, 5), b"", uidvalidity=7) == b"undated (6-5).eml"


@pytest.mark.parametrize(
    ("wire", "name"),
    [
        (b"&kAFP4W4IMH8-", "送信済み"),
        (b"a/b", "a%2Fb"),
        (b".hidden", "%2Ehidden"),
        (b"#1", "%231"),
        (b"backup~", "backup%7E"),
        (b"x.msf", "x.ms%66"),
        (b"Old.sbd", "Old.sb%64"),
        (b"rules.dat", "rules.da%74"),
        (b"what?", "what%3F"),
        (b"CON", "%43ON"),
        (b"end.", "end%2E"),
        (b"50%25", "50%2525"),
        (b"", "%"),
    ],
)
def test_folders(wire: bytes, name: str) -> None:
    made = FolderNames.on(Names()).fit(component(wire))
    assert made.decode() == name
    assert decode(made) == component(wire)


def test_folders_that_differ_in_case_alone_are_kept_apart() -> None:
    taken = Taken(FolderNames.on(Names()))
    names = [taken.claim(name) for name in (b"Work", b"work", b"WORK")]
    assert len({name.lower() for name in names}) == 3
    assert [decode(name) for name in names] == [b"Work", b"work", b"WORK"]
