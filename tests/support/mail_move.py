"""A mailbox that moves from one server to another by the real command line, and imaplib as the witness of both sides."""

from __future__ import annotations

import base64
import datetime
import hashlib
import imaplib
import json
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from hostbackup.model import Message, Stored
from hostbackup.vault.mailbox import MailRoot
from hostbackup.vault.vault import Vault
from tests.support.cli import Ran, command, hostbackup
from tests.support.dovecot import Dovecot
from tests.support.json_doc import undocumented
from tests.support.mail_server import HOST, MailServer
from tests.support.samples import SampleMessage

DATE = datetime.datetime(2026, 7, 1, 2, 44, 25, tzinfo=datetime.timezone(datetime.timedelta(hours=9)))
Path_ = tuple[str, ...]  # a folder's levels in plain text; () is INBOX
Seen = tuple[str, tuple[str, ...], datetime.datetime]  # SHA-256, flags, INTERNALDATE
_LIST = re.compile(rb'\((?P<attributes>[^)]*)\) (?:"(?P<separator>.)"|NIL) (?P<name>.+)$', re.DOTALL)
_TOLD = tuple(re.compile(told) for told in (rb"UID (\d+)", rb"FLAGS \(([^)]*)\)", rb'INTERNALDATE "([^"]+)"'))  # in any order


