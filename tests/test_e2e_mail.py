"""Mailboxes from one real Dovecot to another by the real command line; imaplib looks at both sides on its own."""

from __future__ import annotations

import datetime
import itertools
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.dovecot import INBOX_DOT, PLAIN_SLASH, Dovecot, Layout, dovecot
from tests.support.mail_move import DATE, Hands, Move, Path_, digest, good, letter
from tests.support.samples import make_mailbox

USERS = {f"u{number}@example.test": f"秘密 {number}" for number in range(60)}
Make = Callable[..., Move]
_next_user = itertools.count()


@pytest.fixture(scope="module")
def dotted() -> Iterator[Dovecot]:
    with dovecot(INBOX_DOT, users=USERS) as server:
        yield server


@pytest.fixture(scope="module")
def slashed() -> Iterator[Dovecot]:
    with dovecot(PLAIN_SLASH, users=USERS) as server:
        yield server


@pytest.fixture
def move(dotted: Dovecot, slashed: Dovecot, tmp_path: Path) -> Make:
    """Makes a move of a user that no other test has: from `INBOX.` and `.` to `/` unless told otherwise."""

    def make(layout: Layout = INBOX_DOT, **more: object) -> Move:
        user = f"u{next(_next_user)}@example.test"
        sides = (dotted, slashed) if layout is INBOX_DOT else (slashed, dotted)
        made = Move(tmp_path, Hands(sides[0], user), Hands(sides[1], user), **more)  # type: ignore[arg-type]
        made.write()
        return made

    return make


def office(hands: Hands) -> None:
    """A mailbox as a Japanese office has it: nested folders, odd mail, flags, keywords, an empty folder, one not subscribed."""
    paths: list[Path_] = [("送信済みアイテム",), ("下書き",), ("取引先",), ("取引先", "株式会社みどり"), ("取引先", "A&B 商会"), ("2025年度", "4月")]
    hands.make(*paths, subscribe=True)
    hands.make(("空のフォルダ",), ("Trash",))
    hands.deliver_all(make_mailbox(hands.user, 42))
    hands.deliver(("取引先",), letter(1), letter(1), flags=("\\Flagged",))
    hands.deliver(("2025年度", "4月"), letter(1))
    hands.deliver((), letter(2), date=datetime.datetime(1999, 12, 31, 23, 59, 59, tzinfo=datetime.timezone(-datetime.timedelta(hours=9, minutes=30))))


@pytest.mark.parametrize("layout", [INBOX_DOT, PLAIN_SLASH], ids=["to-slash", "to-dot"])
def test_a_whole_mailbox_arrives_message_for_message(move: Make, layout: Layout) -> None:
    it = move(layout, mail={"送信済みアイテム": "Sent"})
    office(it.old)
    it.new.make(("Drafts",))  # which tells its special use; 下書き is known by name
    before = it.old.mail()
    subscribed = it.old.subscribed()

    assert it.backup().json["counts"]["read"] == sum(count.total() for count in before.values())
    it.verify("old")
    pushed = it.push()
    assert pushed.json["counts"]["written"] == sum(count.total() for count in before.values())
    proven = it.proven(it.verify("new"), "new")
    assert proven == {"verified": sum(count.total() for count in before.values())}

    renamed: dict[Path_, Path_] = {("送信済みアイテム",): ("Sent",), ("下書き",): ("Drafts",)}
    assert it.new.mail() == {renamed.get(path, path): found for path, found in before.items()}
    assert it.new.subscribed() >= {renamed.get(path, path) for path in subscribed}
    assert "\\Sent" in it.new.folders()[("Sent",)]
    assert "\\Drafts" in it.new.folders()[("Drafts",)]
    assert it.old.mail() == before
    assert it.old.subscribed() == subscribed

    again = it.push()
    assert again.json["counts"].get("written", 0) == 0
    assert it.new.mail() == {renamed.get(path, path): found for path, found in before.items()}


def test_a_japanese_sent_folder_finds_the_new_one_by_the_built_in_table(move: Make) -> None:
    it = move()
    it.old.make(("送信済みアイテム",), ("ごみ箱",))
    it.new.make(("Sent",), ("Trash",))
    it.old.deliver(("送信済みアイテム",), letter(1), letter(2))
    it.old.deliver(("ごみ箱",), letter(3))
    it.backup()
    told = it.push().json["folders"][f"mail/{it.old.user}"]
    assert {row["rule"] for row in told} >= {"name"}
    assert it.new.digests() == {(): Counter(), ("Sent",): Counter(map(digest, (letter(1), letter(2)))), ("Trash",): Counter([digest(letter(3))])}


