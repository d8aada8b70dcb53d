"""Mailboxes from and to a server of another make, Cyrus, by the real command line: what it names, refuses and answers otherwise than Dovecot."""

from __future__ import annotations

import datetime
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.cyrus import Cyrus, cyrus
from tests.support.dovecot import Dovecot, dovecot
from tests.support.imap_script import FakeBox, FakeImap
from tests.support.mail_move import Hands, Move, Path_, digest, good, letter, utf7
from tests.support.mail_server import INBOX_DOT, PLAIN_SLASH, MailServer
from tests.support.samples import make_mailbox

USERS = {f"u{number}@example.test": f"秘密 {number}" for number in range(20)}
Make = Callable[[MailServer, MailServer], Move]
SENT: dict[Path_, Path_] = {("送信済みアイテム",): ("Sent",)}
_next_user = itertools.count()


@pytest.fixture(scope="module")
def dotted() -> Iterator[Cyrus]:
    """Folders below INBOX, separated by dots."""
    with cyrus(INBOX_DOT, users=USERS) as server:
        yield server


@pytest.fixture(scope="module")
def slashed() -> Iterator[Dovecot]:
    with dovecot(PLAIN_SLASH, users=USERS) as server:
        yield server


@pytest.fixture
def move(tmp_path: Path) -> Make:
    def make(old: MailServer, new: MailServer) -> Move:
        user = f"u{next(_next_user)}@example.test"
        made = Move(tmp_path, Hands(old, user), Hands(new, user), mail={"送信済みアイテム": "Sent"})
        made.write()
        return made

    return make


def office(hands: Hands) -> int:
    """A mailbox as a Japanese office has it, with two equal messages in one folder; tells how many messages."""
    paths: list[Path_] = [("送信済みアイテム",), ("下書き",), ("取引先",), ("取引先", "株式会社みどり"), ("取引先", "A&B 商会")]
    paths += [("2025年度",), ("2025年度", "4月")]
    hands.make(*paths, subscribe=True)
    hands.make(("空のフォルダ",), ("Trash",))
    hands.deliver_all(make_mailbox(hands.user, 42))
    hands.deliver(("取引先",), letter(1), letter(1), flags=("\\Flagged", "$Forwarded"))
    hands.deliver((), letter(2), date=datetime.datetime(1999, 12, 31, 23, 59, 59, tzinfo=datetime.timezone(-datetime.timedelta(hours=9, minutes=30))))
    return sum(count.total() for count in hands.mail().values())


def test_a_cyrus_is_left_message_for_message(move: Make, dotted: Cyrus, slashed: Dovecot) -> None:
    it = move(dotted, slashed)
    count = office(it.old)
    before, subscribed = it.old.mail(), it.old.subscribed()
    assert it.backup().json["counts"]["read"] == count
    assert it.proven(it.verify("old"), "old") == {"verified": count}
    assert it.push().json["counts"]["written"] == count
    assert it.new.mail() == {SENT.get(path, path): found for path, found in before.items()}
    assert it.old.mail() == before
    assert it.old.subscribed() == subscribed
    # A second run reads nothing but what came, follows flags, and keeps what went.
    it.old.deliver(("取引先", "A&B 商会"), letter(7))
    it.old.store(("取引先",), letter(1), "+FLAGS", r"\Seen")
    it.old.delete((), letter(2))
    assert it.backup().json["counts"]["read"] == 1
    assert it.vanished() == Counter([digest(letter(2))])
    assert sum("\\Seen" in record.item.flags for record in it.live() if record.digest == digest(letter(1))) == 1


def test_a_cyrus_takes_a_whole_mailbox_and_what_still_arrives(move: Make, dotted: Cyrus, slashed: Dovecot) -> None:
    it = move(slashed, dotted)
    taken(it)
    # Users are at work there already: what they did stays as it is.
    it.old.deliver(("取引先", "株式会社みどり"), letter(7))
    it.new.delete(("取引先",), letter(1))
    it.new.move((), letter(2), ("Sent",))
    it.backup()
    assert it.push().json["counts"]["written"] == 1
    found = it.new.digests()
    assert (found["取引先",][digest(letter(1))], found["取引先", "株式会社みどり"][digest(letter(7))]) == (1, 1)
    assert (found[()][digest(letter(2))], found["Sent",][digest(letter(2))]) == (0, 1)


