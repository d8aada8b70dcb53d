"""Proof of mail by the real command line: servers that rewrite what they are given, and the weeks in which both servers are in use."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Ran, hostbackup
from tests.support.dovecot import INBOX_DOT, PLAIN_SLASH, Dovecot, dovecot
from tests.support.imap_script import FakeBox, FakeImap
from tests.support.json_doc import undocumented
from tests.support.mail_move import Hands, Move, digest, good, letter

USERS = {f"u{number}@example.test": "secret" for number in range(10)}
LETTERS = [letter(number) for number in range(4)]
_next_user = itertools.count()


@pytest.fixture(scope="module")
def old() -> Iterator[Dovecot]:
    with dovecot(INBOX_DOT, users=USERS) as server:
        yield server


@pytest.fixture(scope="module")
def new() -> Iterator[Dovecot]:
    with dovecot(PLAIN_SLASH, users=USERS) as server:
        yield server


@pytest.fixture
def move(old: Dovecot, new: Dovecot, tmp_path: Path) -> Move:
    user = f"u{next(_next_user)}@example.test"
    made = Move(tmp_path, Hands(old, user), Hands(new, user), security="plain")
    made.write()
    with (tmp_path / "move.toml").open("a", encoding="utf-8") as profile:
        profile.write('[sync]\nsteps = ["backup", "push"]\n')
    return made


# -- servers that rewrite -----------------------------------------------------------------------------------------------------------------


def profile(folder: Path, new_port: int) -> None:
    text = 'name = "move"\nvault = "vault"\n[old.imap]\nhost = "127.0.0.1"\nport = 1\nsecurity = "plain"\n'
    text += '[[old.imap.account]]\nuser = "taro"\npassword = "secret"\n'
    text += f'[new.imap]\nhost = "127.0.0.1"\nport = {new_port}\nsecurity = "plain"\n'
    (folder / "move.toml").write_text(text, encoding="utf-8")
    (folder / "move.toml").chmod(0o600)


@pytest.fixture(scope="module")
def backed_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vault of a mailbox with four letters, two of them equal, and one in a folder."""
    folder = tmp_path_factory.mktemp("rewriting")
    boxes = {b"INBOX": FakeBox(dict(enumerate([*LETTERS, LETTERS[0]], 1))), b"Work": FakeBox({9: letter(9)})}
    with FakeImap(boxes).running() as server:
        profile(folder, 2)
        text = (folder / "move.toml").read_text(encoding="utf-8").replace("port = 1\n", f"port = {server.port}\n")
        (folder / "move.toml").write_text(text, encoding="utf-8")
        assert hostbackup("backup", "move.toml", cwd=folder).exit == 0
    return folder / "vault"


@pytest.fixture
def rewriting(backed_up: Path, tmp_path: Path) -> Path:
    shutil.copytree(backed_up, tmp_path / "vault", symlinks=True)
    return tmp_path


def run(folder: Path, *words: str) -> Ran:
    ran = hostbackup(words[0], "move.toml", *words[1:], "--json", cwd=folder)
    assert undocumented(ran.json) == set(), "docs/json.md does not tell of these"
    return ran


def account(ran: Ran) -> dict[str, Any]:
    [found] = [one for one in ran.json["mail"] if one["side"] == "new"]
    told: dict[str, Any] = found
    return told


@pytest.mark.parametrize(
    ("kept", "code", "tier", "status"),
    [
        (lambda body: b"X-Scanned: yes\r\nReceived: here\r\n" + body, 0, "added-headers", "verified"),
        (lambda body: body.replace(b"\r\n", b"\n"), 0, "line-endings", "verified"),
        (lambda body: body.replace(b"Message-ID:", b"Message-Id:"), 3, "body", "unverified"),
        (lambda body: body[:-3] + body[-2:], 4, "different", "different"),
    ],
    ids=["adds-headers", "line-endings", "rewrites-headers", "drops-a-byte"],
)
def test_each_kind_of_rewriting_server_ends_as_it_should(rewriting: Path, kept: Callable[[bytes], bytes], code: int, tier: str, status: str) -> None:
    with FakeImap(kept=kept).running() as server:
        profile(rewriting, server.port)
        pushed = run(rewriting, "push")
        then = run(rewriting, "verify", "--against", "new")
        assert sum(len(box.messages) for box in server.boxes.values()) == 6, "nothing is appended twice"
    for ran in (pushed, then):
        assert ran.exit == code, ran.reasons
        told = account(ran)
        assert {(row["tier"], row["messages"]) for row in told["altered"]} == {(tier, 6)}
        assert told["tiers"] == ({tier: 6} if code == 0 else {})
        assert len(told["exceptions"]) == (0 if code == 0 else 6)
        assert {row["status"] for row in told["exceptions"]} <= {status}
        assert [(row["old"], row["messages"], row["there"]) for row in told["folders"]] == [("INBOX", 5, 5), ("Work", 1, 1)]
    if code:
        [row] = [row for row in told["exceptions"] if row["old"] == "Work"]
        assert (row["old_uid"], row["new_uid"], row["subject"]) == (9, 1, "見積書 9")
        assert (rewriting / "vault" / row["path"]).read_bytes() == letter(9)
        assert row["path"].startswith("latest/mail/taro/.Work/cur/")
    [line] = [line for line in evidence(rewriting, "push") if line["type"] == "proof"]
    assert line["altered"] == account(pushed)["altered"]
    assert line["exceptions"] == account(pushed)["exceptions"]
    assert (line["method"] == "imap-fetch") == (status == "verified")


