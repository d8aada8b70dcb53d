"""The layout of latest/ and of a restore: pure functions."""

from __future__ import annotations

import base64
import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostbackup.model import Folder, Message, Part, Stored
from hostbackup.protocols.imap import names as names_of_mail
from hostbackup.vault import layout

COMPONENT = st.binary(min_size=0, max_size=12)
NAME = st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name)


@given(COMPONENT)
def test_a_folder_component_survives_its_escape(component: bytes) -> None:
    escaped = layout.escape_component(component)
    assert layout.unescape_component(escaped) == component
    assert escaped
    assert not set(escaped) & set(b"./")
    assert all(32 <= byte != 127 for byte in escaped)


@given(st.lists(COMPONENT, min_size=1, max_size=4, unique=True))
def test_two_components_never_share_an_escape(components: list[bytes]) -> None:
    assert len({layout.escape_component(component) for component in components}) == len(components)


@pytest.mark.parametrize(
    ("name", "separator", "prefix", "expected"),
    [
        (b"INBOX", b".", b"INBOX.", b""),
        (b"inbox", b"/", b"", b""),
        (b"INBOX.Sent", b".", b"INBOX.", b".Sent"),
        (b"INBOX.A.B", b".", b"INBOX.", b".A.B"),
        (b"A/B", b"/", b"", b".A.B"),
        (b"INBOX/Sub", b"/", b"", b".INBOX.Sub"),
        (b"a.b/c", b"/", b"", b".a\\2eb.c"),
        (b"a\\b", b".", b"", b".a\\5cb"),
        (b"../..", b"/", b"", b".\\2e\\2e.\\2e\\2e"),
        (b"a//b", b"/", b"", b".a.\\.b"),
        (b"x\ny", b".", b"", b".x\\0ay"),
        (b"flat/name", b"", b"", b".flat\\2fname"),
        (b"INBOX.&U,BTFw-", b".", b"INBOX.", b".&U,BTFw-"),
        (b"Shared.INBOX", b".", b"INBOX.", b".Shared.INBOX"),
    ],
)
def test_a_mail_folder_has_its_maildir_name(name: bytes, separator: bytes, prefix: bytes, expected: bytes) -> None:
    assert layout.folder_name(Folder(name, separator), prefix) == expected


@given(st.lists(st.tuples(st.binary(max_size=8), st.sampled_from([b"", b".", b"/"])), unique_by=lambda pair: pair[0], max_size=12))
def test_no_two_folders_of_a_mailbox_share_a_maildir_name(pairs: list[tuple[bytes, bytes]]) -> None:
    folders = [Folder(name, separator) for name, separator in pairs]
    names = layout.folder_names(folders, b"a.")
    assert len({name.lower() for name in names.values()}) == len(folders)
    assert names == layout.folder_names(list(reversed(folders)), b"a.")
    assert all(b"/" not in name and name not in (b".", b"..") for name in names.values())


@pytest.mark.parametrize("part", ["x", "長", "&", "😀", "a長", ".", "長/", "\\"])
def test_a_name_too_long_for_a_file_system_is_cut_between_characters(part: str) -> None:
    for count in range(1, 300, 7):
        folders = [Folder(names_of_mail.encode(part * count + end), b"/") for end in ("甲", "乙")]
        one, two = layout.folder_names(folders).values()
        assert one != two
        if len(layout.folder_name(folders[0])) > 255:
            assert max(len(one), len(two)) < 250
            kept, _, digest = one.rpartition(b"\\~")
            assert len(digest) == 8
            text = ".".join(names_of_mail.decode(layout.unescape_component(level)) for level in kept.removeprefix(b".").split(b"."))
            assert (part * count).replace("/", ".").startswith(text)


def test_folders_that_would_meet_are_told_apart_and_inbox_keeps_its_place() -> None:
    folders = [Folder(b"INBOX.Sent", b"."), Folder(b"Sent", b"."), Folder(b"sent", b"."), Folder(b"INBOX", b".")]
    names = layout.folder_names(folders, b"INBOX.")
    assert names == {b"INBOX": b"", b"INBOX.Sent": b".Sent", b"Sent": b".Sent\\~2", b"sent": b".sent\\~3"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" 1-Jul-2026 02:44:25 +0900", datetime.datetime(2026, 6, 30, 17, 44, 25, tzinfo=datetime.UTC)),
        ("01-jan-1970 00:00:00 +0000", datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)),
        ("31-Jun-2026 00:00:00 +0000", datetime.datetime(2026, 7, 1, tzinfo=datetime.UTC)),
        ("29-Feb-2028 12:00:00 -0330", datetime.datetime(2028, 2, 29, 15, 30, tzinfo=datetime.UTC)),
        ("31-Dec-1969 23:59:59 +0000", datetime.datetime(1969, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)),
        ("10-Oct-1899 00:00:00 +0000", datetime.datetime(1899, 10, 10, tzinfo=datetime.UTC)),
        ("5-May-2020 1:02:03", datetime.datetime(2020, 5, 5, 1, 2, 3, tzinfo=datetime.UTC)),
    ],
)
def test_an_internaldate_is_an_instant(text: str, expected: datetime.datetime) -> None:
    assert layout.internaldate_epoch(text) == int((expected - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)).total_seconds())


