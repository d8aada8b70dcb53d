"""Where the mail cases happen: a Dovecot on loopback, a relay in front of it that counts turns, and as many accounts as there are runs."""

from __future__ import annotations

import contextlib
import imaplib
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.ground import Ground, working_folder
from scripts.benchmarks.mail_corpus import Mailbox
from scripts.benchmarks.relay import HOST, Running, counting
from tests.support.dovecot import HOST as NAME
from tests.support.dovecot import Dovecot, dovecot

PASSWORD = "no-secret"
ACCOUNTS = 1000


@dataclass(frozen=True)
class MailWorld(Ground):
    """One server. The certificate is for NAME, and for "localhost" for programs that know no other address."""

    server: Dovecot
    line: Running
    _free: Iterator[str]

    def account(self) -> str:
        """A user nobody has logged in as."""
        return next(self._free)

    def maildir(self, user: str) -> Path:
        """Where the server keeps what this user has."""
        return self.server.maildir(user)

    def delivered(self, mailbox: Mailbox) -> str:
        """A new user with this mailbox. The server has looked at it once and knows all of it, as it does of mail that it has delivered itself."""
        user = self.account()
        home = self.maildir(user)
        home.parent.mkdir()
        # Links where they can be: a copy of many small files would take a minute.
        if subprocess.run(["cp", "-al", str(mailbox.path), str(home)], capture_output=True, check=False).returncode != 0:
            shutil.rmtree(home, ignore_errors=True)
            subprocess.run(["cp", "-a", str(mailbox.path), str(home)], check=True)
        if os.geteuid() == 0:
            subprocess.run(["chown", "-R", f"{pwd.getpwnam('nobody').pw_uid}", str(home.parent)], check=True)
        with imaplib.IMAP4(HOST, self.server.ports["plain"]) as look:
            look.login(user, PASSWORD)
            for row in look.list()[1]:
                if isinstance(row, bytes) and b"\\Noselect" not in row:
                    _, [count] = look.select(row.rpartition(b" ")[2].decode(), readonly=True)
                    if count != b"0":
                        look.fetch("1:*", "(UID FLAGS INTERNALDATE RFC822.SIZE)")
        return user

    def section(self, side: str, *, near: bool = False) -> str:
        """The lines of a profile for the server; `near` without the relay."""
        port = self.server.ports["tls"] if near else self.line.port
        return f'[{side}.imap]\nhost = "{NAME}"\naddress = "{HOST}"\nport = {port}\nca_file = "{self.server.authority}"\n'


@contextlib.contextmanager
def mail_world(keep: Path | None, delay_ms: float) -> Iterator[MailWorld]:
    """A server and a relay, up until the end. Dovecot writes as durably as it does by default; folders are named as most have them, Parent/Child."""
    users = {f"user{number}@example.test": PASSWORD for number in range(ACCOUNTS)}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(working_folder(keep))
        server = stack.enter_context(dovecot(names=(NAME, "localhost"), users=users, extra="mail_fsync = optimized\n"))
        line = stack.enter_context(counting(server.ports["tls"], delay_ms))
        yield MailWorld(folder, delay_ms, server, line, iter(users))
