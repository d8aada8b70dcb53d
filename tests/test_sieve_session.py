"""ManageSieve: bytes, encryption, logins and every way in which a server can be odd, against Pigeonhole and a scripted server."""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator
from dataclasses import replace

import managesieve
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostbackup.errors import CertificateRefused, ConnectionFailed, LineCut, LoginRefused, NotOffered, ProtocolBroken, Unreachable
from hostbackup.protocols import sieve
from hostbackup.protocols.imap.session import ImapTarget
from hostbackup.protocols.imap.wire import Wire
from hostbackup.protocols.sieve import Refused, Script, connect
from tests.support.dovecot import HOST, Dovecot, dovecot, free_ports
from tests.support.dovecot import managesieve as with_sieve
from tests.support.sieve_script import GREETING, Shelf, agreeable, scripted
from tests.test_errors_mapped import SECRET, family, holds, made, name_of

TARO, HANAKO = "taro@example.test", "hanako@example.test"


@pytest.fixture(scope="module")
def server() -> Iterator[Dovecot]:
    [port] = free_ports(1)
    with dovecot(extra=with_sieve(port)) as running:
        running.ports["sieve"] = port
        yield running


def target(server: Dovecot, user: str = TARO) -> ImapTarget:
    return ImapTarget(HOST, user, server.users[user], server.ports["sieve"], "tls", ("127.0.0.1",), 20.0, server.authority)


# -- Pigeonhole ---------------------------------------------------------------------------------------------------------------------------


def test_scripts_go_and_come_back_byte_for_byte(server: Dovecot) -> None:
    bodies = {
        "振り分け".encode(): '# 日本語\r\nrequire ["fileinto"];\r\nfileinto "見積";'.encode(),
        b'"q" \\ {3}': b"keep;\n",
        b"OK": b'# no last newline, a "quote" and a lone return \r\nstop;',
        b"empty": b"",
    }
    session = connect(target(server))
    try:
        assert (session.address, "fileinto" in session.extensions, session.scripts()) == ("127.0.0.1", True, [])
        for name, body in bodies.items():
            session.put(name, body)
        session.activate(b"OK")
        assert sorted(session.scripts(), key=lambda script: script.name) == sorted(
            (Script(name, name == b"OK") for name in bodies), key=lambda script: script.name
        )
        assert {name: session.get(name) for name in bodies} == bodies
        assert session.get(b"nothing") is None
    finally:
        session.close()
        session.close()


def test_a_script_that_the_server_does_not_understand_is_refused_in_its_words_and_the_session_goes_on(server: Dovecot) -> None:
    session = connect(target(server, HANAKO))  # whose password is Japanese, with a space
    with pytest.raises(Refused, match="unknown Sieve capability `nonsense'") as caught:
        session.put(b"x", b'require "nonsense";\r\n')
    assert "\n" not in caught.value.text
    with pytest.raises(Refused):
        session.activate(b"x")
    assert session.scripts() == []
    session.close()


def test_the_certificate_counts(server: Dovecot) -> None:
    with pytest.raises(CertificateRefused, match="another name"):
        connect(replace(target(server), host="other.example.test"))
    with pytest.raises(CertificateRefused, match="unknown issuer"):
        connect(replace(target(server), ca_file=None))


def test_a_wrong_password_is_told_and_not_shown(server: Dovecot) -> None:
    with pytest.raises(LoginRefused) as caught:
        connect(replace(target(server), password=SECRET))
    holds(caught.value)


def test_a_port_of_imap_is_told_at_once(server: Dovecot) -> None:
    with pytest.raises(ProtocolBroken, match="does not look like a ManageSieve server"):
        connect(replace(target(server), port=server.ports["plain"]))


def test_nothing_that_listens_is_no_failure_of_the_line() -> None:
    [port] = free_ports(1)
    with pytest.raises(NotOffered, match="refused the connection"):
        connect(ImapTarget("mail.example.test", "taro", "secret", port, addresses=("127.0.0.1",)))


# -- a scripted server --------------------------------------------------------------------------------------------------------------------


