"""Whatever a library raises becomes an error of ours, with a reason in words and without a secret: proven for every exception class there is."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import pkgutil
import socket
import ssl
import string
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import botocore.exceptions
import paramiko
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paramiko.ber import BERException
from paramiko.pkey import UnknownKeyType

from hostbackup.errors import CertificateRefused, ConnectionFailed, HostbackupError, NameNotResolved, SecretError, Unreachable, VaultError
from hostbackup.protocols import certificates, net, ssh
from hostbackup.protocols.imap import login, wire
from hostbackup.protocols.imap.session import ImapTarget
from hostbackup.protocols.s3 import S3Target, translate
from hostbackup.vault.faults import told

SECRET = "hunter2-geheim"
WORDS = "something went wrong"


STANDARD = ("builtins", "socket", "ssl", "io", "binascii", "paramiko", "cryptography")
BOTO = ("botocore", "boto3", "urllib3")


def family(*bases: type[BaseException], of: tuple[str, ...] = STANDARD) -> list[type[BaseException]]:
    """The classes and all that derive from them in these packages, whatever else is loaded."""
    found: dict[type[BaseException], None] = {}
    waiting = list(bases)
    while waiting:
        cls = waiting.pop()
        if cls not in found and cls.__module__.partition(".")[0] in of:
            found[cls] = None
            waiting += cls.__subclasses__()
    return sorted(found, key=lambda cls: (cls.__module__, cls.__qualname__))


def name_of(cls: type[BaseException]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def defined_in(package: ModuleType) -> set[type[BaseException]]:
    """Every exception class that a library defines in any of its modules."""
    found: set[type[BaseException]] = set()
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        with contextlib.suppress(ImportError, AttributeError):  # of another operating system
            module = importlib.import_module(info.name)
            found |= {
                value
                for value in vars(module).values()
                if isinstance(value, type) and issubclass(value, BaseException) and value.__module__.startswith(package.__name__)
            }
    return found


KEY = paramiko.ECDSAKey.generate()
SPECIAL: dict[type[BaseException], Callable[[], BaseException]] = {
    paramiko.BadHostKeyException: lambda: paramiko.BadHostKeyException("www.example.test", KEY, KEY),
    paramiko.BadAuthenticationType: lambda: paramiko.BadAuthenticationType(WORDS, ["publickey"]),
    paramiko.ssh_exception.PartialAuthentication: lambda: paramiko.ssh_exception.PartialAuthentication(["password"]),
    paramiko.ChannelException: lambda: paramiko.ChannelException(2, WORDS),
    paramiko.ProxyCommandFailure: lambda: paramiko.ProxyCommandFailure("nc", WORDS),
    paramiko.ssh_exception.NoValidConnectionsError: lambda: paramiko.ssh_exception.NoValidConnectionsError({("127.0.0.1", 22): OSError(WORDS)}),
    UnicodeDecodeError: lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, WORDS),
    UnicodeEncodeError: lambda: UnicodeEncodeError("ascii", "あ", 0, 1, WORDS),
    UnicodeTranslateError: lambda: UnicodeTranslateError("あ", 0, 1, WORDS),
}


def made(cls: type[BaseException]) -> BaseException:
    """One of them, as a library would make it."""
    if cls in SPECIAL:
        return SPECIAL[cls]()
    for arguments in ((WORDS,), (errno.EIO, WORDS), ()):
        with contextlib.suppress(TypeError):
            return cls(*arguments)
    error = cls.__new__(cls)  # its constructor wants what only its library has
    error.args = (WORDS,)
    return error


def holds(error: HostbackupError) -> None:
    """What is asked of every error that a person is to read."""
    assert error.reason.strip()
    assert "\n" not in error.reason
    assert SECRET not in f"{error} {error.reason} {error.where} {error.hint}"


OS_ERRORS = family(OSError)
SSH_ERRORS = family(paramiko.SSHException, OSError, EOFError, ValueError)


# -- paramiko -----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def attempt() -> Iterator[Any]:
    trial = ssh._Attempt(ssh.SshTarget("www.example.test", 22, "taro", password=SECRET, use_ssh_config=False))
    yield trial
    trial.close()


@pytest.mark.parametrize("cls", SSH_ERRORS, ids=name_of)
def test_what_paramiko_raises_while_connecting_is_mapped(attempt: Any, cls: type[BaseException]) -> None:
    with pytest.raises(ConnectionFailed) as caught, attempt.mapped():
        raise made(cls)
    holds(caught.value)
    assert "www.example.test" in caught.value.where


def test_paramiko_has_no_family_of_errors_that_nobody_knows_of() -> None:
    """A new release may bring one: then the mapping has to hear of it."""
    known = set(family(paramiko.SSHException, OSError, EOFError, ValueError))
    apart = {
        "paramiko.sftp.SFTPError",  # of its own SFTP client, which is not used
        "paramiko.ber.BERException",  # these two of keys: load_key maps them
        "paramiko.pkey.UnknownKeyType",
        "paramiko.hostkeys.InvalidHostKey",  # of its own reading of known_hosts, which is not used
        "paramiko.packet.NeedRekeyException",  # never leaves its reading thread
        "paramiko.config.ConfigParseError",
    }
    assert {name_of(cls) for cls in defined_in(paramiko) - known} <= apart


def test_a_broken_ssh_config_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").write_text("Host\n  Port many\nnonsense\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(HostbackupError) as caught:
        ssh.connect(ssh.SshTarget("127.0.0.1", 1, "taro", password=SECRET))
    holds(caught.value)


@pytest.mark.parametrize("cls", [*SSH_ERRORS, TypeError, IndexError, BERException, UnknownKeyType], ids=name_of)
def test_what_a_key_file_raises_is_mapped(monkeypatch: pytest.MonkeyPatch, cls: type[BaseException]) -> None:
    def refuse(*arguments: object) -> None:
        raise made(cls)

    monkeypatch.setattr(paramiko.PKey, "from_path", refuse)
    with pytest.raises(SecretError) as caught:
        ssh.load_key(Path("id_ed25519"), SECRET, None)
    holds(caught.value)


# -- IMAP, TLS and sockets ----------------------------------------------------------------------------------------------------------------


class Silent:
    """A socket that does what it is told to."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def settimeout(self, seconds: float) -> None:
        pass

    def setsockopt(self, *arguments: int) -> None:
        pass

    def recv(self, size: int) -> bytes:
        raise self.error

    def sendall(self, data: bytes) -> None:
        raise self.error

    def wrap_bio(self, *arguments: object, **more: object) -> None:
        raise self.error


