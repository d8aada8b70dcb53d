"""Where files are: servers that are reached by SSH, their web trees, and folders on this machine.

Every key of a section is described where it stands; `hostbackup schema` prints these sentences.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from hostbackup.errors import WrongValue
from hostbackup.profile.fields import (
    Addresses,
    Host,
    Line,
    LocalPath,
    Name,
    Patterns,
    Pin,
    Port,
    RemotePath,
    named_by_path,
)
from hostbackup.profile.shape import Called, Section, after, before
from hostbackup.secrets import SecretSource


class Ssh(Section):
    """How to reach a server by SSH (SFTP)."""

    host: Host
    """The server's name: for known_hosts and for people."""
    address: Addresses = ()
    """Where TCP goes: one IP address or several, tried in order. Without it, DNS decides."""
    port: Port = 22
    """TCP port."""
    user: Line | None = None
    """Login name; without it ~/.ssh/config decides, then the local user's name."""
    password: SecretSource | None = None
    """Login password. Without password and key the agent and ~/.ssh/config are used, then a person is asked."""
    key: LocalPath | None = None
    """Private key file."""
    passphrase: SecretSource | None = None
    """What opens the private key."""
    host_key: Pin | None = None
    """The server's only accepted key, as SHA256:… fingerprint. Without it known_hosts decides, strictly."""
    known_hosts: LocalPath | None = None
    """File of known host keys; ~/.ssh/known_hosts by default."""
    shell: Literal["auto", "never"] = "auto"
    """May commands (sha256sum) be run on the server, where it allows them."""
    client: Literal["paramiko", "openssh"] = "paramiko"
    """What speaks SSH: the built-in library, or the system's ssh program (OpenSSH 8.5 or newer; faster with large files)."""
    legacy: bool = False
    """Accept SHA-1 signatures and key exchange and old ciphers, for servers that have nothing else (client = "openssh")."""

    @after
    def _consistent(self) -> None:
        if self.passphrase and not self.key:
            raise WrongValue("passphrase is of use only with key")
        if self.legacy and self.client != "openssh":
            raise WrongValue('legacy = true needs client = "openssh"')


class Web(Section):
    """One web tree on the old server."""

    path: RemotePath
    """Folder on the server, absolute or relative to the login folder."""
    name: Name
    """What it is called in the vault; by default the path's last part."""
    exclude: Patterns = ()
    """gitignore patterns of what is left out."""
    volatile: Patterns = ()
    """gitignore patterns of what is backed up but not expected to stand still."""

    @before
    @classmethod
    def _default_name(cls, value: Any) -> Any:
        return named_by_path(value)


class NewWeb(Section):
    """Where one web tree goes on the new server."""

    source: Annotated[str, Called("from")]
    """The name of an [[old.web]]."""
    path: RemotePath
    """Folder on the new server, absolute or relative to the login folder."""
    adapted: Patterns = ()
    """gitignore patterns of files that the new server has in a version of its own: written only if absent."""


class Local(Section):
    """A folder on this machine that belongs to the move."""

    path: LocalPath
    """The folder; relative to the profile."""
    name: Name
    """What it is called in the vault; by default the path's last part."""

    @before
    @classmethod
    def _default_name(cls, value: Any) -> Any:
        return named_by_path(value, local=True)