def evidence(folder: Path, command: str) -> list[dict[str, Any]]:
    """The lines of the newest evidence that a command wrote."""
    path = max((folder / "vault" / "evidence").glob(f"*-{command}.jsonl"))
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_rewriting_server_that_numbers_anew_is_searched_by_what_is_left_of_the_bytes(rewriting: Path) -> None:
    with FakeImap(kept=lambda body: b"X-Scanned: yes\r\n" + body).running() as server:
        profile(rewriting, server.port)
        assert run(rewriting, "push").exit == 0
        inbox = server.boxes[b"INBOX"]
        inbox.uidvalidity = 99
        inbox.messages = {uid + 10: body for uid, body in inbox.messages.items()}
        inbox.told = {uid + 10: told for uid, told in inbox.told.items()}
        del inbox.messages[12]
        ran = run(rewriting, "verify", "--against", "new")
        assert ran.exit == 0, ran.reasons
        [row, _] = account(ran)["folders"]
        assert row["changed"] == {"renumbered": 4, "gone": 1}
        assert row["proven"] == {"added-headers": 4}
        again = run(rewriting, "verify", "--against", "new")
        assert again.exit == 0
        assert account(again)["folders"][0]["proven"] == {"added-headers": 4}, "found once, it is known under its new number"
        assert account(again)["folders"][0]["changed"] == {"gone": 1}


def test_a_server_that_takes_back_its_numbers_has_lost_mail(rewriting: Path) -> None:
    """A user who deletes leaves UIDNEXT where it was (RFC 3501 §2.3.1.1): here the server was set back to an earlier state."""
    with FakeImap().running() as server:
        profile(rewriting, server.port)
        assert run(rewriting, "push").exit == 0
        for uid in (4, 5):
            del server.boxes[b"INBOX"].messages[uid]
        ran = run(rewriting, "verify", "--against", "new")
        assert ran.exit == 4
        assert ran.reasons.count("the new server lost it") == 2
        server.boxes[b"INBOX"].next = 6
        assert run(rewriting, "verify", "--against", "new").exit == 0, "with its number given, it may have been a user"


def test_flags_and_dates_that_a_server_drops_are_listed(rewriting: Path) -> None:
    with FakeImap().running() as server:
        profile(rewriting, server.port)
        forget = server._append

        def forgetting(talk: Any, tag: bytes, rest: bytes) -> bool:
            done = forget(talk, tag, rest)
            for box in server.boxes.values():
                box.told = dict.fromkeys(box.messages, (b"()", b'" 2-Jul-2026 02:44:25 +0900"'))
            return done

        server._append = forgetting  # type: ignore[method-assign]
        ran = run(rewriting, "push")
    assert ran.exit == 0
    assert {(row["folder"], row["lost"], row["messages"]) for row in ran.json["not_kept"]} == {
        ("INBOX", "INTERNALDATE", 5),
        ("INBOX", "\\Seen", 5),
        ("Work", "INTERNALDATE", 1),
        ("Work", "\\Seen", 1),
    }
    assert "did not keep INTERNALDATE, \\Seen as sent" in ran.err


def test_a_mailbox_that_was_never_pushed_is_told_once(rewriting: Path) -> None:
    with FakeImap().running() as server:
        profile(rewriting, server.port)
        ran = run(rewriting, "verify", "--against", "new")
    [failure] = ran.json["failures"]
    assert (ran.exit, failure["part"], failure["code"]) == (3, "", "unverified")
    assert failure["reason"] == "no mail was pushed to the new server yet"
    assert [row["counts"] for row in ran.json["proven"] if row["side"] == "new"] == [{"unverified": 6}]
    assert "hostbackup push" in ran.reasons
    assert server.connections == 0


