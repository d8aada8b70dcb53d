"""Logging in and listing over POP3, against a server that can be made to misbehave and against a real one."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from hostbackup.errors import CertificateRefused, ConnectionFailed, LineCut, LoginRefused, MailboxInUse, ProtocolBroken, ServerBusy, Unreachable
from hostbackup.protocols.pop3.channel import MAX_ITEM, MAX_STATUS, parse_reply
from hostbackup.protocols.pop3.session import Pop3Target, connect
from tests.support.dovecot import HOST, Dovecot, dovecot
from tests.support.pop3_script import FakePop3, Hangup, Talk, stuff


@pytest.fixture
def server() -> Iterator[FakePop3]:
    with FakePop3().running() as running:
        yield running


def test_what_a_status_line_says() -> None:
    for line, expected in {
        b"+OK\r\n": (True, "", b"", False),
        b"+OK 2 320\r\n": (True, "", b"2 320", False),
        b"-ERR [SYS/TEMP] later\n": (False, "SYS/TEMP", b"later", True),
        b"-err [in-use]\r\n": (False, "IN-USE", b"", False),
        b"+OK [not a code\r\n": (True, "", b"[not a code", False),
    }.items():
        reply = parse_reply(line)
        assert reply is not None
        assert (reply.ok, reply.code, reply.text, reply.bare_lf) == expected
    for line in (b"", b"\r\n", b"+OKAY\r\n", b"* OK\r\n", b"+ \r\n", b"ERR\r\n"):
        assert parse_reply(line) is None


@pytest.mark.parametrize("capabilities", [b"UIDL PIPELINING", b"UIDL", b""])
def test_the_list_of_messages(server: FakePop3, capabilities: bytes) -> None:
    server.capabilities = capabilities
    server.put(b"a\r\n", b"bc\r\n")
    session = server.factory()
    assert session.stat() == (2, 7)
    assert [(slot.number, slot.size, slot.uidl) for slot in session.contents()[1]] == [(1, 3, "U0001"), (2, 4, "U0002")]
    got = bytearray()
    session.ask(2)
    assert session.take(got.extend, 100).ok
    assert got == b"bc\r\n"
    session.close()
    session.close()
    assert not {b"DELE", b"QUIT"} & {command.split()[0] for command in server.commands}


def test_a_password_goes_by_apop_where_the_line_is_plain_and_the_server_offers_it(server: FakePop3) -> None:
    server.capabilities = b"UIDL SASL_PLAIN"
    server.greeting = b"+OK ready <1896.697170952@dbc.mtview.ca.us>\r\n"
    server.factory().close()
    assert [command for command in server.commands if b"secret" in command] == []
    assert server.count(b"APOP") == 1
    with pytest.raises(LoginRefused, match="apop = false"):
        connect(server.target(password="wrong"))
    assert server.count(b"USER") == 0, "a refused password is not tried another way"
    connect(server.target(apop=False)).close()
    assert server.count(b"USER") == 1


def test_sasl_plain_carries_any_password(server: FakePop3) -> None:
    server.capabilities = b"SASL_PLAIN_LOGIN UIDL"
    told: list[bytes] = []

    def sasl(talk: Talk, verb: bytes, rest: bytes) -> bool:
        if verb != b"AUTH":
            return False
        talk.send(b"+ \r\n")
        told.append(base64.b64decode(talk.file.readline()))
        talk.send(b"+OK\r\n")
        return True

    server.hook = sasl
    connect(server.target(password="ひみつ パスワード")).close()
    assert told == ["\0taro\0ひみつ パスワード".encode()]
    server.hook = lambda talk, verb, rest: False
    connect(server.target()).close()  # a server that does not do what it told: the password has not been sent yet
    assert server.count(b"PASS") == 1


@pytest.mark.parametrize(
    ("refusal", "error", "words"),
    [
        (b"-ERR [AUTH] wrong\r\n", LoginRefused, "refused the login of taro"),
        (b"-ERR [AUTH] temporary failure\r\n", LoginRefused, "refused the login of taro"),
        (b"-ERR too many tries, wait 5 minutes\r\n", LoginRefused, "refused the login of taro"),
        (b"-ERR Too many connections from your address, try again later\r\n", ServerBusy, "`connections`"),
        (b"-ERR Temporary authentication failure.\r\n", ServerBusy, "`connections`"),
        (b"-ERR wrong password\r\n", LoginRefused, "refused the login of taro"),
        (b"-ERR account locked\r\n", LoginRefused, "refused the login of taro"),
        (b"-ERR [IN-USE] Do you have another POP session running?\r\n", MailboxInUse, "try again later"),
        (b"-ERR [LOGIN-DELAY] minimum time between mail checks violation\r\n", MailboxInUse, "try again later"),
        (b"-ERR [SYS/TEMP] disk\r\n", ServerBusy, "try again later"),
        (b"-ERR [SYS/PERM] broken\r\n", ConnectionFailed, "ask the provider"),
        (b"-ERR maildrop already locked\r\n", MailboxInUse, "try again later"),
    ],
)
def test_why_a_login_is_refused(server: FakePop3, refusal: bytes, error: type[ConnectionFailed], words: str) -> None:
    server.refusal = refusal
    with pytest.raises(error, match=words) as caught:
        connect(server.target(password="wrong"))
    assert type(caught.value) is error
    assert server.count(b"PASS") == 1


@pytest.mark.parametrize("apop", [True, False])
def test_what_a_login_tells_is_not_shown_in_any_form(server: FakePop3, apop: bool) -> None:
    server.capabilities = b"SASL_PLAIN"
    server.greeting = b"+OK <1896.697170952@example.test>\r\n" if apop else b"+OK hello\r\n"

    def repeats(talk: Talk, verb: bytes, rest: bytes) -> bool:
        if verb == b"AUTH":
            talk.send(b"+ \r\n")
            talk.send(b"-ERR cannot take " + talk.file.readline())
        elif verb == b"APOP":
            talk.send(b"-ERR cannot take " + rest + b"\r\n")
        return verb in (b"AUTH", b"APOP")

    server.hook = repeats
    with pytest.raises(LoginRefused, match=r"cannot take .*\*{8}") as caught:
        connect(server.target(password="hunter2"))
    shown = str(caught.value)
    assert base64.b64encode(b"\0taro\0hunter2").decode() not in shown
    assert hashlib.md5(b"<1896.697170952@example.test>hunter2").hexdigest() not in shown


def test_a_password_in_a_reply_is_not_shown(server: FakePop3) -> None:
    server.refusal = b"-ERR your password hunter2 is wrong\r\n"
    with pytest.raises(LoginRefused) as caught:
        connect(server.target(password="hunter2"))
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(server.target(password="hunter2"))


def test_what_no_line_can_carry_is_not_sent(server: FakePop3) -> None:
    for bad in ("a\r\nDELE 1", "a\0b"):
        with pytest.raises(LoginRefused, match="line break or NUL"):
            connect(server.target(password=bad))
        with pytest.raises(LoginRefused, match="line break or NUL"):
            connect(server.target(user=bad))
    assert server.count(b"USER") == server.count(b"DELE") == 0


@pytest.mark.parametrize(
    ("greeting", "error", "words"),
    [
        (b"* OK IMAP4rev1\r\n", ProtocolBroken, "does not look like a POP3 server"),
        (b"-ERR [SYS/TEMP] busy\r\n", Unreachable, "takes nobody at the moment"),
        (b"+OK " + b"x" * MAX_STATUS + b"\r\n", ProtocolBroken, "an answer of more than"),
    ],
)
def test_greetings(server: FakePop3, greeting: bytes, error: type[ConnectionFailed], words: str) -> None:
    server.greeting = greeting
    with pytest.raises(error, match=words):
        server.factory()


@pytest.mark.parametrize(
    ("verb", "answer", "words"),
    [
        (b"STAT", b"-ERR no\r\n", "does not tell how much there is"),
        (b"STAT", b"+OK many\r\n", "does not tell how much there is"),
        (b"LIST", b"-ERR no\r\n", "does not list its messages"),
        (b"LIST", b"+OK\r\nx 1\r\n.\r\n", "a list that cannot be read"),
        (b"LIST", b"+OK\r\n1 1\r\n1 1\r\n.\r\n", "a list that cannot be read"),
        (b"LIST", b"+OK\r\n" + b"1" * MAX_ITEM + b"\r\n.\r\n", "a list with a line of more than"),
        (b"UIDL", b"garbage\r\n", "a line that is no answer"),
    ],
)
def test_answers_that_make_no_sense(server: FakePop3, verb: bytes, answer: bytes, words: str) -> None:
    server.put(b"a\r\n")

    def garbage(talk: Talk, said: bytes, rest: bytes) -> bool:
        if said == verb:
            talk.send(answer)
        return said == verb

    server.hook = garbage
    session = server.factory()
    with pytest.raises(ProtocolBroken, match=words):
        session.stat()
        session.contents()[1]
    session.close()


def test_a_message_without_end_is_given_up(server: FakePop3) -> None:
    server.put(b"a\r\n")

    def endless(talk: Talk, verb: bytes, rest: bytes) -> bool:
        if verb != b"RETR":
            return False
        talk.send(b"+OK\r\n")
        while True:
            talk.send(b"y" * 65536)

    server.hook = endless
    session = server.factory()
    session.ask(1)
    with pytest.raises(ProtocolBroken, match="without end"):
        session.take(lambda piece: None, 1_000_000)
    session.close()


def test_lists_of_uidls_with_holes_are_not_believed(server: FakePop3) -> None:
    server.put(b"a\r\n", b"b\r\n")

    def holes(talk: Talk, verb: bytes, rest: bytes) -> bool:
        if verb == b"UIDL":
            talk.send(b"+OK\r\n1 U0001\r\n.\r\n")
        return verb == b"UIDL"

    server.hook = holes
    session = server.factory()
    assert [slot.uidl for slot in session.contents()[1]] == ["", ""]
    session.close()


def test_a_server_that_ends_its_lines_with_lf(server: FakePop3) -> None:
    server.put(b"a\r\n")

    def unix(talk: Talk, verb: bytes, rest: bytes) -> bool:
        if verb == b"RETR":
            talk.send(b"+OK\n..a\nb\n.\n")
        return verb == b"RETR"

    server.hook = unix
    session = server.factory()
    got = bytearray()
    for _ in range(2):
        session.ask(1)
    for _ in range(2):
        assert session.take(got.extend, 100).ok
    assert got == b".a\nb\n" * 2
    session.close()


def test_more_than_its_leave_before_tls_ends_the_session(server: FakePop3) -> None:
    server.capabilities = b"STLS UIDL"

    def early(talk: Talk, verb: bytes, rest: bytes) -> bool:
        if verb == b"STLS":
            talk.send(b"+OK go on\r\n+OK injected\r\n")
        return verb == b"STLS"

    server.hook = early
    with pytest.raises(ProtocolBroken, match="sent more after it agreed"):
        connect(server.target(security="starttls"))
    server.capabilities = b"UIDL"
    with pytest.raises(ProtocolBroken, match="no STLS"):
        connect(server.target(security="starttls"))
    assert server.count(b"PASS") == 0


def test_a_line_that_is_cut(server: FakePop3) -> None:
    def cut(talk: Talk, verb: bytes, rest: bytes) -> bool:
        if verb == b"STAT":
            raise Hangup
        return False

    server.hook = cut
    session = server.factory()
    with pytest.raises(LineCut):
        session.stat()
    session.close()


# -- a real server --------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> Iterator[Dovecot]:
    with dovecot(pop3=True) as running:
        yield running


def test_tls_starttls_and_plain(real: Dovecot) -> None:
    for security in ("tls", "starttls", "plain"):
        for user in real.users:
            session = connect(real.pop3_target(user, security=security))
            assert session.encrypted == (security != "plain")
            assert session.stat() == (0, 0)
            assert session.contents()[1] == []
            session.close()


def test_certificates_are_verified(real: Dovecot) -> None:
    for security in ("tls", "starttls"):
        with pytest.raises(CertificateRefused, match="for another name"):
            connect(real.pop3_target(security=security, host="other.example.test"))
        with pytest.raises(CertificateRefused, match="unknown issuer"):
            connect(real.pop3_target(security=security, trusted=False))


def test_a_pinned_certificate_and_another_name(real: Dovecot) -> None:
    with pytest.raises(CertificateRefused, match="not the one that the profile pins") as caught:
        connect(replace(real.pop3_target(security="tls"), certificate="SHA256:" + 64 * "0"))
    shown = re.search("SHA256:[0-9a-f]{64}", str(caught.value))
    assert shown is not None
    connect(replace(real.pop3_target(security="starttls", host="other.example.test", trusted=False), certificate=shown[0])).close()
    connect(replace(real.pop3_target(security="tls", host="other.example.test"), certificate_name=HOST)).close()


def test_a_wrong_password_at_a_real_server(real: Dovecot) -> None:
    with pytest.raises(LoginRefused, match=r"\[AUTH\]"):
        connect(real.pop3_target(password="wrong"))
    with pytest.raises(ProtocolBroken, match="does not look like a POP3 server"):
        connect(Pop3Target(HOST, "taro@example.test", "secret", real.ports["plain"], "plain", ("127.0.0.1",), 20.0))


def test_stuffing_is_what_the_rfc_says() -> None:
    assert stuff(b".\r\n..a\r\nb") == b"..\r\n...a\r\nb\r\n.\r\n"
