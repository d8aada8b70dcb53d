"""Ways of logging in: passwords, tokens, masters, tunnels. How often a server is asked, and what it is never told or never gets to repeat."""

from __future__ import annotations

import base64
import dataclasses
import json
import socket
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostbackup.errors import CertificateRefused, HostbackupError, LineCut, LoginRefused, ProtocolBroken, Unreachable
from hostbackup.protocols.imap import sasl, shared, tunnel
from hostbackup.protocols.imap.session import ImapSession, ImapTarget, connect
from tests.support.certificates import Authority
from tests.support.dovecot import HOST, Dovecot, dovecot
from tests.support.imap_script import FakeImap, Hook, Talk
from tests.support.relay import overheard

TOKEN = "ya29.a0AfB_byC-token_for-taro"
EVERYTHING = b"IMAP4rev1 LITERAL+ UIDPLUS NAMESPACE SASL-IR AUTH=PLAIN AUTH=XOAUTH2 AUTH=OAUTHBEARER"


@pytest.fixture(scope="module")
def server() -> Iterator[Dovecot]:
    with dovecot(masters={"admin": "kagi-1"}) as running:
        yield running


def _target(fake: FakeImap, **changes: object) -> ImapTarget:
    return dataclasses.replace(ImapTarget("127.0.0.1", "taro", "secret-77", fake.port, "plain", timeout=5.0), **changes)  # type: ignore[arg-type]


def _refused(target: ImapTarget, error: type[HostbackupError], *hidden: str) -> HostbackupError:
    with pytest.raises(error) as caught:
        connect(target).close()
    for secret in (target.password, *hidden):
        assert not secret or secret not in str(caught.value)
    return caught.value


def _after_login(capabilities: bytes) -> Hook:
    """Lets everybody in and tells its capabilities on the way, as Dovecot does."""

    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb in ("AUTHENTICATE", "LOGIN"):
            talk.send(tag + b" OK [CAPABILITY " + capabilities + b"] Logged in\r\n")
            return True
        return False

    return hook


# -- round trips --------------------------------------------------------------------------------------------------------------------------


def test_a_server_that_tells_of_itself_is_asked_nothing_but_the_login_and_the_folders() -> None:
    fake = FakeImap(greeting=b"* OK [CAPABILITY " + EVERYTHING + b"] hello\r\n", hook=_after_login(b"IMAP4rev1 LITERAL+ NAMESPACE"))
    with fake.running():
        session = connect(_target(fake))
        assert session.offers("LITERAL+")
        assert not session.offers("AUTH=PLAIN")
        session.list_folders()
        assert session.namespaces.personal == ()
        session.close()
    assert [command.split()[0] for command in fake.commands] == [b"AUTHENTICATE", b"LIST", b"LSUB", b"NAMESPACE", b"LOGOUT"]
    assert fake.commands[0] == b"AUTHENTICATE PLAIN " + base64.b64encode(b"\0taro\0secret-77")


def test_a_server_that_tells_nothing_is_asked_once_before_and_once_after_the_login() -> None:
    fake = FakeImap(capabilities=b"IMAP4rev1 AUTH=PLAIN", hook=_challenging())
    with fake.running():
        connect(_target(fake)).close()
    assert [command.split()[0] for command in fake.commands] == [b"CAPABILITY", b"AUTHENTICATE", b"CAPABILITY", b"LOGOUT"]
    assert fake.commands[1] == b"AUTHENTICATE PLAIN"


def test_dovecot_is_asked_nothing_but_the_login(server: Dovecot) -> None:
    said: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener, overheard(listener, server.ports["plain"], said):
        session = connect(dataclasses.replace(server.target(), port=listener.getsockname()[1]))
        session.list_folders()
        assert session.namespaces.personal
        session.close()
    lines = b"".join(said).splitlines()
    assert [line.split()[1] for line in lines] == [b"AUTHENTICATE", b"LIST", b"LSUB", b"NAMESPACE", b"LOGOUT"]
    assert len(said) == 3  # what left together came together: the login, the folders, goodbye


