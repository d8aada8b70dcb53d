"""A real Dovecot 2.3 on loopback, out of a folder of its own: no system configuration, no daemon left behind."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from hostbackup.protocols.pop3.session import Pop3Target
from tests.support.certificates import Authority
from tests.support.mail_server import HOST, INBOX_DOT, PLAIN_SLASH, USERS, Layout, MailServer, end, free_ports, group_of, until_it_answers

__all__ = ["HOST", "INBOX_DOT", "PLAIN_SLASH", "USERS", "Dovecot", "Layout", "dovecot", "free_ports", "managesieve"]


def configuration(
    base: Path, ports: Mapping[str, int], layout: Layout, certificate: Path, key: Path, *, inner_user: str, mail_user: str, extra: str = ""
) -> str:
    """dovecot.conf for one server under `base`; `ports` has "plain" (STARTTLS too) and "tls"."""
    return f"""
base_dir = {base}/run
state_dir = {base}/run
log_path = {base}/dovecot.log
listen = 127.0.0.1
protocols = imap{" pop3" if "pop3" in ports else ""}
instance_name = test
default_internal_user = {inner_user}
default_internal_group = {group_of(inner_user)}
default_login_user = {mail_user}
ssl = yes
ssl_cert = <{certificate}
ssl_key = <{key}
ssl_min_protocol = TLSv1.2
disable_plaintext_auth = no
auth_mechanisms = plain login
auth_failure_delay = 0
mail_location = maildir:{base}/mail/%u/Maildir
mail_uid = {mail_user}
mail_gid = {group_of(mail_user)}
first_valid_uid = 1
first_valid_gid = 1
mail_max_userip_connections = 100
mail_fsync = never
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%u {base}/users
}}
userdb {{
  driver = static
  args = uid={mail_user} gid={group_of(mail_user)} home={base}/mail/%u
}}
namespace inbox {{
  inbox = yes
  prefix = {layout.prefix}
  separator = {layout.separator}
  mailbox Sent {{
    special_use = \\Sent
  }}
  mailbox Drafts {{
    special_use = \\Drafts
  }}
  mailbox Trash {{
    special_use = \\Trash
  }}
}}
service anvil {{
  chroot =
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service imap-login {{
  chroot =
  process_min_avail = 0
  inet_listener imap {{
    port = {ports["plain"]}
  }}
  inet_listener imaps {{
    port = {ports["tls"]}
    ssl = yes
  }}
}}
service stats {{
  chroot =
}}
{_pop3(ports) if "pop3" in ports else ""}
{extra}
"""


def _pop3(ports: Mapping[str, int]) -> str:
    return f"""
service pop3-login {{
  chroot =
  process_min_avail = 0
  inet_listener pop3 {{
    port = {ports["pop3"]}
  }}
  inet_listener pop3s {{
    port = {ports["pop3s"]}
    ssl = yes
  }}
}}
"""


_MASTERS = """
auth_master_user_separator = *
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%u {base}/masters
  master = yes
  result_success = continue
}}
"""


def managesieve(port: int, settings: str = "") -> str:
    """For `extra`: Sieve scripts over ManageSieve (Pigeonhole). `settings`: more lines for the plugin, such as `sieve_extensions = -vacation`."""
    return f"""
protocols = imap sieve
service managesieve-login {{
  chroot =
  inet_listener sieve {{
    port = {port}
  }}
}}
plugin {{
  sieve = file:~/sieve;active=~/.dovecot.sieve
  {settings}
}}
"""


class Dovecot(MailServer):
    """A running Dovecot."""

    def pop3_target(
        self, user: str = "taro@example.test", *, security: str = "plain", host: str = HOST, password: str | None = None, trusted: bool = True
    ) -> Pop3Target:
        """Of a server that was started with `pop3=True`."""
        secret = self.users[user] if password is None else password
        target = Pop3Target(host, user, secret, self.ports["pop3"], "plain", ("127.0.0.1",), 20.0, self.authority if trusted else None)
        if security == "tls":
            return replace(target, port=self.ports["pop3s"], security="tls")
        return replace(target, security="starttls") if security == "starttls" else target

    def maildir(self, user: str = "taro@example.test") -> Path:
        return self.base / "mail" / user / "Maildir"

    def log(self) -> str:
        path = self.base / "dovecot.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def log_with(self, text: str) -> str:
        """The log once it holds `text`: the server writes it in its own time."""
        deadline = time.monotonic() + 20
        while text not in self.log():
            if time.monotonic() > deadline:
                raise AssertionError(f"{text!r} never came into the log: {self.log()}")
            time.sleep(0.02)
        return self.log()


@contextlib.contextmanager
def dovecot(
    layout: Layout = PLAIN_SLASH,
    *,
    names: tuple[str, ...] = (HOST,),
    expired: bool = False,
    users: Mapping[str, str] = USERS,
    extra: str = "",
    pop3: bool = False,
    masters: Mapping[str, str] | None = None,
) -> Iterator[Dovecot]:
    """Starts a server, waits until it answers, and ends it and everything it left on leaving. `masters` may open every mailbox."""
    # Unix sockets have short paths only, so the folder stands directly below the temporary one.
    base = Path(tempfile.mkdtemp(prefix="hbdc"))
    process: subprocess.Popen[bytes] | None = None
    try:
        base.chmod(0o755)
        (base / "run").mkdir()
        authority = Authority(base)
        certificate, key = authority.issue(*names, expired=expired)
        root = os.geteuid() == 0
        me = pwd.getpwuid(os.geteuid()).pw_name
        mail_user = "nobody" if root else me
        (base / "users").write_text("".join(f"{user}:{{PLAIN}}{password}\n" for user, password in users.items()), encoding="utf-8")
        if masters is not None:
            (base / "masters").write_text("".join(f"{user}:{{PLAIN}}{password}\n" for user, password in masters.items()), encoding="utf-8")
            extra += _MASTERS.format(base=base)
        mail = base / "mail"
        mail.mkdir()
        if root:
            owner = pwd.getpwnam(mail_user)
            os.chown(mail, owner.pw_uid, owner.pw_gid)
        kinds = ("plain", "tls", "pop3", "pop3s") if pop3 else ("plain", "tls")
        ports = dict(zip(kinds, free_ports(len(kinds)), strict=True))
        server = Dovecot(base, layout, ports, authority.pem, dict(users))
        text = configuration(base, server.ports, layout, certificate, key, inner_user="mail" if root else me, mail_user=mail_user, extra=extra)
        (base / "dovecot.conf").write_text(text, encoding="utf-8")
        program = shutil.which("dovecot", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
        if program is None:
            raise RuntimeError("Dovecot is not installed: scripts/test does that")
        process = subprocess.Popen(
            [program, "-F", "-c", str(base / "dovecot.conf")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(base / "stderr").open("wb"),
            start_new_session=True,
        )
        until_it_answers(process, server)
        yield server
    finally:
        if process is not None:
            end(process)
        shutil.rmtree(base, ignore_errors=True)