class Trusting(certificates.Trust):
    """Whose handshake ends as it is told to."""

    error: BaseException

    def context(self) -> Any:
        return Silent(self.error)


def trusting(error: BaseException) -> Trusting:
    trust = Trusting("mail.example.test")
    object.__setattr__(trust, "error", error)
    return trust


def wired(error: BaseException) -> wire.Wire:
    return wire.Wire(Silent(error), "mail.example.test:993", 5.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("cls", OS_ERRORS, ids=name_of)
def test_what_a_socket_raises_in_mid_session_is_mapped(cls: type[BaseException]) -> None:
    with pytest.raises(ConnectionFailed) as caught:
        wired(made(cls)).readline()
    holds(caught.value)
    with pytest.raises(ConnectionFailed) as caught:
        wired(made(cls)).send(b"x")
    holds(caught.value)


@pytest.mark.parametrize("cls", [*OS_ERRORS, *family(ValueError)], ids=name_of)
def test_what_a_handshake_raises_is_mapped(cls: type[BaseException]) -> None:
    error = made(cls)
    if isinstance(error, ssl.SSLCertVerificationError):
        error.verify_code, error.verify_message = 10, "certificate has expired"
    with pytest.raises(ConnectionFailed) as caught:
        wired(OSError()).start_tls(trusting(error))
    holds(caught.value)


@pytest.mark.parametrize("code", range(0, 100))
def test_every_verdict_on_a_certificate_has_words(code: int) -> None:
    error = ssl.SSLCertVerificationError(1, WORDS)
    error.verify_code, error.verify_message = code, WORDS
    mapped = certificates.refused(error, "mail.example.test", "mail.example.test:993")
    assert isinstance(mapped, CertificateRefused)
    holds(mapped)


_LINES = st.sampled_from(
    [
        b"* CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR\r\n",
        b"* CAPABILITY IMAP4rev1 LOGINDISABLED\r\n",
        b"* CAPABILITY \xff\xfe \xe6\x97\xa5\r\n",
        b"* OK [CAPABILITY IMAP4rev1] \x80\r\n",
        b"* BYE go away\r\n",
        b"* 1 FETCH {99999999999999999999}\r\n",
        b"* LIST (\r\n",
        b"+ \r\n",
        b"+ !!!!\r\n",
        b"TAG OK done\r\n",
        b"TAG OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] \xff\r\n",
        b"TAG NO [AUTHENTICATIONFAILED] no\r\n",
        b"TAG NO \xe3\x81\xa0\xe3\x82\x81\r\n",
        b"TAG BAD what\r\n",
        b"TAG \r\n",
        b"\r\n",
    ]
)
_GREETINGS = st.sampled_from([b"* OK ready\r\n", b"* PREAUTH hello\r\n", b"* BYE no\r\n", b"* OK [CAPABILITY \xff]\r\n", b"SSH-2.0-x\r\n", b""])


@settings(max_examples=150, deadline=None)
@given(_GREETINGS, st.lists(st.lists(st.one_of(_LINES, st.binary(max_size=40)), max_size=4), max_size=4))
def test_whatever_a_server_says_to_a_login_is_one_of_our_errors(greeting: bytes, answers: list[list[bytes]]) -> None:
    near, far = socket.socketpair()
    server = threading.Thread(target=_talk, args=(far, greeting, answers), daemon=True)
    server.start()
    with near, contextlib.suppress(ConnectionFailed):
        login.log_in(wire.Wire(near, "mail.example.test:143", 1.0), ImapTarget("mail.example.test", "taro", SECRET, 143, "plain"))
    server.join(10)
    assert not server.is_alive()


def _talk(far: socket.socket, greeting: bytes, answers: list[list[bytes]]) -> None:
    """Answers each line it hears with the next of the answers; hangs up after one that leaves the other side waiting."""
    with far, contextlib.suppress(OSError):
        far.sendall(greeting)
        heard = far.makefile("rb")
        for lines in answers if greeting.startswith(b"* ") else []:
            tag = heard.readline().partition(b" ")[0]
            far.sendall(b"".join(line.replace(b"TAG", tag) for line in lines))
            if not lines or not lines[-1].startswith((b"TAG ", b"+ ")):
                return


@pytest.mark.parametrize("cls", OS_ERRORS, ids=name_of)
def test_what_connecting_raises_is_mapped(monkeypatch: pytest.MonkeyPatch, cls: type[BaseException]) -> None:
    def refuse(*arguments: object) -> None:
        raise made(cls)

    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(Unreachable) as caught:
        net.connect_tcp("www.example.test", ("127.0.0.1", "::1"), 22, 5.0)
    holds(caught.value)
    assert "www.example.test" in caught.value.reason or "127.0.0.1" in caught.value.reason


@pytest.mark.parametrize("code", sorted(errno.errorcode))
def test_every_number_of_an_os_error_has_words(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(Unreachable) as caught:
        net.connect_tcp("www.example.test", ("127.0.0.1",), 22, 5.0)
    holds(caught.value)
    disk = told(OSError(code, os.strerror(code)), "/vault/objects", 10)
    assert isinstance(disk, VaultError)
    holds(disk)


@pytest.mark.parametrize("cls", family(socket.gaierror, UnicodeError), ids=name_of)
def test_what_resolving_a_name_raises_is_mapped(monkeypatch: pytest.MonkeyPatch, cls: type[BaseException]) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise made(cls)

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(NameNotResolved) as caught:
        net.resolve("www.example.test", 22)
    holds(caught.value)


# -- botocore -----------------------------------------------------------------------------------------------------------------------------

BOTO_ERRORS = family(botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, of=BOTO + STANDARD)
STORE = S3Target("example-backup", "example.jp", "https://s3.example.test", "AKIA-KEY", SECRET)


def boto_made(cls: Any) -> Exception:
    """As botocore makes it, every text of it holding the secret."""
    if issubclass(cls, botocore.exceptions.ClientError):
        answer = {"Error": {"Code": "Odd", "Message": f"the key was {SECRET}"}, "ResponseMetadata": {"HTTPStatusCode": 400}}
        error: Exception = cls(answer, "PutObject")
        return error
    fields = {name: f"{name} {SECRET}" for _, name, _, _ in string.Formatter().parse(cls.fmt) if name}
    for more in ({}, {"operation_name": "PutObject", "reason": SECRET, "num_retries": 3, "last_response": None}):
        with contextlib.suppress(TypeError, KeyError):
            return cls(**{**fields, **more})  # type: ignore[no-any-return]
    bare: Exception = cls.__new__(cls)
    bare.args = (f"{WORDS} {SECRET}",)
    return bare


@pytest.mark.parametrize("cls", BOTO_ERRORS, ids=name_of)
def test_what_botocore_raises_is_mapped_and_tells_no_key(cls: type[BaseException]) -> None:
    error = translate(boto_made(cls), STORE, "objects/ab")
    assert isinstance(error, HostbackupError)
    holds(error)
    assert "example-backup" in error.where


def test_botocore_has_no_family_of_errors_that_nobody_knows_of() -> None:
    bases = family(botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, Warning, of=BOTO + STANDARD)
    apart = {  # of code that makes service models
        "botocore.exceptions.MissingServiceIdError",
        "botocore.exceptions.UndefinedModelAttributeError",
    }
    assert {name_of(cls) for cls in defined_in(botocore) - set(bases) if cls.__module__ == "botocore.exceptions"} <= apart


@pytest.mark.parametrize("status", [*range(300, 310), *range(400, 452), *range(500, 512)])
def test_every_status_of_a_store_has_words(status: int) -> None:
    answer = {"Error": {"Code": str(status), "Message": ""}, "ResponseMetadata": {"HTTPStatusCode": status}}
    holds(translate(botocore.exceptions.ClientError(answer, "GetObject"), STORE))  # type: ignore[arg-type]