def test_namespaces_can_be_asked_for_alone(server: Dovecot) -> None:
    session = server.session()
    assert session.namespaces.personal
    assert session.namespaces is session.namespaces
    session.close()


# -- tokens -------------------------------------------------------------------------------------------------------------------------------


def _challenging(*challenges: bytes, verdict: bytes = b"OK in", heard: list[bytes] | None = None) -> Hook:
    """AUTHENTICATE by questions: `challenges` one after the other (none: an empty one), then the verdict."""

    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb != "AUTHENTICATE":
            return False
        for challenge in challenges or (b"",):
            talk.send(b"+ " + challenge + b"\r\n")
            answer = talk.command()
            if heard is not None and answer is not None:
                heard.append(answer)
        talk.send(tag + b" " + verdict + b"\r\n")
        return True

    return hook


def _bearer(hook: Hook, **changes: object) -> tuple[FakeImap, ImapTarget]:
    fake = FakeImap(greeting=b"* OK [CAPABILITY " + EVERYTHING + b"] hello\r\n", capabilities=EVERYTHING, hook=hook)
    keys = {"host": "127.0.0.1", "user": "taro@example.test", "password": "", "security": "plain", "timeout": 5.0, "token": lambda: TOKEN} | changes
    return fake, ImapTarget(**keys)  # type: ignore[arg-type]


def _message(command: bytes) -> bytes:
    return base64.b64decode(command.split()[-1])


def test_a_token_goes_by_oauthbearer_where_that_is_offered_and_is_asked_for_anew_each_time() -> None:
    tokens = iter(["token-one", "token-two"])
    fake, target = _bearer(_after_login(b"IMAP4rev1"), token=lambda: next(tokens), user="ta,ro=x")
    with fake.running():
        for _ in range(2):
            connect(dataclasses.replace(target, port=fake.port)).close()
    assert [_message(command) for command in fake.commands if command.startswith(b"AUTHENTICATE OAUTHBEARER ")] == [
        f"n,a=ta=2Cro=3Dx,\x01host=127.0.0.1\x01port={fake.port}\x01auth=Bearer token-{which}\x01\x01".encode() for which in ("one", "two")
    ]


def test_a_token_goes_by_xoauth2_where_that_is_asked_for_or_all_there_is() -> None:
    for changes, offered in (({"auth": "xoauth2"}, EVERYTHING), ({}, b"IMAP4rev1 SASL-IR AUTH=XOAUTH2")):
        fake, target = _bearer(_after_login(b"IMAP4rev1"), **changes)
        fake.greeting = b"* OK [CAPABILITY " + offered + b"]\r\n"
        with fake.running():
            connect(dataclasses.replace(target, port=fake.port)).close()
        assert fake.commands[0].startswith(b"AUTHENTICATE XOAUTH2 ")
        assert _message(fake.commands[0]) == f"user=taro@example.test\x01auth=Bearer {TOKEN}\x01\x01".encode()


@pytest.mark.parametrize(("auth", "answer"), [("xoauth2", b""), ("oauthbearer", b"AQ==")])
def test_a_refused_token_is_told_in_the_server_s_words_and_tried_once(auth: str, answer: bytes) -> None:
    why = base64.b64encode(json.dumps({"status": "invalid_token", "schemes": "bearer", "scope": "https://mail.example.test/"}).encode())
    heard: list[bytes] = []
    fake, target = _bearer(_challenging(why, verdict=b"NO [AUTHENTICATIONFAILED] no", heard=heard), auth=auth)
    with fake.running():
        error = _refused(dataclasses.replace(target, port=fake.port), LoginRefused, TOKEN)
    assert heard == [answer]
    assert "invalid_token" in error.reason
    assert "taro@example.test" in error.reason
    assert "token" in error.hint
    assert [command.split()[0] for command in fake.commands] == [b"AUTHENTICATE"]


