"""Logins to mail servers, within what each bears: connections are counted, a refused account is left alone, and so is a server that is gone."""

from __future__ import annotations

import functools
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from hostbackup.errors import ConnectionFailed, LineCut, LoginRefused, MailboxInUse, NameNotResolved, ServerBusy, Unreachable
from hostbackup.interrupts import Stopped, beside
from hostbackup.protocols.presence import PATIENCE, Presence
from hostbackup.protocols.slots import Slots

Server = tuple[str, int]  # host as the profile calls it, and port

_BUSY_TRIES = 5  # logins, before an account that a busy server turns away gives up
_TRIES = 2  # to reach a server …
_PATIENT_TRIES = 6  # … that was there a moment ago, or that many accounts depend on
_LONGEST = 60.0  # seconds that are waited because a server asks for it


class Session(Protocol):
    """A logged-in connection, whatever is spoken over it."""

    on_end: Callable[[], object]

    def drop(self) -> None: ...


Made = TypeVar("Made", bound=Session)
Made_co = TypeVar("Made_co", bound=Session, covariant=True)


class Target(Protocol[Made_co]):
    """One mailbox at one server, and how to get into it."""

    @property
    def protocol(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def user(self) -> str: ...
    @property
    def addresses(self) -> tuple[str, ...]: ...
    @property
    def tunnel(self) -> tuple[str, ...]: ...

    def connect(self, addresses: tuple[str, ...], /) -> Made_co:
        """Logs in at one of `addresses`. Raises ConnectionFailed."""


@dataclass(slots=True)
class MailLogins:
    """What a run knows of the mail servers it talks to. Used by many threads; lives as long as the run, through all steps of a `sync`."""

    resolve: Callable[[str, int, tuple[str, ...]], tuple[str, ...]]  # raises NameNotResolved
    note: Callable[[str], object] = lambda text: None
    waiting: Callable[[str], object] = lambda reason: None  # hears why the only account that is at work stands still, and "" once it goes on
    pause: Callable[[float, threading.Event], object] = lambda seconds, stop: stop.wait(seconds)
    stop: threading.Event = field(default_factory=threading.Event)  # of the work that is under way
    many: bool = False  # accounts are at work: who gives a server up too soon does so for all of them
    queued: Counter[Server] = field(default_factory=Counter)  # accounts that have not begun: they come before anybody's spare connection
    clock: Callable[[], float] = time.monotonic
    _slots: dict[Server, Slots] = field(default_factory=dict)
    _presences: dict[Server, Presence] = field(default_factory=dict)
    _refused: dict[tuple[str, str, str], LoginRefused] = field(default_factory=dict)  # by section, host and user
    _sessions: dict[Session, Callable[[], None]] = field(default_factory=dict)  # that are open, and how each gives its slot back
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def slots(self, server: Server, limit: int) -> Slots:
        with self._lock:
            if server not in self._slots:
                self._slots[server] = Slots(limit, clock=self.clock)
            return self._slots[server]

    def presence(self, server: Server) -> Presence:
        with self._lock:
            return self._presences.setdefault(server, Presence(self.clock))

    def line(
        self,
        side: str,
        target: Target[Made],
        limit: int,
        see: Callable[[Made], object],
        on_refused: Callable[[LoginRefused], object] = lambda _: None,
    ) -> AccountLine[Made]:
        """The connections of one account. `see` looks at each new one, and raises where it is not the right server."""
        return AccountLine(self, side, target, limit, see, on_refused, self.stop)

    def rest(self, seconds: float) -> None:
        """Waits, or leaves with Stopped where the work ends meanwhile."""
        stop = self.stop
        self.wait(seconds, "the line was cut, or the server asks for a rest", stop)
        if stop.is_set():
            raise Stopped

    def wait(self, seconds: float, reason: str, stop: threading.Event) -> None:
        """Until the work that `stop` is of ends, at most."""
        if not self.many:
            self.waiting(f"waiting {seconds:.0f} s: {reason}" if seconds >= 1 else "waiting")
        self.pause(seconds, stop)
        if not self.many:
            self.waiting("")

    def end(self) -> None:
        """Ends the work that is under way: whoever waits for a server, an answer or a slot leaves with Stopped."""
        self.stop.set()
        with self._lock:
            sessions = list(self._sessions)
        for session in sessions:
            session.drop()

    def opened(self, session: Session, give_back: Callable[[], None]) -> None:
        with self._lock:
            self._sessions[session] = give_back
        session.on_end = functools.partial(self._ended, session)

    def _ended(self, session: Session) -> None:
        with self._lock:
            give_back = self._sessions.pop(session, None)
        if give_back is not None:
            give_back()


@dataclass(slots=True)
class AccountLine(Generic[Made]):
    """The connections of one account to one server: `main` for the one that it cannot do without, `spare` for one more."""

    logins: MailLogins
    side: str
    target: Target[Made]
    limit: int
    see: Callable[[Made], object]
    on_refused: Callable[[LoginRefused], object]
    stop: threading.Event
    _no_more: bool = False  # spare connections were refused

    @property
    def section(self) -> str:
        return f"{self.side}.{self.target.protocol}"

    @property
    def server(self) -> Server:
        return self.target.host, self.target.port

    def main(self) -> Made:
        """Logs in, as soon as the server has a connection to give. Raises ConnectionFailed, WrongMachine or Stopped.

        A server that takes no more connections is given time; one that does not answer is looked for again, for longer where it was there before or
        many accounts depend on it: it may be starting again. A refused login is never tried again.
        """
        tries, began = 0, self.logins.clock()
        while True:
            tries += 1
            there: list[Presence] = []
            try:
                return self._try(there)
            except ServerBusy as error:
                if tries >= _BUSY_TRIES:
                    raise
                self.logins.note(f"{self.section} {self.target.user}: {error.reason}; waiting")
                self._pause(0.5 * 2**tries, error)
            except (Unreachable, NameNotResolved, LineCut) as error:
                enough = _PATIENT_TRIES if self.logins.many or any(one.met for one in there) else _TRIES
                late = self.logins.clock() - began >= PATIENCE
                if tries >= (_TRIES if late else enough) or any(one.gone for one in there):
                    raise
                self._pause(0.25 * 2**tries, error)

    def _pause(self, seconds: float, error: ConnectionFailed) -> None:
        """Waits, as long as the server says where it says so."""
        from hostbackup.protocols.imap.throttle import wait_told

        told = wait_told(error.reason.encode("utf-8", "replace"))
        self.logins.wait(seconds if told is None else min(told, _LONGEST), error.reason, self.stop)

    def _try(self, there: list[Presence]) -> Made:
        """One login. `there` gets what is known of whether the server is there, by its name and by its address."""
        key, user = (self.section, self.target.host, self.target.user), self.target.user
        if key in self.logins._refused:
            raise self.logins._refused[key]
        there.append(self.logins.presence(self.server))
        there[0].check()
        try:
            slots, addresses = self._slots()
        except ConnectionFailed as error:
            there[0].missed(user, error)
            raise
        if addresses and (at := self.logins.presence((addresses[0], self.target.port))) is not there[0]:
            there.append(at)
            at.check()
        slots.main(user, self.stop.is_set)
        try:
            return self._log_in(slots, addresses, there, functools.partial(slots.give_back, user))
        except LoginRefused as error:
            for one in there:
                one.answered()
            self.logins._refused[key] = error
            self.on_refused(error)
            raise
        except ConnectionFailed as error:
            for one in there:
                one.missed(user, error)
            raise

    def spare(self) -> Made | None:
        """One more connection, where the server has one that nobody else wants; None where it has not."""
        if self._no_more or self.logins.queued[self.server]:
            return None
        try:
            slots, addresses = self._slots()
            if not slots.spare(self.target.user):
                return None
            there = [self.logins.presence(self.server)]
            return self._log_in(slots, addresses, there, functools.partial(slots.give_back, self.target.user, spare=True))
        except ConnectionFailed as error:
            self._no_more = True
            self.logins.note(f"{self.section} {self.target.user}: no second connection: {error.reason}")
            return None

    def _slots(self) -> tuple[Slots, tuple[str, ...]]:
        """Those of the machine, by its address: two names may lead to one. A tunnel leads wherever it leads. Raises NameNotResolved."""
        if self.target.tunnel:
            return self.logins.slots(self.server, self.limit), ()
        addresses = beside(lambda: self.logins.resolve(*self.server, self.target.addresses), self.stop)
        return self.logins.slots((addresses[0], self.target.port), self.limit), addresses

    def _log_in(self, slots: Slots, addresses: tuple[str, ...], there: Sequence[Presence], give_back: Callable[[], None]) -> Made:
        """A session that holds its slot until it ends, and is a sign of life; where there is none the slot is given back."""
        try:
            self._leave_if_stopped()
            made = beside(lambda: self.target.connect(addresses), self.stop, lambda late: late.drop())
        except BaseException as error:
            if isinstance(error, ServerBusy) and not isinstance(error, MailboxInUse):
                slots.lower()
            give_back()
            raise
        for one in there:
            one.begun()

        def ended() -> None:
            give_back()
            for one in there:
                one.ended()

        self.logins.opened(made, ended)
        try:
            self._leave_if_stopped()  # those who end the work may have looked for open sessions a moment ago
            self.see(made)
        except BaseException:
            made.drop()
            raise
        return made

    def _leave_if_stopped(self) -> None:
        if self.stop.is_set():
            raise Stopped