def test_two_old_folders_that_the_profile_makes_one_keep_their_twins(move: Make) -> None:
    it = move(mail={"Sent": "Sent", "送信済み": "Sent", "下書": "Drafts"})
    it.old.make(("Sent",), ("送信済み",))
    it.old.deliver(("Sent",), letter(1), letter(2))
    it.old.deliver(("送信済み",), letter(1), letter(3))
    it.new.make(("Sent",))
    it.new.deliver(("Sent",), letter(1))
    it.backup()
    ran = it.push()
    assert ran.json["counts"]["written"] == 3
    assert "no mailbox has a folder '下書', so nothing goes to 'Drafts'" in ran.err
    assert "'送信済み'" not in ran.err
    both = Counter(map(digest, (letter(1), letter(1), letter(2), letter(3))))
    assert it.new.digests() == {(): Counter(), ("Sent",): both}
    assert it.push().json["counts"].get("written", 0) == 0
    assert it.proven(it.verify("new"), "new") == {"verified": 4}
    # A folder that is renamed at the old server moves its mail; nothing of it is pushed again.
    with it.old.imap() as imap:
        good(imap.rename(it.old.wire(("送信済み",)), it.old.wire(("2025年送信",))))
    it.backup()
    assert it.push().json["counts"].get("written", 0) == 0
    assert it.new.digests()["Sent",] == both
    assert it.proven(it.verify("new"), "new") == {"verified": 4}


def test_what_the_new_server_refuses_is_listed_and_tried_again(move: Make, tmp_path: Path) -> None:
    """It takes no message above a size; the rest goes there all the same, and later, with more room, the large one too."""
    it = move()
    large = letter(1, 60_000)
    it.old.deliver((), letter(0), large, letter(2))
    limit = "plugin {\n  quota = count:User\n  quota_vsizes = yes\n  quota_max_mail_size = 50k\n}\nmail_plugins = quota\n"
    user = it.new.user
    with dovecot(PLAIN_SLASH, users={user: "x"}, extra=limit) as small:
        strict = Move(it.folder, it.old, Hands(small, user))
        strict.write()
        strict.backup()
        ran = strict.push(exit=3)
        [failure] = ran.json["failures"]
        assert failure["name"] == "INBOX UID 2"
        assert strict.new.digests() == {(): Counter(map(digest, (letter(0), letter(2))))}
        assert "refused by the new server" in strict.verify("new", exit=3).reasons
        assert strict.push(exit=3).json["counts"].get("written", 0) == 0
        assert strict.new.count() == 2
    it.write()
    assert it.push().json["counts"]["written"] == 3


def test_nothing_is_marked_seen_and_a_second_run_reads_nothing(move: Make) -> None:
    it = move()
    it.old.deliver((), *(letter(number) for number in range(30)))
    it.backup()
    it.verify("old")
    assert {flags for _, flags, _ in it.old.mail()[()]} == {()}
    size = it.vault_bytes()
    ran = it.backup()
    assert ran.json["counts"].get("read", 0) == 0
    assert ran.json["counts"]["unchanged"] == 30
    assert it.vault_bytes() - size < 20_000


def test_a_changed_flag_is_followed_and_the_message_is_not_fetched_again(move: Make) -> None:
    it = move()
    it.old.deliver((), letter(1), letter(2))
    it.backup()
    it.old.store((), letter(1), "+FLAGS", "\\Seen $label1")
    ran = it.backup()
    assert (ran.json["counts"].get("read", 0), ran.json["counts"]["changed"]) == (0, 1)
    assert sorted(record.item.flags for record in it.live()) == [(), ("$label1", "\\Seen")]
    assert len(list((it.vault / "latest/mail" / it.old.user / "cur").glob("*:2,Sa"))) == 1


def test_a_deleted_message_is_kept_as_vanished_and_not_pushed(move: Make) -> None:
    it = move()
    it.old.deliver((), letter(1), letter(2), letter(3))
    it.backup()
    it.old.delete((), letter(2))
    assert it.backup().json["counts"]["vanished"] == 1
    assert it.vanished() == Counter([digest(letter(2))])
    assert len(it.live()) == 2
    assert len(list((it.vault / "latest/mail" / it.old.user / "cur").iterdir())) == 2
    assert (it.vault / "objects" / digest(letter(2))[:2] / digest(letter(2))).read_bytes() == letter(2)
    it.push()
    assert it.new.digests() == {(): Counter(map(digest, (letter(1), letter(3))))}
    assert it.proven(it.verify("new"), "new") == {"verified": 2}


