"""Mail runs that are killed or cut off in the middle, between two real Dovecots: afterwards there is exactly one of each message."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGKILL, SIGTERM

import pytest

from tests.support.dovecot import INBOX_DOT, PLAIN_SLASH, Dovecot, dovecot
from tests.support.mail_move import Hands, Move, digest, letter
from tests.support.moves import ended, until
from tests.support.sshd import Relay

USERS = {f"u{number}@example.test": "secret" for number in range(20)}
LETTERS = [letter(number, 2000) for number in range(300)]
MORE = [letter(1000 + number, 300) for number in range(40)]
Make = Callable[[], Move]
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
    """A mailbox of 300 messages in INBOX, one of them twice, and 40 in a folder."""
    user = f"u{next(_next_user)}@example.test"
    made = Move(tmp_path, Hands(old, user), Hands(new, user), security="plain", new_lines=("patience = 1",))  # no second more than this server needs
    made.write()
    made.old.make(("仕事",))
    made.old.deliver((), *LETTERS, LETTERS[0])
    made.old.deliver(("仕事",), *MORE)
    return made


WHOLE = {(): Counter(map(digest, (*LETTERS, LETTERS[0]))), ("仕事",): Counter(map(digest, MORE))}


def arrived(it: Move) -> int:
    """Messages on the new server's disk."""
    maildir = it.new.server.maildir(it.new.user)
    return sum(1 for folder in ("cur", "new") for _ in maildir.glob(f"**/{folder}/*"))


def test_a_push_that_is_killed_and_run_again_leaves_one_of_each(move: Move) -> None:
    it = move
    it.backup()
    journals = it.vault / "state"
    moments: list[Callable[[], bool]] = [
        lambda: any(path.stat().st_size for path in journals.glob("push-*")),  # intended, perhaps nothing sent
        lambda: arrived(it) >= 60,
        lambda: arrived(it) >= 180,
        lambda: arrived(it) >= 305,  # in the second folder
    ]
    for moment in moments:
        process = it.start("push")
        assert until(moment, process), ended(process)
        ended(process, SIGKILL)
    pushed = it.push()
    assert it.new.digests() == WHOLE
    assert pushed.json["counts"].get("written", 0) < 341
    assert it.push().json["counts"].get("written", 0) == 0
    assert it.proven(it.verify("new"), "new") == {"verified": 341}


def test_a_push_that_is_interrupted_says_so_and_goes_on_later(move: Move) -> None:
    it = move
    it.backup()
    process = it.start("push")
    assert until(lambda: arrived(it) >= 20, process)
    assert ended(process, SIGTERM).exit == 130
    it.push()
    assert it.new.digests() == WHOLE


@pytest.mark.parametrize("cuts", [2, 3])
def test_a_line_that_is_cut_in_mid_append_leaves_one_of_each(move: Move, cuts: int) -> None:
    it = move
    it.backup()
    with Relay(it.new.server.ports["plain"], cut_after=120_000, cuts=cuts, upwards=True) as relay:
        it.new_port = relay.port
        it.write()
        ran = ended(it.start("push"))
        # A message is sent three times at most: the third cut may be its third, which is told, and the next push brings it.
        assert ran.exit in ((0,) if cuts == 2 else (0, 3))
        assert relay.cuts_left == 0
        it.push()
        assert it.new.digests() == WHOLE
        assert it.proven(it.verify("new"), "new") == {"verified": 341}


def test_a_line_that_stays_cut_ends_the_push_and_the_next_one_finds_what_arrived(move: Move) -> None:
    it = move
    it.backup()
    with Relay(it.new.server.ports["plain"], cut_after=300_000, cuts=1, upwards=True) as relay:
        it.new_port = relay.port
        it.write()
        process = it.start("push")
        assert until(lambda: relay.cuts_left == 0, process)
        relay.close()
        ran = ended(process)
    assert ran.exit == 1
    assert "refused the connection" in ran.reasons
    some = it.new.digests()[()].total()
    assert 0 < some < 341
    with Relay(it.new.server.ports["plain"], at=relay.port):
        it.push()
    assert it.new.digests() == WHOLE


def test_a_backup_that_is_killed_goes_on_from_there(move: Move) -> None:
    it = move
    process = it.start("backup")
    journal = it.vault / "state"
    assert until(lambda: any(path.stat().st_size for path in journal.glob("resume-*")), process)
    ended(process, SIGKILL)
    counts = it.backup().json["counts"]
    assert counts["read"] + counts["resumed"] == 341
    assert Counter(record.digest for record in it.live()) == WHOLE[()] + WHOLE["仕事",]
    it.verify("old")


def test_a_line_that_is_cut_in_mid_fetch_is_opened_again(move: Move) -> None:
    it = move
    # Three cuts in a row, before a message is through, end the reading of a mailbox; where cuts fall is not the test's to say.
    with Relay(it.old.server.ports["plain"], cut_after=200_000, cuts=2) as relay:
        it.old_port = relay.port
        it.write()
        assert it.backup().json["counts"]["read"] >= 341
        assert relay.cuts_left == 0
    assert Counter(record.digest for record in it.live()) == WHOLE[()] + WHOLE["仕事",]