def letter(number: int, size: int = 300, *, subject: str = "見積書") -> bytes:
    """A message unlike every other number's, in UTF-8 and about `size` bytes."""
    head = f"From: 山田 <yamada@customer.example>\r\nSubject: {subject} {number}\r\nMessage-ID: <{number}@customer.example>\r\n\r\n".encode()
    line = f"{number} 行目の本文です。\r\n".encode()
    return head + line * max(1, (size - len(head)) // len(line))


def utf7(text: str) -> bytes:
    """Modified UTF-7 (RFC 3501 §5.1.3), written apart from the package's own."""
    made = b""
    for odd, plain in re.findall(r"([^\x20-\x7e]+)|([\x20-\x7e]+)", text):
        if odd:
            made += b"&" + base64.b64encode(odd.encode("utf-16-be")).rstrip(b"=").replace(b"/", b",") + b"-"
        else:
            made += plain.encode().replace(b"&", b"&-")
    return made


def from_utf7(raw: bytes) -> str:
    def plain(match: re.Match[bytes]) -> bytes:
        coded = match[1].replace(b",", b"/")
        return base64.b64decode(coded + b"=" * (-len(coded) % 4)).decode("utf-16-be").encode() if coded else b"&"

    return re.sub(rb"&([^-]*)-", plain, raw).decode()


class Hands:
    """A mail program on one server: changes and looks, always on a connection of its own."""

    def __init__(self, server: MailServer, user: str) -> None:
        self.server = cast(Dovecot, server)  # as most are; what only Dovecot has is asked of no other
        self.user = user

    @contextmanager
    def imap(self) -> Iterator[imaplib.IMAP4]:
        imap = imaplib.IMAP4("127.0.0.1", self.server.ports["plain"], timeout=30)
        try:
            imap.authenticate("PLAIN", lambda _: b"\0" + self.user.encode() + b"\0" + self.server.users[self.user].encode())
            yield imap
        finally:
            imap.logout()

    def wire(self, path: Path_) -> str:
        raw = self.server.name(*(utf7(level) for level in path)) if path else b"INBOX"
        return '"' + raw.decode("ascii").replace("\\", "\\\\").replace('"', '\\"') + '"'

    def path(self, raw: bytes) -> Path_:
        if raw == b"INBOX":
            return ()
        layout = self.server.layout
        return tuple(from_utf7(level) for level in raw.removeprefix(layout.prefix.encode()).split(layout.separator.encode()))

    # -- changes ------------------------------------------------------------------------------------------------------------------------

    def make(self, *paths: Path_, subscribe: bool = False) -> None:
        with self.imap() as imap:
            for path in paths:
                good(imap.create(self.wire(path)))
                if subscribe:
                    good(imap.subscribe(self.wire(path)))

    def drop(self, path: Path_) -> None:
        with self.imap() as imap:
            good(imap.delete(self.wire(path)))

    def deliver(self, path: Path_, *messages: bytes, flags: Sequence[str] = (), date: datetime.datetime = DATE) -> None:
        self.deliver_all(SampleMessage(path, data, tuple(flags), date) for data in messages)

    def deliver_all(self, samples: Iterable[SampleMessage]) -> None:
        with self.imap() as imap:
            for one in samples:
                good(imap.append(self.wire(one.folder), f"({' '.join(one.flags)})", date_text(one.date), one.data))

    def store(self, path: Path_, data: bytes, change: str, flags: str) -> None:
        """`change` is +FLAGS, -FLAGS or FLAGS, on the first message with these bytes."""
        with self.imap() as imap:
            uid = self._find(imap, path, data)
            good(imap.uid("STORE", uid, change, f"({flags})"))

    def delete(self, path: Path_, data: bytes) -> None:
        with self.imap() as imap:
            uid = self._find(imap, path, data)
            good(imap.uid("STORE", uid, "+FLAGS", r"(\Deleted)"))
            good(imap.expunge())

    def move(self, path: Path_, data: bytes, to: Path_) -> None:
        with self.imap() as imap:
            uid = self._find(imap, path, data)
            good(imap.uid("COPY", uid, self.wire(to)))
            good(imap.uid("STORE", uid, "+FLAGS", r"(\Deleted)"))
            good(imap.expunge())

    def _find(self, imap: imaplib.IMAP4, path: Path_, data: bytes) -> str:
        good(imap.select(self.wire(path)))
        for uid in good(imap.uid("SEARCH", "ALL"))[0].decode().split():
            if good(imap.uid("FETCH", uid, "(BODY.PEEK[])"))[0][1] == data:
                return str(uid)
        raise AssertionError(f"no such message in {path}")

    # -- looks --------------------------------------------------------------------------------------------------------------------------

    def folders(self) -> dict[Path_, set[str]]:
        """Folders that can be opened, with their attributes; not whether anything new is in them, which looking changes."""
        with self.imap() as imap:
            found = {self.path(name): attributes - {"\\Marked", "\\UnMarked"} for name, attributes in listed(good(imap.list()))}
        return {path: attributes for path, attributes in found.items() if "\\Noselect" not in attributes}

    def subscribed(self) -> set[Path_]:
        with self.imap() as imap:
            return {self.path(name) for name, _ in listed(good(imap.lsub()))}

    def mail(self) -> dict[Path_, Counter[Seen]]:
        """Of each folder its messages as a multiset, each fetched whole. Marks nothing as seen."""
        with self.imap() as imap:
            names = [name for name, attributes in listed(good(imap.list())) if "\\Noselect" not in attributes]
            return {self.path(name): Counter(seen for _, seen in self._messages(imap, self.path(name))) for name in names}

    def digests(self) -> dict[Path_, Counter[str]]:
        """The same, contents only."""
        return {path: _by_digest(found) for path, found in self.mail().items()}

    def uids(self, path: Path_) -> list[int]:
        with self.imap() as imap:
            return [uid for uid, _ in self._messages(imap, path)]

    def count(self, path: Path_ = ()) -> int:
        with self.imap() as imap:
            return int(good(imap.select(self.wire(path), readonly=True))[0])

    def uidvalidity(self, path: Path_) -> int:
        with self.imap() as imap:
            good(imap.select(self.wire(path), readonly=True))
            return int(imap.response("UIDVALIDITY")[1][0] or 0)

    def renumber(self, path: Path_, uidvalidity: int) -> None:
        """Gives a folder of a Dovecot another UIDVALIDITY, as if it had been made at another time."""
        layout = self.server.layout
        name = layout.prefix + layout.separator.join(path) if path else "INBOX"
        update = ["doveadm", "-c", str(self.server.base / "dovecot.conf"), "mailbox", "update", "-u", self.user, "--uid-validity", str(uidvalidity)]
        done = subprocess.run([*update, name], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr

    def _messages(self, imap: imaplib.IMAP4, path: Path_) -> list[tuple[int, Seen]]:
        if not int(good(imap.select(self.wire(path), readonly=True))[0]):
            return []
        found = []
        for row in good(imap.fetch("1:*", "(UID FLAGS INTERNALDATE BODY.PEEK[])")):
            if isinstance(row, tuple):
                uid, flags, date = (one.search(row[0]) for one in _TOLD)
                assert uid and flags and date, row
                names = tuple(sorted(flag for flag in flags[1].decode().split() if flag != "\\Recent"))
                when = datetime.datetime.strptime(date[1].decode().strip(), "%d-%b-%Y %H:%M:%S %z").astimezone(datetime.UTC)
                found.append((int(uid[1]), (hashlib.sha256(row[1]).hexdigest(), names, when)))
        return found


def _by_digest(found: Counter[Seen]) -> Counter[str]:
    counted: Counter[str] = Counter()
    for (digest, _, _), count in found.items():
        counted[digest] += count
    return counted


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def date_text(when: datetime.datetime) -> str:
    return when.strftime('"%d-%b-%Y %H:%M:%S %z"')


def listed(rows: Iterable[Any]) -> Iterator[tuple[bytes, set[str]]]:
    for row in rows:
        if not row:
            continue
        text = row[0] + b" " + row[1] if isinstance(row, tuple) else row
        found = _LIST.match(text)
        assert found is not None, row
        yield found["name"].strip(b'"').replace(b'\\"', b'"').replace(b"\\\\", b"\\"), set(found["attributes"].decode().split())


def good(answer: tuple[str, list[Any]]) -> list[Any]:
    assert answer[0] == "OK", answer
    return answer[1]


@dataclass
class Move:
    """One account on its way: a folder with a profile and a vault, hands on both servers, the command line."""

    folder: Path
    old: Hands
    new: Hands
    mail: dict[str, str] = field(default_factory=dict)  # [mail] folders
    security: str = "tls"
    old_lines: tuple[str, ...] = ()  # more of [old.imap]
    new_lines: tuple[str, ...] = ()  # more of [new.imap]
    old_port: int = 0  # where a relay stands before a server
    new_port: int = 0

    def write(self) -> None:
        rows = [f'name = "move"\nvault = "vault"\n\n[old.imap]\n{self._section(self.old, self.old_port)}']
        rows += [*self.old_lines, f"[[old.imap.account]]\n{self._account()}"]
        if self.mail:
            rows.append("[mail]\nfolders = { " + ", ".join(f"{json.dumps(old)} = {json.dumps(new)}" for old, new in self.mail.items()) + " }\n")
        rows.append(f"[new.imap]\n{self._section(self.new, self.new_port)}")
        rows += self.new_lines
        path = self.folder / "move.toml"
        path.write_text("\n".join(rows), encoding="utf-8")
        path.chmod(0o600)

    def _section(self, hands: Hands, port: int = 0) -> str:
        server = hands.server
        port = port or server.ports["tls" if self.security == "tls" else "plain"]
        return f'host = "{HOST}"\naddress = "127.0.0.1"\nport = {port}\nsecurity = "{self.security}"\nca_file = {json.dumps(str(server.authority))}\n'

    def _account(self) -> str:
        told = f"user = {json.dumps(self.old.user)}\npassword = {json.dumps(self.old.server.users[self.old.user], ensure_ascii=False)}\n"
        if self.new.user != self.old.user:
            told += f"new_user = {json.dumps(self.new.user)}\n"
        password = self.new.server.users[self.new.user]
        return told + f"new_password = {json.dumps(password, ensure_ascii=False)}\n"

    def run(self, word: str, *options: str, exit: int = 0, timeout: float = 120) -> Ran:
        ran = hostbackup(word, "move.toml", *options, "--json", cwd=self.folder, timeout=timeout)
        assert ran.exit == exit, (ran.exit, ran.out[-3000:], ran.err[-3000:])
        assert undocumented(ran.json) == set(), "docs/json.md does not tell of these"
        return ran

    def start(self, word: str) -> subprocess.Popen[bytes]:
        """A command under way, for `tests.support.moves.ended`."""
        words = command(word, "move.toml", "--json")
        return subprocess.Popen(words, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def backup(self, *options: str, exit: int = 0) -> Ran:
        return self.run("backup", *options, exit=exit)

    def push(self, *options: str, exit: int = 0) -> Ran:
        return self.run("push", *options, exit=exit)

    def verify(self, side: str, exit: int = 0) -> Ran:
        return self.run("verify", "--against", side, exit=exit)

    def proven(self, ran: Ran, side: str) -> dict[str, int]:
        """The counts of one side in a verify's document."""
        [line] = [line for line in ran.json["proven"] if line["side"] == side]
        counts: dict[str, int] = line["counts"]
        return counts

    @property
    def vault(self) -> Path:
        return self.folder / "vault"

    def vault_bytes(self) -> int:
        return sum(path.lstat().st_size for path in self.vault.rglob("*"))

    def records(self) -> list[Stored[Message]]:
        """Every message of the newest snapshot, vanished ones included."""
        with Vault.open(self.vault, "read") as vault:
            snapshot = vault.snapshots.get("latest")
            return list(MailRoot.open(vault.manifests, snapshot.parts[f"mail/{self.old.user}"].root).walk(vanished=True))

    def live(self) -> list[Stored[Message]]:
        return [record for record in self.records() if not record.vanished]

    def vanished(self) -> Counter[str]:
        """Digests of those that are gone from the old server."""
        return Counter(record.digest for record in self.records() if record.vanished)
