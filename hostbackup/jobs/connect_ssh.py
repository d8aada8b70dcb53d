"""Logging in by SSH: as the profile says, always at one address, never again after a refusal, and only on the right machine."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from hostbackup.errors import HostKeyChanged, LoginRefused, ProfileError
from hostbackup.jobs.identity import looks_new
from hostbackup.model import Part
from hostbackup.profile import Ssh, Web

if TYPE_CHECKING:
    from hostbackup.jobs.connect import Ask, Connections
    from hostbackup.places.digests import Reader
    from hostbackup.places.sftp import SftpTree
    from hostbackup.protocols.remote import Login
    from hostbackup.protocols.ssh import SshTarget
    from hostbackup.protocols.ssh_hostkeys import HostKey

_WRITERS = 7  # channels to the new server: its processes share syncs; three of the ten that sshd allows a login stay free for commands
_LOGIN_WAIT = 30.0  # seconds that a server may take for each step of a login


class SshClient(Protocol):
    """What speaks SSH: a module with these functions."""

    def connect(self, target: SshTarget, /) -> Login: ...
    def scan_host_key(self, target: SshTarget, /) -> tuple[str, str, HostKey]: ...
    def record_host_key(self, target: SshTarget, known_hosts: Path | None, key: HostKey, /) -> Path: ...


def section(connections: Connections, side: str) -> Ssh:
    told = (connections.profile.old if side == "old" else connections.profile.new).ssh
    if told is None:
        raise ProfileError(f"[{side}.ssh] is missing", where=str(connections.profile.file), hint=f"web trees need a section [{side}.ssh]")
    return told


def target(connections: Connections, side: str) -> SshTarget:
    from hostbackup.protocols.ssh import SshTarget

    told = section(connections, side)
    where = f"{side}.ssh"
    if told.legacy:
        connections.weaker(f"{where} {told.host}", "legacy = true", "SHA-1 signatures and key exchange are accepted, and ciphers of that time")
    password = connections.secret(told.password, f"{where}.password") if told.password else None
    passphrase = connections.secret(told.passphrase, f"{where}.passphrase") if told.passphrase else None
    return SshTarget(
        host=told.host,
        port=told.port,
        user=told.user or "",
        addresses=tuple(told.address) or tuple(filter(None, [connections.ssh_addresses.get(side)])),
        password=password,
        key_file=told.key,
        passphrase=passphrase,
        host_key=told.host_key,
        known_hosts=told.known_hosts,
        shell=told.shell,
        timeout=min(_LOGIN_WAIT, connections.limits.stall),
        ask=_ask(connections, where) if connections.ask else None,
        on_host_key=functools.partial(_check_host_key, connections, side, told.host),
        legacy=told.legacy,
    )


def client(connections: Connections, side: str) -> SshClient:
    """The client that the profile names for a side."""
    from hostbackup.protocols import openssh, ssh

    return openssh if section(connections, side).client == "openssh" else ssh


def _check_host_key(connections: Connections, side: str, host: str, fingerprint: str) -> None:
    if side == "old":
        connections.identity.check_host_key("old.ssh", host, fingerprint)
    else:
        connections.identity.see_new_host_key(host, fingerprint)


def _ask(connections: Connections, where: str) -> Ask:
    def ask(question: str) -> str:
        return connections.prompt(f"{where} {question}", question) or ""

    return ask


def factory(connections: Connections, side: str) -> Callable[[], Login]:
    """Logs in each time it is called, always at the address of the run's first login, and checks that each server is on its own side."""
    target(connections, side)  # what is wrong with secrets shows before anything is connected

    def connect() -> Login:
        if side in connections.ssh_refused:
            raise connections.ssh_refused[side]
        where = target(connections, side)
        try:
            session = client(connections, side).connect(where)
        except LoginRefused as error:
            connections.ssh_refused[side] = error
            raise
        except HostKeyChanged as error:
            if side == "old" and connections.identity.known("old.ssh") and not connections.identity.accept:
                raise looks_new(f"old.ssh {where.host}", error.reason) from error
            raise
        if side == "old":
            connections.identity.see_host_key("old.ssh", where.host, session.address, session.host_key_fingerprint)
        connections.ssh_addresses[side] = session.address
        return session

    return connect


def old_tree(connections: Connections, web: Web, reader: Reader | None = None, *, weak: bool = False) -> SftpTree:
    """`reader` and `weak`: what proofs may rest on (`hostbackup.places.sftp_prove.Means`)."""
    from hostbackup.places.sftp import SftpTree
    from hostbackup.places.stream import Streams

    return SftpTree(
        factory(connections, "old"),
        web.path,
        side="old",
        part=Part("web", web.name),
        exclude=web.exclude,
        volatile=web.volatile,
        limits=connections.limits,
        reader=reader,
        weak=weak,
        streams=Streams(note=_stream_note(connections, "old", web.name)),
    )


def new_tree(connections: Connections, name: str, path: str, reader: Reader | None = None, *, witness: bool = False) -> SftpTree:
    """`witness`: for proofs alone, of what another tree writes. `reader` as for the old side."""
    from hostbackup.places.sftp import SftpTree
    from hostbackup.places.stream import Streams

    part, streams = Part("web", name), Streams(note=_stream_note(connections, "new", name))
    return SftpTree(
        factory(connections, "new"),
        path,
        side="new",
        part=part,
        limits=connections.limits,
        reader=reader,
        witness=witness,
        streams=streams,
        channels=_WRITERS,
    )


def _stream_note(connections: Connections, side: str, name: str) -> Callable[[str], None]:
    def note(text: str) -> None:
        connections.observer.note(f"{side} web/{name}: {text}")

    return note
