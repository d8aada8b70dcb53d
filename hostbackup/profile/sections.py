"""The sections of a profile that hold others, and those of a run."""

from __future__ import annotations

from typing import Annotated, Literal

from hostbackup.profile.fields import (
    Connections,
    Many,
    Rate,
    Requests,
    Stall,
    no_two,
)
from hostbackup.profile.mail import Imap, Pop3
from hostbackup.profile.shape import NotEmpty, Section, after
from hostbackup.profile.trees import NewWeb, Ssh, Web

Step = Literal["check", "backup", "verify", "push", "copy", "dns", "report"]


class Old(Section):
    """The server that is left. It is only ever read."""

    ssh: Ssh | None = None
    """SSH access."""
    web: Many[Web] = ()
    """Web trees to bring out."""
    imap: Imap | None = None
    """Mailboxes to bring out."""
    pop3: Pop3 | None = None
    """Mailboxes of a server without IMAP, by POP3: the inbox alone. An account that stands in [old.imap] too is read by IMAP."""

    @after
    def _each_name_once(self) -> None:
        no_two([web.name for web in self.web], "web trees", "give one of them a name = …")


class New(Section):
    """The server that is moved to."""

    ssh: Ssh | None = None
    """SSH access."""
    web: Many[NewWeb] = ()
    """Where web trees go."""
    imap: Imap | None = None
    """Where mailboxes go."""

    @after
    def _each_path_once(self) -> None:
        no_two([web.path.rstrip("/") for web in self.web], "web trees at the path", "each tree needs a folder of its own")


class Pace(Section):
    """How hard a run may work servers and the line. The options of the same names come before these."""

    bwlimit: Rate | None = None
    """Bytes a second, of web and mail together and both ways: 500K, 2M."""
    connections: Connections = 1
    """Logins at once on an SSH server; each has several channels, and more may help where a server slows down each."""
    requests: Requests | None = None
    """SFTP requests without a reply at once on a server; without it, as many as pay."""
    stall_timeout: Stall = 60.0
    """Seconds without a byte from a server that owes an answer, after which the line counts as cut."""


class Sync(Section):
    """What `hostbackup sync` does."""

    steps: Annotated[Many[Step], NotEmpty()] = ("backup", "verify", "copy")
    """The steps, in order; one whose section is absent is skipped."""
