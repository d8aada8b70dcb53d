"""A whole move on this machine: an old server and a new one on loopback, a sample office between them. Started by scripts/demo.

Everything stands below one folder, ./demo by default, and is left there to look at; the servers are ended.
"""

from __future__ import annotations

import contextlib
import imaplib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from hostbackup.protocols.imap import names
from tests.support.dovecot import INBOX_DOT, PLAIN_SLASH, Dovecot, dovecot
from tests.support.s3 import ACCESS, SECRET, S3Server, rclone_server
from tests.support.samples import FOLDERS, USERS, make_mailbox, make_site
from tests.support.sshd import Sshd, own_login, sshd

MARK = ".hostbackup-demo"  # what a folder holds that the demo may replace
OLD_WWW, NEW_WWW = "www.old-host.example", "www.new-host.example"
OLD_MAIL, NEW_MAIL = "mail.old-host.example", "mail.new-host.example"
PASSWORDS = {USERS[0]: "taro no himitsu", USERS[1]: " blanks belong to it ", USERS[2]: 'qu"oted, with comma'}
NEW_NAMES = {**{user: user for user in USERS}, USERS[2]: "contact@example.jp"}
COLOUR = sys.stdout.isatty()


def say(text: str = "", *, bold: bool = False) -> None:
    print(f"\033[1m{text}\033[0m" if bold and COLOUR else text, flush=True)


class StepFailed(Exception):
    """A command of the demo did not end well."""

    def __init__(self, command: list[str], exit_code: int) -> None:
        super().__init__(f"`{shlex.join(command)}` ended with exit code {exit_code}")
        self.exit_code = exit_code


class Demo:
    """One demo in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.site = folder / "old-server" / "public_html"
        self.target = folder / "new-server" / "html"
        self.profile = folder / "move.toml"
        self.vault = folder / "vault"
        self.shown = self._short(self.profile)
        # A person's own SSH configuration and agent have no business here.
        self.environment = {**os.environ, "HOME": str(folder / "home")}
        self.environment.pop("SSH_AUTH_SOCK", None)

    @staticmethod
    def _short(path: Path) -> str:
        return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)

    def prepare(self) -> None:
        """An empty folder of our own."""
        if self.folder.exists() and any(self.folder.iterdir()):
            if not (self.folder / MARK).exists():
                raise SystemExit(f"{self.folder} is there already and not from an earlier demo; name another folder: scripts/demo FOLDER")
            shutil.rmtree(self.folder)
        for name in ("home", "new-server", "usb-disk", "bucket"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / MARK).touch()
        self.site.parent.mkdir()
        make_site(self.site)
        self.target.mkdir()

    def write_profile(self, old: Sshd, new: Sshd, old_mail: Dovecot, new_mail: Dovecot, store: S3Server) -> None:
        rows = [",".join([user, '"' + PASSWORDS[user].replace('"', '""') + '"', NEW_NAMES[user]]) for user in USERS]
        accounts = self.folder / "accounts.csv"
        accounts.write_text("\n".join(["user,password,new_user", *rows, ""]), encoding="utf-8")
        for mail, name in ((old_mail, "old-ca.pem"), (new_mail, "new-ca.pem")):
            shutil.copy(mail.authority, self.folder / name)
        for server, name in ((old, "old-key"), (new, "new-key")):
            shutil.copy(server.client_key, self.folder / name)
        self.profile.write_text(
            f"""\
name  = "example.jp"
vault = "vault"

[old.ssh]                                # an OpenSSH server with a shell
host = "{OLD_WWW}"
address = "127.0.0.1"
port = {old.port}
user = "{old.user}"
key = "old-key"
known_hosts = "known_hosts"

[[old.web]]
path = "{self.site}"

[old.imap]                               # Dovecot, folders called INBOX.…
host = "{OLD_MAIL}"
address = "127.0.0.1"
port = {old_mail.ports["tls"]}
ca_file = "old-ca.pem"
accounts = "accounts.csv"

[mail]
folders = {{ "送信済みアイテム" = "Sent" }}

[new.ssh]                                # an OpenSSH server that allows SFTP and nothing else
host = "{NEW_WWW}"
address = "127.0.0.1"
port = {new.port}
user = "{new.user}"
key = "new-key"
known_hosts = "known_hosts"

[[new.web]]
from = "public_html"
path = "{self.target}"

[new.imap]                               # Dovecot, folders separated by /
host = "{NEW_MAIL}"
address = "127.0.0.1"
port = {new_mail.ports["tls"]}
ca_file = "new-ca.pem"

[[copy]]                                 # an S3 server
bucket = "office-backup"
prefix = "example.jp"
endpoint = "{store.endpoint}"
access_key = {{ file = "s3-access-key" }}
secret_key = {{ file = "s3-secret-key" }}

