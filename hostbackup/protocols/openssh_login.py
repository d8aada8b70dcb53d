"""A login by the `ssh` program: its questions answered here, its complaints put into the project's errors.

A secret is given once, and only to the question it is meant for; whatever comes after a refusal is not answered but ends the program, since ssh
takes no answer for an empty one and would go on with that.
"""

from __future__ import annotations

import base64
import re
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hostbackup.errors import (
    HostbackupError,
    HostKeyUnknown,
    LineCut,
    LoginRefused,
    NameNotResolved,
    ProtocolBroken,
    SecretError,
    Unreachable,
)
from hostbackup.protocols.openssh_mux import accepts
from hostbackup.protocols.openssh_process import Question, SshProcess, Workshop
from hostbackup.protocols.ssh import LEGACY_HINT, SshTarget
from hostbackup.protocols.ssh_hostkeys import HostKeyRules, ShownKey, fingerprint, known_keys, lookup_name

_LOOK = 0.05  # seconds between looks whether ssh listens
_CERTIFICATE = "-cert-v01@openssh.com"
_SOFTWARE = re.compile(r"debug1: Remote protocol version ([^,]+), remote software version (.*)")
_DENIED = re.compile(r"(?:(\S+)@(\S+): )?Permission denied \(([^)]*)\)")
_PASSPHRASE = re.compile(r"Enter passphrase for key '(.*)': ")


@dataclass(frozen=True, slots=True)
class Settings:
    """What ~/.ssh/config makes of a target: where it leads and who goes there. `gateway`: not straight there."""

    host: str
    port: int
    user: str
    gateway: bool

    @property
    def name(self) -> str:
        """What known_hosts calls the server."""
        return lookup_name(self.host, self.port)

    @property
    def where(self) -> str:
        return f"{self.user}@{self.host}" + (f":{self.port}" if self.port != 22 else "")


