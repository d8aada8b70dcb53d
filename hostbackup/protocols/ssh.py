"""An SSH login, made by fabric with strict host keys, and what it is used for: SFTP channels and remote commands.

Loading this module does not load paramiko or fabric; connecting does.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hostbackup.errors import ConnectionFailed, HostKeyChanged, LineCut, LoginRefused, ProtocolBroken, SecretError, Unreachable, UsageError
from hostbackup.protocols.net import connect_tcp
from hostbackup.protocols.ssh_hostkeys import SYSTEM_KNOWN_HOSTS, HostKey, HostKeyRules, append_host_key, fingerprint, lookup_name
from hostbackup.protocols.ssh_socket import ReadAhead

if TYPE_CHECKING:
    import paramiko

    from hostbackup.protocols.ssh_session import SshSession

LEGACY_HINT = 'an old server may have only SHA-1: client = "openssh" with legacy = true accepts that'
KEEPALIVE = 30  # seconds between messages that keep firewalls and the server from forgetting an idle line
_FAST_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
_FAMILIES = (("ssh-ed25519",), ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"), ("rsa-sha2-512", "rsa-sha2-256"))


@dataclass(frozen=True, slots=True)
class SshTarget:
    """How to reach and enter an SSH server. `host` is the name for host keys and people; TCP goes to `addresses` where given, else where DNS says."""

    host: str
    port: int = 22  # 22 lets ~/.ssh/config say otherwise
    user: str = ""  # "": what ~/.ssh/config says, else the local user
    addresses: tuple[str, ...] = ()
    password: str | None = field(default=None, repr=False)
    key_file: Path | None = None
    passphrase: str | None = field(default=None, repr=False)
    host_key: str | None = None  # "SHA256:…": the only key accepted, instead of known_hosts
    known_hosts: Path | None = None  # default: ~/.ssh/known_hosts and /etc/ssh/ssh_known_hosts
    use_ssh_config: bool = True
    shell: str = "auto"  # auto | never
    timeout: float = 30.0  # seconds: a TCP connection, the key exchange, the login, an answer
    ask: Callable[[str], str] | None = field(default=None, repr=False)  # asks a person for a secret
    on_host_key: Callable[[str], None] | None = field(default=None, repr=False)  # hears the fingerprint before any secret is sent; may raise
    legacy: bool = False  # also SHA-1 signatures and key exchange; only the system's ssh still has them

    def host_key_rules(self, name: str) -> HostKeyRules:
        """Which keys the server called `name` in known_hosts, and servers on the way to it, may show."""
        files = (self.known_hosts.expanduser(),) if self.known_hosts else (Path.home() / ".ssh" / "known_hosts", SYSTEM_KNOWN_HOSTS)
        return HostKeyRules(files, name, self.host_key or "")


def connect(target: SshTarget) -> SshSession:
    """Logs in, trying each credential once. Raises a ConnectionFailed of the kind that fits, or SecretError where the key file is unusable."""
    try:
        return _log_in(target, None)
    except HostKeyChanged as mismatch:
        # A pin names no key type, and the server showed the one it prefers: perhaps the pin fits another one of its keys.
        fitting = _pinned_family(target) if target.host_key else None
        if fitting is None:
            raise mismatch from None
        return _log_in(target, fitting)


def _log_in(target: SshTarget, types: tuple[str, ...] | None) -> SshSession:
    from hostbackup.protocols.ssh_session import SshSession

    attempt = _Attempt(target)
    try:
        with attempt.mapped():
            attempt.login(attempt.rules.known_types(attempt.name) if types is None else types)
        transport = attempt.connection.client.get_transport()
        transport.set_keepalive(KEEPALIVE)
        return SshSession(attempt.connection, transport, target, attempt.address, attempt.port)
    except BaseException:
        attempt.close()
        raise


def _pinned_family(target: SshTarget) -> tuple[str, ...] | None:
    """The key types among which the pinned key is, found out without logging in."""
    for family in _FAMILIES:
        attempt = _Attempt(target)
        try:
            with attempt.mapped():
                key = attempt.shown_key(family)
            attempt.rules.check(attempt.name, key)
        except (HostKeyChanged, ProtocolBroken):
            continue  # another key, or none of these types
        else:
            return family
        finally:
            attempt.close()
    return None


def scan_host_key(target: SshTarget) -> tuple[str, str, paramiko.PKey]:
    """Type, fingerprint (`SHA256:…`) and key that the server shows, without logging in and without trusting it. Raises ConnectionFailed."""
    attempt = _Attempt(target)
    try:
        with attempt.mapped():
            key = attempt.shown_key(())
        return key.get_name(), fingerprint(key), key
    finally:
        attempt.close()


def record_host_key(target: SshTarget, known_hosts: Path | None, key: HostKey) -> Path:
    """Adds a key, as shown by `scan_host_key`, to the known_hosts file, durably; gives the file's path."""
    return store_host_key(target, known_hosts, _Attempt(target).name, key)


