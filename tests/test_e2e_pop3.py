"""A mailbox from a server that has POP3 alone to a new one with IMAP, by the real command line between real Dovecots."""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.dovecot import HOST, Dovecot, dovecot
from tests.support.mail_move import DATE, Hands, Move, digest, letter
from tests.support.pop3_script import FakePop3, Hangup, Talk, stuff

USERS = {f"u{number}@example.test": f"秘密 {number}" for number in range(20)}
Make = Callable[..., "PopMove"]
_next_user = itertools.count()


@dataclass
class PopMove(Move):
    """The old side is read over POP3."""

    keys: str = ""  # more of [old.pop3]
    port: int = 0  # of a scripted server, in the clear
    password: str = ""
    host: str = HOST

    def write(self) -> None:
        server = self.old.server
        where = (
            f'port = {self.port}\nsecurity = "plain"'
            if self.port
            else f"port = {server.ports['pop3s']}\nca_file = {json.dumps(str(server.authority))}"
        )
        password = json.dumps(self.password or server.users[self.old.user], ensure_ascii=False)
        new_password = json.dumps(self.new.server.users[self.new.user], ensure_ascii=False)
        text = f'''name = "move"
vault = "vault"

[old.pop3]
host = "{self.host}"
address = "127.0.0.1"
{where}
{self.keys}

[[old.pop3.account]]
user = {json.dumps(self.old.user)}
password = {password}
new_password = {new_password}

[new.imap]
{self._section(self.new)}'''
        path = self.folder / "move.toml"
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)


@pytest.fixture(scope="module")
def old() -> Iterator[Dovecot]:
    with dovecot(users=USERS, pop3=True) as server:
        yield server


@pytest.fixture(scope="module")
def new() -> Iterator[Dovecot]:
    with dovecot(users=USERS) as server:
        yield server


@pytest.fixture
def move(old: Dovecot, new: Dovecot, tmp_path: Path) -> Make:
    def make(**more: object) -> PopMove:
        user = f"u{next(_next_user)}@example.test"
        made = PopMove(tmp_path, Hands(old, user), Hands(new, user), **more)  # type: ignore[arg-type]
        made.write()
        return made

    return make


def received(number: int, when: str = "Wed, 01 Jul 2026 02:44:25 +0900") -> bytes:
    return f"Received: from a.example by mail.example.test; {when}\r\n".encode() + letter(number)


def retrieved(server: Dovecot, user: str, sessions: int) -> list[int]:
    """How many messages each session of a user retrieved, as the server logged it when it ended, once it has logged so many."""
    wanted = re.compile(rf"pop3\({re.escape(user)}\).*retr=(\d+)/\d+, del=(\d+)/")
    found: list[tuple[str, str]] = []
    while len(found) < sessions:
        found = wanted.findall(server.log_with("retr="))
    assert {deleted for _, deleted in found} == {"0"}
    return [int(count) for count, _ in found]


def backup_line(it: PopMove) -> dict[str, Any]:
    """What the newest backup left on record of the mailbox."""
    newest = max((it.vault / "evidence").glob("*-backup.jsonl"))
    [line] = [line for line in map(json.loads, newest.read_text().splitlines()) if line["type"] == "backup"]
    return dict(line)


