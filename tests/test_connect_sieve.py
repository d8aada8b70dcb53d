"""Logins to filters: what one account finds out of a server counts for all, few wrong logins, slots, and an end that does not wait."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from hostbackup.errors import ConnectionFailed, LineCut, LoginRefused, NotOffered, ProtocolBroken, Unreachable
from hostbackup.interrupts import Stopped
from hostbackup.jobs.connect_sieve import FilterLogins
from hostbackup.jobs.mail_logins import MailLogins
from hostbackup.protocols import sieve
from hostbackup.protocols.imap.session import ImapTarget
from hostbackup.protocols.sieve import SieveSession
from tests.support.dovecot import free_ports
from tests.support.sieve_script import Scripted, Shelf, agreeable, scripted, unanswered

MAILBOX = ImapTarget("mail.example.test", "taro", "secret", 143, "plain", ("127.0.0.1",), timeout=5.0)
REFUSING = Shelf(refuses={b"AUTHENTICATE": b'NO "wrong"\r\n'})


def logins() -> FilterLogins:
    return FilterLogins(MailLogins(lambda host, port, given: given))


def entered(filters: FilterLogins, port: int, user: str = "taro", *, side: str = "old", timeout: float = 5.0) -> SieveSession:
    return filters.factory(side, replace(MAILBOX, user=user, timeout=timeout), port, "127.0.0.1", 2)()


def told(filters: FilterLogins, port: int, count: int, *, timeout: float = 5.0) -> list[ConnectionFailed]:
    found = []
    for number in range(count):
        with pytest.raises(ConnectionFailed) as caught:
            entered(filters, port, f"user{number}", timeout=timeout)
        found.append(caught.value)
    return found


def tried(server: Scripted) -> int:
    return sum(command.startswith(b"AUTHENTICATE") for command in server.commands)


@contextlib.contextmanager
def silent() -> Iterator[tuple[int, list[socket.socket]]]:
    """A port that takes connections and says nothing."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def take() -> None:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(listener.accept()[0])

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1], taken
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)
            for one in taken:
                one.close()


def test_a_port_that_stays_silent_is_waited_for_once() -> None:
    with silent() as (port, taken):
        errors = told(logins(), port, 4, timeout=0.2)
        assert len(taken) == 1
    assert {type(error) for error in errors} == {sieve.Silent}
    assert ("no greeting came" in errors[3].reason, 'sieve = "never"' in errors[3].hint, len(set(map(id, errors)))) == (True, True, 4)


@pytest.mark.parametrize(("greeting", "error", "connections"), [(None, LineCut, 2), (b"220 mail ESMTP\r\n", ProtocolBroken, 1)])
def test_a_port_without_a_greeting_of_filters_is_asked_for_one_account_alone(
    greeting: bytes | None, error: type[ConnectionFailed], connections: int
) -> None:
    with scripted(greeting=greeting) as server:
        assert {type(one) for one in told(logins(), server.port, 4)} == {error}
        assert server.connections == connections


def test_a_port_that_nobody_answers_is_waited_for_once_and_not_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sieve, "_KNOCK", 0.2)
    with unanswered() as port:
        errors = told(logins(), port, 3)
    assert [("did not answer" in error.reason, type(error)) for error in errors] == [(True, NotOffered)] * 3


def test_a_look_ahead_leaves_its_connection_to_the_first_login() -> None:
    with scripted() as server:
        filters = logins()
        filters.knock(MAILBOX, server.port)
        entered(filters, server.port).close()
        assert server.connections == 1
        entered(filters, server.port, "hanako").close()
        assert server.connections == 2


def test_a_connection_that_waited_too_long_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hostbackup.jobs.connect_sieve._WAITS", -1.0)
    with scripted() as server:
        entered(logins(), server.port).close()
        assert (server.connections, tried(server)) == (2, 1)


def test_a_server_that_lets_nobody_in_sees_few_wrong_logins() -> None:
    with scripted(REFUSING) as server:
        filters = logins()
        errors = told(filters, server.port, 6)
        assert {type(error) for error in errors} == {LoginRefused}
        assert (tried(server), "not tried" in errors[3].reason, "3 other accounts" in errors[5].reason) == (3, True, True)


def test_where_somebody_was_let_in_each_account_is_tried_once() -> None:
    shelf = Shelf()
    with scripted(shelf) as server:
        filters = logins()
        entered(filters, server.port).close()
        shelf.refuses = dict(REFUSING.refuses)
        told(filters, server.port, 5)
        told(filters, server.port, 5)
        assert tried(server) == 1 + 5


def test_many_at_once_do_not_all_try_before_the_first_is_answered() -> None:
    with scripted(REFUSING) as server:
        filters = logins()
        threads = [threading.Thread(target=_try, args=(filters, server.port, f"user{number}")) for number in range(9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert tried(server) == 3


def _try(filters: FilterLogins, port: int, user: str) -> None:
    with contextlib.suppress(LoginRefused):
        entered(filters, port, user)


def test_a_password_that_the_mailbox_refused_is_not_tried_and_the_other_side_is_another_matter() -> None:
    with scripted() as server:
        filters = logins()
        filters.refused("old", MAILBOX.host, "taro", LoginRefused("the mailbox says no"))
        with pytest.raises(LoginRefused, match="the mailbox says no"):
            entered(filters, server.port)
        assert server.connections == 0
        entered(filters, server.port, side="new").close()


def test_a_server_that_goes_away_in_mid_run_is_no_server_without_filters() -> None:
    with scripted() as server:
        filters = logins()
        entered(filters, server.port).close()
    errors = told(filters, server.port, 3)
    assert {type(error) for error in errors} == {Unreachable}


def test_a_login_holds_a_slot_of_its_server_until_it_ends() -> None:
    with scripted() as server:
        filters = logins()
        slots = filters.logins.slots(("127.0.0.1", 143), 2)
        one, other = entered(filters, server.port), entered(filters, server.port, "hanako")
        assert slots.most == 2
        with pytest.raises(Stopped):
            slots.main("jiro", lambda: True)
        one.close()
        one.drop()
        other.drop()
        slots.main("jiro", lambda: True)
    with scripted(REFUSING) as server:
        filters = logins()
        told(filters, server.port, 3)
        filters.logins.slots(("127.0.0.1", 143), 1).main("jiro", lambda: True)


def test_the_end_of_the_work_ends_logins_and_begins_none() -> None:
    def stays(command: bytes) -> bytes | None:
        return b"" if command.startswith(b"LISTSCRIPTS") else agreeable(command)

    with scripted(stays) as server:
        filters = logins()
        session = entered(filters, server.port)
        ending = threading.Timer(0.05, filters.logins.end)
        ending.start()
        with pytest.raises(LineCut):
            session.scripts()
        ending.join()
        with pytest.raises(Stopped):
            entered(filters, server.port, "hanako")
        assert tried(server) == 1


def test_a_tunnel_and_a_closed_port_lead_to_no_filters() -> None:
    [port] = free_ports(1)
    filters = logins()
    with pytest.raises(NotOffered, match="refused"):
        entered(filters, port)
    tunnelled = replace(MAILBOX, tunnel=("ssh", "-W"))
    filters.knock(tunnelled, port)
    with pytest.raises(NotOffered, match="tunnel"):
        filters.factory("old", tunnelled, port, "", 2)()