def store_host_key(target: SshTarget, known_hosts: Path | None, name: str, key: HostKey) -> Path:
    """As `record_host_key`, for a server of which it is known what known_hosts calls it."""
    file = known_hosts or target.known_hosts or Path.home() / ".ssh" / "known_hosts"
    append_host_key(file.expanduser(), name, key)
    return file


class _Attempt:
    """One try to connect: the fabric connection, its rules and its socket."""

    def __init__(self, target: SshTarget) -> None:
        import fabric
        import paramiko

        # paramiko reports what it raises anyway; without a handler Python would print that to the terminal.
        logging.getLogger("paramiko").addHandler(logging.NullHandler())
        self.target = target
        config = fabric.Config(overrides={"load_ssh_configs": target.use_ssh_config}, lazy=True)
        try:
            if target.use_ssh_config:
                config.load_ssh_config()
            connection = fabric.Connection(target.host, user=target.user or None, port=target.port if target.port != 22 else None, config=config)
            self.port: int = int(connection.port)
        except (paramiko.SSHException, OSError, ValueError, LookupError, TypeError) as error:
            raise UsageError(f"your settings for ssh cannot be used: {error}", where="~/.ssh/config", hint="does `ssh` itself take them?") from error
        self.connection = connection
        self.host: str = connection.host
        self.user: str = connection.user or getpass.getuser()
        self.name = lookup_name(self.host, self.port)
        self.address = ""
        self.rules = target.host_key_rules(self.name)
        self._policy = _policy(paramiko.MissingHostKeyPolicy, self.rules, self.name, target.on_host_key)
        self._transports: list[paramiko.Transport] = []

    @property
    def where(self) -> str:
        return f"{self.user}@{self.host}" + (f":{self.port}" if self.port != 22 else "")

    def open_socket(self) -> Any:
        """A socket, or what stands for one behind ProxyJump or ProxyCommand."""
        gateway = self.connection.gateway
        if not gateway:
            connected, self.address = connect_tcp(self.host, self.target.addresses, self.port, self.target.timeout)
            return connected
        self.address = self.target.addresses[0] if self.target.addresses else self.host
        if isinstance(gateway, str):
            return self.connection.open_gateway()
        hop = gateway
        while hop and not isinstance(hop, str):
            hop.client.set_missing_host_key_policy(self._policy)
            hop.connect_timeout = hop.connect_timeout or int(self.target.timeout)
            hop.connect_kwargs.update(
                banner_timeout=self.target.timeout,
                auth_timeout=self.target.timeout,
                transport_factory=self._factory(self.rules.known_types(lookup_name(hop.host, int(hop.port)))),
            )
            hop = hop.gateway
        gateway.open()
        return gateway.transport.open_channel("direct-tcpip", (self.address, self.port), ("", 0), timeout=self.target.timeout)

    def _factory(self, types: Sequence[str]) -> Callable[..., paramiko.Transport]:
        import paramiko

        def make(sock: Any, **options: Any) -> paramiko.Transport:
            line: Any = ReadAhead(sock) if isinstance(sock, socket.socket) else sock
            transport = paramiko.Transport(line, **options)
            self._transports.append(transport)
            security = transport.get_security_options()
            wanted = [name for kind in types for name in (_FAMILIES[2] if kind == "ssh-rsa" else (kind,))]
            first = [name for name in wanted if name in security.key_types]
            security.key_types = tuple(dict.fromkeys([*first, *security.key_types]))
            # One pass over the bytes instead of two: measured, AES-GCM costs about 40 % less time here than AES-CTR with a separate HMAC.
            fast = [name for name in _FAST_CIPHERS if name in security.ciphers]
            security.ciphers = tuple(dict.fromkeys([*fast, *security.ciphers]))
            return transport

        return make

    def shown_key(self, only: tuple[str, ...]) -> paramiko.PKey:
        """The key the server shows in a key exchange of its own, restricted to some types where given."""
        transport = self._factory(())(self.open_socket())
        try:
            if only:
                transport.get_security_options().key_types = only
            transport.banner_timeout = self.target.timeout
            transport.start_client(timeout=self.target.timeout)
            return transport.get_remote_server_key()
        finally:
            transport.close()

    def login(self, types: Sequence[str]) -> None:
        connection, target = self.connection, self.target
        connection.client.set_missing_host_key_policy(self._policy)
        connection.user = self.user
        connection.connect_timeout = None
        keys = dict(self._credentials())
        connection.connect_kwargs = {
            "sock": self.open_socket(),
            "timeout": target.timeout,
            "banner_timeout": target.timeout,
            "auth_timeout": target.timeout,
            "channel_timeout": target.timeout,
            "transport_factory": self._factory(types),
            **keys,
        }
        connection.gateway = None  # already opened: it is the socket
        self._authenticate()

    def _authenticate(self) -> None:
        import paramiko

        try:
            self.connection.open()
        except paramiko.SSHException as error:
            transport = self.connection.client.get_transport()
            nothing = "No authentication methods" in str(error)
            if not (nothing or _refused(error)) or transport is None or not transport.is_active():
                raise
            if self.target.ask is None or self.target.password is not None or self.target.key_file is not None:
                raise
            password = self.target.ask(f"Password for {self.where}: ")
            transport.auth_password(self.user, password)
            self.connection.transport = transport

    def _credentials(self) -> Iterator[tuple[str, Any]]:
        """What to log in with. What the profile names is the whole set: no other key is tried, so one run costs one refusal."""
        target = self.target
        named = target.password is not None or target.key_file is not None
        yield "allow_agent", not named
        yield "look_for_keys", not named
        if target.key_file is not None:
            yield "pkey", load_key(target.key_file, target.passphrase, target.ask)
        elif not named:
            identities = [Path(name).expanduser() for name in self.connection.ssh_config.get("identityfile", [])]
            yield "key_filename", [str(path) for path in identities if path.is_file()]
            if target.passphrase is not None:
                yield "passphrase", target.passphrase
        if target.password is not None:
            yield "password", target.password

    @contextlib.contextmanager
    def mapped(self) -> Iterator[None]:
        """Turns what paramiko, fabric and sockets raise while connecting into the project's errors.

        paramiko raises again whatever its reading thread met: a malformed key or packet also as one of Python's or cryptography's own errors.
        """
        import struct

        import paramiko
        from cryptography.exceptions import InvalidKey, InvalidSignature, InvalidTag, UnsupportedAlgorithm

        odd = (ValueError, LookupError, TypeError, struct.error, InvalidKey, InvalidSignature, InvalidTag, UnsupportedAlgorithm)

        try:
            yield
        except ConnectionFailed as error:
            error.where = error.where or self.where
            raise
        except (paramiko.SSHException, OSError, EOFError, *odd) as error:
            raise self.explain(error) from error

    def explain(self, error: Exception) -> ConnectionFailed:
        """The project's error for what went wrong while connecting."""
        import paramiko

        said, where = str(error), self.where
        # paramiko lets a key exchange that took too long pass, and then finds no session.
        late = ("Authentication timeout", "Timeout", "timed out", "No existing session")
        if isinstance(error, TimeoutError) or any(word in said for word in late):
            return LineCut(f"the server stopped answering during the login ({self.target.timeout:.0f} seconds)", where=where)
        if isinstance(error, paramiko.BadAuthenticationType):
            allowed = ", ".join(error.allowed_types)
            return LoginRefused(f"the server does not accept this kind of login; it accepts: {allowed}", where=where, hint="set `password` or `key`")
        if isinstance(error, paramiko.PasswordRequiredException):
            return LoginRefused("the private key is encrypted", where=where, hint="set `passphrase`")
        if _refused(error):
            return LoginRefused("the server refused the login", where=where, hint="check `user` and `password` or `key`; it was tried only once")
        if "No authentication methods" in said:
            hint = "set `password` or `key`, or start an SSH agent"
            return LoginRefused("there is nothing to log in with: no password, no key, no agent", where=where, hint=hint)
        if isinstance(error, paramiko.ssh_exception.IncompatiblePeer):
            return ProtocolBroken(f"no algorithm in common with the server: {said}", where=where, hint=LEGACY_HINT)
        if "banner" in said or isinstance(error, EOFError):
            there = f"port {self.port} of {self.host}" + (f" ({self.address})" if self.address != self.host else "")
            return Unreachable(
                f"{there} took the connection but did not speak SSH", where=where, hint="is this the SSH port, or are we blocked there?"
            )
        if isinstance(error, OSError):
            return LineCut(f"the line was cut during the login: {said}", where=where)
        return ProtocolBroken(f"the SSH connection failed: {said or type(error).__name__}", where=where)

    def close(self) -> None:
        self.connection.client.close()
        for transport in self._transports:
            transport.close()