def test_no_password_is_sent_where_encryption_was_stripped() -> None:
    with scripted() as server:
        with pytest.raises(ProtocolBroken, match="no password was sent"):
            connect(server.target(security="tls"))
        assert server.commands == []


def test_what_came_in_the_clear_before_the_handshake_ends_the_session() -> None:
    greeting = GREETING.replace(b'OK "ready"', b'"STARTTLS"\r\nOK "ready"')
    with scripted(lambda _: b'OK "go on"\r\n"SASL" "PLAIN"\r\nOK "forged"\r\n', greeting) as server:
        with pytest.raises(ProtocolBroken, match="after it agreed to STARTTLS"):
            connect(server.target(security="tls"))
        assert server.commands == [b"STARTTLS\r\n"]


def test_the_password_goes_as_utf8_in_sasl_plain() -> None:
    with scripted() as server:
        connect(server.target(password='ひみつ "パス"')).close()
        login = server.commands[0]
    assert base64.b64decode(login.split(b"\r\n")[1]).split(b"\0") == [b"", b"taro", 'ひみつ "パス"'.encode()]


def test_a_token_goes_where_the_mailbox_takes_one_and_an_explanation_is_answered() -> None:
    greeting = GREETING.replace(b"PLAIN", b"PLAIN XOAUTH2 OAUTHBEARER")

    def answer(command: bytes) -> bytes | None:
        if command.startswith(b"AUTHENTICATE"):
            return b'"eyJzdGF0dXMiOiI0MDEifQ=="\r\n'
        return b'NO "expired: token-%s"\r\n' % SECRET.encode()  # to the reply

    with scripted(answer, greeting) as server:
        asked = replace(server.target(), token=lambda: f"token-{SECRET}")
        for auth, mechanism, reply in (("auto", b"OAUTHBEARER", b"AQ=="), ("xoauth2", b"XOAUTH2", b"")):
            with pytest.raises(LoginRefused, match="expired") as caught:
                connect(replace(asked, auth=auth))  # type: ignore[arg-type]
            holds(caught.value)
            login, replied = server.commands[-2:]
            assert (mechanism in login, replied) == (True, b"{%d+}\r\n%s\r\n" % (len(reply), reply))
        with pytest.raises(LoginRefused, match="NUL"):
            connect(replace(asked, auth="password", token=None, password="a\0b"))
    with scripted(agreeable, greeting) as server:
        connect(replace(server.target(), token=lambda: "token")).drop()
    with scripted() as server, pytest.raises(LoginRefused, match="its ways: PLAIN"):
        connect(replace(server.target(), token=lambda: "token"))


def test_a_master_logs_in_on_behalf_of_the_mailbox() -> None:
    with scripted() as server:
        connect(replace(server.target(), master="admin")).drop()
        connect(replace(server.target(), master="admin", separator="*")).drop()
        logins = [base64.b64decode(command.split(b"\r\n")[1]) for command in server.commands]
    assert logins == [b"taro\0admin\0secret", b"\0taro*admin\0secret"]


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (b'NO "wrong"\r\n', LoginRefused, "wrong"),
        (b'NO (TRYLATER) "too many"\r\n', Unreachable, "at the moment: too many"),
        (b"NO {21}\r\nnot today (or ever)\r\n\r\n", LoginRefused, "not today"),
        (b'BYE (TRYLATER) "closed for lunch"\r\n', LineCut, "closed for lunch"),
        (b"", LineCut, "nothing moved"),
        (None, LineCut, "closed the connection"),
        (b'NO "you said %s"\r\n' % SECRET.encode(), LoginRefused, r"\*\*\*"),
        (b"{99999999999}\r\n", ProtocolBroken, "99999999999 bytes at once"),
        (b'"half\r\n', ProtocolBroken, "does not look like"),
    ],
)
def test_answers_to_a_login(answer: bytes | None, error: type[Exception] | None, words: str) -> None:
    with scripted(lambda _: answer) as server:
        asked = server.target(password=SECRET, timeout=0.5)
        if error is None:
            connect(asked).drop()
            return
        with pytest.raises(error, match=words) as caught:
            connect(asked)
    assert isinstance(caught.value, ConnectionFailed)
    holds(caught.value)


