"""Many mailboxes at once: each account's work in a thread of its own, so many at a time as their servers bear.

What the work has to tell goes into a result of its own, which whoever began it adds up in the order of the profile: so that what is told does not
depend on who was faster. One account's failure, whatever it is, is never another's. What ends the run for all (the vault's disk is full, an
interrupt) ends every account's work within seconds; what came is kept.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hostbackup.interrupts import Stopped, later
from hostbackup.jobs.identity import Identity
from hostbackup.jobs.mail_logins import MailLogins, Server
from hostbackup.jobs.part_work import PartWork
from hostbackup.model import Observer, Relaying
from hostbackup.report.words import number, plural, size

AT_ONCE = 12  # accounts, whatever their servers bear: each has its files open and its messages in memory
_LOOK = 0.5  # seconds between looks at whether all is done
_LEAVE = 10.0  # seconds that threads have to end after an interrupt


@dataclass(slots=True, eq=False)
class AccountWork(PartWork):
    """One account's part of a job, and `then`, where there is one, what follows it in the same thread, whatever became of it."""

    server: Server = ("", 0)
    limit: int = 1  # connections at once to that server
    then: PartWork | None = None

    def run(self) -> None:
        """As each of the two: raises VaultError, which ends all, and Stopped."""
        PartWork.run(self)
        if self.then is not None:
            self.then.run()


@dataclass(slots=True)
class AccountsPool:
    """Use: make an `AccountWork` for each account, with a `Result(pool.observer())`, then `run` them.

    `title`: what is done, for the progress line. A single account (`many` False) is worked on by the thread that calls, which tells what it does as
    it does it.
    """

    logins: MailLogins
    identity: Identity
    listener: Observer
    title: str
    many: bool = True
    _stop: threading.Event = field(init=False)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _waiting: list[AccountWork] = field(default_factory=list)
    _running: Counter[Server] = field(default_factory=Counter)
    _all: int = 0
    _done: int = 0
    _failed: int = 0
    _messages: int = 0  # that were moved or proven, and their bytes
    _bytes: int = 0
    _fatal: BaseException | None = None

    def __post_init__(self) -> None:
        self._stop = self.logins.stop = threading.Event()

    def observer(self) -> Observer:
        """For one account."""
        return _Quiet(self.listener, self._stop, self._moved) if self.many else self.listener

    def run(self, accounts: Sequence[AccountWork]) -> None:
        """Has all of them worked on. Raises VaultError, and KeyboardInterrupt where one comes, once the threads have ended."""
        if not self.many:
            for account in accounts:
                account.run()
            return
        self._waiting = list(accounts)
        self._all = len(accounts)
        self.logins.many = True
        self.logins.queued.update(account.server for account in accounts)
        room = sum({account.server: account.limit for account in accounts}.values())
        threads = [threading.Thread(target=self._work, name=f"account-{n}", daemon=True) for n in range(min(AT_ONCE, self._all, room))]
        self.listener.phase(self._line())
        try:
            with self.identity.together():
                try:
                    if self._begin(threads):
                        self._wait()
                    else:
                        self._work()
                finally:
                    self._end(threads)
        finally:
            self.logins.many = False
            self.logins.queued.clear()
        if self._fatal is not None:
            raise self._fatal

    def _begin(self, threads: list[threading.Thread]) -> bool:
        """Whether there is any thread: this user may have no more of them."""
        for thread in threads:
            try:
                thread.start()
            except RuntimeError:
                return thread is not threads[0]
        return True

    def _wait(self) -> None:
        """In short steps: an interrupt comes between them, and never while a lock is held."""
        while True:
            with later, self._changed:
                if self._fatal is not None or self._done == self._all:
                    return
                self._changed.wait(_LOOK)
            self.identity.keep_up()

    def _end(self, threads: list[threading.Thread]) -> None:
        if self._done < self._all:
            self.logins.end()
        with later, self._changed:
            self._waiting.clear()
            self._changed.notify_all()
        until = time.monotonic() + _LEAVE
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))

    # -- in the threads -----------------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (account := self._next()) is not None:
            try:
                account.run()
            except Stopped:
                return
            except BaseException as error:
                with self._changed:
                    self._fatal = self._fatal or error
                    self._changed.notify_all()
                return
            with self._changed:
                self._running[account.server] -= 1
                self._done += 1
                self._failed += account.error is not None
                self._changed.notify_all()
            self.listener.retitle(self._line())

    def _next(self) -> AccountWork | None:
        """The first account whose server has room; waits for one. None where there is nothing left to do."""
        with self._changed:
            while self._waiting and not self._stop.is_set():
                for account in self._waiting:
                    if self._running[account.server] < account.limit:
                        self._waiting.remove(account)
                        self._running[account.server] += 1
                        self.logins.queued[account.server] -= 1
                        return account
                self._changed.wait(_LOOK)
            return None

    def _moved(self, messages: int, count: int) -> None:
        with self._changed:
            self._messages += messages
            self._bytes += count
        self.listener.retitle(self._line())

    def _line(self) -> str:
        failed = f", {number(self._failed)} failed" if self._failed else ""
        moved = f", {plural(self._messages, 'message')}, {size(self._bytes)}" if self._messages else ""
        return f"{self.title}: {number(self._done)} of {number(self._all)} accounts{failed}{moved}"


class _Quiet(Relaying):
    """What one of many accounts tells: its phases are notes, so that one line stands for all. A thread whose run has ended leaves here.

    What is only looked at, in phases of which nobody knows how much there is, is not counted.
    """

    def __init__(self, listener: Observer, stop: threading.Event, moved: Callable[[int, int], object]) -> None:
        super().__init__(listener)
        self._stop = stop
        self._moved = moved
        self._counting = False

    def phase(self, title: str, entries: int | None = None, size: int | None = None) -> None:
        self._listener.note(title)
        self._counting = entries is not None
        self._leave()

    def advance(self, entries: int = 0, size: int = 0) -> None:
        if self._counting:
            self._moved(entries, size)
        self._leave()

    def _leave(self) -> None:
        if self._stop.is_set():
            raise Stopped