def test_an_inbox_arrives_message_for_message(move: Make) -> None:
    it = move()
    contents = [received(1), received(2), received(2), letter(3), received(4).removesuffix(b"\r\n"), b"Subject: dots\r\n\r\n.\r\n..\r\n.x\r\n"]
    it.old.deliver((), *contents)
    it.old.make(("Sent",))
    it.old.deliver(("Sent",), letter(9))
    before = it.old.mail()

    ran = it.backup()
    assert ran.json["counts"]["read"] == len(contents)
    assert "old.pop3 mail.example.test: POP3, the inbox alone is seen and proven" in ran.err
    as_sent = [data if data.endswith(b"\r\n") else data + b"\r\n" for data in contents]
    assert sorted(record.digest for record in it.live()) == sorted(map(digest, as_sent))
    assert {record.item.uid: record.item.internaldate for record in it.live()} == {
        **dict.fromkeys((1, 2, 3, 5), "01-Jul-2026 02:44:25 +0900"),
        **dict.fromkeys((4, 6), ""),
    }

    it.old.deliver((), received(7))
    it.old.delete((), contents[0])
    assert it.backup().json["counts"]["read"] == 1
    again = it.backup().json["counts"]
    assert (again.get("read", 0), again["unchanged"]) == (0, len(contents))
    assert [record.item.uid for record in it.live()] == [2, 3, 4, 5, 6, 7]
    assert it.vanished() == {digest(contents[0]): 1}

    proven = it.verify("old")
    assert it.proven(proven, "old") == {"verified": len(contents)}
    assert [line["method"] for line in proven.json["proven"] if line["side"] == "old"] == ["pop3-retr"]
    assert retrieved(it.old.server, it.old.user, 4) == [6, 1, 0, 6]

    assert it.push().json["counts"]["written"] == len(contents)
    assert it.proven(it.verify("new"), "new") == {"verified": len(contents)}
    there = it.new.mail()[()]
    assert sorted(seen[0] for seen in there.elements()) == sorted(map(digest, [*as_sent[1:], received(7)]))
    assert {when for found, _, when in there if found in map(digest, (received(2), received(7)))} == {DATE}
    assert it.push().json["counts"].get("written", 0) == 0

    after = it.old.mail()
    assert after[("Sent",)] == before[("Sent",)]
    assert {flags for _, flags, _ in after[()]} == {()}, "nothing was marked as read"

    it.run("restore", "--to", str(it.folder / "out"), "--format", "eml")
    assert sorted(digest(path.read_bytes()) for path in (it.folder / "out").rglob("*.eml")) == sorted(record.digest for record in it.live())


def test_check_shows_what_there_is_and_what_pop3_cannot_show(move: Make) -> None:
    it = move()
    it.old.deliver((), letter(1), letter(2))
    ran = it.run("check")
    [row] = [row for row in ran.json["mailboxes"] if row["section"] == "old.pop3"]
    assert (row["user"], row["folders"], row["messages"], row["bytes"]) == (it.old.user, 1, 2, len(letter(1)) + len(letter(2)))
    assert {"UIDL", "PIPELINING"} <= set(row["capabilities"])
    assert "no sent mail, drafts and folders" in ran.err
    assert retrieved(it.old.server, it.old.user, 1) == [0]


def test_the_weakness_is_on_record(move: Make) -> None:
    it = move()
    it.old.deliver((), letter(1))
    it.backup()
    [path] = (it.vault / "evidence").glob("*-backup.jsonl")
    lines = list(map(json.loads, path.read_text().splitlines()))
    assert [line["folders"] for line in lines if line["type"] == "backup"] == [[{"name": "INBOX", "exists": 1, "stored": 1}]]
    weaker = [line for line in lines if line["type"] == "weaker-setting"]
    assert [(line["section"], line["setting"]) for line in weaker] == [("old.pop3 mail.example.test", "POP3")]


def test_what_changed_at_the_old_server_is_told_by_verify(move: Make) -> None:
    it = move()
    it.old.deliver((), letter(1), letter(2))
    it.backup()
    it.old.delete((), letter(1))
    it.old.deliver((), letter(3))
    assert it.proven(it.verify("old", exit=3), "old") == {"verified": 1, "changed-since": 2}


def test_a_backup_that_was_cut_off_goes_on_where_it_was(move: Make) -> None:
    """Between the two runs a message goes, so that the numbers of the first one are given to others."""
    with FakePop3(capabilities=b"UIDL").running() as server:
        contents = [received(n) for n in range(8)]
        server.put(*contents)
        reached = threading.Event()

        def stall(talk: Talk, verb: bytes, rest: bytes) -> bool:
            if verb == b"RETR" and int(rest) > 5:
                reached.set()
                talk.file.read()  # until the client goes
                raise Hangup
            return False

        server.hook = stall
        it = move(port=server.port, password="secret", host="localhost")
        running = it.start("backup")
        assert reached.wait(60)
        running.terminate()
        running.communicate(timeout=60)
        assert running.returncode == 130
        del server.messages[0]
        server.hook = lambda talk, verb, rest: False
        counts = it.backup().json["counts"]
        assert counts["new"] == 7
        assert [record.digest for record in it.live()] == [digest(data) for data in contents[1:]]
        assert {record.item.internaldate for record in it.live()} == {"01-Jul-2026 02:44:25 +0900"}