@given(st.one_of(st.text(max_size=40), st.just(" 1-Foo-2026 02:44:25 +0900"), st.just("00-Jan-0000 00:00:00 +0000")))
def test_what_is_no_date_does_no_harm(text: str) -> None:
    assert layout.internaldate_epoch(text) is None or isinstance(layout.internaldate_epoch(text), int)
    assert isinstance(layout.message_mtime_ns(Stored(Message(b"INBOX", 1, 1, 0, text))), int)


def stored(*flags: str, date: str = " 1-Jul-2026 02:44:25 +0900") -> Stored[Message]:
    return Stored(Message(b"INBOX", 77, 5, 3, date, flags), "ab" * 32, 3)


def test_a_message_has_its_maildir_name() -> None:
    keywords = layout.Keywords()
    flags = ("\\Seen", "\\Answered", "\\Flagged", "\\Deleted", "\\Draft", "$Forwarded", "$Label1", "Junk", "\\Recent")
    assert layout.message_name(stored(*flags), keywords) == b"1782841465.V77U5.abababababab:2,DFPRSTabc"
    assert layout.message_name(stored("Junk"), keywords, ";") == b"1782841465.V77U5.abababababab;2,c"
    assert layout.message_name(stored(date="nonsense"), keywords) == b"0.V77U5.abababababab:2,"
    assert layout.message_name(stored(date="10-Oct-1950 00:00:00 +0000"), keywords) == b"0.V77U5.abababababab:2,"
    assert keywords.file() == b"0 $Forwarded\n1 $Label1\n2 Junk\n"


def test_the_27th_keyword_stands_in_no_file_name() -> None:
    keywords = layout.Keywords()
    flags = tuple(f"key{number:02d}" for number in range(30))
    assert layout.message_name(stored(*flags), keywords).endswith(b":2,abcdefghijklmnopqrstuvwxyz")
    assert len(keywords.file().splitlines()) == 26


@given(st.lists(st.text(min_size=1, max_size=8), max_size=40))
def test_no_flag_leads_out_of_a_name(flags: list[str]) -> None:
    keywords = layout.Keywords()
    name = layout.message_name(stored(*flags), keywords)
    assert b"/" not in name
    assert set(name.partition(b":2,")[2]) <= set(b"DFPRSTabcdefghijklmnopqrstuvwxyz")
    for number, line in enumerate(keywords.file().split(b"\n")[:-1]):
        assert line.split(b" ")[0] == b"%d" % number
        assert len(line.split(b" ")) == 2


def test_subscriptions_are_listed_as_maildir_folders() -> None:
    folders = [Folder(b"INBOX", b".", subscribed=True), Folder(b"INBOX.A.B", b".", subscribed=True), Folder(b"INBOX.C", b".")]
    names = layout.folder_names(folders, b"INBOX.")
    assert layout.subscriptions_file(folders, names) == b"A.B\nINBOX\n"


@given(NAME.filter(lambda name: b"/" not in name))
def test_a_line_of_sums_survives(name: bytes) -> None:
    line = layout.sums_line("0" * 64, name)
    assert line.count(b"\n") == 1
    assert b"\r" not in line
    assert layout.parse_sums_line(line) == ("0" * 64, name)


def test_lines_of_sums_are_as_gnu_writes_them() -> None:
    assert layout.sums_line("0" * 64, b"a b") == b"0" * 64 + b"  a b\n"
    assert layout.sums_line("0" * 64, b"a\\b\nc\rd") == b"\\" + b"0" * 64 + b"  a\\\\b\\nc\\rd\n"


def test_a_part_is_two_folders() -> None:
    assert layout.part_path(Part("mail", "taro@example.jp")) == (b"mail", b"taro@example.jp")
    assert layout.part_path(Part("web", "../../etc")) == (b"web", b"%2E.%2F..%2Fetc")


@given(st.binary(max_size=10), st.binary(max_size=2))
def test_the_prefix_of_a_namespace_survives_the_manifest(prefix: bytes, separator: bytes) -> None:
    meta = layout.mail_meta("taro", prefix, separator)
    assert layout.mail_prefix(meta) == prefix
    assert meta["user"] == "taro"
    assert layout.mail_prefix({"prefix_b64": base64.b64encode(prefix).decode()}) == prefix
    assert layout.mail_prefix({}) == b""


@pytest.mark.parametrize(
    ("text", "day"),
    [
        (" 1-Jul-2026 02:44:25 +0900", datetime.date(2026, 7, 1)),  # still June in UTC
        ("30-Jun-2026 20:00:00 -0700", datetime.date(2026, 6, 30)),  # July in UTC
        ("31-Feb-2026 10:00:00 +0000", datetime.date(2026, 3, 3)),
        ("31-Dec-9999 23:59:59 -1200", datetime.date(9999, 12, 31)),
        ("yesterday", None),
    ],
)
def test_the_day_of_a_message_is_the_one_that_is_written(text: str, day: datetime.date | None) -> None:
    assert layout.internaldate_day(text) == day
