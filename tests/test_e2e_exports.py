"""What `restore` makes of a mailbox, used by others: Dovecot serves the Maildir and the mbox files, Python reads them, eml files are the messages."""

from __future__ import annotations

import datetime
import hashlib
import json
import mailbox
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hostbackup.jobs.restore import Format
from hostbackup.jobs.restore import restore as bring
from hostbackup.jobs.result import Result
from hostbackup.vault.vault import Vault
from tests.support.cli import hostbackup
from tests.support.dovecot import Dovecot, dovecot
from tests.support.mail_move import DATE, Hands, Move, Path_, letter
from tests.test_restore_mbox import decode

TARO = "taro@example.test"
YEAR: Path_ = ("送信済み", "2026年")
QUOTED = letter(3) + b"From the start\r\n>From quoted\r\n>>From twice\r\n"
MAIL: dict[Path_, list[tuple[bytes, tuple[str, ...]]]] = {
    (): [(letter(1), ("\\Seen", "$Label1")), (letter(1), ()), (letter(2), ("\\Flagged", "Wichtig"))],
    ("送信済み",): [(QUOTED, ("\\Answered",))],
    YEAR: [(letter(4), ("\\Draft", "\\Seen")), (letter(400, 300_000), ())],
    ("a & b c",): [(letter(5), ())],
    ("Empty",): [],
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Move, Hands]]:
    """A vault with a copy, two snapshots, and a message that vanished between them; the hands on its server."""
    with dovecot() as server:
        hands = Hands(server, TARO)
        hands.make(*(path for path in MAIL if path), subscribe=True)
        for path, messages in MAIL.items():
            for data, flags in messages:
                hands.deliver(path, data, flags=flags)
        hands.deliver((), letter(9))
        move = Move(tmp_path_factory.mktemp("exports"), hands, hands, old_lines=('sieve = "never"',))
        move.write()
        profile = move.folder / "move.toml"
        text = profile.read_text()
        (move.folder / "disk").mkdir()
        profile.write_text(text[: text.index("[new.imap]")] + '[[copy]]\nname = "disk"\npath = "disk"\n')
        move.backup()
        hands.delete((), letter(9))
        move.backup()
        move.run("copy")
        yield move, hands


def restore(move: Move, to: str, *options: str, exit: int = 0) -> Path:
    ran = hostbackup("restore", "move.toml", *options, "--to", to, cwd=move.folder)
    assert ran.exit == exit, ran.out + ran.err
    return move.folder / to / "mail"


def handed(folder: Path, server: Dovecot, home: Path) -> None:
    """Puts a restored folder where Dovecot finds it, as its user."""
    shutil.copytree(folder, home)
    for path in (home, home.parent, *home.rglob("*")):
        shutil.chown(path, "nobody" if os.geteuid() == 0 else None, "nogroup" if os.geteuid() == 0 else os.getegid())


def test_dovecot_serves_a_restored_maildir_as_the_old_server_did(saved: tuple[Move, Hands]) -> None:
    move, hands = saved
    home = restore(move, "tree", "--from", "disk") / TARO
    with dovecot() as server:
        handed(home, server, server.maildir(TARO))
        served = Hands(server, TARO)
        assert served.mail() == hands.mail()  # bytes, flags, keywords and dates of every message of every folder
        assert set(served.folders()) == set(hands.folders())
        assert served.subscribed() == hands.subscribed()