def test_mail_that_arrives_later_is_topped_up(move: Make) -> None:
    it = move()
    it.old.make(("仕事",))
    it.old.deliver((), letter(1))
    it.backup()
    it.push()
    it.old.deliver((), letter(2))
    it.old.deliver(("仕事",), letter(3))
    it.new.deliver((), letter(100))  # and mail comes in at the new server too
    it.backup()
    assert it.push().json["counts"]["written"] == 2
    assert it.new.digests() == {(): Counter(map(digest, (letter(1), letter(2), letter(100)))), ("仕事",): Counter([digest(letter(3))])}
    it.verify("new")


def test_a_message_moved_at_the_old_server_is_listed_and_not_pushed_again(move: Make) -> None:
    it = move()
    it.old.make(("仕事",), ("保存",))
    it.old.deliver((), letter(1), letter(2))
    it.backup()
    it.push()
    it.old.move((), letter(1), ("仕事",))
    it.backup()
    ran = it.push()
    assert ran.json["counts"].get("written", 0) == 0
    assert [row["action"] for row in ran.json["left_alone"]] == ["moved"]
    both = Counter(map(digest, (letter(1), letter(2))))
    assert it.new.digests() == {(): both, ("仕事",): Counter(), ("保存",): Counter()}
    assert it.proven(it.verify("new"), "new") == {"verified": 2}
    # Moved on, and back again: still one.
    it.old.move(("仕事",), letter(1), ("保存",))
    it.backup()
    assert it.push().json["counts"].get("written", 0) == 0
    it.old.move(("保存",), letter(1), ())
    it.backup()
    assert it.push().json["counts"].get("written", 0) == 0
    assert it.new.digests()[()] == both
    # A twin that arrives where the moved one was first is mail of its own.
    it.old.move((), letter(1), ("仕事",))
    it.backup()
    it.push()
    it.old.deliver((), letter(1))
    it.backup()
    assert it.push().json["counts"]["written"] == 1
    assert it.new.digests()[()] == both + Counter([digest(letter(1))])


def test_what_users_do_at_the_new_server_stays_as_they_left_it(move: Make) -> None:
    it = move()
    it.new.make(("保存",))
    it.old.deliver((), *(letter(number) for number in range(6)))
    it.backup()
    it.push()
    it.new.delete((), letter(0))
    it.new.move((), letter(1), ("保存",))
    it.new.store((), letter(2), "+FLAGS", "\\Seen")
    there = it.new.mail()
    assert it.push().json["counts"].get("written", 0) == 0
    assert it.new.mail() == there
    assert it.proven(it.verify("new"), "new") == {"verified": 4, "changed-since-proof": 2}


def test_mail_that_the_new_server_already_has_is_recognised(move: Make) -> None:
    it = move()
    it.old.deliver((), letter(1), letter(2), letter(2), letter(3))
    it.new.deliver((), letter(2), letter(3), letter(9))
    it.backup()
    assert it.push().json["counts"]["written"] == 2
    assert it.new.digests() == {(): Counter(map(digest, (letter(1), letter(2), letter(2), letter(3), letter(9))))}
    assert it.proven(it.verify("new"), "new") == {"verified": 4}


def test_a_lost_journal_doubles_nothing(move: Make) -> None:
    it = move()
    office(it.old)
    it.backup()
    it.push()
    there = it.new.mail()
    for journal in (it.vault / "state").glob("push-*"):
        journal.unlink()
    for document in (it.vault / "state").glob("folders-*"):
        document.unlink()
    assert it.push().json["counts"].get("written", 0) == 0
    assert it.new.mail() == there
    it.verify("new")


def test_a_folder_made_anew_at_the_old_server_loses_and_doubles_nothing(move: Make) -> None:
    it = move()
    it.old.make(("仕事",))
    it.old.deliver((), letter(0))
    letters = [letter(1), letter(2), letter(2), letter(3)]
    it.old.deliver(("仕事",), *letters)
    it.backup()
    it.push()
    before = it.old.uidvalidity(("仕事",))
    it.old.drop(("仕事",))
    it.old.make(("仕事",))
    it.old.deliver(("仕事",), *reversed(letters))
    assert it.old.uidvalidity(("仕事",)) != before
    ran = it.backup()
    assert ran.json["counts"].get("vanished", 0) == 0
    assert not it.vanished()
    assert len(it.live()) == 5
    assert it.push().json["counts"].get("written", 0) == 0
    assert it.new.digests() == {(): Counter([digest(letter(0))]), ("仕事",): Counter(map(digest, letters))}
    assert it.proven(it.verify("new"), "new") == {"verified": 5}


