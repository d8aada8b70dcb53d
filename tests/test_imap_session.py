"""Connecting and logging in, against a real Dovecot: what works, and what is said where it does not."""

from __future__ import annotations

import dataclasses
import re
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostbackup.errors import CertificateRefused, HostbackupError, LineCut, LoginRefused, ProtocolBroken, ServerBusy, Unreachable
from hostbackup.protocols.imap.session import ImapSession, ImapTarget, Namespace, Namespaces, connect
from hostbackup.protocols.imap.tls import TlsSocket
from tests.support.dovecot import INBOX_DOT, PLAIN_SLASH, Dovecot, dovecot
from tests.support.imap_script import FakeImap, Talk


@pytest.fixture(scope="module")
def server() -> Iterator[Dovecot]:
    with dovecot(INBOX_DOT) as running:
        yield running


def _refused(target: ImapTarget, error: type[HostbackupError]) -> HostbackupError:
    with pytest.raises(error) as caught:
        connect(target).close()
    told = str(caught.value)
    assert "\n" not in told
    assert not target.password or target.password not in told
    return caught.value


@pytest.mark.parametrize("security", ["tls", "starttls", "plain"])
def test_logs_in_over_each_kind_of_line(server: Dovecot, security: str) -> None:
    target = server.target(security=security)
    session = connect(target)
    assert session.address == "127.0.0.1"
    assert session.port == target.port
    assert session.encrypted == (security != "plain")
    assert bool(re.fullmatch("SHA256:[0-9a-f]{64}", session.certificate_fingerprint)) == (security != "plain")
    assert session.offers("uidplus")
    assert session.namespaces.personal == (Namespace(b"INBOX.", b"."),)
    assert [one.name for one in session.list_folders()[0]] == [b"INBOX"]
    session.close()
    session.close()


@pytest.mark.parametrize("security", ["tls", "starttls", "plain"])
def test_a_password_in_japanese_works(server: Dovecot, security: str) -> None:
    session = connect(server.target("hanako@example.test", security=security))
    assert session.status(b"INBOX") is not None
    session.close()


def test_a_wrong_password_is_tried_exactly_once(server: Dovecot) -> None:
    error = _refused(server.target(password="wrong-password"), LoginRefused)
    assert "taro@example.test" in error.reason
    assert error.hint
    assert server.log_with("auth failed").count("auth failed") == 1
    assert "auth failed, 1 attempts" in server.log()


def test_a_closed_port_is_named(server: Dovecot) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    error = _refused(dataclasses.replace(server.target(), port=port), Unreachable)
    assert f"port {port}" in error.reason


def test_an_unknown_issuer_is_refused(server: Dovecot) -> None:
    for security in ("tls", "starttls"):
        error = _refused(server.target(security=security, trusted=False), CertificateRefused)
        assert "issuer" in error.reason or "self-signed" in error.reason


def test_authorities_that_cannot_be_read_are_told(server: Dovecot, tmp_path: Path) -> None:
    (tmp_path / "not.pem").write_text("nothing")
    for name in ("absent.pem", "not.pem"):
        error = _refused(dataclasses.replace(server.target(security="tls"), ca_file=tmp_path / name), CertificateRefused)
        assert name in error.where


def test_a_certificate_for_another_name_is_refused_also_where_the_address_is_given(server: Dovecot) -> None:
    for security in ("tls", "starttls"):
        target = dataclasses.replace(server.target(security=security), host="other.example.test")
        error = _refused(target, CertificateRefused)
        assert "another name" in error.reason
        assert "other.example.test" in error.hint


def test_an_expired_certificate_is_refused() -> None:
    with dovecot(PLAIN_SLASH, expired=True) as server:
        for security in ("tls", "starttls"):
            assert "expired" in _refused(server.target(security=security), CertificateRefused).reason


def test_a_port_that_speaks_no_tls_is_told(server: Dovecot) -> None:
    target = dataclasses.replace(server.target(security="tls"), port=server.ports["plain"])
    assert "TLS" in _refused(target, ProtocolBroken).reason


def test_a_handshake_that_fails_with_the_line_gone_tells_what_was_wrong() -> None:
    class Gone:
        sent = 0

        def settimeout(self, seconds: float) -> None: ...
        def close(self) -> None: ...

        def recv(self, size: int) -> bytes:
            return b"\x16\x03\x03\x00\x04\x02\x00\x00\x00"

        def sendall(self, data: bytes | memoryview) -> None:
            self.sent += 1
            if self.sent > 1:
                raise BrokenPipeError

    with pytest.raises(ssl.SSLError):
        TlsSocket(Gone(), ssl.create_default_context(), "mail.example.test")


def test_a_server_that_is_not_imap_is_told() -> None:
    fake = FakeImap(greeting=b"220 mail.example.test ESMTP\r\n")
    with fake.running():
        assert "IMAP" in _refused(_target(fake), ProtocolBroken).reason