def test_dovecot_and_python_read_the_mbox_files(saved: tuple[Move, Hands]) -> None:
    move, _ = saved
    base = restore(move, "mbox", "--format", "mbox")
    assert sorted(path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_file()) == sorted(
        [TARO, f"{TARO}.flags.jsonl", *(f"{TARO}.sbd/{name}" for name in ("Inbox", "送信済み", "送信済み.sbd/2026年", "a & b c", "Empty"))]
    )
    records = [json.loads(line) for line in (base / f"{TARO}.flags.jsonl").read_text().splitlines()]
    for path, name in (((), "Inbox"), (("送信済み",), "送信済み"), (YEAR, "送信済み.sbd/2026年"), (("Empty",), "Empty")):
        file = base / f"{TARO}.sbd" / name
        mine = [record for record in records if record["file"] == f"{TARO}.sbd/{name}"]
        messages = decode(file.read_bytes(), [record.get("added_newline", False) for record in mine])
        assert messages == [data for data, _ in MAIL[path]]
        assert [record["sha256"] for record in mine] == [hashlib.sha256(data).hexdigest() for data in messages]
        read = mailbox.mbox(file, create=False)
        assert [message["Message-ID"] for message in read] == [f"<{number[1].decode()}@customer.example>" for number in map(_numbered, messages)]
        read.close()
    with dovecot(extra="mail_location = mbox:%h/mail:INBOX=%h/mail/Inbox:UTF-8\nmbox_read_locks = fcntl\nmbox_write_locks = fcntl\n") as server:
        handed(base / f"{TARO}.sbd", server, server.maildir(TARO).parent / "mail")
        served = Hands(server, TARO)
        assert served.digests()[()] == Counter(hashlib.sha256(data).hexdigest() for data, _ in MAIL[()])
        assert served.digests()[("送信済み.sbd", "2026年")] == Counter(hashlib.sha256(data).hexdigest() for data, _ in MAIL[YEAR])


def _numbered(data: bytes) -> re.Match[bytes]:
    found = re.search(rb"<(\d+)@customer", data)
    assert found is not None
    return found


def test_eml_files_are_the_messages_under_names_that_say_which(saved: tuple[Move, Hands]) -> None:
    move, hands = saved
    home = restore(move, "eml", "--format", "eml") / TARO
    day = DATE.astimezone(datetime.UTC).strftime("%Y-%m-%d %H%M")  # as this server tells it
    assert sorted(path.name for path in (home / "送信済み").iterdir() if path.is_file()) == [f"{day} 見積書 3 (1).eml"]
    for path in MAIL:
        found = Counter(hashlib.sha256(file.read_bytes()).hexdigest() for file in home.joinpath(*(path or ("INBOX",))).glob("*.eml"))
        assert found == hands.digests()[path]
    assert (home / "送信済み" / "2026年" / f"{day} 見積書 400 (2).eml").read_bytes() == letter(400, 300_000)  # larger than what is read ahead


@pytest.mark.parametrize(
    ("format", "inbox"), [("tree", "taro@example.test/cur"), ("mbox", "taro@example.test.sbd/Inbox"), ("eml", "taro@example.test/INBOX")]
)
def test_selections_snapshots_and_what_vanished_in_every_format(saved: tuple[Move, Hands], format: Format, inbox: str) -> None:
    move, _ = saved

    def numbers(base: Path) -> Counter[str]:
        """Message-IDs below a folder, whatever the format."""
        whole = b"".join(path.read_bytes() for path in base.rglob("*") if path.is_file() and not path.name.endswith(".jsonl"))
        return Counter(re.findall(r"Message-ID: <(\d+)@", whole.decode("utf-8", "replace")))

    def brought(to: str, *selection: str, **how: Any) -> Counter[str]:
        result = Result()
        base = move.folder / f"{format}-{to}"
        with Vault.open(move.vault, "read") as vault:
            bring(vault, result, to=base, selection=selection, format=format, **how)
        assert result.failures == []
        return numbers(base / "mail")

    everything = Counter({"1": 2, "2": 1, "3": 1, "4": 1, "400": 1, "5": 1})
    assert brought("all") == everything
    assert brought("gone", vanished=True) == everything + Counter({"9": 1})
    assert brought("first", snapshot="1") == everything + Counter({"9": 1})
    assert brought("folder", f"mail/{TARO}/送信済み") == Counter({"3": 1, "4": 1, "400": 1})
    [message] = [path for path in (move.vault / "latest" / "mail" / TARO / "cur").iterdir() if path.read_bytes() == letter(2)]
    assert brought("one", f"mail/{TARO}/cur/{message.name}") == Counter({"2": 1})
    assert (move.folder / f"{format}-one" / "mail" / inbox).exists()