def _refused(error: Exception) -> bool:
    import paramiko

    return isinstance(error, paramiko.AuthenticationException) and "timeout" not in str(error).lower()


def _policy(base: type, rules: HostKeyRules, name: str, hears: Callable[[str], None] | None) -> Any:
    """A paramiko policy that knows no mercy: with no key loaded into the client itself, every key comes here."""

    class Strict(base):  # type: ignore[misc]
        def missing_host_key(self, _client: object, hostname: str, key: paramiko.PKey) -> None:
            rules.check(hostname.lower(), key)
            if hears is not None and hostname.lower() == name:  # else it is a jump host's
                hears(fingerprint(key))

    return Strict()


def load_key(file: Path, passphrase: str | None, ask: Callable[[str], str] | None) -> paramiko.PKey:
    """The private key in a file. Raises SecretError where it is missing, unreadable or locked."""
    import paramiko
    from cryptography.exceptions import UnsupportedAlgorithm
    from paramiko.ber import BERException
    from paramiko.pkey import UnknownKeyType

    path = file.expanduser()
    # Releases differ in whether they take text or bytes here, and the stubs say text.
    secret: Any = passphrase.encode() if passphrase else None
    try:
        return paramiko.PKey.from_path(path, secret)
    except FileNotFoundError as error:
        raise SecretError("the private key file does not exist", where=str(file)) from error
    except OSError as error:
        raise SecretError(f"the private key file cannot be read: {error.strerror}", where=str(file)) from error
    except (paramiko.SSHException, ValueError, TypeError, LookupError, EOFError, BERException, UnknownKeyType, UnsupportedAlgorithm) as error:
        if passphrase is None and ask is not None:
            return load_key(file, ask(f"Passphrase for {path.name}: "), None)
        hint = "set `passphrase`" if passphrase is None else "check `passphrase`"
        raise SecretError("the private key cannot be opened", where=str(file), hint=hint) from error
