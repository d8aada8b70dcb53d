"""Folders with names that a new server does not take as they are, moved by the real command line: none is lost, none becomes another's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from hostbackup.model import name_from_json
from tests.support.cli import hostbackup
from tests.support.cyrus import cyrus
from tests.support.dovecot import Dovecot, dovecot
from tests.support.mail_move import Hands, Move, Path_, digest, from_utf7, letter
from tests.support.mail_server import INBOX_DOT, PLAIN_SLASH, MailServer

USERS = {"u1@example.test": "p1", "u2@example.test": "p2", "u3@example.test": "p3"}
ODD: list[Path_] = [
    *[("Kunden.2024",), ("Kunden．2024",), (" vorn",), ("hinten ",), ("50%",), ("*",), ('q"uote',), ("back\\slash",)],
    *[("Angebote",), ("ANGEBOTE",), ("angebote", "alt"), ("a.b", "x.y"), ("Gesendet",), ("Sent",), ("送信済みアイテム",)],
    *[("w" * 210,), ("長" * 60, "y" * 150), ("1", "2", "3", "4", "5", "6", "7", "8")],
]
LATER: list[Path_] = [("Kunden．2024 (2)",), ("a．b",), ("送信済み",)]


@pytest.fixture(scope="module")
def old() -> Iterator[Dovecot]:
    """A server that keeps folders as the file system does, and so takes nearly every name."""
    with dovecot(PLAIN_SLASH, users=USERS, extra="mail_location = maildir:~/Maildir:LAYOUT=fs") as server:
        yield server


def folders(it: Move, ran: Any) -> dict[str, dict[str, Any]]:
    """The folder map as `push` tells it, by old name."""
    return {from_utf7(name_from_json(row, "old")): row for row in ran.json["folders"][f"mail/{it.old.user}"]}


def homes(it: Move) -> dict[str, Path_]:
    """By digest of each letter the one folder where it stands at the new server."""
    found: dict[str, Path_] = {}
    for path, letters in it.new.digests().items():
        for one, count in letters.items():
            assert count == 1
            assert one not in found
            found[one] = path
    return found


@pytest.mark.parametrize(
    ("user", "new", "changed"),
    [
        ("u1@example.test", lambda: dovecot(INBOX_DOT, users=USERS), {"Kunden.2024": "Kunden．2024 (2)", "a.b/x.y": "a．b/x．y"}),
        ("u2@example.test", lambda: dovecot(PLAIN_SLASH, users=USERS), {"Kunden.2024": "Kunden．2024 (2)", "a.b/x.y": "a．b/x．y"}),
        (
            "u3@example.test",
            lambda: cyrus(INBOX_DOT, users=USERS),
            {
                **{"Kunden.2024": "Kunden．2024 (2)", "a.b/x.y": "a．b/x．y"},
                **{"50%": "50％", 'q"uote': "q＂uote", "back\\slash": "back＼slash"},
            },
        ),
    ],
    ids=["dovecot-dot", "dovecot-slash", "cyrus"],
)
def test_odd_names_arrive_one_by_one_and_keep_what_they_got(old: Dovecot, tmp_path: Path, user: str, new: Any, changed: dict[str, str]) -> None:
    server: AbstractContextManager[MailServer] = new()
    with server as there:
        it = Move(tmp_path, Hands(old, user), Hands(there, user))
        it.write()
        it.old.make(*ODD)
        for number, path in enumerate(ODD):
            it.old.deliver(path, letter(number))
        it.new.make(("1", "2"))  # where "1" holds no mail yet, if the server can have that
        it.backup()
        before = it.push("--dry-run").json["folders"]
        assert not any(row.get("stood") for rows in before.values() for row in rows)
        ran = it.push()
        rows = folders(it, ran)
        first = homes(it)
        assert len(first) == len(set(first.values())) == len(ODD), "each letter in a folder of its own"
        for number, path in enumerate(ODD):
            row, name = rows["/".join(path)], "/".join(first[digest(letter(number))])
            assert it.new.path(name_from_json(row, "new")) == first[digest(letter(number))]
            assert row["stood"]
            if name != "/".join(path) and not row["special_use"]:
                assert row["why"]
                if len("/".join(path)) < 150:
                    assert changed["/".join(path)] == name
        assert rows["Kunden.2024"]["why"]

        it.old.make(*LATER)
        for number, path in enumerate(LATER, 100):
            it.old.deliver(path, letter(number))
        it.backup()
        forget(it)
        told = hostbackup("push", "move.toml", cwd=it.folder)
        assert told.exit == 0
        assert re.search(r"folder a．b is called (INBOX\.)?a．b \(2\) there: another old folder has the name", told.out)
        assert "Kunden.2024 is called" not in told.out, "that was told before"
        later = homes(it)
        assert later.items() >= first.items()
        assert len(set(later.values())) == len(ODD) + len(LATER)
        ran = it.verify("new")
        assert it.proven(ran, "new") == {"verified": len(later)}
        pairs = {from_utf7(name_from_json(row, "old")): it.new.path(name_from_json(row, "new")) for row in ran.json["mail"][0]["folders"]}
        assert pairs["Kunden.2024"] == first[digest(letter(0))], "both names stand beside each other"


def forget(it: Move) -> None:
    """What is on record becomes what the first versions had on record."""
    (path,) = (it.vault / "state").glob("folders-*")
    document = json.loads(path.read_bytes())
    kept = ("old", "old_b64", "new", "new_b64", "special_use", "replaced")
    document["rows"] = [{key: row[key] for key in kept if key in row} | {"rule": "earlier"} for row in document["rows"]]
    path.write_text(json.dumps(document))
