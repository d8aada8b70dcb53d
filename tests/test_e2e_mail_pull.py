"""Runs after the first, by the real command line against Dovecot: what an unchanged mailbox costs, what is followed, what the evidence tells."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hostbackup.vault.vault import Vault
from scripts.benchmarks.relay import counting
from tests.support.dovecot import PLAIN_SLASH, Dovecot, dovecot
from tests.support.imap_script import FakeBox, FakeImap
from tests.support.mail_move import Hands, Move, digest, letter

USERS = {f"u{number}@example.test": "secret" for number in range(20)}
FOLDERS = (("Sent",), ("仕事",), ("仕事", "2025"), ("Trash",))
TURNS = 14  # of the whole second run, the TLS handshake and the login among them
_next_user = itertools.count()

# What a run that brings nothing must not load, by the beginnings of names: each costs it time. Counted in modules, not in seconds.
NOT_NEEDED = (
    *("pydantic", "paramiko", "fabric", "invoke", "cryptography", "boto3", "pathspec", "keyring", "tqdm", "imapclient"),
    *("asyncio", "concurrent", "ctypes", "csv", "difflib", "email", "importlib.metadata", "multiprocessing", "zoneinfo"),
    *("hostbackup.jobs.connect_ssh", "hostbackup.jobs.copy", "hostbackup.jobs.push", "hostbackup.jobs.verify", "hostbackup.profile.explain"),
    *("hostbackup.places.mail_fetch", "hostbackup.places.mail_prove", "hostbackup.places.mail_write", "hostbackup.places.pop3"),
    *("hostbackup.places.sftp", "hostbackup.places.stream", "hostbackup.protocols.openssh", "hostbackup.protocols.pop3"),
    *("hostbackup.protocols.s3", "hostbackup.protocols.sftp", "hostbackup.protocols.ssh", "hostbackup.protocols.tar"),
)
MODULES = 300
REPORTING = """
import atexit, json, sys
file = sys.argv.pop(1)
atexit.register(lambda: json.dump(sorted(sys.modules), open(file, "w")))
from hostbackup.cli.main import main
main()
"""


class Pull(Move):
    """A move that has no new side yet."""

    def write(self) -> None:
        super().write()
        path = self.folder / "move.toml"
        path.write_text(path.read_text(encoding="utf-8").partition("[new.imap]")[0], encoding="utf-8")


@pytest.fixture(scope="module")
def server() -> Iterator[Dovecot]:
    with dovecot(PLAIN_SLASH, users=USERS) as running:
        yield running


@pytest.fixture
def it(server: Dovecot, tmp_path: Path) -> Move:
    """Five folders of a few messages each."""
    user = f"u{next(_next_user)}@example.test"
    made = Pull(tmp_path, Hands(server, user), Hands(server, user))
    made.write()
    made.old.make(*FOLDERS)
    for number, folder in enumerate([(), *FOLDERS]):
        made.old.deliver(folder, *(letter(100 * number + one) for one in range(3)))
    return made


def told(it: Move) -> dict[str, dict[str, Any]]:
    """What the newest evidence says of the mailbox's folders."""
    newest = sorted((it.vault / "evidence").iterdir())[-1]
    [line] = [line for line in map(json.loads, newest.read_text().splitlines()) if line["type"] == "backup"]
    return {row["name"]: row for row in line["folders"]}


def test_an_unchanged_mailbox_costs_few_turns_on_the_wire(it: Move) -> None:
    it.backup()
    with counting(it.old.server.ports["tls"], 0) as relay:
        it.old_port = relay.port
        it.write()
        ran = it.backup()
        turns = relay.turns()
    assert ran.json["counts"].get("read", 0) == 0
    assert turns <= TURNS
    assert {row["stored"] for row in told(it).values()} == {3}


