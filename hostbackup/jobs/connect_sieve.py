"""Logins to the filters of mail accounts: as to the mailbox, at its host, and where it is known at the very address that the mailbox was met at."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from hostbackup.errors import ConnectionFailed, LineCut, LoginRefused, NotOffered, Unreachable
from hostbackup.interrupts import Stopped, beside
from hostbackup.jobs.keys import spoken

if TYPE_CHECKING:
    from hostbackup.jobs.mail_logins import MailLogins
    from hostbackup.protocols.imap.session import ImapTarget
    from hostbackup.protocols.sieve import Greeted, SieveSession

_LOOK = 0.5  # seconds between looks at whether the run has ended
_REFUSALS = 3  # logins that a server refuses, before no more are tried where it lets nobody in: many close their doors to whoever fails five times
_WAITS = 20.0  # seconds that any server waits for a login
_SLOW = 1.0  # seconds for which a port that nobody answers is worth remembering
_MISSES = 2  # connections in a row to a server that greeted before, until it counts as gone

_Place = tuple[str, int, tuple[str, ...]]  # host, port and addresses


@dataclass(slots=True)
class FilterLogins:
    """What a run has learnt of them. A host that offers none is asked once, and a refused password is never tried twice, by either protocol.

    Each login has a slot among those of the mailboxes at that server, and ends with the work that it is for.
    """

    logins: MailLogins
    _doors: dict[_Place, _Door] = field(default_factory=dict)
    _refused: dict[tuple[str, str, str], LoginRefused] = field(default_factory=dict)  # by side, host and user
    _lock: threading.Lock = field(default_factory=threading.Lock)
    silent: dict[str, str] = field(default_factory=dict)  # by port and address: where nobody answered an earlier run, and when that was

    def silent_now(self) -> list[str]:
        """Ports and addresses where nobody answered this run, which it took seconds to find out."""
        return [_named(place) for place, door in self._doors.items() if door.silent]

    def refused(self, side: str, host: str, user: str, error: LoginRefused) -> None:
        """A login was refused there, be it to the filters or to the mailbox."""
        self._refused[side, host, user] = error

    def knock(self, mailbox: ImapTarget, port: int, met: str = "") -> None:
        """Looks whether anybody answers there, beside other work. Nothing is told: whoever logs in hears of it."""
        if not mailbox.tunnel:
            target = self._target(mailbox, port, met)
            self._door(target).knock(target)

    def factory(self, side: str, mailbox: ImapTarget, port: int, met: str, limit: int) -> Callable[[], SieveSession]:
        """Logs in each time it is called. `met`: the address at which the mailbox was reached, "" where it was not. `limit`: of its server's slots.

        Raises what `hostbackup.protocols.sieve.connect` raises, and Stopped.
        """
        key = side, mailbox.host, mailbox.user

        def connect() -> SieveSession:
            if key in self._refused:
                raise _again(self._refused[key])
            if mailbox.tunnel:
                raise NotOffered("the tunnel leads to IMAP alone", where=mailbox.host)
            target, stop = self._target(mailbox, port, met), self.logins.stop
            door = self._door(target)
            door.check(target, stop)
            slots = self.logins.slots((self._addresses(mailbox)[0], mailbox.port), limit)
            slots.main(mailbox.user, stop.is_set)
            give_back = functools.partial(slots.give_back, mailbox.user)
            try:
                made = beside(lambda: door.enter(target, stop), stop, lambda late: late.drop())
            except BaseException as error:
                give_back()
                if isinstance(error, LoginRefused):
                    self.refused(*key, error)
                raise
            self.logins.opened(made, give_back)
            if stop.is_set():  # those who end the work may have looked for open sessions a moment ago
                made.drop()
                raise Stopped
            return made

        return connect

    def _addresses(self, mailbox: ImapTarget) -> tuple[str, ...]:
        """Those of the mailbox, which a run resolves once. Raises NameNotResolved."""
        return self.logins.resolve(mailbox.host, mailbox.port, mailbox.addresses)

    def _target(self, mailbox: ImapTarget, port: int, met: str) -> ImapTarget:
        return replace(mailbox, port=port, addresses=(met or self._addresses(mailbox)[0],))

    def _door(self, target: ImapTarget) -> _Door:
        place = target.host, target.port, target.addresses
        with self._lock:
            if place not in self._doors:
                self._doors[place] = _Door()
                if since := self.silent.get(_named(place)):
                    there = f"port {target.port} of {target.host}"
                    told = f"the server offers no ManageSieve: {there} did not answer {spoken(since)}, and is asked again some hours after that"
                    self._doors[place].keep_shut(NotOffered(told))
            return self._doors[place]


def _named(place: _Place) -> str:
    return f"{place[0]}:{place[1]} {' '.join(place[2])}"


@dataclass(slots=True, eq=False)
class _Door:
    """The port of filters at one server: whether anybody is there, and whether anybody was let in. Used by many threads."""

    _changed: threading.Condition = field(default_factory=threading.Condition)
    _knocked: bool = False
    _known: threading.Event = field(default_factory=threading.Event)
    _error: BaseException | None = None  # why nobody can log in there
    _ready: Greeted | None = None  # the connection of the knock, for whoever comes first
    _ready_since: float = 0.0
    silent: bool = False  # nobody answered, for so long that it is worth remembering
    _misses: int = 0
    _let_in: bool = False
    _trying: bool = False
    _refusals: int = 0

    def keep_shut(self, error: NotOffered) -> None:
        """Nobody is to look: that is what is known already."""
        self._knocked, self._error = True, error
        self._known.set()

    def knock(self, target: ImapTarget) -> None:
        with self._changed:
            if self._knocked:
                return
            self._knocked = True
        thread = threading.Thread(target=self._knock, args=(target,), name="knock", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # this user may have no more threads
            self._knock(target)

    def _knock(self, target: ImapTarget) -> None:
        from hostbackup.protocols import sieve

        began = time.monotonic()
        try:
            try:
                self._ready = sieve.greet(target)
            except sieve.Silent:
                raise
            except LineCut:
                self._ready = sieve.greet(target)  # one may be cut
        except BaseException as error:  # for whoever waits for it
            self._error = error
            self.silent = isinstance(error, NotOffered) and time.monotonic() - began >= _SLOW
        finally:
            self._ready_since = time.monotonic()
            self._known.set()

    def check(self, target: ImapTarget, stop: threading.Event) -> None:
        """Raises what was found by whoever looked first, which this may be."""
        self.knock(target)
        while not self._known.wait(_LOOK):
            if stop.is_set():
                raise Stopped
        if self._error is not None:
            raise _again(self._error) if isinstance(self._error, ConnectionFailed) else self._error

    def enter(self, target: ImapTarget, stop: threading.Event) -> SieveSession:
        """Logs in. One at a time as long as nobody was let in, so that a server that refuses all of them sees few wrong logins."""
        with self._changed:
            while self._trying and not self._let_in:
                if stop.is_set():
                    raise Stopped
                self._changed.wait(_LOOK)
            if stop.is_set():
                raise Stopped
            if self._refusals >= _REFUSALS and not self._let_in:
                reason = f"not tried: the server refused the logins of {self._refusals} other accounts for filters, and let nobody in"
                raise LoginRefused(reason, where=target.host, hint='ask the provider how to log in for filters, or set `sieve = "never"`')
            self._trying = True
            ready, self._ready = self._ready, None
        try:
            session = self._log_in(target, ready)
        except LoginRefused:
            self._refusals += 1
            raise
        else:
            self._let_in = True
            return session
        finally:
            with self._changed:
                self._trying = False
                self._changed.notify_all()

    def _log_in(self, target: ImapTarget, ready: Greeted | None) -> SieveSession:
        if ready is not None:
            if time.monotonic() - self._ready_since < _WAITS:
                return ready.log_in(target)
            ready.close()
        return self._greet(target).log_in(target)

    def _greet(self, target: ImapTarget) -> Greeted:
        from hostbackup.protocols import sieve

        try:
            greeted = sieve.greet(target)
        except ConnectionFailed as error:
            # It greeted a moment ago: whatever this is, it is not a server that offers no filters.
            told = Unreachable(error.reason, where=error.where, hint="try again later") if isinstance(error, NotOffered) else error
            self._misses += 1
            if self._misses >= _MISSES:
                self._error = told
            raise told from None
        self._misses = 0
        return greeted


def _again(error: ConnectionFailed) -> ConnectionFailed:
    """The same for somebody else: an exception that is raised by several threads gathers all their traces."""
    return type(error)(error.reason, where=error.where, hint=error.hint)
