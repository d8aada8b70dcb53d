"""Filters on their way by the real command line, between two Dovecots with Pigeonhole, of which the new one knows less."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostbackup.jobs.filters import named_folders, names_from
from hostbackup.protocols.imap.session import ImapTarget
from hostbackup.protocols.sieve import SieveSession, connect
from hostbackup.vault.tree import TreeRoot
from hostbackup.vault.vault import Vault
from tests.support.cli import hostbackup
from tests.support.dovecot import HOST, Dovecot, dovecot, free_ports, managesieve
from tests.support.mail_move import Hands, Move, letter
from tests.support.sieve_script import Shelf, scripted, unanswered

TARO = "taro@example.test"
SORT = 'require ["fileinto"];\r\n# fileinto "Sent";\r\nif header :contains "subject" "見積" { fileinto "見積"; }\r\n'.encode()
AWAY = b'require ["vacation"];\nvacation "gone";\n'
KEEP = b"keep;"
NAME = "振り分け".encode()


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Dovecot, Dovecot]]:
    first, second = free_ports(2)
    with dovecot(extra=managesieve(first)) as old, dovecot(extra=managesieve(second, "sieve_extensions = -vacation")) as new:
        old.ports["sieve"], new.ports["sieve"] = first, second
        yield old, new


def scripts(server: Dovecot) -> SieveSession:
    return connect(ImapTarget(HOST, TARO, server.users[TARO], server.ports["sieve"], "tls", ("127.0.0.1",), 20.0, server.authority))


def standing(server: Dovecot) -> tuple[dict[bytes, bytes | None], list[bytes]]:
    """Scripts and the active one, as another client sees them."""
    session = scripts(server)
    try:
        listed = session.scripts()
        return {script.name: session.get(script.name) for script in listed}, [script.name for script in listed if script.active]
    finally:
        session.close()


def a_move(folder: Path, old: Dovecot, new: Dovecot, *, old_sieve: str = "", new_sieve: str = "") -> Move:
    move = Move(folder, Hands(old, TARO), Hands(new, TARO), mail={"見積": "Estimates"})
    move.old_lines = (old_sieve or f"sieve_port = {old.ports['sieve']}",)
    move.new_lines = (new_sieve or f"sieve_port = {new.ports['sieve']}",)
    move.write()
    return move


def test_filters_move_and_what_the_new_server_does_not_take_is_listed(tmp_path: Path, servers: tuple[Dovecot, Dovecot]) -> None:
    old, new = servers
    with_hands = Hands(old, TARO)
    with_hands.make(("見積",))
    with_hands.deliver((), letter(1))
    mine = scripts(old)
    for name, body in ((NAME, SORT), (b"away", AWAY), (b".50%", KEEP)):
        mine.put(name, body)
    mine.activate(NAME)
    move = a_move(tmp_path, old, new)

    ran = move.backup("--only", "mail")
    part = ran.json["parts"][f"sieve/{TARO}"]
    assert (part["state"], part["entries"], part["links"], part["bytes"]) == ("complete", 3, 1, len(SORT + AWAY + KEEP))
    shown = move.vault / "latest" / "sieve" / TARO
    assert {path.name: path.read_bytes() for path in shown.iterdir()} == {
        "振り分け.sieve": SORT,
        "active": SORT,
        "away.sieve": AWAY,
        "%2E50%25.sieve": KEEP,
    }
    assert (shown / "active").is_symlink()
    before = move.vault_bytes()
    assert (move.backup().json["counts"]["unchanged"], move.vault_bytes() - before < 10_000) == (5, True)

    ran = move.push(exit=3)
    assert [(row["name"], row["code"]) for row in ran.json["failures"]] == [("away.sieve", "refused")]
    assert "unknown Sieve capability `vacation'" in ran.reasons
    assert standing(new) == ({NAME: SORT, b".50%": KEEP}, [NAME])
    assert ran.json["filters_to_adapt"] == [{"part": f"sieve/{TARO}", "script": "振り分け", "folder": "見積", "becomes": "Estimates"}]
    assert ran.json["proven"][f"sieve/{TARO}"] == {"counts": {"verified": 3}, "method": "sieve-fetch", "bytes": len(SORT + KEEP)}

    ran = move.run("verify", "--against", "old", "--against", "new", exit=3)
    assert [row["name"] for row in ran.json["failures"]] == ["away.sieve"]
    told = {(row["side"], row["part"]): (row["method"], row["counts"]) for row in ran.json["proven"]}
    assert told["old", f"sieve/{TARO}"] == ("sieve-fetch", {"verified": 4})
    assert told["new", f"sieve/{TARO}"] == ("sieve-fetch", {"verified": 3, "unverified": 1})

    theirs = scripts(new)
    theirs.put(b".50%", b"stop;")  # as long as what was pushed, and another
    theirs.close()
    mine.put(b"away", b"discard;\n")
    mine.put(NAME, SORT + b"# new\r\n")
    mine.close()
    assert move.backup().json["counts"]["changed"] == 2
    ran = move.push()
    assert [(row["name"], row["action"]) for row in ran.json["left_alone"]] == [("%2E50%25.sieve", "changed-at-new-side")]
    assert standing(new) == ({NAME: SORT + b"# new\r\n", b".50%": b"stop;", b"away": b"discard;\n"}, [NAME])
    assert move.push().json["planned"][f"sieve/{TARO}"] == {"equal": 3, "changed-at-new-side": 1}

    theirs = scripts(new)  # somebody switches the filters off, and takes two away
    theirs._client.ask(b"SETACTIVE", b'""')
    for name in (b"away", b".50%"):
        theirs._client.ask(b"DELETESCRIPT", b'"%s"' % name)
    theirs.close()
    mine = scripts(old)
    mine.put(b"away", b"keep;\n")
    mine.close()
    move.backup()
    ran = move.push(exit=3)
    assert [(row["name"], row["code"]) for row in ran.json["failures"]] == [("away.sieve", "conflict")]
    assert [row["name"] for row in ran.json["left_alone"]] == ["%2E50%25.sieve", "active"]
    assert standing(new) == ({NAME: SORT + b"# new\r\n"}, [])
    ran = move.run("verify", "--against", "new", exit=3)
    assert {row["name"]: row["code"] for row in ran.json["failures"]} == {
        "%2E50%25.sieve": "missing",
        "active": "changed-since",
        "away.sieve": "unverified",
    }
    move.push("--overwrite", "*")  # unless it is asked for
    assert standing(new) == ({NAME: SORT + b"# new\r\n", b".50%": KEEP, b"away": b"keep;\n"}, [NAME])

    out = tmp_path / "out"
    move.run("restore", "sieve", "--to", str(out))
    assert (out / "sieve" / TARO / "active").read_bytes() == SORT + b"# new\r\n"


def test_a_server_without_filters_fails_nothing_and_is_told(tmp_path: Path, servers: tuple[Dovecot, Dovecot]) -> None:
    old, new = servers
    [closed] = free_ports(1)
    move = a_move(tmp_path, old, new, old_sieve=f"sieve_port = {closed}")
    ran = move.run("check")
    assert [("filters" in row, row["section"]) for row in ran.json["mailboxes"]] == [(False, "old.imap"), (True, "new.imap")]
    assert [row["side"] for row in ran.json["not_covered"]] == ["old"]
    ran = move.backup()
    assert list(ran.json["parts"]) == [f"mail/{TARO}"]
    [row] = ran.json["not_covered"]
    assert (row["side"], row["part"], f"port {closed}" in row["reason"]) == ("old", f"sieve/{TARO}", True)
    [evidence] = (move.vault / "evidence").glob("*-backup.jsonl")
    lines = [json.loads(line) for line in evidence.read_text().splitlines()]
    assert [(line["part"], line["side"]) for line in lines if line["type"] == "not-covered"] == [(f"sieve/{TARO}", "old")]
    move.push()

    move = a_move(tmp_path, old, new, new_sieve=f"sieve_port = {closed}")
    assert "not_covered" not in move.backup().json
    assert [row["side"] for row in move.push().json["not_covered"]] == ["new"]
    assert [row["side"] for row in move.run("verify", "--against", "new").json["not_covered"]] == ["new"]

    move = a_move(tmp_path, old, new, old_sieve=f"sieve_port = {closed}")  # what was there yesterday and is not today is a failure
    ran = move.backup(exit=3)
    assert [(row["part"], row["code"]) for row in ran.json["failures"]] == [(f"sieve/{TARO}", "not-offered")]
    assert ran.json["parts"][f"sieve/{TARO}"]["state"] == "carried"

    move = a_move(tmp_path, old, new, old_sieve='sieve = "never"', new_sieve='sieve = "never"')
    assert "not_covered" not in move.backup().json
    assert list(move.push().json["planned"]) == [f"mail/{TARO}"]


def test_a_refused_password_is_not_tried_again_for_the_filters(tmp_path: Path, servers: tuple[Dovecot, Dovecot]) -> None:
    old, new = servers
    move = a_move(tmp_path, old, new)
    profile = tmp_path / "move.toml"
    profile.write_text(profile.read_text().replace(f'password = "{old.users[TARO]}"', 'password = "wrong"', 1))
    refused = old.log().count("managesieve-login: Info: Disconnected: Connection closed (auth failed")
    ran = move.backup(exit=1)
    assert [(row["part"], row["code"]) for row in ran.json["failures"]] == [(f"mail/{TARO}", "login-refused")]
    assert old.log().count("managesieve-login: Info: Disconnected: Connection closed (auth failed") == refused


def test_filters_that_could_not_be_saved_are_not_forgotten_by_those_who_come_later(tmp_path: Path, servers: tuple[Dovecot, Dovecot]) -> None:
    old, new = servers
    with scripted(Shelf({b"sort": KEEP}, refuses={b"AUTHENTICATE": b'NO "wrong"\r\n'})) as shelf:
        move = a_move(tmp_path, old, new, old_sieve=f"sieve_port = {shelf.port}")
        move.security = "plain"
        move.write()
        assert move.run("backup", exit=3).json["failures"][0]["part"] == f"sieve/{TARO}"
    for words in (("push",), ("verify",), ("verify", "--against", "new")):
        told = [row for row in move.run(*words, exit=3).json["failures"] if row["part"] == f"sieve/{TARO}"]
        assert [row["code"] for row in told] == ["not-covered"], words
        assert "never backed up" in told[0]["reason"]
    move.old_lines = ('sieve = "never"',)
    move.write()
    move.run("push")
    move.run("verify")


def test_a_port_that_stays_silent_behind_a_firewall_is_left_alone_by_the_runs_after_it(tmp_path: Path, servers: tuple[Dovecot, Dovecot]) -> None:
    old, new = servers
    with unanswered() as port:
        soon = f"sieve_port = {new.ports['sieve']}\n[limits]\nstall_timeout = 2"
        move = a_move(tmp_path, old, new, old_sieve=f"sieve_port = {port}", new_sieve=soon)
        [row] = move.backup().json["not_covered"]
        assert "did not answer within" in row["reason"]
        ran = hostbackup("backup", "move.toml", "--json", "--verbose", cwd=tmp_path)
        [row] = ran.json["not_covered"]
        assert ("is asked again some hours after that" in row["reason"], "`check` asks at once" in ran.err, ran.exit) == (True, True, 0)
    known = move.vault / "state" / "filters.json"
    told = json.loads(known.read_text())
    known.write_text(json.dumps({"silent": dict.fromkeys(told["silent"], "20200101T000000Z")}))  # as long ago as it takes
    [row] = move.backup().json["not_covered"]
    assert "refused the connection" in row["reason"]


def test_odd_names_are_kept_and_one_that_is_not_handed_out_is_no_others_trouble(tmp_path: Path, servers: tuple[Dovecot, Dovecot]) -> None:
    old, new = servers
    long = "振り分け".encode() * 100
    names = [b"..", b"a\0b", b"a/b", b"a%2Fb", b"\xff\xfe", b"active", long, long + b"2", b"%"]
    there, taken = Shelf({b"": None, **{name: b"# %d" % number for number, name in enumerate(names)}}, active=long), Shelf()
    with scripted(there) as old_filters, scripted(taken) as new_filters:
        move = a_move(tmp_path, old, new, old_sieve=f"sieve_port = {old_filters.port}", new_sieve=f"sieve_port = {new_filters.port}")
        move.security = "plain"
        move.write()
        ran = move.backup(exit=3)
        assert [(row["part"], row["name"], row["code"]) for row in ran.json["failures"]] == [(f"sieve/{TARO}", "%.sieve", "refused")]
        assert ("it cannot be read" in ran.reasons, "save this filter by hand" in ran.reasons) == (True, True)
        assert {key: part["state"] for key, part in ran.json["parts"].items()} == {f"mail/{TARO}": "complete", f"sieve/{TARO}": "incomplete"}
        shown = {path.name: path.read_bytes() for path in (move.vault / "latest" / "sieve" / TARO).iterdir()}
        assert sorted(shown.values()) == sorted([*(b"# %d" % number for number in range(len(names))), b"# 6"])
        move.push(exit=3)
        assert (taken.scripts, taken.active) == ({name: b"# %d" % number for number, name in enumerate(names)}, long)
        move.run("verify", "--against", "old", "--against", "new", exit=3)
        del there.scripts[long + b"2"]  # what is gone keeps its name
        there.scripts[b""] = b"keep;"
        assert move.backup().json["counts"]["vanished"] == 1
    for ran in (move.push(exit=3), move.run("verify", "--against", "new", exit=3)):  # who took filters before offers them
        assert [(row["part"], row["code"]) for row in ran.json["failures"]] == [(f"sieve/{TARO}", "not-offered")]
        assert "not_covered" not in ran.json
    with Vault.open(move.vault, "read") as vault:
        root = TreeRoot.open(vault.manifests, vault.snapshots.get("latest").parts[f"sieve/{TARO}"].root)
        assert sorted(names_from(root.meta).values()) == [long, long + b"2"]


@pytest.mark.parametrize(
    ("script", "folders"),
    [
        ('fileinto "A";', ["A"]),
        ('if anyof (header :is "x" "y", true) { fileinto :create "A/B"; stop; } elsif true { FileInto :flags "\\\\Seen" "C"; }', ["A/B", "C"]),
        ('# fileinto "no";\n/* fileinto "no"; */ fileinto "say \\"x\\"";', ['say "x"']),
        ('vacation text:\nfileinto "no";\n.\n;\nredirect "a@example.test"; keep;', []),
        ('vacation text: # "\r\nfileinto "no";\r\n.\r\n; fileinto "A";', ["A"]),
        ("", []),
        ('fileinto "A"; ' + "/*" * 500_000, ["A"]),
        ('fileinto "A"; ' + "text:\n" * 150_000, ["A"]),
        ('fileinto "A"; ' + "text:" * 200_000, ["A"]),
        ('fileinto "A"; "' + '\\"' * 500_000, ["A"]),
    ],
    ids=range(10),
)
def test_the_folders_that_a_script_files_into(script: str, folders: list[str]) -> None:
    assert named_folders(script) == folders