# -- both servers in use ------------------------------------------------------------------------------------------------------------------


def test_the_parallel_period(move: Move) -> None:
    """What arrives at the old server follows; what users do at the new one stands; moves are seen, twins stay two."""
    it = move
    it.old.make(("仕事",), ("2025年度",))
    it.old.deliver((), *(letter(number) for number in range(8)), letter(7))
    it.old.deliver(("2025年度",), letter(20), letter(21), flags=("\\Seen",))
    it.run("sync")

    # Users work at the new server; old mail still arrives, is read, moved, and thrown away before it was ever pushed.
    it.new.make(("保存",))
    it.new.delete((), letter(0))
    it.new.move((), letter(1), ("保存",))
    it.new.store((), letter(2), "+FLAGS", "\\Seen \\Flagged")
    it.old.store((), letter(3), "+FLAGS", "\\Answered")
    it.old.move((), letter(4), ("仕事",))
    it.old.deliver((), letter(10), letter(11), letter(7))
    it.old.delete((), letter(11))
    with it.old.imap() as imap:
        good(imap.rename(it.old.wire(("2025年度",)), it.old.wire(("以前",))))
    before = it.new.mail()
    second = it.run("sync").json
    [_, push] = second["steps"]
    assert push["counts"]["written"] == 2, "one that arrived, and a third twin"
    assert sorted(row["action"] for row in push["left_alone"]) == ["moved"] * 3
    after = it.new.mail()
    inbox = Counter(digest(one) for one in (*(letter(number) for number in (2, 3, 4, 5, 6, 7, 7, 7)), letter(10)))
    assert it.new.digests()[()] == inbox
    for path, found in before.items():
        assert found - after[path] == Counter(), "nothing that stood there was touched, flags and dates included"

    # Only one arrives and one goes: the counts are as they were.
    it.old.deliver((), letter(12))
    it.old.delete((), letter(10))
    it.new.delete((), letter(10))
    assert it.run("sync").json["steps"][1]["counts"]["written"] == 1
    assert it.run("sync").json["steps"][1]["counts"].get("written", 0) == 0
    assert it.new.digests()[()] == inbox - Counter([digest(letter(10))]) + Counter([digest(letter(12))])

    told = account(it.verify("new"))
    changes = {(row["name"], row["kind"], it.new.path(row["to"].encode()) if "to" in row else None) for row in told["changed"]}
    assert changes == {("INBOX UID 1", "gone", None), ("INBOX UID 2", "moved", ("保存",)), ("INBOX UID 3", "flags", None)}
    assert not told["exceptions"]
    assert told["tiers"] == {"raw": 11}
    rows = {(it.old.path(row["old"].encode()), it.new.path(row["new"].encode())): row for row in told["folders"] if row["messages"]}
    assert {pair: (row["messages"], row["pushed"]) for pair, row in rows.items()} == {
        ((), ()): (10, 10),
        (("仕事",), ()): (1, 1),
        (("以前",), ("2025年度",)): (2, 2),
    }
    again = account(it.verify("new"))["changed"]
    assert sorted(row["name"] for row in again) == sorted(row["name"] for row in told["changed"]), "told alike however often it is asked"

    # A folder is numbered anew at the new server, and the moved message is moved on.
    it.new.renumber((), 77)
    it.new.move(("保存",), letter(1), ())
    told = account(it.verify("new"))
    assert not told["exceptions"]
    assert {row["kind"] for row in told["changed"]} == {"gone", "moved", "flags"}
    assert sum(row.get("changed", {}).get("renumbered", 0) for row in told["folders"]) == 9
    assert it.run("sync").json["steps"][1]["counts"].get("written", 0) == 0


def test_wrong_bytes_under_a_proven_uid_are_damage(move: Move) -> None:
    it = move
    it.old.deliver((), letter(1), letter(2))
    it.run("sync")
    maildir = it.new.server.maildir(it.new.user)
    [path] = [path for name in ("new", "cur") for path in (maildir / name).iterdir() if b"<2@" in path.read_bytes()]
    path.write_bytes(path.read_bytes().replace(b"<2@", b"<3@").replace("2 行目".encode(), "3 行目".encode()))
    ran = it.verify("new", exit=4)
    [row] = account(ran)["exceptions"]
    assert (row["name"], row["old_uid"], row["status"]) == ("INBOX UID 2", 2, "different")
    assert row["reason"].startswith("the server gives")