def test_a_cyrus_with_slashes_and_no_prefix_takes_the_same(move: Make, slashed: Dovecot) -> None:
    with cyrus(PLAIN_SLASH, users=USERS) as server:
        taken(move(slashed, server))


def taken(it: Move) -> None:
    """Fills the old server and brings all of it to the new one, a Cyrus."""
    count = office(it.old)
    before = it.old.mail()
    it.backup()
    assert it.push().json["counts"]["written"] == count
    assert it.proven(it.verify("new"), "new") == {"verified": count}
    assert it.new.mail() == {SENT.get(path, path): found for path, found in before.items()}
    with it.new.imap() as imap:  # a plain LIST does not tell it
        good(imap.xatom("LIST", '""', it.new.wire(("Sent",)), "RETURN (SPECIAL-USE)"))
        assert rb"\Sent" in imap.response("LIST")[1][0]


def test_what_cyrus_refuses_is_listed_and_the_rest_is_there(move: Make, dotted: Cyrus) -> None:
    """It takes no bare line feed and no message without a header, and NUL only as binary data; the old server here has them all."""
    refused = {4: b"Subject: bare\r\n\r\nline one\nline two\r\n", 5: b"no header at all\r\n"}
    taken = {
        1: letter(1),
        2: b"Subject: with NUL\r\n\r\nbefore\0after\r\n",
        3: b"Subject: long\r\n\r\n" + b"y" * 20_000 + b"\r\n",
        6: b"Subject: =?bad\x82\xa0\r\n\r\n\x82\xa0\r\n",
        7: letter(7),
    }
    with FakeImap({b"INBOX": FakeBox({**refused, **taken})}).running() as old:
        it = move(dotted, dotted)
        it.security, it.old_port = "plain", old.port
        it.write()
        assert it.backup().json["counts"]["read"] == 7
        told = {failure["name"]: failure["reason"] for failure in it.push(exit=3).json["failures"]}
        assert sorted(told) == ["INBOX UID 4", "INBOX UID 5"]
        assert "bare newlines" in told["INBOX UID 4"]
        assert "invalid header" in told["INBOX UID 5"]
        assert it.new.digests() == {(): Counter(map(digest, taken.values()))}
        again = it.push(exit=3)
        assert again.json["counts"].get("written", 0) == 0
        assert it.new.count() == len(taken)
        assert it.proven(it.verify("new", exit=3), "new")["verified"] == len(taken)


def test_headers_that_cyrus_rewrites_are_told_once_and_no_message_is_sent_twice(move: Make, slashed: Dovecot) -> None:
    with cyrus(INBOX_DOT, users=USERS, munges=True) as server:
        it = move(slashed, server)
        plain = b"Subject: plain\r\n\r\n8 bit in the body stays: \xe3\x81\x82\r\n"
        it.old.deliver((), letter(1), plain)
        it.backup()
        [failure] = it.push(exit=3).json["failures"]
        assert failure["code"] == "rewritten"
        assert "changed or left out: From, Subject" in failure["reason"]
        assert it.push(exit=3).json["counts"].get("written", 0) == 0
        assert it.new.count() == 2
        assert it.new.digests()[()][digest(plain)] == 1
        assert it.proven(it.verify("new", exit=3), "new")["verified"] == 1


def test_a_folder_that_may_only_be_read_is_taken_and_one_that_may_not_is_told(move: Make, dotted: Cyrus, slashed: Dovecot) -> None:
    it = move(dotted, slashed)
    it.old.make(("共有",), ("秘密",))
    it.old.deliver(("共有",), letter(1), letter(2))
    it.old.deliver(("秘密",), letter(3))
    it.old.deliver((), letter(4))
    with it.old.imap() as imap:
        good(imap.setacl(it.old.wire(("共有",)), it.old.user, "lra"))
        good(imap.setacl(it.old.wire(("秘密",)), it.old.user, "la"))
    ran = it.backup(exit=3)
    assert ran.json["counts"]["read"] == 3
    [failure] = ran.json["failures"]
    assert failure["name"] in ("秘密", dotted.name(utf7("秘密")).decode())
    assert Counter(record.digest for record in it.live()) == Counter(map(digest, (letter(1), letter(2), letter(4))))