def test_a_folder_made_anew_with_less_in_it_tells_what_vanished(move: Make) -> None:
    it = move()
    it.old.make(("仕事",))
    it.old.deliver((), letter(0))
    it.old.deliver(("仕事",), letter(1), letter(2), letter(2))
    it.backup()
    it.old.drop(("仕事",))
    it.old.make(("仕事",))
    it.old.deliver(("仕事",), letter(2), letter(5))
    assert it.backup().json["counts"]["vanished"] == 2
    assert it.vanished() == Counter(map(digest, (letter(1), letter(2))))
    it.push()
    assert it.new.digests()[("仕事",)] == Counter(map(digest, (letter(2), letter(5))))


def test_a_folder_that_is_gone_keeps_its_mail_in_the_vault(move: Make) -> None:
    it = move()
    it.old.make(("仕事",))
    it.old.deliver((), letter(0))
    it.old.deliver(("仕事",), letter(1))
    it.backup()
    it.old.drop(("仕事",))
    assert it.backup().json["counts"]["vanished"] == 1
    assert it.backup().json["counts"].get("vanished", 0) == 0
    assert it.vanished() == Counter([digest(letter(1))])
    it.push()
    assert it.new.digests() == {(): Counter([digest(letter(0))])}


def test_a_name_that_leads_to_the_new_machine_is_refused(move: Make) -> None:
    it = move()
    it.old.make(("仕事",))
    it.old.deliver((), letter(1))
    it.backup()
    it.push()
    for number, path in enumerate(((), ("仕事",)), 1):  # so that no UIDVALIDITY can be alike by chance
        it.new.renumber(path, number)
    flipped = Move(it.folder, it.new, it.new)
    flipped.write()
    ran = flipped.backup(exit=1)  # the old section's address and port are those of the new one
    assert "this looks like the new server" in ran.reasons + ran.err
    text = (it.folder / "move.toml").read_text(encoding="utf-8")
    (it.folder / "move.toml").write_text(text[: text.index("[new.imap]")], encoding="utf-8")
    ran = flipped.backup(exit=1)  # nothing tells of the new server but its UIDVALIDITYs
    assert "this looks like the new server" in ran.reasons + ran.err
    assert "this looks like the new server" in flipped.verify("old", exit=1).reasons
    assert len(list((it.vault / "snapshots").iterdir())) == 1


def test_since_pushes_only_what_arrived_from_that_day_on(move: Make) -> None:
    it = move()
    it.old.deliver((), letter(1), date=DATE - datetime.timedelta(days=400))
    it.old.deliver((), letter(2), date=DATE)
    it.backup()
    it.push("--since", "2026-06-01")
    assert it.new.digests() == {(): Counter([digest(letter(2))])}
    it.push()
    assert it.new.digests() == {(): Counter(map(digest, (letter(1), letter(2))))}


def test_a_dry_run_changes_nothing_on_either_side(move: Make) -> None:
    it = move()
    office(it.old)
    it.new.deliver((), letter(2))
    sides = [(hands.mail(), hands.folders(), hands.subscribed()) for hands in (it.old, it.new)]
    assert it.backup("--dry-run").json["planned"][f"mail/{it.old.user}"]["new"] == 46
    assert not (it.vault / "snapshots").exists() or not list((it.vault / "snapshots").iterdir())
    it.backup()
    ran = it.push("--dry-run")
    assert sum(row["messages"] for row in ran.json["plan"]) == 45
    assert [(hands.mail(), hands.folders(), hands.subscribed()) for hands in (it.old, it.new)] == sides
    assert it.push().json["counts"]["written"] == 45


def test_latest_is_a_maildir_that_dovecot_serves(move: Make, tmp_path: Path) -> None:
    it = move()
    office(it.old)
    it.backup()
    with dovecot(Layout("", "."), users={it.old.user: "x"}) as reader:
        home = reader.maildir(it.old.user)
        home.parent.mkdir(parents=True)
        shutil.copytree(it.vault / "latest/mail" / it.old.user, home)
        owner = reader.base / "mail"
        for path in [home.parent, home, *home.rglob("*")]:
            shutil.chown(path, owner.owner(), owner.group())
            path.chmod(0o700 if path.is_dir() else 0o600)
        shown = Hands(reader, it.old.user)
        assert shown.mail() == {path: found for path, found in it.old.mail().items() if path != ("2025年度",)}
        assert shown.subscribed() == it.old.subscribed()