def test_a_server_without_a_way_for_tokens_gets_none() -> None:
    fake, target = _bearer(_after_login(b"IMAP4rev1"))
    fake.greeting = b"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN AUTH=CRAM-MD5]\r\n"
    with fake.running():
        error = _refused(dataclasses.replace(target, port=fake.port), LoginRefused, TOKEN)
    assert "CRAM-MD5, PLAIN" in error.reason
    assert fake.commands == []


def test_a_server_that_asks_without_end_is_left() -> None:
    fake, target = _bearer(_challenging(*[b""] * 5))
    with fake.running():
        _refused(dataclasses.replace(target, port=fake.port), ProtocolBroken, TOKEN)
    assert len(fake.commands) == 1


# -- what a server gets to repeat ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["as it is", "the command", "in base64", "torn", "bye", "broken", "escaped"])
@pytest.mark.parametrize("password", ["kirin-77-geheim", "ひみつのことば", 'with "quotes" and \\'])
def test_a_server_that_repeats_a_secret_tells_nobody(how: str, password: str) -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb != "AUTHENTICATE":
            return False
        raw = password.encode()
        coded = base64.b64encode(b"xx" + raw)
        talk.send(
            {
                "as it is": tag + b" NO not " + raw + b" I say\r\n",
                "the command": tag + b" BAD what is " + rest + b"\r\n",
                "in base64": tag + b" NO log: " + coded + b".\r\n",
                "torn": tag + b" NO " + b"x" * 185 + b" " + raw + b"\r\n",
                "bye": b"* BYE " + raw + b" is wrong\r\n",
                "broken": b"?? " + raw + b"\r\n",
                "escaped": tag + b' NO "' + raw.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"\r\n',
            }[how]
        )
        return True

    fake = FakeImap(greeting=b"* OK [CAPABILITY " + EVERYTHING + b"]\r\n", hook=hook)
    with fake.running():
        error = _refused(_target(fake, password=password), HostbackupError)
    told = str(error)
    assert password[:9] not in told
    assert repr(password.encode())[2:-1][:20] not in told
    assert base64.b64encode(f"\0taro\0{password}".encode()).decode()[:24] not in told
    assert base64.b64encode(b"xx" + password.encode()).decode()[:12] not in told


@given(st.text(min_size=8, max_size=40), st.binary(max_size=20), st.binary(max_size=20))
def test_base64_around_a_secret_is_masked_at_every_offset(secret: str, before: bytes, after: bytes) -> None:
    coded = base64.b64encode(before + secret.encode() + after).decode()
    assert sasl.masked(f"you sent {coded} here", [secret]) == "you sent ******** here"
    assert sasl.masked("nothing of yours", ["no"]) == "nothing of yours"


@given(st.binary(max_size=200))
def test_an_explanation_that_cannot_be_read_is_none(challenge: bytes) -> None:
    sasl.explained(challenge)
    assert sasl.explained(base64.b64encode(challenge)) == "" or challenge.strip().startswith(b"{")


# -- encryption ---------------------------------------------------------------------------------------------------------------------------