@pytest.mark.parametrize(
    ("greeting", "error"),
    [
        (None, LineCut),
        (b'BYE "full"\r\n', LineCut),
        (b'NO "not now"\r\n', Unreachable),
        (b"220 mail.example.test ESMTP\r\n", ProtocolBroken),
        (b'"SASL"\r\nOK "x"\r\n', ProtocolBroken),
        (b'"SASL" "XOAUTH2"\r\nOK "x"\r\n', LoginRefused),
        (b'"IMPLEMENTATION" "x"\r\nOK "x"\r\n', LoginRefused),
    ],
)
def test_greetings_that_lead_nowhere(greeting: bytes | None, error: type[Exception]) -> None:
    with scripted(greeting=greeting) as server, pytest.raises(error):
        connect(server.target())


def test_a_response_code_is_told_from_parentheses_in_the_text() -> None:
    def answer(command: bytes) -> bytes | None:
        return b'NO (QUOTA/MAXSCRIPTS) "You have (too) many \\"scripts\\" (16)"\r\n' if command.startswith(b"PUTSCRIPT") else agreeable(command)

    with scripted(answer) as server:
        session = connect(server.target())
        with pytest.raises(Refused) as caught:
            session.put(b"x", b"keep;")
        assert (caught.value.code, caught.value.text) == ("QUOTA/MAXSCRIPTS", 'You have (too) many "scripts" (16)')
        session.drop()


def test_many_scripts_are_asked_for_before_the_first_one_comes() -> None:
    names = [b"%d" % number for number in range(40)]
    shelf = Shelf({name: None if name == b"3" else b"# " + name for name in names if name != b"5"})
    waiting: list[bytes] = []

    def answer(command: bytes) -> bytes | None:
        if not command.startswith(b"GETSCRIPT"):
            return agreeable(command)
        waiting.append(command)
        if len(waiting) < 8:  # so many must be under way, or nobody ever answers
            return b""
        told = b"".join(shelf(one) or b"" for one in waiting)
        waiting.clear()
        return told

    with scripted(answer) as server:
        session = connect(server.target())
        found = dict(zip(names, session.get_all(names), strict=True))
        session.drop()
    refused = found.pop(b"3")
    assert isinstance(refused, Refused) and refused.text == "it cannot be read"
    assert found == {name: None if name == b"5" else b"# " + name for name in names if name != b"3"}


@settings(max_examples=60, deadline=None)
@given(name=st.binary(max_size=40), body=st.binary(max_size=400))
def test_any_bytes_come_through(name: bytes, body: bytes) -> None:
    """Names and scripts that are not UTF-8 too: a server may hold what the RFC forbids."""
    one, other = socket.socketpair()
    with one, other:
        other.sendall(GREETING)
        wire = Wire(one, "test", 5.0)
        client = sieve._Client(wire)
        client.state = "AUTH"
        session = sieve.SieveSession(client, "127.0.0.1")
        other.sendall(b"{%d}\r\n%s\r\nOK\r\n" % (len(body), body))
        assert session.get(name) == body
        other.sendall(b"{%d+}\r\n%s ACTIVE\r\nOK\r\n" % (len(name), name))
        assert session.scripts() == [Script(name, True)]
        other.sendall(b"OK\r\n")
        session.put(name, body)
        sent = other.recv(10_000)
    assert sent.endswith(b"{%d+}\r\n%s\r\n" % (len(body), body))


@pytest.mark.parametrize("cls", family(managesieve.MANAGESIEVE.error, AssertionError, ValueError, of=("builtins", "managesieve")), ids=name_of)
def test_what_the_library_raises_is_mapped(monkeypatch: pytest.MonkeyPatch, cls: type[BaseException]) -> None:
    def fail(*_: object) -> None:
        raise made(cls)

    monkeypatch.setattr(sieve._Client, "_parse_capabilities", fail)
    with scripted() as server, pytest.raises(ConnectionFailed) as caught:
        connect(server.target(password=SECRET))
    holds(caught.value)
