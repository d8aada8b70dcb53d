"""A server that is gone is not looked for by everybody, and one that is there is never taken for gone."""

from __future__ import annotations

import pytest

from hostbackup.errors import LineCut, NameNotResolved, ServerBusy, Unreachable
from hostbackup.protocols.presence import Presence

GONE = Unreachable("port 993 did not answer", where="mail.example.jp")
CUT = LineCut("the server closed the connection")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_server_that_two_accounts_cannot_reach_is_gone_and_looked_for_again_after_a_while() -> None:
    clock = Clock()
    server = Presence(clock)
    server.missed("taro", GONE)
    server.missed("hanako", GONE)
    server.check()  # a server may be starting again: no more than a moment has passed
    clock.now = 60.0
    server.missed("hanako", GONE)
    with pytest.raises(Unreachable, match="not tried again, since the server was not there: port 993 did not answer"):
        server.check()
    clock.now = 400.0
    server.check()  # one may look
    with pytest.raises(Unreachable):
        server.check()
    server.answered()
    server.check()
    server.missed("taro", GONE)
    server.check()


def test_one_account_alone_says_nothing_of_the_server() -> None:
    clock = Clock()
    server = Presence(clock)
    for number in range(20):
        clock.now = number * 30.0
        server.missed("taro", GONE)
        server.missed("hanako", CUT if number % 2 else ServerBusy("too many connections"))
        server.answered()
        server.missed("taro", GONE)
        server.missed("taro", CUT)
    server.check()


def test_three_accounts_that_are_cut_before_the_login_are_enough_and_fewer_are_not() -> None:
    clock = Clock()
    server = Presence(clock)
    for number in range(6):
        clock.now = number * 30.0
        server.missed("taro", CUT)
        server.missed("hanako", CUT)
    server.check()
    server.missed("info", CUT)
    with pytest.raises(LineCut, match="not tried again"):
        server.check()


@pytest.mark.parametrize("error", [GONE, CUT, NameNotResolved("the name leads to no address")])
def test_a_server_with_a_living_session_is_there_whatever_others_meet(error: Unreachable | LineCut | NameNotResolved) -> None:
    clock = Clock()
    server = Presence(clock)
    server.begun()
    server.begun()
    server.ended()
    for number in range(10):
        clock.now = number * 30.0
        server.missed(f"user-{number}", error)
    server.check()
    server.ended()
    for number in range(4):  # now nobody is there any more
        clock.now += 30.0
        server.missed(f"user-{number}", error)
    with pytest.raises(type(error)):
        server.check()
