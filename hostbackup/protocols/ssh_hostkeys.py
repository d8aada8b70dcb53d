"""Host keys: reading `known_hosts` (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT), strict checking, pins, and the record of a first key."""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hostbackup.errors import HostKeyChanged, HostKeyUnknown, UsageError
from hostbackup.osal import sync_folder

SYSTEM_KNOWN_HOSTS = Path("/etc/ssh/ssh_known_hosts")


class HostKey(Protocol):
    """A public key as a server shows it; paramiko's PKey is one."""

    def get_name(self) -> str: ...
    def asbytes(self) -> bytes: ...
    def get_base64(self) -> str: ...


@dataclass(frozen=True, slots=True)
class ShownKey:
    """A public key, by its type and its encoding (RFC 4253, section 6.6)."""

    type: str
    blob: bytes

    def get_name(self) -> str:
        return self.type

    def asbytes(self) -> bytes:
        return self.blob

    def get_base64(self) -> str:
        return base64.b64encode(self.blob).decode()


def fingerprint(key: HostKey) -> str:
    """`SHA256:…` as ssh-keygen shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")


def lookup_name(host: str, port: int) -> str:
    """How known_hosts calls a server: the name, or `[name]:port` away from port 22."""
    return host.lower() if port == 22 else f"[{host.lower()}]:{port}"


@dataclass(frozen=True, slots=True)
class KnownKey:
    """One line that concerns a host."""

    type: str
    blob: bytes
    source: str  # file:line
    revoked: bool = False


def known_keys(files: Sequence[Path], name: str) -> list[KnownKey]:
    """All keys that the files give for a host. Files that are not there count as empty; lines that are no entries are skipped, as ssh does."""
    found = []
    for file in files:
        try:
            lines = file.read_bytes().decode("utf-8", "surrogateescape").splitlines()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UsageError(f"the known-hosts file cannot be read: {error.strerror}", where=str(file)) from error
        for number, line in enumerate(lines, 1):
            key = _entry(line, name, f"{file}:{number}")
            if key is not None:
                found.append(key)
    return found


def _entry(line: str, name: str, source: str) -> KnownKey | None:
    fields = line.split()
    if not fields or fields[0].startswith("#"):
        return None
    marker = fields.pop(0) if fields[0].startswith("@") else ""
    # A certificate authority vouches for certificates, which are not asked for here; such a line proves no plain key.
    if len(fields) < 3 or marker not in ("", "@revoked") or not _matches(fields[0], name):
        return None
    try:
        blob = base64.b64decode(fields[2], validate=True)
    except binascii.Error:
        return None
    return KnownKey(fields[1], blob, source, bool(marker))


def _matches(patterns: str, name: str) -> bool:
    matched = False
    for pattern in patterns.split(","):
        if pattern.startswith("|1|"):
            matched = matched or _hashed(pattern, name)
        elif pattern.startswith("!"):
            if _like(name, pattern[1:]):
                return False
        else:
            matched = matched or _like(name, pattern)
    return matched


def _like(name: str, pattern: str) -> bool:
    # Only * and ? are special in known_hosts: the brackets of [host]:port are not.
    return fnmatch.fnmatchcase(name, pattern.lower().replace("[", "[[]"))


def _hashed(pattern: str, name: str) -> bool:
    try:
        _, _, salt, digest = pattern.split("|")
        expected = base64.b64decode(digest, validate=True)
        seen = hmac.new(base64.b64decode(salt, validate=True), name.encode(), "sha1").digest()
    except (ValueError, binascii.Error):
        return False
    return hmac.compare_digest(seen, expected)


@dataclass(frozen=True, slots=True)
class HostKeyRules:
    """Which key a server must show: a pin for `pinned_name`, else one of known_hosts."""

    files: tuple[Path, ...]
    pinned_name: str = ""
    pin: str = ""

    def known_types(self, name: str) -> list[str]:
        """The key types on record for a host, those first that should be negotiated first."""
        return list(dict.fromkeys(key.type for key in known_keys(self.files, name) if not key.revoked))

    def check(self, name: str, key: HostKey) -> None:
        """Passes only a key that is pinned or on record. Raises HostKeyUnknown or HostKeyChanged."""
        shown = f"{key.get_name()} {fingerprint(key)}"
        if self.pin and name == self.pinned_name:
            if not hmac.compare_digest(fingerprint(key), normal_pin(self.pin)):
                raise HostKeyChanged(
                    f"the server shows the host key {shown}, which is not the one pinned in the profile ({self.pin})",
                    where=name,
                    hint="find out why before going on: another machine may be answering; then correct `host_key`",
                )
            return
        known = known_keys(self.files, name)
        blob = key.asbytes()
        for entry in known:
            if entry.revoked and entry.blob == blob:
                raise HostKeyChanged(f"the server shows the host key {shown}, which is marked as revoked in {entry.source}", where=name)
        usable = [entry for entry in known if not entry.revoked]
        if any(entry.blob == blob for entry in usable):
            return
        if usable:
            raise HostKeyChanged(
                f"the server shows the host key {shown}, but {usable[0].source} has another one for it",
                where=name,
                hint="another machine may be answering; if the change is right, remove that line and run `hostbackup check PROFILE --trust`",
            )
        raise HostKeyUnknown(
            f"the server's host key is not known yet: {shown}",
            where=name,
            hint="compare it with what the provider states, then run `hostbackup check PROFILE --trust`",
        )


def normal_pin(pin: str) -> str:
    """A pin as `fingerprint` writes one: padding dropped, `SHA256:` in front."""
    return "SHA256:" + re.sub(r"^sha256:", "", pin.strip(), flags=re.IGNORECASE).rstrip("=")


def append_host_key(file: Path, name: str, key: HostKey) -> None:
    """Adds a key to a known_hosts file, durably; what stands there stays. Folder and file are made where absent, for the owner only."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    line = f"{name} {key.get_name()} {key.get_base64()}\n".encode()
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o600)
    with os.fdopen(fd, "r+b", buffering=0) as stream:
        size = stream.seek(0, os.SEEK_END)
        if size:
            stream.seek(size - 1)
            if stream.read(1) != b"\n":
                line = b"\n" + line
        stream.write(line)
        os.fsync(stream.fileno())
    sync_folder(file.parent)
