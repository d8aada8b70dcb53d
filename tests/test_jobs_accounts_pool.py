"""Many accounts at once: order, failures that stay their own, what ends all of them, and interrupts."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hostbackup.errors import DiskFull, LoginRefused
from hostbackup.interrupts import Stopped, stop
from hostbackup.jobs.accounts_pool import AccountsPool, AccountWork
from hostbackup.jobs.identity import Identity
from hostbackup.jobs.mail_logins import MailLogins
from hostbackup.jobs.result import Result
from hostbackup.model import Observer, Part
from hostbackup.vault.state import StateFolder


class Listener(Observer):
    def __init__(self) -> None:
        self.titles: list[str] = []
        self.notes: list[str] = []

    def retitle(self, title: str) -> None:
        self.titles.append(title)

    def note(self, text: str) -> None:
        self.notes.append(text)


def pool_of(listener: Observer) -> AccountsPool:
    logins = MailLogins(lambda host, port, given: given)
    return AccountsPool(logins, Identity(), listener, "backing up mail")


def works(pool: AccountsPool, count: int, do: Callable[[int, Result], None], limit: int = 4) -> list[AccountWork]:
    made = [
        AccountWork(Part("mail", f"user{n:02}"), "old", Result(pool.observer()), server=(f"mail{n % 2}.test", 993), limit=limit) for n in range(count)
    ]
    for number, work in enumerate(made):
        work.work = lambda number=number, work=work: do(number, work.result)  # type: ignore[misc]
    return made


def test_each_failure_stays_with_its_account_and_the_order_is_that_of_the_profile() -> None:
    listener = Listener()
    pool = pool_of(listener)
    last = threading.Event()

    def do(number: int, result: Result) -> None:
        if number == 19:
            last.set()
        result.counts["read"] += 1
        if number == 0:
            last.wait(20)  # the first one ends last
        if number == 3:
            raise LoginRefused("no")
        if number == 5:
            raise ZeroDivisionError("a mistake of ours")

    accounts = works(pool, 20, do)
    pool.run(accounts)
    whole = Result()
    for account in accounts:
        whole.add(account.result)
    assert [(failure.part, failure.code) for failure in whole.failures] == [("mail/user03", "login-refused"), ("mail/user05", "unexpected")]
    assert (whole.done, whole.undone, whole.counts["read"]) == (18, 2, 20)
    assert listener.titles[-1] == "backing up mail: 20 of 20 accounts, 2 failed"
    assert any("ZeroDivisionError" in note for note in listener.notes)


def test_the_line_counts_what_was_moved_and_not_what_was_looked_at() -> None:
    listener = Listener()
    pool = pool_of(listener)

    def do(number: int, result: Result) -> None:
        result.observer.phase("looking")
        result.observer.advance(entries=1000)
        result.observer.phase("reading", 2, 700)
        result.observer.advance(1, 300)
        result.observer.advance(1, 400)

    pool.run(works(pool, 10, do))
    assert listener.titles[-1] == "backing up mail: 10 of 10 accounts, 20 messages, 7.0 kB"


def test_what_was_seen_of_a_server_is_on_record_while_the_accounts_are_still_at_work(tmp_path: Path) -> None:
    """A large mailbox may take hours: who is killed then must know next time which server it was."""
    (tmp_path / "state").mkdir()
    state = StateFolder(tmp_path / "state")
    identity = Identity(state)
    pool = AccountsPool(MailLogins(lambda host, port, given: given), identity, Observer(), "backing up mail")
    on_record = threading.Event()

    def do(number: int, result: Result) -> None:
        identity.see_mailbox("old.imap", f"user{number}", {"INBOX": 7 + number})
        until = time.monotonic() + 60
        while number == 0 and not on_record.is_set() and time.monotonic() < until:  # all others have ended long since
            if len(state.read("identity") or {}) == 5:
                on_record.set()

    pool.run(works(pool, 5, do))
    assert on_record.is_set()


def test_no_more_accounts_of_a_server_at_once_than_it_bears() -> None:
    pool = pool_of(Observer())
    running: dict[int, int] = {0: 0, 1: 0}
    most, lock = [0], threading.Lock()

    def do(number: int, result: Result) -> None:
        with lock:
            running[number % 2] += 1
            most.append(max(running.values()))
        result.observer.advance(entries=1)
        with lock:
            running[number % 2] -= 1

    pool.run(works(pool, 60, do, limit=2))
    assert max(most) <= 2


def test_a_full_disk_ends_all() -> None:
    pool = pool_of(Observer())
    begun = []

    def do(number: int, result: Result) -> None:
        begun.append(number)
        if number == 2:
            raise DiskFull("the disk is full")
        while number > 2:
            result.observer.advance(entries=1)  # leaves here once the run has ended

    with pytest.raises(DiskFull):
        pool.run(works(pool, 50, do))
    assert len(begun) < 50


@pytest.fixture
def handler() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("handler")
def test_an_interrupt_ends_every_account_and_the_threads_are_gone_then() -> None:
    pool = pool_of(Observer())
    left: list[int] = []

    def do(number: int, result: Result) -> None:
        if number == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        try:
            while True:
                result.observer.advance(entries=1)
        except Stopped:
            left.append(number)
            raise

    with pytest.raises(KeyboardInterrupt):
        pool.run(works(pool, 20, do, limit=1))
    assert left
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("account-")]