def test_an_unchanged_mailbox_loads_only_what_it_needs(it: Move) -> None:
    it.backup()
    file = it.folder / "modules.json"
    program = [sys.executable, "-c", REPORTING, str(file), "backup", "move.toml", "--quiet"]
    done = subprocess.run(program, cwd=it.folder, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    loaded = json.loads(file.read_text())
    assert [name for name in loaded if name.startswith(NOT_NEEDED)] == []
    assert {"hostbackup.places.mail_scan", "hostbackup.vault.view"} <= set(loaded)
    assert len(loaded) < MODULES


def test_only_what_changed_is_written_and_everything_is_followed(it: Move) -> None:
    it.backup()
    it.old.deliver((), letter(7))
    it.old.store(("Sent",), letter(101), "FLAGS", "\\Answered $Label1")
    it.old.delete(("仕事",), letter(201))
    counts = it.backup().json["counts"]
    assert {key: counts.get(key, 0) for key in ("new", "changed", "vanished", "unchanged", "read")} == {
        "new": 1,
        "changed": 1,
        "vanished": 1,
        "unchanged": 13,
        "read": 1,
    }
    flags = {record.digest: record.item.flags for record in it.live()}
    assert flags[digest(letter(101))] == ("$Label1", "\\Answered")
    assert digest(letter(7)) in flags
    assert it.vanished() == {digest(letter(201)): 1}
    whole = {record.item.label: record for record in it.records()}
    it.backup("--checksum")
    assert {record.item.label: record for record in it.records()} == whole, "a full listing finds nothing else"


def test_lost_contents_are_fetched_again_although_nothing_changed_on_the_server(it: Move) -> None:
    it.backup()
    lost = it.vault / "objects" / digest(letter(200))[:2] / digest(letter(200))
    lost.unlink()
    counts = it.backup().json["counts"]
    assert counts["read"] == 1
    assert lost.read_bytes() == letter(200)


def test_a_message_that_failed_is_tried_again_although_its_folder_did_not_change(it: Move) -> None:
    it.backup()
    it.old.deliver(("Sent",), letter(150))
    sent = it.old.server.maildir(it.old.user) / ".Sent"
    [broken] = [path for path in sent.rglob("*") if path.is_file() and path.read_bytes() == letter(150).replace(b"\r\n", b"\n")]
    broken.chmod(0)
    assert [row["code"] for row in it.backup(exit=3).json["failures"]] == ["line-cut"], "Dovecot ends the session over it"
    assert told(it)["Sent"]["stored"] == 3
    broken.chmod(0o600)
    it.backup()
    assert digest(letter(150)) in {record.digest for record in it.live()}


def test_mail_that_came_and_went_between_two_runs_is_counted_as_unseen(it: Move) -> None:
    it.backup()
    assert "unseen" not in told(it)["INBOX"]
    it.old.deliver((), letter(50), letter(51), letter(52))
    it.old.delete((), letter(50))
    it.old.delete((), letter(52))
    ran = it.backup()
    assert ran.json["counts"]["unseen"] == 2
    inbox = told(it)["INBOX"]
    assert (inbox["unseen"], inbox["uidnext"], inbox["exists"], inbox["stored"]) == (2, 7, 4, 4)
    assert [row for row in ran.json["folders"][f"mail/{it.old.user}"] if "unseen" in row] == [inbox]
    it.backup()
    assert "unseen" not in told(it)["INBOX"]
    with Vault.open(it.vault, "read") as vault:
        assert vault.snapshots.get("latest").exit == 0


def test_a_message_below_the_last_uidnext_is_not_missed_where_the_counts_agree_by_chance(it: Move) -> None:
    box = FakeBox({uid: letter(uid) for uid in range(1, 6)}, next=7)
    with FakeImap({b"INBOX": box}, b"IMAP4rev1 LITERAL+ CONDSTORE").running() as fake:
        it.security, it.old_port = "plain", fake.port
        it.write()
        it.backup()
        box.expunge(2)
        box.messages[6] = letter(6)  # a server of several machines, on which the number was given before the message could be seen
        box.mark(6, b"")
        [failure] = it.backup(exit=3).json["failures"]
        assert failure["code"] == "changing"
        assert it.backup().json["counts"]["vanished"] == 1
        assert told(it)["INBOX"]["stored"] == 5