[[copy]]                                 # another disk
name = "usb-disk"
path = "usb-disk"
""",
            encoding="utf-8",
        )
        keys = [self.folder / "s3-access-key", self.folder / "s3-secret-key"]
        for path, text in zip(keys, (ACCESS, SECRET), strict=True):
            path.write_text(f"{text}\n")
        for secret in (accounts, self.profile, *keys):
            secret.chmod(0o600)

    def run(self, *arguments: str) -> None:
        """A hostbackup command, shown as it is typed."""
        command = ["hostbackup", arguments[0], self.shown, *arguments[1:]]
        say(f"\n$ {shlex.join(command)}", bold=True)
        program = str(Path(sys.executable).with_name("hostbackup"))
        code = subprocess.run([program, *command[1:]], env=self.environment, check=False).returncode
        if code != 0:
            raise StepFailed(command, code)

    def witness(self, *command: str | Path) -> None:
        """A program that knows nothing of hostbackup looks for itself."""
        words = [self._short(word) if isinstance(word, Path) else word for word in command]
        say(f"\n$ {shlex.join(words)}", bold=True)
        code = subprocess.run(words, check=False).returncode
        if code != 0:
            raise StepFailed(words, code)
        say("(no difference)")


def deliver(server: Dovecot, user: str) -> int:
    """Puts the sample messages of `user` into the old server, as years of mail would have."""
    client = imaplib.IMAP4("127.0.0.1", server.ports["plain"])
    client.login(f'"{user}"' if " " in user else user, PASSWORDS[user])
    for folder in FOLDERS[1:]:
        wire = _wire(server, folder)
        client.create(wire)
        client.subscribe(wire)
    count = 0
    for message in make_mailbox(user):
        status, answer = client.append(_wire(server, message.folder), f"({' '.join(message.flags)})", message.date, message.data)
        if status != "OK":
            raise RuntimeError(f"the old server refused a message: {answer!r}")
        count += 1
    client.logout()
    return count


def _wire(server: Dovecot, folder: tuple[str, ...]) -> str:
    name = server.name(*(names.encode(part) for part in folder)) if folder else b"INBOX"
    return f'"{name.decode("ascii")}"'


def digests(server: Dovecot, user: str) -> list[bytes]:
    """The contents of every message file of a mailbox, read from the server's own disk."""
    return sorted(path.read_bytes() for path in server.maildir(user).glob("**/cur/*")) + sorted(
        path.read_bytes() for path in server.maildir(user).glob("**/new/*")
    )


def compare_mail(old: Dovecot, new: Dovecot) -> None:
    for user in USERS:
        before, after = sorted(digests(old, user)), sorted(digests(new, NEW_NAMES[user]))
        if before != after:
            raise RuntimeError(f"{user}: {len(before)} messages at the old server, {len(after)} at the new one, not the same")
        say(
            f"  {user}: all {len(after)} messages are byte for byte at the new server"
            + (f", as {NEW_NAMES[user]}" if user != NEW_NAMES[user] else "")
        )


def move(demo: Demo) -> None:
    started = time.monotonic()
    say("Starting an old server and a new one on 127.0.0.1, with a sample office on the old one …")
    demo.prepare()
    user, options = own_login()
    with contextlib.ExitStack() as stack:
        old = stack.enter_context(sshd(user=user, shell=True, options=options))
        new = stack.enter_context(sshd(user=user, shell=False, options=options))
        old_mail = stack.enter_context(dovecot(INBOX_DOT, names=(OLD_MAIL,), users=PASSWORDS))
        new_mail = stack.enter_context(dovecot(PLAIN_SLASH, names=(NEW_MAIL,), users={NEW_NAMES[name]: word for name, word in PASSWORDS.items()}))
        store = stack.enter_context(rclone_server(demo.folder / "bucket"))
        store.make_bucket("office-backup")
        messages = sum(deliver(old_mail, user) for user in USERS)
        demo.write_profile(old, new, old_mail, new_mail, store)
        files = sum(1 for path in demo.site.rglob("*") if path.is_file() and not path.is_symlink())
        say(f"The old server has {files} files and {messages} messages in {len(USERS)} mailboxes. The move is described in {demo.shown}.")
        demo.run("check", "--trust")
        demo.run("backup")
        demo.run("verify")
        demo.run("push")
        demo.run("copy")
        demo.run("verify", "--against", "old", "--against", "new", "--against", "copy")
        say("\nAnd what programs say that know nothing of hostbackup:")
        demo.witness("diff", "-r", "--no-dereference", demo.site, demo.target)
        demo.witness("diff", "-r", "--no-dereference", demo.site, demo.vault / "latest" / "web" / "public_html")
        compare_mail(old_mail, new_mail)
    _tell(demo, files, messages, time.monotonic() - started)


def _tell(demo: Demo, files: int, messages: int, seconds: float) -> None:
    here = demo._short(demo.folder)
    say(f"\nDone in {seconds:.0f} s. The servers have been ended; what they had is left to look at:", bold=True)
    say(f"""
  {here}/vault/README.txt        how to read the vault without hostbackup
  {here}/vault/latest/web/       the web site as ordinary files ({files} files)
  {here}/vault/latest/mail/      the mailboxes as Maildir ({messages} messages)
  {here}/vault/evidence/         what was proven, when and how
  {here}/new-server/html/        the web site on the new server
  {here}/usb-disk/  {here}/bucket/   the copies: on another disk, and in the S3 server's folder

Try for yourself:
  (cd {here}/vault/latest && sha256sum --quiet -c SHA256SUMS)
  .venv/bin/hostbackup ls {demo.shown}
  .venv/bin/hostbackup restore {demo.shown} --from usb-disk --to {here}/restored
  rm -rf {here}                  when you have seen enough""")


def _end(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    demo = Demo(Path(sys.argv[1] if len(sys.argv) > 1 else "demo").absolute())
    try:
        move(demo)
    except KeyboardInterrupt:
        say("\nInterrupted; the servers have been ended.")
        return 130
    except StepFailed as error:
        say(f"\nThe demo failed: {error}", bold=True)
        return error.exit_code if error.exit_code > 0 else 1
    except (RuntimeError, OSError, imaplib.IMAP4.error) as error:
        say(f"\nThe demo failed: {error}", bold=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