def test_passwords_are_not_sent_where_the_server_forbids_it() -> None:
    fake = FakeImap(capabilities=b"IMAP4rev1 LOGINDISABLED")
    with fake.running():
        error = _refused(_target(fake), LoginRefused)
    assert "security" in error.hint
    assert all(command.startswith(b"CAPABILITY") for command in fake.commands)


def test_no_starttls_offered_means_no_password_sent() -> None:
    fake = FakeImap()
    with fake.running():
        _refused(dataclasses.replace(_target(fake), security="starttls"), ProtocolBroken)
    assert all(command.startswith(b"CAPABILITY") for command in fake.commands)


def test_answers_slipped_in_before_the_handshake_end_the_session() -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb != "STARTTLS":
            return False
        talk.send(tag + b" OK go\r\n* PREAUTH forged\r\n")
        return True

    fake = FakeImap(capabilities=b"IMAP4rev1 STARTTLS", hook=hook)
    with fake.running():
        error = _refused(dataclasses.replace(_target(fake), security="starttls"), ProtocolBroken)
    assert "STARTTLS" in error.reason


def test_login_without_sasl_quotes_what_it_sends() -> None:
    fake = FakeImap()
    with fake.running():
        connect(dataclasses.replace(_target(fake), user='ta"ro', password="a\\b c")).close()
        connect(dataclasses.replace(_target(fake), user="taro", password="ひみつ")).close()
    logins = [command for command in fake.commands if command.startswith(b"LOGIN")]
    assert logins == [b'LOGIN "ta\\"ro" "a\\\\b c"', b'LOGIN "taro" {9+}\r\n' + "ひみつ".encode()]


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"NO [AUTHENTICATIONFAILED] no", LoginRefused),
        (b"NO [UNAVAILABLE] database down", ServerBusy),
        (b"NO bad user", LoginRefused),
        (b"NO Too many simultaneous connections. (Failure)", ServerBusy),
        (b"NO too many failed logins", LoginRefused),
    ],
)
def test_a_refusal_for_now_is_not_taken_for_a_wrong_password(said: bytes, error: type[HostbackupError]) -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb in ("LOGIN", "AUTHENTICATE"):
            talk.send(tag + b" " + said + b"\r\n")
            return True
        return False

    for capabilities in (b"IMAP4rev1", b"IMAP4rev1 AUTH=PLAIN"):
        fake = FakeImap(hook=hook, capabilities=capabilities)
        with fake.running():
            _refused(_target(fake), error)
        assert sum(command.startswith((b"LOGIN", b"AUTHENTICATE")) for command in fake.commands) == 1


@pytest.mark.parametrize(
    ("said", "error"), [(b"shutting down", LineCut), (b"too many connections", ServerBusy), (b"Maximum connection limit reached", ServerBusy)]
)
def test_a_session_that_ends_during_the_login_is_no_wrong_password(said: bytes, error: type[HostbackupError]) -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "AUTHENTICATE":
            talk.send(b"* BYE " + said + b"\r\n" + tag + b" NO no\r\n")
            return True
        return False

    fake = FakeImap(hook=hook, capabilities=b"IMAP4rev1 AUTH=PLAIN")
    with fake.running():
        _refused(_target(fake), error)


def test_a_password_is_in_no_repr() -> None:
    assert "secret" not in repr(ImapTarget("host", "user", "secret"))


def test_folders_of_others_are_known_by_the_longest_prefix() -> None:
    spaces = Namespaces((Namespace(b"", b"/"),), (Namespace(b"Other Users/", b"/"),), (Namespace(b"Public/", b"/"), Namespace(b"", b"/")))
    assert not spaces.is_foreign(b"INBOX")
    assert not spaces.is_foreign(b"Publication")
    assert spaces.is_foreign(b"Public/notices")
    assert spaces.is_foreign(b"Public")
    assert spaces.is_foreign(b"Other Users/hanako/INBOX")


def test_odd_folder_lines_are_read_as_bytes() -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb != "LIST":
            return False
        talk.send(b'* LIST () "." Inbox\r\n* LIST (\\Marked) "." {5}\r\na"\xe9b \r\n* LIST () NIL NIL\r\n* LIST () "." &broken\r\n')
        talk.send(tag + b" OK done\r\n")
        return True

    fake = FakeImap(hook=hook)
    with fake.running():
        session: ImapSession = fake.factory()
        listed, subscribed = session.list_folders()
        session.close()
    assert [(one.name, one.separator) for one in listed] == [(b"INBOX", b"."), (b'a"\xe9b ', b"."), (b"NIL", b""), (b"&broken", b".")]
    assert listed[1].has("\\marked")
    assert subscribed == []


def _target(fake: FakeImap) -> ImapTarget:
    return ImapTarget("127.0.0.1", "user", "secret", fake.port, "plain", timeout=5.0)
