"""Forty mailboxes at once on a real server, some of which fail: nobody's failure is another's, and the server never bears more than its budget."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import hostbackup
from tests.support.dovecot import HOST, PLAIN_SLASH, Dovecot, dovecot
from tests.support.mail_move import Hands, letter

COUNT = 40
USERS = {f"user{number:02}@example.test": f"geheim-{number}" for number in range(COUNT)}
REFUSED, WITHOUT = "user07@example.test", "user11@example.test"


@pytest.fixture(scope="module")
def server() -> Iterator[Dovecot]:
    with dovecot(PLAIN_SLASH, users=USERS, extra="mail_max_userip_connections = 4\n") as running:
        for number, user in enumerate(USERS):
            Hands(running, user).deliver((), letter(number))
        yield running


def profile(folder: Path, server: Dovecot, rows: dict[str, str], more: str = "") -> None:
    (folder / "accounts.csv").write_text("user,password\n" + "".join(f"{user},{password}\n" for user, password in rows.items()))
    (folder / "accounts.csv").chmod(0o600)
    keys = {"host": HOST, "address": "127.0.0.1", "port": server.ports["tls"], "ca_file": str(server.authority), "accounts": "accounts.csv"}
    text = 'name = "move"\nvault = "vault"\n[old.imap]\n' + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
    (folder / "move.toml").write_text(text + more)
    (folder / "move.toml").chmod(0o600)


def test_forty_mailboxes_come_in_but_for_those_that_cannot(tmp_path: Path, server: Dovecot) -> None:
    listed = [*list(USERS)[1:], "Info@EXAMPLE.test", "USER01@example.test"]
    (tmp_path / "list.txt").write_bytes("\ufeff# 一覧\r\n".encode() + "\r\n".join([*listed, "user02@Example.TEST", ""]).encode())
    more = 'connections = 3\n[mail]\nexpected = "list.txt"\n'
    profile(tmp_path, server, {**USERS, REFUSED: "wrong", WITHOUT: ""}, more)
    refused = server.log().count("auth failed, 1 attempts")
    ran = hostbackup("backup", "move.toml", "--json", cwd=tmp_path)
    assert ran.exit == 3, (ran.out, ran.err)
    told = [(row["part"], row["code"]) for row in ran.json["failures"]]
    assert told == [  # the list's, then the accounts' in the order of the profile, whoever was faster
        ("mail/Info@EXAMPLE.test", "not-covered"),
        ("mail/USER01@example.test", "not-covered"),
        (f"mail/{REFUSED}", "login-refused"),
        (f"mail/{WITHOUT}", "not-covered"),
    ]
    assert ran.json["expected"] == {
        "mailboxes": COUNT + 1,
        "missing": ["Info@EXAMPLE.test", "USER01@example.test"],
        "unlisted": ["user00@example.test"],
    }
    assert {part["state"] for part in ran.json["parts"].values()} == {"complete"}
    assert set(ran.json["parts"]) == {f"mail/{user}" for user in USERS} - {f"mail/{REFUSED}", f"mail/{WITHOUT}"}
    assert ran.json["counts"]["read"] == COUNT - 2
    states = {row["part"]: (row["state"], row["messages"], row["new"], row["failed"]) for row in ran.json["accounts"]}
    assert list(states) == [f"mail/{user}" for user in USERS]
    assert states == dict.fromkeys(states, ("complete", 1, 1, 0)) | {f"mail/{user}": ("failed", 0, 0, 1) for user in (REFUSED, WITHOUT)}
    server.log_with("auth failed, 1 attempts")
    assert server.log().count("auth failed, 1 attempts") - refused == 1
    [evidence] = (tmp_path / "vault/evidence").glob("*-backup.jsonl")
    [line] = [row for row in map(json.loads, evidence.read_text().splitlines()) if row["type"] == "mailboxes"]
    assert line["missing"] == ran.json["expected"]["missing"]
    never_backed_up_is_told(tmp_path)
    # With all passwords the two join the others, of which nothing is read again.
    profile(tmp_path, server, USERS)
    again = hostbackup("backup", "move.toml", "--json", cwd=tmp_path)
    assert (again.exit, again.json["counts"]["read"], len(again.json["parts"])) == (0, 2, COUNT)


def never_backed_up_is_told(folder: Path) -> None:
    """By every command that works from the snapshot: what it does not hold looks like nothing at all."""
    ran = hostbackup("verify", "move.toml", "--json", cwd=folder)
    told = [(row["side"], row["part"], row["code"]) for row in ran.json["failures"]]
    lost = [("vault", f"mail/{user}", "not-covered") for user in (REFUSED, WITHOUT)]
    assert (ran.exit, sorted(told)) == (
        3,
        sorted([("old", f"mail/{name}", "not-covered") for name in ("Info@EXAMPLE.test", "USER01@example.test")] + lost),
    )
    assert "refused the login" in ran.reasons
    assert "no password is known" in ran.reasons
    states = {row["part"]: (row["side"], row["state"], row["messages"]) for row in ran.json["accounts"]}
    assert states == {f"mail/{user}": ("vault", "failed", 0) if user in (REFUSED, WITHOUT) else ("vault", "complete", 1) for user in USERS}
    evidence = max((folder / "vault/evidence").glob("*-verify.jsonl"))
    lines = [json.loads(line) for line in evidence.read_text().splitlines()]
    assert [row["part"] for row in lines if row["type"] == "never-saved"] == [f"mail/{user}" for user in (REFUSED, WITHOUT)]
    text = hostbackup("verify", "move.toml", cwd=folder)
    assert f"vault  mail/{REFUSED}  -         -      -             never backed up" in text.out
    assert "vault: 40 mailboxes (38 complete, 2 failed): 38 messages" in text.out
    restored = hostbackup("restore", "move.toml", "--to", "all", "--json", cwd=folder)
    lost_names = {REFUSED, WITHOUT, "Info@EXAMPLE.test", "USER01@example.test"}
    assert {(row["part"], row["code"]) for row in restored.json["failures"]} == {(f"mail/{user}", "not-stored") for user in lost_names}
    assert (restored.exit, restored.json["counts"]["files"]) == (3, COUNT - 2)
    assert hostbackup("restore", "move.toml", "mail/user01@example.test", "--to", "one", cwd=folder).exit == 0
    (folder / "accounts.csv").rename(folder / "away.csv")  # the vault is still looked at, and so much is said
    blind = hostbackup("verify", "move.toml", "--json", cwd=folder)
    assert (blind.exit, [row["code"] for row in blind.json["failures"]]) == (3, ["accounts"])
    assert hostbackup("restore", "move.toml", "--to", "all", "--json", cwd=folder).json["counts"]["existing"] == COUNT - 2
    (folder / "away.csv").rename(folder / "accounts.csv")


def test_a_list_that_is_none_is_wrong_usage(tmp_path: Path, server: Dovecot) -> None:
    profile(tmp_path, server, USERS, '[mail]\nexpected = "list.txt"\n')
    assert hostbackup("backup", "move.toml", cwd=tmp_path).exit == 2
    (tmp_path / "list.txt").write_text("taro@example.test\nhanako@example.test, Hanako\n")
    ran = hostbackup("backup", "move.toml", cwd=tmp_path)
    assert ran.exit == 2
    assert "list.txt:2" in ran.err
    assert not (tmp_path / "vault").exists()