def rewrite(move: Move, old: str, new: str) -> None:
    """Other bytes under the UID of letter 2, as no server should have them."""
    maildir = move.old.server.maildir(move.old.user)
    [path] = [path for name in ("new", "cur") for path in (maildir / name).iterdir() if b"<2@" in path.read_bytes()]
    path.write_bytes(path.read_bytes().replace(f"{old} 行目".encode(), f"{new} 行目".encode()))


def test_what_was_found_other_at_the_old_server_is_fetched_again(move: Move) -> None:
    """A backup asks for no message twice; `verify` tells it which ones to ask for, and `--checksum` finds out for itself."""
    it = move
    it.old.deliver((), letter(1), letter(2))
    it.backup()
    old = digest(letter(2))
    rewrite(it, "2", "3")
    assert it.backup().json["counts"].get("read", 0) == 0
    ran = it.verify("old", exit=4)
    [failure] = ran.json["failures"]
    assert (failure["code"], failure["name"], "run `backup`" in failure["hint"]) == ("different", "INBOX UID 2", True)
    told = it.backup().json["counts"]
    assert (told["changed"], told["unchanged"], told["read"]) == (1, 1, 1)
    [now] = [record.digest for record in it.live() if record.item.uid == 2]
    assert now == digest(letter(2).replace("2 行目".encode(), "3 行目".encode()))
    assert (it.vault / "objects" / old[:2] / old).exists()  # what stood there before is in the earlier snapshots
    it.verify("old")
    assert it.backup().json["counts"].get("read", 0) == 0
    rewrite(it, "3", "4")
    found = it.backup("--checksum").json
    assert (found["counts"]["changed"], found["counts"]["read"]) == (1, 1)
    assert found["compared"] == {f"mail/{it.old.user}": {"imap-fetch": 2}}
    assert digest(letter(2).replace("2 行目".encode(), "4 行目".encode())) in {record.digest for record in it.live()}
    it.verify("old")


def test_the_old_sides_counters_are_on_record_and_gaps_are_told(move: Move) -> None:
    it = move
    it.old.make(("仕事",))
    it.old.deliver((), letter(1), letter(2))
    it.run("backup")
    it.old.deliver((), letter(3), letter(4))
    it.old.delete((), letter(3))
    it.old.delete((), letter(1))
    ran = it.verify("old", exit=3)
    [told] = ran.json["mail"]
    inbox = told["folders"][0]
    figures = {key: inbox[key] for key in ("messages", "there", "uidnext", "fresh", "unseen", "changed", "proven")}
    assert figures == {"messages": 2, "there": 2, "uidnext": 5, "fresh": 1, "unseen": 1, "changed": {"gone": 1}, "proven": {"raw": 1}}
    assert inbox["uidvalidity"] == it.old.uidvalidity(())
    assert {(row["old_uid"], row["status"]) for row in told["exceptions"]} == {(1, "changed-since"), (4, "changed-since")}
    assert "nobody saw them (gaps in UIDs)" in ran.err
    [line] = [line for line in evidence(it.folder, "verify") if line["type"] == "proof" and line["side"] == "old"]
    assert line["folders"] == told["folders"]
    it.run("backup")
    assert it.verify("old").json["mail"][0]["folders"][0].get("unseen", 0) == 0


def test_people_get_a_table_of_folders_and_where_each_exception_is(move: Move) -> None:
    it = move
    it.old.make(("仕事",))
    it.old.deliver((), letter(1))
    it.old.deliver(("仕事",), letter(2))
    it.run("sync")
    it.old.deliver(("仕事",), letter(3))
    it.run("backup")
    it.new.delete((), letter(1))
    ran = hostbackup("verify", "move.toml", "--against", "new", cwd=it.folder)
    assert ran.exit == 3
    lines = [line.split() for line in ran.out.splitlines()]
    assert ["mailbox", "folder", "new", "folder", "snapshot", "there", "now", "pushed", "proven", "not", "pushed", "since", "then"] in lines
    assert [it.old.user, "INBOX", "INBOX", "1", "0", "1", "0", "0", "1", "gone"] in lines
    assert [it.old.user, "INBOX.仕事", "仕事", "2", "1", "1", "1", "1", "-"] in lines
    assert "was not pushed; subject: 見積書 3 (run `push`; in the vault: latest/mail/" in ran.err
