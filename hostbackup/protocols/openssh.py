"""An SSH login made by the system's OpenSSH: native ciphers, ~/.ssh/config as ssh reads it, and what old servers still need.

One `ssh` process holds the login and shares it (`openssh_mux`). It gets a configuration of ours first, so that host keys are judged here, by the
same rules as the built-in client's, and then the user's. Straight to a server it goes over a TCP connection that is made here.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from hostbackup.errors import ConnectionFailed, HostKeyChanged, ProtocolBroken, SecretError, UsageError
from hostbackup.protocols.net import connect_tcp
from hostbackup.protocols.openssh_login import Login, Settings, seen
from hostbackup.protocols.openssh_process import SshProcess, Workshop, ask_program
from hostbackup.protocols.openssh_session import OpenSshSession
from hostbackup.protocols.ssh import KEEPALIVE, SshTarget, store_host_key
from hostbackup.protocols.ssh_hostkeys import HostKey, HostKeyRules, ShownKey, fingerprint

_ECDSA = ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521")
_RSA = ("rsa-sha2-512", "rsa-sha2-256")
_SHA1 = "ssh-rsa"  # the name of RSA's signatures with SHA-1, and of RSA keys
_OLD = {  # by the name ssh -Q has for the list: what legacy = true adds
    "KexAlgorithms": ("kex", ("diffie-hellman-group-exchange-sha1", "diffie-hellman-group14-sha1", "diffie-hellman-group1-sha1")),
    "Ciphers": ("cipher", ("aes128-cbc", "aes192-cbc", "aes256-cbc", "3des-cbc")),
    "MACs": ("mac", ("hmac-sha1",)),
    "PubkeyAcceptedAlgorithms": ("key-sig", (_SHA1,)),
}
_FAST = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
_OLDEST = (8, 5)  # the first with KnownHostsCommand
_QUICK = 20.0  # seconds for what needs no network


def connect(target: SshTarget) -> OpenSshSession:
    """As `hostbackup.protocols.ssh.connect`; also raises UsageError where there is no ssh program that will do."""
    try:
        return _log_in(target, ())
    except HostKeyChanged as mismatch:
        if not target.host_key:
            raise
        # A pin names no key type, and the server showed the one it prefers: perhaps the pin fits another one of its keys.
        for family in (("ssh-ed25519",), _ECDSA, _rsa(target)):
            with contextlib.suppress(HostKeyChanged, ProtocolBroken):
                return _log_in(target, family)
        raise mismatch from None


def scan_host_key(target: SshTarget) -> tuple[str, str, HostKey]:
    """As `hostbackup.protocols.ssh.scan_host_key`. That the server has the private key too shows only at the login."""

    class Enough(Exception):
        pass

    def stop(key: ShownKey) -> None:
        raise Enough

    attempt = _Attempt(target)
    try:
        login = attempt.begin((), lambda rules: stop)
        with contextlib.suppress(Enough):
            attempt.run(login)
        if login.key is None:
            raise ProtocolBroken("the server showed no host key", where=login.settings.where)
        return login.key.type, fingerprint(login.key), login.key
    finally:
        attempt.close()


def record_host_key(target: SshTarget, known_hosts: Path | None, key: HostKey) -> Path:
    """As `hostbackup.protocols.ssh.record_host_key`."""
    attempt = _Attempt(target)
    try:
        return store_host_key(target, known_hosts, attempt.settings().name, key)
    finally:
        attempt.close()


def _log_in(target: SshTarget, types: tuple[str, ...]) -> OpenSshSession:
    attempt = _Attempt(target)
    try:
        login = attempt.begin(types, lambda rules: seen(rules, rules.pinned_name, target))
        attempt.run(login)
        assert login.key is not None and attempt.process is not None
        attempt.shop.hang_up()
        return OpenSshSession(attempt.process, attempt.shop, login, attempt.address)
    except BaseException:
        attempt.close()
        raise


class _Attempt:
    """One try to log in: the private folder, the process, the command line."""

    def __init__(self, target: SshTarget) -> None:
        self.target = target
        self.process: SshProcess | None = None
        self.address = ""
        self._connection: socket.socket | None = None
        self._program = program()
        if target.key_file is not None:
            _check_readable(target.key_file)
        self.shop = Workshop()
        try:
            self._config = self.shop.write("config", _config(self.shop, self._program, target.use_ssh_config))
        except BaseException:
            self.shop.close()
            raise

    def settings(self) -> Settings:
        """Where ssh itself would go. Raises UsageError where it does not understand its configuration."""
        said = ask_program([*self._command(), "-G", "--", self.target.host], _QUICK)
        if said.returncode:
            reason = said.stderr.strip().splitlines() or ["no reason given"]
            hint = "does `ssh` itself take them?"
            raise UsageError(f"your settings for ssh cannot be used: {reason[0]}", where="~/.ssh/config", hint=hint)
        told = dict(line.partition(" ")[::2] for line in said.stdout.splitlines())
        gateway = any(told.get(key, "none") != "none" for key in ("proxyjump", "proxycommand"))
        return Settings(told["hostname"], int(told["port"]), told["user"], gateway)

    def begin(self, types: tuple[str, ...], judge: Callable[[HostKeyRules], Callable[[ShownKey], None]]) -> Login:
        """Everything up to the TCP connection. Raises NameNotResolved, Unreachable, UsageError."""
        target, settings = self.target, self.settings()
        rules = target.host_key_rules(settings.name)
        if settings.gateway:
            self.address = target.addresses[0] if target.addresses else settings.host
        else:
            try:
                self._connection, self.address = connect_tcp(settings.host, target.addresses, settings.port, target.timeout)
            except ConnectionFailed as error:
                error.where = error.where or settings.where
                raise
            self._connection.setblocking(True)
        login = Login(target, settings, rules, f"hostbackup-{secrets.token_hex(8)}", self._connection, judge(rules))
        command = [*self._command(), *self._shared(login, types), "--", target.host]
        environment = {**os.environ, "SSH_ASKPASS": self.shop.askpass, "SSH_ASKPASS_REQUIRE": "force"}
        self.process = SshProcess(command, environment, self.shop.path)
        return login

    def run(self, login: Login) -> None:
        assert self.process is not None
        login.run(self.process, self.shop)
        if self._connection is not None:
            self._connection.close()  # ssh has its own

    def _command(self) -> list[str]:
        target = self.target
        user = ["-l", target.user] if target.user else []
        port = ["-p", str(target.port)] if target.port != 22 else []
        return [self._program, "-F", self._config, *user, *port]

    def _shared(self, login: Login, types: tuple[str, ...]) -> list[str]:
        """What concerns this server only, and not a gateway before it."""
        target, shop = self.target, self.shop
        options = {
            "ControlMaster": "yes",
            "ControlPath": shop.control,
            "HostKeyAlias": login.alias,
            "HostKeyAlgorithms": ",".join(types or _key_types(target, login.rules)),
            "ConnectTimeout": str(max(1, round(target.timeout))),
            "ServerAliveInterval": str(KEEPALIVE),
            "ServerAliveCountMax": "3",
            "LogLevel": "DEBUG1",
        }
        if self._connection is not None:
            options |= {"ProxyJump": "none", "ProxyCommand": shop.line, "ProxyUseFdpass": "yes"}
        else:
            options |= {"HostName": self.address}
        options |= _credentials(target)
        if target.legacy:
            options |= _legacy(self._program)
        key = ["-i", str(target.key_file.expanduser())] if target.key_file is not None else []
        return ["-N", "-T", *key, *(f"-o{name}={value}" for name, value in options.items())]

    def close(self) -> None:
        if self.process is not None:
            self.process.close()
        if self._connection is not None:
            self._connection.close()
        self.shop.close()


def _credentials(target: SshTarget) -> dict[str, str]:
    """What to log in with. What the profile names is the whole set, so one run costs one refusal; without, ~/.ssh/config decides."""
    if target.password is None and target.key_file is None:
        return {} if target.ask is not None else {"BatchMode": "yes"}
    told = "yes" if target.password is not None else "no"
    options = {"IdentitiesOnly": "yes", "PubkeyAuthentication": "yes" if target.key_file is not None else "no"}
    options |= {"BatchMode": "no", "PasswordAuthentication": told, "KbdInteractiveAuthentication": told}
    methods = ["publickey"] * (target.key_file is not None) + ["password", "keyboard-interactive"] * (target.password is not None)
    return {**options, "PreferredAuthentications": ",".join(methods)}


def _rsa(target: SshTarget) -> tuple[str, ...]:
    return (*_RSA, _SHA1) if target.legacy else _RSA


def _key_types(target: SshTarget, rules: HostKeyRules) -> list[str]:
    """Host key types to accept, those on record first. No certificates: known_hosts is read for plain keys."""
    wanted = [name for kind in rules.known_types(rules.pinned_name) for name in (_rsa(target) if kind == _SHA1 else (kind,))]
    usable = ("ssh-ed25519", *_ECDSA, *_rsa(target))
    return list(dict.fromkeys([*(name for name in wanted if name in usable), *usable]))


@functools.cache
def _known(program: str, topic: str) -> frozenset[str]:
    """The names that an ssh knows of a topic of its -Q. One it does not know would be an error."""
    return frozenset(ask_program([program, "-Q", topic], _QUICK).stdout.split())


def _legacy(program: str) -> dict[str, str]:
    """Options for servers that have only SHA-1, as far as this ssh still knows them."""
    usable = {option: [name for name in names if name in _known(program, topic)] for option, (topic, names) in _OLD.items()}
    return {option: "+" + ",".join(names) for option, names in usable.items() if names}


def _config(shop: Workshop, program: str, user_settings: bool) -> str:
    """A configuration for the server and for gateways before it: ssh takes the first value it meets."""
    lines = [
        "StrictHostKeyChecking yes",
        f"KnownHostsCommand {shop.host_key} %I %H %t %K",
        "UserKnownHostsFile /dev/null",
        "GlobalKnownHostsFile /dev/null",
        "NoHostAuthenticationForLocalhost no",
        "VerifyHostKeyDNS no",
        "UpdateHostKeys no",
        "CheckHostIP no",
        "NumberOfPasswordPrompts 1",
        "ControlMaster no",
        "ControlPath none",
        "ControlPersist no",
        "ClearAllForwardings yes",
        "ForwardAgent no",
        "ForwardX11 no",
        "PermitLocalCommand no",
        "RemoteCommand none",
        "RequestTTY no",
        "Compression no",
        "AddKeysToAgent no",
    ]
    if user_settings:
        lines += [f'Include "{file}"' for file in (Path.home() / ".ssh" / "config", "/etc/ssh/ssh_config")]
    # Where the user has no say in it: measured on 1 GiB, ssh spends 1.1 s with AES-GCM and 1.8 s with ChaCha20, which it would take by itself.
    fast = [name for name in _FAST if name in _known(program, "cipher")]
    lines += ["Host *", f"Ciphers ^{','.join(fast)}"] if fast else []
    return "\n".join(lines) + "\n"


def program() -> str:
    """The ssh program's path. Raises UsageError where there is none that will do."""
    if sys.platform == "win32":
        raise UsageError('client = "openssh" works on Linux and other Unix systems', hint="take out `client`")
    found = shutil.which("ssh")
    if found is None:
        reason = 'client = "openssh" needs the ssh program, and there is none'
        raise UsageError(reason, hint="install OpenSSH's client, or take out `client`")
    version = openssh_version(found)
    if version < _OLDEST:
        told = ".".join(map(str, version)) if any(version) else "something else"
        raise UsageError(f'client = "openssh" needs OpenSSH 8.5 or newer; here is {told}', where=found, hint="take out `client`")
    return found


@functools.cache
def openssh_version(path: str) -> tuple[int, int]:
    """Of an ssh program; (0, 0) where it is not OpenSSH's."""
    said = ask_program([path, "-V"], _QUICK).stderr
    _, _, told = said.partition("OpenSSH_")
    major, _, minor = told.partition(".")
    digits = "".join(c for c in minor[:2] if c.isdigit())
    return (int(major), int(digits)) if major.isdigit() and digits else (0, 0)


def _check_readable(file: Path) -> None:
    try:
        file.expanduser().open("rb").close()
    except FileNotFoundError as error:
        raise SecretError("the private key file does not exist", where=str(file)) from error
    except OSError as error:
        raise SecretError(f"the private key file cannot be read: {error.strerror}", where=str(file)) from error
