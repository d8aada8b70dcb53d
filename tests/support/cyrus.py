"""A real Cyrus IMAP 3 on loopback, out of a folder of its own: no system configuration, no daemon left behind.

What it does otherwise than Dovecot: messages with bare line feeds or without a header are refused, and those with NUL where they do not come as
binary data (RFC 3516); dates before 1970 are refused; 8-bit headers are rewritten unless it is told not to; folder names hold fewer odd characters;
and a folder's access list decides who may do what.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.support.certificates import Authority
from tests.support.mail_server import HOST, INBOX_DOT, USERS, Layout, MailServer, end, free_ports, group_of, until_it_answers

PROGRAMS = Path("/usr/lib/cyrus/bin")
_MEMORY = Path("/dev/shm")
_ROOM = 100 << 20  # bytes
_FOLDERS = ("db", "socket", "proc", "msg", "log", "user", "quota", "lock")


class Cyrus(MailServer):
    """A running Cyrus. It tells the system's log alone what it does."""


def configuration(base: Path, layout: Layout, certificate: Path, key: Path, *, owner: str, munges: bool) -> str:
    """imapd.conf for one server under `base`. With a prefix folders stand below INBOX; the other layout is what Cyrus calls altnamespace."""
    return f"""
configdirectory: {base}/conf
defaultpartition: default
partition-default: {base}/spool
cyrus_user: {owner}
cyrus_group: {group_of(owner)}
servername: {HOST}
altnamespace: {"no" if layout.prefix else "yes"}
unixhierarchysep: {"no" if layout.separator == "." else "yes"}
virtdomains: userid
autocreate_quota: 0
allowplaintext: yes
failedloginpause: 0
sasl_mech_list: PLAIN LOGIN
sasl_pwcheck_method: auxprop
sasl_auxprop_plugin: sasldb
sasl_sasldb_path: {base}/passwords
tls_server_cert: {certificate}
tls_server_key: {key}
tls_versions: tls1_2 tls1_3
munge8bit: {"yes" if munges else "no"}
delete_mode: immediate
expunge_mode: immediate
skiplist_unsafe: yes
"""


def _services(base: Path, ports: Mapping[str, int]) -> str:
    """cyrus.conf."""
    imapd = f"{PROGRAMS}/imapd -C {base}/imapd.conf"
    return f"""
START {{
}}
SERVICES {{
  imap  cmd="{imapd}"    listen="127.0.0.1:{ports["plain"]}" prefork=0
  imaps cmd="{imapd} -s" listen="127.0.0.1:{ports["tls"]}"   prefork=0
}}
EVENTS {{
}}
"""


def _write_passwords(path: Path, users: Mapping[str, str]) -> None:
    """A database as Cyrus SASL's sasldb plugin has it."""
    rows = ["VERSION=3", "format=print", "type=hash", "HEADER=END"]
    for user, password in users.items():
        name, _, realm = user.partition("@")
        rows += [f" {name}\\00{realm}\\00userPassword", " " + "".join(f"\\{byte:02x}" for byte in password.encode())]
    dump = "\n".join([*rows, "DATA=END", ""])
    subprocess.run(["db5.3_load", str(path)], input=dump.encode(), check=True)


def _quick_folder() -> Path | None:
    """In memory, where there is room: Cyrus syncs every message and knows no setting against that. Unix sockets want a short path, too."""
    return _MEMORY if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _ROOM else None


@contextlib.contextmanager
def cyrus(layout: Layout = INBOX_DOT, *, users: Mapping[str, str] = USERS, munges: bool = False) -> Iterator[Cyrus]:
    """Starts a server, waits until it answers, and ends it and everything it left on leaving. One that `munges` rewrites 8-bit headers."""
    base = Path(tempfile.mkdtemp(prefix="hbcy", dir=_quick_folder()))
    process: subprocess.Popen[bytes] | None = None
    try:
        if not (PROGRAMS / "master").exists():
            raise RuntimeError("Cyrus is not installed: scripts/test does that")
        base.chmod(0o755)
        for name in (*(f"conf/{name}" for name in _FOLDERS), "spool"):
            (base / name).mkdir(parents=True)
        authority = Authority(base)
        certificate, key = authority.issue(HOST)
        root = os.geteuid() == 0
        owner = "cyrus" if root else pwd.getpwuid(os.geteuid()).pw_name
        plain_port, tls_port = free_ports(2)
        server = Cyrus(base, layout, {"plain": plain_port, "tls": tls_port}, authority.pem, dict(users))
        (base / "imapd.conf").write_text(configuration(base, layout, certificate, key, owner=owner, munges=munges), encoding="utf-8")
        (base / "cyrus.conf").write_text(_services(base, server.ports), encoding="utf-8")
        _write_passwords(base / "passwords", users)
        if root:
            subprocess.run(["chown", "-R", f"{owner}:", str(base)], check=True)
        process = subprocess.Popen(
            [PROGRAMS / "master", "-D", "-C", base / "imapd.conf", "-M", base / "cyrus.conf", "-p", base / "pid"],
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