def test_what_came_before_the_handshake_counts_no_more(tmp_path: Path) -> None:
    """A forged greeting offers AUTH=PLAIN in the clear; inside TLS the true server says that it takes none."""
    authority = Authority(tmp_path)
    certificate, key = authority.issue("127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb != "STARTTLS":
            return False
        talk.send(tag + b" OK go\r\n")
        talk.encrypt(context)
        return True

    fake = FakeImap(greeting=b"* OK [CAPABILITY IMAP4rev1 STARTTLS SASL-IR AUTH=PLAIN]\r\n", capabilities=b"IMAP4rev1 LOGINDISABLED", hook=hook)
    with fake.running():
        _refused(_target(fake, security="starttls", ca_file=authority.pem), LoginRefused)
    assert [command.split()[0] for command in fake.commands] == [b"STARTTLS", b"CAPABILITY"]


def test_a_greeting_that_is_logged_in_before_starttls_is_refused() -> None:
    fake = FakeImap(greeting=b"* PREAUTH [CAPABILITY IMAP4rev1 STARTTLS] hello\r\n")
    with fake.running():
        _refused(_target(fake, security="starttls"), ProtocolBroken)
    assert fake.commands == []


def test_starttls_that_is_refused_ends_the_session() -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "STARTTLS":
            talk.send(tag + b" NO not now\r\n")
        return verb == "STARTTLS"

    fake = FakeImap(capabilities=b"IMAP4rev1 STARTTLS AUTH=PLAIN", hook=hook)
    with fake.running():
        assert "not now" in _refused(_target(fake, security="starttls"), ProtocolBroken).reason
    assert [command.split()[0] for command in fake.commands] == [b"CAPABILITY", b"STARTTLS"]


def test_a_pinned_certificate_is_all_that_counts(server: Dovecot) -> None:
    for security in ("tls", "starttls"):
        known = connect(server.target(security=security))
        known.close()
        foreign = dataclasses.replace(server.target(security=security, trusted=False), host="elsewhere.example.test")
        told = _refused(foreign, CertificateRefused)
        assert known.certificate_fingerprint in told.hint
        session = connect(dataclasses.replace(foreign, certificate=known.certificate_fingerprint))
        assert session.encrypted
        session.close()
        other = "SHA256:" + "ab" * 32
        told = _refused(dataclasses.replace(server.target(security=security), certificate=other), CertificateRefused)
        assert known.certificate_fingerprint in told.reason
    assert "user=<taro" not in server.log().partition("elsewhere")[2]


def test_an_expired_certificate_can_be_pinned_and_no_password_goes_before() -> None:
    with dovecot(expired=True) as server:
        told = _refused(server.target(security="tls"), CertificateRefused)
        pin = told.hint.partition("it shows ")[2].partition(":")[0] + ":" + told.hint.partition("it shows SHA256:")[2][:64]
        connect(dataclasses.replace(server.target(security="tls", trusted=False), certificate=pin)).close()


def test_a_certificate_can_be_verified_against_another_name(server: Dovecot) -> None:
    for security in ("tls", "starttls"):
        target = dataclasses.replace(server.target(security=security), host="www.customer.example.test")
        assert "another name" in _refused(target, CertificateRefused).reason
        connect(dataclasses.replace(target, certificate_name=HOST)).close()
        assert "issuer" in _refused(dataclasses.replace(target, certificate_name=HOST, ca_file=None), CertificateRefused).reason


# -- masters ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", ["", "*"])
def test_a_master_opens_a_mailbox_whose_password_nobody_knows(server: Dovecot, separator: str) -> None:
    own = server.session("hanako@example.test")
    own.channel.run(b"CREATE", b"hers" + separator.encode().hex().encode())
    own.close()
    target = dataclasses.replace(server.target("hanako@example.test", password="kagi-1"), master="admin", separator=separator)
    session = connect(target)
    assert b"hers" + separator.encode().hex().encode() in [one.name for one in session.list_folders()[0]]
    assert session.user == "hanako@example.test"
    session.close()
    error = _refused(dataclasses.replace(target, password="not the key"), LoginRefused)
    assert "hanako@example.test (as " in error.reason
    assert "master" in error.hint


def test_a_master_without_a_separator_needs_a_server_that_keeps_the_two_apart() -> None:
    fake = FakeImap()
    with fake.running():
        error = _refused(_target(fake, master="admin"), LoginRefused)
        assert "separator" in error.hint
        assert not any(command.startswith((b"LOGIN", b"AUTHENTICATE")) for command in fake.commands)
        connect(_target(fake, master="admin", separator="*")).close()
    assert b'LOGIN "taro*admin" "secret-77"' in fake.commands


@pytest.mark.parametrize("good", [0, 3, 4])
def test_a_master_that_never_opens_a_mailbox_is_tried_a_few_times_and_one_that_did_always(good: int) -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb != "LOGIN":
            return False
        talk.send(tag + (b" OK in\r\n" if rest.startswith(b'"user%d*' % good) else b" NO [AUTHENTICATIONFAILED] no\r\n"))
        return True

    fake = FakeImap(hook=hook)
    with fake.running():
        once_seen = shared.SharedLogin()
        outcomes = []
        for number in range(1, 7) if good else (0, 1, 2, 3, 4, 5):
            try:
                connect(_target(fake, user=f"user{number}", master="admin", separator="*", shared=once_seen)).close()
                outcomes.append("in")
            except LoginRefused as error:
                outcomes.append("not tried" if "not tried again" in error.reason else "refused")
    expected = {
        0: ["in", *["refused"] * 5],
        3: ["refused", "refused", "in", *["refused"] * 3],
        4: [*["refused"] * 3, *["not tried"] * 3],
    }
    assert outcomes == expected[good]
    assert sum(command.startswith(b"LOGIN ") for command in fake.commands) == 6 - outcomes.count("not tried")


# -- tunnels ------------------------------------------------------------------------------------------------------------------------------


def _tunnelled(*command: str, **changes: object) -> ImapTarget:
    return ImapTarget("mail.example.test", "taro@example.test", "", tunnel=command, timeout=10.0, **changes)  # type: ignore[arg-type]


def test_dovecot_s_own_imap_program_serves_through_a_tunnel(server: Dovecot) -> None:
    own = server.session()
    own.channel.run(b"CREATE", b"seen-through-the-tunnel")
    own.close()
    session = connect(_tunnelled("/usr/lib/dovecot/imap", "-c", str(server.base / "dovecot.conf"), "-u", "taro@example.test"))
    assert b"seen-through-the-tunnel" in [one.name for one in session.list_folders()[0]]
    assert (session.address, session.encrypted) == ("", False)
    process = session.channel.wire.sock._process  # type: ignore[attr-defined]
    session.close()
    session.close()
    assert process.returncode == 0  # it ended of itself, and is not left behind


def test_a_tunnel_that_asks_for_a_login_gets_one() -> None:
    fake = FakeImap()
    with fake.running():
        script = f"import os, socket, threading\nline = socket.create_connection(('127.0.0.1', {fake.port}))\n"
        script += "def back():\n while data := line.recv(9999): os.write(1, data)\n"
        script += "threading.Thread(target=back, daemon=True).start()\nwhile data := os.read(0, 9999): line.sendall(data)\n"
        relay = (sys.executable, "-c", script)
        with pytest.raises(LoginRefused, match="none is known"):
            connect(_tunnelled(*relay))
        connect(dataclasses.replace(_tunnelled(*relay), password="secret-77")).close()
    assert b'LOGIN "taro@example.test" "secret-77"' in fake.commands


def test_a_tunnel_that_leads_nowhere_says_why() -> None:
    assert "cannot be run" in _refused(_tunnelled("/no/such/program"), Unreachable).reason
    error = _refused(_tunnelled("sh", "-c", "echo 'Permission denied (publickey).' >&2; exit 255"), Unreachable)
    assert "ended with 255: Permission denied (publickey)." in error.reason
    assert "IMAP" in _refused(_tunnelled("sh", "-c", "echo Welcome to this server; cat >/dev/null"), Unreachable).reason


def test_a_tunnel_s_program_that_stays_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel, "_END", 0.05)
    greeting = "printf '* PREAUTH [CAPABILITY IMAP4rev1] in\\r\\n'; trap '' TERM; while :; do sleep 1000 & wait; done"
    session: ImapSession = connect(_tunnelled("sh", "-c", greeting))
    process = session.channel.wire.sock._process  # type: ignore[attr-defined]
    session.close()
    assert process.returncode == -9


def test_a_line_that_is_cut_inside_a_tunnel_is_a_cut_line() -> None:
    session = connect(_tunnelled("sh", "-c", "printf '* PREAUTH [CAPABILITY IMAP4rev1] in\\r\\n'; read -r _"))
    with pytest.raises(LineCut):
        session.list_folders()
    session.drop()