@dataclass(slots=True)
class Login:
    """One login. `alias` is what ssh calls the server in its questions: a word nobody else can know, so that no gateway is taken for it.

    `connection` is the open TCP connection to go over, None behind a gateway; `types` restricts the host key's types.
    """

    target: SshTarget
    settings: Settings
    rules: HostKeyRules
    alias: str
    connection: socket.socket | None
    judge: Callable[[ShownKey], None]  # hears the server's own key before anything else is said; may raise
    key: ShownKey | None = None
    version: str = ""
    _given: set[str] = field(default_factory=set)

    def run(self, process: SshProcess, shop: Workshop) -> None:
        """Until ssh is in and takes sessions. Raises a ConnectionFailed of the kind that fits, or SecretError; ssh is then to be killed."""
        last, lines = time.monotonic(), 0
        with selectors.DefaultSelector() as selector:
            selector.register(shop.listener, selectors.EVENT_READ)
            selector.register(process.heard, selectors.EVENT_READ)
            while not accepts(shop.control):
                ready = {key.fileobj for key, _ in selector.select(_LOOK)}
                if shop.listener in ready:
                    self._hear(Question(shop.listener), process)
                    last = time.monotonic()
                if process.heard in ready and not process.heard.recv(4096):
                    raise self.explain(process.said())
                if process.lines != lines:
                    last, lines = time.monotonic(), process.lines
                if time.monotonic() - last > self.target.timeout:
                    reason = f"the server stopped answering during the login ({self.target.timeout:.0f} seconds)"
                    raise LineCut(reason, where=self.settings.where)
        self._read(process.said())

    # -- questions ----------------------------------------------------------------------------------------------------------------------

    def _hear(self, question: Question, process: SshProcess) -> None:
        try:
            if question.verb == "line":
                assert self.connection is not None
                question.hand_over(self.connection)
            elif question.verb == "hostkey":
                question.answer(self._host_keys(*question.words[:4]))
            elif question.kind == "none":
                question.answer("")  # a notice, such as to touch a security key
            elif question.kind == "confirm":
                raise LoginRefused("ssh asks for a confirmation, which is never given", where=self.settings.where)
            else:
                question.answer(self._secret(question.words[0]) + "\n")
        except BaseException:
            process.kill()  # before the question ends: an answer that fails counts as an empty one
            question.refuse()
            raise

    def _host_keys(self, why: str, name: str, kind: str, encoded: str) -> str:
        """Lines of known_hosts for a server: its key where that is as it should be. Raises what the rules and `judge` raise."""
        own = name == self.alias
        looked_up = self.settings.name if own else name.lower()
        if why == "HOSTNAME" and (own or not kind.endswith(_CERTIFICATE)):
            shown = ShownKey(kind, base64.b64decode(encoded, validate=True))
            if own:
                self.key = shown
                self.judge(shown)
            else:
                self.rules.check(looked_up, shown)
            return f"{name} {kind} {encoded}\n"
        # The order in which to ask for keys, or a gateway's certificate, for which ssh takes the plain key in the end.
        known = known_keys(self.rules.files, looked_up)
        return "".join(f"{'@revoked ' * key.revoked}{name} {key.type} {base64.b64encode(key.blob).decode()}\n" for key in known)

    def _secret(self, prompt: str) -> str:
        """The answer to a prompt. Raises LoginRefused or SecretError where there is none to be given."""
        target, where = self.target, self.settings.where
        asked_by = self.settings.user + "@" + self.alias
        passphrase = _PASSPHRASE.fullmatch(prompt)
        if passphrase is not None:
            return self._passphrase(passphrase[1])
        own = self.alias in prompt or not self.settings.gateway
        question = prompt.replace(self.alias, self.settings.host).strip()
        # The password method's prompt, or a server's own words (RFC 4256), which ssh puts behind (user@host).
        if own and (prompt == f"{asked_by}'s password: " or "password" in prompt.removeprefix(f"({asked_by}) ").lower()):
            self._once("password", LoginRefused("the server refused the login", where=where, hint=_REFUSED_HINT))
            if target.password is not None:
                return target.password
            question = f"Password for {where}: "
        else:
            self._once(prompt, LoginRefused(f"the answer to {question!r} was refused", where=where, hint="it was tried only once"))
        if target.ask is None:
            hint = "run it at a terminal, or use a key from an agent there"
            raise LoginRefused(f"ssh asks {question!r}, and nobody is there to answer", where=where, hint=hint)
        return target.ask(question)

    def _passphrase(self, file: str) -> str:
        target = self.target
        closed = "the private key cannot be opened"
        self._once(file, SecretError(closed, where=file, hint="check `passphrase`"))
        # ssh shows no more than the first 100 characters of a path.
        if target.key_file is not None and target.passphrase is not None and str(target.key_file.expanduser())[:100] == file:
            return target.passphrase
        if target.ask is None:
            raise SecretError(closed, where=file, hint="set `passphrase`")
        return target.ask(f"Passphrase for {Path(file).name}: ")

    def _once(self, what: str, refused: HostbackupError) -> None:
        if what in self._given:
            raise refused
        self._given.add(what)

    # -- what ssh says ------------------------------------------------------------------------------------------------------------------

    def _read(self, said: Sequence[str]) -> None:
        for line in said:
            if found := _SOFTWARE.match(line):
                self.version = f"SSH-{found[1]}-{found[2]}"

    def explain(self, said: Sequence[str]) -> HostbackupError:
        """The project's error for a login that came to nothing, from the lines on ssh's standard error."""
        self._read(said)
        where = self.settings.where
        lines = [line for line in said if line and not line.startswith(("debug", "OpenSSH_"))]
        text = "\n".join(lines)
        if self.target.key_file is not None and (trouble := self._key_trouble(self.target.key_file, text, said)):
            return trouble
        if denied := _DENIED.search(text):
            if self.settings.gateway and denied[2] not in (None, self.target.host):
                return LoginRefused(f"the gateway {denied[1]}@{denied[2]} refused the login", where=where, hint="can `ssh` itself log in there?")
            return self._denied(denied[3], said)
        if "Too many authentication failures" in text:
            return LoginRefused("the server refused the login: too many keys were tried", where=where, hint="set `key` or `password`")
        if "Host key verification failed" in text:
            return HostKeyUnknown("ssh could not verify a host key", where=where, hint="run `hostbackup check PROFILE --trust`")
        if found := re.search(r"no matching (.+) found. Their offer: (.*)", text):
            reason = f"no algorithm in common with the server: no matching {found[1]}; it offers {found[2].strip()}"
            return ProtocolBroken(reason, where=where, hint="" if self.target.legacy else LEGACY_HINT)
        if "disabling multiplexing" in text:
            return ProtocolBroken("the ssh program here cannot share one connection", where=where, hint="take out `client`")
        if found := re.search(r"Could not resolve hostname ([^:\s]+): (.*)", text):
            return NameNotResolved(f"the name {found[1]} leads to no address: {found[2]}", where=where, hint="check ~/.ssh/config")
        if found := re.search(r"(?:connect to host \S+ port \d+|open failed: connect failed): .+", text):
            return Unreachable(f"on the way to the server: {found[0]}", where=where, hint="check the gateway and the address")
        last = lines[-1] if lines else "it ended without a word"
        if not self.version:
            there = f"port {self.settings.port} of {self.settings.host}"
            return Unreachable(
                f"{there} took the connection but did not speak SSH: {last}", where=where, hint="is this the SSH port, or are we blocked there?"
            )
        if re.search(r"Connection (closed|reset)|Broken pipe|timed out|Timeout", text):
            return LineCut(f"the line was cut during the login: {last}", where=where)
        return ProtocolBroken(f"the SSH connection failed: {last}", where=where)

    def _denied(self, methods: str, said: Sequence[str]) -> LoginRefused:
        target, where = self.target, self.settings.where
        allowed = methods.split(",")
        if target.password is not None and target.key_file is None and "password" not in self._given:
            return LoginRefused(
                f"the server does not accept this kind of login; it accepts: {', '.join(allowed)}", where=where, hint="set `password` or `key`"
            )
        if target.password is None and target.key_file is None and target.ask is None:
            hint = "set `password` or `key`, or start an SSH agent"
            return LoginRefused("there is nothing to log in with that the server accepts", where=where, hint=hint)
        if not target.legacy and any("no mutual signature algorithm" in line for line in said):
            return LoginRefused("the server takes this key only with a SHA-1 signature", where=where, hint=LEGACY_HINT)
        return LoginRefused("the server refused the login", where=where, hint=_REFUSED_HINT)

    def _key_trouble(self, file: Path, text: str, said: Sequence[str]) -> SecretError | None:
        """What ssh has against the private key itself."""
        name = str(file.expanduser())
        if name[:100] in self._given:
            # A passphrase that opens nothing is passed over in silence; with a key that opens, the server has its say next.
            asked = [number for number, line in enumerate(said) if "requested to askpass" in line]
            after = list(said)[asked[-1] :] if asked else []
            if asked and not any("Authentications that can continue" in line for line in after):
                return SecretError("the private key cannot be opened", where=str(file), hint="check `passphrase`")
        if found := re.search(rf"""Load key "{re.escape(name)}": (.+)""", text):
            if "bad permissions" in found[1]:
                return SecretError("the private key file can be read by others, so ssh does not use it", where=str(file), hint="chmod 600")
            return SecretError(f"the private key cannot be opened: {found[1]}", where=str(file))
        return None


_REFUSED_HINT = "check `user` and `password` or `key`; it was tried only once"


def seen(rules: HostKeyRules, name: str, target: SshTarget) -> Callable[[ShownKey], None]:
    """A judge as `connect` wants it: the key is on record, and whoever listens does not object."""

    def judge(key: ShownKey) -> None:
        rules.check(name, key)
        if target.on_host_key is not None:
            target.on_host_key(fingerprint(key))

    return judge
