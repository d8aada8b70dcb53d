"""Masters, tokens, tunnels and pinned certificates by the real command line: what comes in, what is said, what is on record."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Ran, hostbackup
from tests.support.dovecot import HOST, Dovecot, dovecot
from tests.support.imap_script import FakeBox, FakeImap, Talk
from tests.support.mail_move import Hands, letter

TARO, HANAKO = "taro@example.test", "hanako@example.test"
NAMES = f"user,password\n{TARO},\n{HANAKO},\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Dovecot]:
    with dovecot(names=("s12.provider.test",), masters={"admin": "kagi-master-1"}) as running:
        for number, user in enumerate((TARO, HANAKO)):
            Hands(running, user).deliver((), letter(number), letter(100 + number))
        yield running


def run(folder: Path, command: str, keys: dict[str, Any], exit: int, *, accounts: str = NAMES, more: str = "") -> Ran:
    text = 'name = "move"\nvault = "vault"\n[old.imap]\naccounts = "accounts.csv"\n'
    text += "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items()) + more
    (folder / "move.toml").write_text(text, encoding="utf-8")
    (folder / "accounts.csv").write_text(accounts, encoding="utf-8")
    for name in ("move.toml", "accounts.csv"):
        (folder / name).chmod(0o600)
    ran = hostbackup(command, "move.toml", "--json", "--verbose", cwd=folder)
    assert ran.exit == exit, (ran.exit, ran.out[-2000:], ran.err)
    assert "kagi-master-1" not in ran.out + ran.err
    return ran


def tls(server: Dovecot, **more: str) -> dict[str, Any]:
    return {"host": HOST, "address": "127.0.0.1", "port": server.ports["tls"], "ca_file": str(server.authority)} | more


def weaker(folder: Path) -> set[str]:
    lines = [json.loads(line) for path in (folder / "vault/evidence").iterdir() for line in path.read_text().splitlines()]
    return {line["setting"] for line in lines if line["type"] == "weaker-setting"}


def test_a_master_brings_in_mailboxes_whose_passwords_nobody_knows(tmp_path: Path, server: Dovecot) -> None:
    keys = tls(server, certificate_name="s12.provider.test")
    for master in ("", 'separator = "*"\n'):
        more = f'[old.imap.master]\nuser = "admin"\npassword = "kagi-master-1"\n{master}'
        ran = run(tmp_path, "backup", keys, 0, more=more)
        assert {name: part["entries"] for name, part in ran.json["parts"].items()} == {f"mail/{TARO}": 2, f"mail/{HANAKO}": 2}
        assert ran.err.count("certificate_name") == 1
    assert weaker(tmp_path) == {'certificate_name = "s12.provider.test"'}


def test_a_refusal_shows_the_fingerprint_and_with_it_the_server_is_entered(tmp_path: Path, server: Dovecot) -> None:
    taro = f"user,password\n{TARO},{server.users[TARO]}\n"
    ran = run(tmp_path, "check", tls(server), 1, accounts=taro)
    [failure] = ran.json["failures"]
    shown = failure["hint"].partition("it shows ")[2][:71]
    assert shown in ran.err
    keys = tls(server)
    del keys["ca_file"]
    run(tmp_path, "backup", keys | {"certificate": shown}, 0, accounts=taro)
    assert weaker(tmp_path) == {f'certificate = "{shown}"'}
    run(tmp_path, "backup", keys | {"certificate": "SHA256:" + "0" * 64}, 1, accounts=taro)


def test_a_tunnel_brings_in_mailboxes_without_a_port_a_password_or_a_name_that_resolves(tmp_path: Path, server: Dovecot) -> None:
    keys = {"host": "no-such-host.example.test", "tunnel": ["/usr/lib/dovecot/imap", "-c", str(server.base / "dovecot.conf"), "-u", "{user}"]}
    ran = run(tmp_path, "check", keys, 0)
    assert [row["messages"] for row in ran.json["mailboxes"]] == [2, 2]
    ran = run(tmp_path, "backup", keys, 0)
    assert {name: part["entries"] for name, part in ran.json["parts"].items()} == {f"mail/{TARO}": 2, f"mail/{HANAKO}": 2}
    assert weaker(tmp_path) == {"tunnel = /usr/lib/dovecot/imap"}
    ran = run(tmp_path, "backup", keys | {"tunnel": ["sh", "-c", "echo 'No route to host' >&2; exit 255"]}, 1)
    assert "No route to host" in ran.err


def test_tokens_of_many_mailboxes_come_from_one_command(tmp_path: Path) -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb != "AUTHENTICATE":
            return False
        said = base64.b64decode(rest.split()[-1]).decode()
        good = said == "user=taro\x01auth=Bearer fresh-token-of-taro\x01\x01"
        talk.send(tag + (b" OK in\r\n" if good else b" NO refused: " + rest + b" " + said.replace("\x01", " ").encode() + b"\r\n"))
        return True

    (tmp_path / "access-token").write_text("#!/bin/sh\necho fresh-token-of-$1\n")
    (tmp_path / "access-token").chmod(0o700)
    fake = FakeImap(boxes={b"INBOX": FakeBox({1: letter(1)})}, capabilities=b"IMAP4rev1 UIDPLUS SASL-IR AUTH=XOAUTH2", hook=hook)
    with fake.running():
        keys = {"host": "127.0.0.1", "port": fake.port, "security": "plain", "auth": "xoauth2"}
        more = 'token = { command = ["./access-token", "{user}"] }\n'
        ran = run(tmp_path, "backup", keys, 3, accounts="user,password\ntaro,\nhanako,\n", more=more)
    [failure] = ran.json["failures"]
    assert (failure["part"], failure["code"]) == ("mail/hanako", "login-refused")
    assert "refused: XOAUTH2 ******** user=hanako auth=Bearer ********" in failure["reason"]
    assert "fresh-token" not in ran.out + ran.err
    assert sum(command.startswith(b"AUTHENTICATE") and b"hanako" not in command for command in fake.commands) == 2  # each once