def test_what_came_before_a_backup_was_cut_off_is_not_fetched_again(move: Make) -> None:
    with FakePop3(capabilities=b"UIDL").running() as server:
        contents = [received(n) for n in range(8)]
        server.put(*contents)
        reached = threading.Event()

        def stall(talk: Talk, verb: bytes, rest: bytes) -> bool:
            if verb == b"RETR" and int(rest) > 5:
                reached.set()
                talk.file.read()
                raise Hangup
            return False

        server.hook = stall
        it = move(port=server.port, password="secret", host="localhost")
        running = it.start("backup")
        assert reached.wait(60)
        running.terminate()
        running.communicate(timeout=60)
        server.hook = lambda talk, verb, rest: False
        counts = it.backup().json["counts"]
        assert counts["resumed"] > 0
        assert counts["resumed"] + counts["read"] == 8
        assert [record.digest for record in it.live()] == [digest(data) for data in contents]
        assert {record.item.internaldate for record in it.live()} == {"01-Jul-2026 02:44:25 +0900"}


def test_a_server_that_would_delete_is_left_alone(move: Make) -> None:
    with FakePop3(capabilities=b"UIDL PIPELINING EXPIRE_0").running() as server:
        server.put(letter(1))
        it = move(port=server.port, password="secret", host="localhost")
        assert "allow_expire_0 = true" in it.run("check", exit=3).reasons
        assert "EXPIRE 0" in it.backup(exit=1).reasons
        assert server.count(b"RETR") == 0
        it.keys = "allow_expire_0 = true"
        it.write()
        ran = it.backup()
        assert ran.json["counts"]["read"] == 1
        assert "allow_expire_0 = true, a server that deletes" in ran.err
        assert "plain POP3, passwords and mail cross the network unencrypted" in ran.err
        assert server.count(b"DELE") == server.count(b"QUIT") == 0


def test_a_message_that_stays_short_is_brought_once_the_server_gives_all_of_it(move: Make) -> None:
    with FakePop3().running() as server:
        server.put(received(1), received(2), received(3))
        whole = [one.data for one in server.messages]

        def cut(talk: Talk, verb: bytes, rest: bytes) -> bool:
            if (verb, rest) == (b"RETR", b"2"):
                talk.send(b"+OK\r\n" + stuff(whole[1][:-80]))
                return True
            return False

        server.hook = cut
        it = move(port=server.port, password="secret", host="localhost")
        ran = it.backup()
        assert "1 message is shorter than the server says" in ran.err
        [row] = backup_line(it)["folders"]
        assert row == {"name": "INBOX", "exists": 3, "stored": 3, "shorter": 1}
        assert it.proven(it.verify("old"), "old") == {"verified": 3}, "the server has no other"

        server.hook = lambda talk, verb, rest: False
        assert it.backup().json["counts"].get("read", 0) == 0
        assert it.proven(it.verify("old", exit=4), "old") == {"verified": 2, "different": 1}
        counts = it.backup().json["counts"]
        assert (counts["read"], counts["vanished"], counts["unchanged"]) == (1, 1, 2)
        assert [record.digest for record in it.live()] == [digest(whole[0]), digest(whole[2]), digest(whole[1])]
        assert it.proven(it.verify("old"), "old") == {"verified": 3}
        before = server.count(b"RETR")
        it.backup()
        assert server.count(b"RETR") == before, "nothing is doubted any more"


def test_a_uidl_that_is_given_again_brings_the_new_message_too(move: Make) -> None:
    with FakePop3().running() as server:
        server.put(received(1), received(2))
        it = move(port=server.port, password="secret", host="localhost")
        it.backup()
        server.messages[0] = replace(server.messages[0], data=received(5))
        assert it.backup().json["counts"]["read"] == 1
        body = received(5)[:-7] + b"12345\r\n"
        server.messages[0] = replace(server.messages[0], data=body)
        assert it.backup().json["counts"].get("read", 0) == 0, "with the same header it is not noticed"
        assert it.backup("--checksum").json["counts"]["read"] == 1
        assert [record.digest for record in it.live()] == [digest(received(2)), digest(body)]
        assert it.vanished() == {digest(received(1)): 1, digest(received(5)): 1}
        assert it.proven(it.verify("old"), "old") == {"verified": 2}


def test_a_refused_login_is_told_in_words_and_tried_once(move: Make) -> None:
    with FakePop3().running() as server:
        it = move(port=server.port, password="wrong", host="localhost")
        ran = it.backup(exit=1)
        assert "check the user name" in ran.reasons
        assert server.count(b"PASS") == 1
