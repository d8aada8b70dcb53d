"""How long an account looks for its server, and what one account's trouble means for the others."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from hostbackup.errors import LineCut, NameNotResolved, ServerBusy
from hostbackup.interrupts import Stopped
from hostbackup.jobs.mail_logins import AccountLine, MailLogins
from hostbackup.protocols.imap.session import ImapSession, ImapTarget
from tests.support.imap_script import FakeImap, Hangup, Talk


class World:
    """A server, and a name server that may not know it for some questions. Waits pass at once."""

    def __init__(self) -> None:
        self.unknown = 0  # questions that get no answer
        self.asked = 0
        self.now = 0.0
        self.waited: list[float] = []
        self.cut: set[str] = set()  # users whose login cuts the line
        self.server = FakeImap(hook=self._hook)
        self.logins = MailLogins(self._resolve, pause=self._pause, clock=lambda: self.now)

    def _hook(self, talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "LOGIN" and any(user.encode() in rest for user in self.cut):
            raise Hangup
        return False

    def _resolve(self, host: str, port: int, given: tuple[str, ...]) -> tuple[str, ...]:
        self.asked += 1
        if self.asked <= self.unknown:
            raise NameNotResolved("it leads to no address", where=host)
        return ("127.0.0.1",)

    def _pause(self, seconds: float, stop: threading.Event) -> None:
        self.waited.append(seconds)
        self.now += seconds

    def line(self, user: str) -> AccountLine[ImapSession]:
        target = ImapTarget("mail.example.test", user, "secret", self.server.port, "plain", timeout=5.0)
        return self.logins.line("old", target, 6, lambda session: None, lambda error: None)


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    with made.server.running():
        yield made


def test_a_server_that_was_there_is_given_time_to_start_again(world: World) -> None:
    session = world.line("taro").main()
    session.close()
    world.asked, world.unknown = 0, 5
    world.line("hanako").main().close()
    assert world.asked == 6
    assert sum(world.waited) == 15.5


def test_one_that_many_accounts_depend_on_is_given_time_from_the_start(world: World) -> None:
    world.logins.many = True
    world.unknown = 5
    world.line("hanako").main().close()
    assert sum(world.waited) == 15.5


def test_one_that_nobody_has_met_is_looked_for_twice(world: World) -> None:
    world.unknown = 99
    with pytest.raises(NameNotResolved):
        world.line("taro").main()
    assert world.asked == 2
    world.now += 30.0
    for _ in range(2):  # the second account finds the same, and the third does not look any more
        with pytest.raises(NameNotResolved):
            world.line("hanako").main()
    with pytest.raises(NameNotResolved, match="not tried again"):
        world.line("info").main()
    assert world.asked == 3  # hanako looked once: then it was enough


def test_accounts_whose_lines_are_cut_take_nobody_along_while_a_session_lives(world: World) -> None:
    living = world.line("taro").main()
    world.cut = {"hanako", "info", "shop", "post"}
    for user in sorted(world.cut):
        with pytest.raises(LineCut, match="closed the connection"):
            world.line(user).main()
        world.now += 30.0
    world.line("keiri").main().close()
    living.close()


def test_a_server_that_takes_no_more_is_waited_for_as_it_says(world: World) -> None:
    world.server.greeting = b"* BYE Too many connections, try again in 7 seconds\r\n"
    with pytest.raises(ServerBusy):
        world.line("taro").main()
    assert world.waited == [7.0] * 4


def test_an_interrupt_does_not_wait_for_a_server_that_says_nothing() -> None:
    """Its silence may last a minute, and a name server's too."""
    logins = MailLogins(lambda host, port, given: ("127.0.0.1",))
    ended: list[type[BaseException]] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        target = ImapTarget("mail.example.test", "taro", "secret", listener.getsockname()[1], "plain", timeout=300.0)
        line = logins.line("old", target, 6, lambda session: None, lambda error: None)

        def work() -> None:
            try:
                line.main()
            except BaseException as error:
                ended.append(type(error))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        server, _ = listener.accept()
        logins.end()
        thread.join(20)
        server.close()
    assert ended == [Stopped]
