"""Many accounts at once, and what is wrong with servers, certificates, passwords and lists: exit codes and words, by the real command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Ran, hostbackup
from tests.support.dovecot import HOST, INBOX_DOT, PLAIN_SLASH, Dovecot, dovecot
from tests.support.imap_script import FakeImap, Talk
from tests.support.mail_move import Hands, digest, letter
from tests.support.sshd import free_port

TARO, HANAKO, INFO = "taro@example.test", "hanako@example.test", "info@example.test"
USERS = {TARO: "kirin-77", HANAKO: 'ひみつ, "秘" パスワード ', INFO: "geheim-9"}
TOO_LONG = "x" * 64 + ".example.test"  # no resolver is asked about a name that cannot be


@pytest.fixture(scope="module")
def server() -> Iterator[Dovecot]:
    with dovecot(INBOX_DOT, users=USERS) as running:
        for number, user in enumerate(USERS):
            Hands(running, user).deliver((), letter(number), letter(100 + number))
        yield running


def profile(
    folder: Path, server: Dovecot, *, accounts: str = "", user: str = TARO, password: str | None = None, more: str = "", **changes: object
) -> None:
    """A profile of [old.imap] alone: `accounts` is the CSV's text, or there is one account."""
    keys: dict[str, object] = {"host": HOST, "address": "127.0.0.1", "port": server.ports["tls"], "security": "tls", "ca_file": str(server.authority)}
    keys |= changes
    text = 'name = "move"\nvault = "vault"\n[old.imap]\n' + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items() if value)
    if accounts:
        text += 'accounts = "accounts.csv"\n'
        (folder / "accounts.csv").write_text(accounts, encoding="utf-8")
        (folder / "accounts.csv").chmod(0o600)
    else:
        text += f"[[old.imap.account]]\nuser = {json.dumps(user)}\npassword = {json.dumps(password or USERS[user], ensure_ascii=False)}\n"
    (folder / "move.toml").write_text(text + more, encoding="utf-8")
    (folder / "move.toml").chmod(0o600)


def run(folder: Path, *words: str, exit: int) -> Ran:
    ran = hostbackup(words[0], "move.toml", *words[1:], "--json", cwd=folder)
    assert ran.exit == exit, (ran.exit, ran.out[-2000:], ran.err)
    for password in ("not the password", *USERS.values()):
        assert password not in ran.out + ran.err
    return ran


def one_line(ran: Ran) -> str:
    """The single failure of a run, as JSON tells it, which stderr tells in one line too."""
    [failure] = ran.json["failures"]
    [line] = [line for line in ran.err.splitlines() if failure["reason"].removesuffix(".") in line]
    assert failure["hint"] in line
    reason: str = failure["reason"]
    return reason


def csv_of(**passwords: str) -> str:
    rows = {TARO: USERS[TARO], HANAKO: USERS[HANAKO], INFO: USERS[INFO]} | {f"{name}@example.test": value for name, value in passwords.items()}
    return "user,password\r\n" + "".join(f'{user},"{password.replace(chr(34), chr(34) * 2)}"\r\n' for user, password in rows.items())


def test_every_account_of_a_csv_comes_in(tmp_path: Path, server: Dovecot) -> None:
    profile(tmp_path, server, accounts="\ufeff" + csv_of())
    parts = run(tmp_path, "backup", exit=0).json["parts"]
    assert {name: (part["state"], part["entries"]) for name, part in parts.items()} == {f"mail/{user}": ("complete", 2) for user in USERS}
    run(tmp_path, "verify", "--against", "old", exit=0)


def test_one_wrong_password_among_others_is_listed_and_tried_once(tmp_path: Path, server: Dovecot) -> None:
    profile(tmp_path, server, accounts=csv_of(hanako="not the password"))
    before = server.log().count("auth failed, 1 attempts")
    ran = run(tmp_path, "backup", exit=3)
    assert "hanako@example.test" in one_line(ran)
    assert set(ran.json["parts"]) == {f"mail/{TARO}", f"mail/{INFO}"}
    for number, user in enumerate(USERS):
        assert (tmp_path / "vault/objects" / digest(letter(number))[:2] / digest(letter(number))).exists() is (user != HANAKO)
    server.log_with("auth failed, 1 attempts")
    assert server.log().count("auth failed, 1 attempts") - before == 1
    assert "user=<hanako@example.test>" in server.log()
    # With the right password the account joins the others; these are not read again.
    profile(tmp_path, server, accounts=csv_of())
    assert run(tmp_path, "backup", exit=0).json["counts"]["read"] == 2


def test_a_part_that_was_not_read_this_time_stays_as_it_was(tmp_path: Path, server: Dovecot) -> None:
    profile(tmp_path, server, accounts=csv_of())
    run(tmp_path, "backup", exit=0)
    profile(tmp_path, server, accounts=csv_of(hanako="not the password"))
    part = run(tmp_path, "backup", exit=3).json["parts"][f"mail/{HANAKO}"]
    assert (part["state"], part["entries"]) == ("carried", 2)
    assert "refused the login" in part["reason"]
    assert len(list((tmp_path / "vault/latest/mail" / HANAKO / "cur").iterdir())) == 2


def test_an_account_without_a_password_is_not_covered_and_the_others_are(tmp_path: Path, server: Dovecot) -> None:
    profile(tmp_path, server, accounts=csv_of(hanako=""))
    ran = run(tmp_path, "backup", exit=3)
    assert "no password is known" in one_line(ran)
    assert [row["part"] for row in ran.json["failures"]] == [f"mail/{HANAKO}"]
    assert set(ran.json["parts"]) == {f"mail/{TARO}", f"mail/{INFO}"}


def test_a_single_account_with_a_wrong_password_fails(tmp_path: Path, server: Dovecot) -> None:
    profile(tmp_path, server, password="not the password")
    assert "refused the login of taro@example.test" in one_line(run(tmp_path, "backup", exit=1))
    assert not list((tmp_path / "vault/snapshots").iterdir())
    profile(tmp_path, server)
    run(tmp_path, "backup", exit=0)
    profile(tmp_path, server, password="not the password")
    run(tmp_path, "verify", "--against", "old", exit=3)  # the vault itself was proven
    run(tmp_path, "check", exit=1)


def test_a_folder_that_could_not_be_opened_is_told_by_all_that_works_from_that_snapshot(tmp_path: Path, server: Dovecot) -> None:
    hands = Hands(server, INFO)
    hands.make(("Locked",))
    hands.deliver(("Locked",), letter(500))
    folder = next(path for path in server.maildir(INFO).iterdir() if path.name.endswith("Locked"))
    mode = folder.stat().st_mode
    profile(tmp_path, server, user=INFO)
    try:
        folder.chmod(0)
        [failure] = run(tmp_path, "backup", exit=3).json["failures"]
    finally:
        folder.chmod(mode)
    assert "Locked" in failure["name"]
    with FakeImap().running() as new:
        section = f'[new.imap]\nhost = "127.0.0.1"\nport = {new.port}\nsecurity = "plain"\nsieve = "never"\n'
        profile(tmp_path, server, user=INFO, more=section)
        for words in (("verify",), ("restore", "--to", "all"), ("restore", f"mail/{INFO}", "--to", "one"), ("push",)):
            ran = run(tmp_path, *words, exit=3)
            assert [(row["part"], row["name"], row["code"]) for row in ran.json["failures"]] == [(f"mail/{INFO}", failure["name"], "not-stored")]
            assert one_line(ran) == f"it could not be listed whole when it was backed up: {failure['reason']}"
    run(tmp_path, "restore", f"mail/{INFO}/INBOX", "--to", "inbox", exit=0)
    run(tmp_path, "backup", exit=0)
    run(tmp_path, "verify", exit=0)
    hands.drop(("Locked",))


def account_rows(document: dict[str, Any]) -> list[tuple[object, ...]]:
    """`accounts` of a document, or of a step of `sync`."""
    figures = ("state", "messages", "new", "failed", "reason")
    return [(row["part"].removeprefix("mail/"), row.get("side", ""), *(row[key] for key in figures)) for row in document["accounts"]]


def test_accounts_map_to_other_names_at_the_new_server(tmp_path: Path, server: Dovecot) -> None:
    new_users = {"t.yamada@new.test": "neu", TARO: USERS[TARO]}
    with dovecot(PLAIN_SLASH, users=new_users) as new:
        section = f'[sync]\nsteps = ["backup", "push", "verify"]\n[new.imap]\nhost = "{HOST}"\naddress = "127.0.0.1"\n'
        section += f'port = {new.ports["tls"]}\nca_file = "{new.authority}"\n'
        rows = f"user,password,new_user,new_password\n{TARO},kirin-77,t.yamada@new.test,neu\n{INFO},geheim-9,,\n"
        profile(tmp_path, server, accounts=rows, more=section)
        run(tmp_path, "backup", exit=0)
        ran = run(tmp_path, "push", exit=3)  # info is not there yet
        assert "info@example.test" in one_line(ran)
        assert Hands(new, "t.yamada@new.test").count() == 2
        refused = ran.json["failures"][0]["reason"]
        assert account_rows(ran.json) == [(TARO, "", "complete", 2, 2, 0, ""), (INFO, "", "failed", 0, 0, 1, refused)]
        proven = run(tmp_path, "verify", "--against", "old", "--against", "new", exit=3).json
        assert account_rows(proven) == [
            (INFO, "vault", "complete", 2, 0, 0, ""),
            (TARO, "vault", "complete", 2, 0, 0, ""),
            (INFO, "old", "complete", 2, 0, 0, ""),
            (TARO, "old", "complete", 2, 0, 0, ""),
            (INFO, "new", "incomplete", 2, 0, 1, "nothing of this mailbox was pushed yet"),
            (TARO, "new", "complete", 2, 0, 0, ""),
        ]
        steps = {step["step"]: account_rows(step) for step in run(tmp_path, "sync", exit=3).json["steps"]}
        assert steps["backup"] == [(TARO, "", "complete", 2, 0, 0, ""), (INFO, "", "complete", 2, 0, 0, "")]
        assert steps["push"] == [(TARO, "", "complete", 2, 0, 0, ""), (INFO, "", "failed", 0, 0, 1, refused)]
        assert steps["verify"] == [(INFO, "vault", "complete", 2, 0, 0, ""), (TARO, "vault", "complete", 2, 0, 0, "")]
        ran = run(tmp_path, "push", "--account", TARO, exit=0)
        assert ran.json["counts"].get("written", 0) == 0
        assert "no account" in run(tmp_path, "push", "--account", "nobody", exit=2).reasons


def test_a_server_that_repeats_the_password_tells_nobody(tmp_path: Path, server: Dovecot) -> None:
    def refuse(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb != "LOGIN" or b"hanako" not in rest:
            return False
        talk.send(tag + b" NO you said " + rest + b"\r\n")
        return True

    fake = FakeImap(hook=refuse)
    with fake.running():
        rows = "user,password\ntaro,kirin-77\nhanako,geheim-9\n"
        profile(tmp_path, server, accounts=rows, security="plain", port=fake.port, ca_file=None)
        assert "refused the login of hanako" in one_line(run(tmp_path, "backup", "--log-file", "log", exit=3))
    for path in [tmp_path / "log", *(tmp_path / "vault").rglob("*")]:
        assert path.is_dir() or b"geheim-9" not in path.read_bytes()


def test_a_self_signed_or_foreign_certificate_is_refused(tmp_path: Path, server: Dovecot) -> None:
    profile(tmp_path, server, ca_file=None)
    assert "certificate" in one_line(run(tmp_path, "backup", exit=1))


def test_an_expired_certificate_is_refused(tmp_path: Path) -> None:
    with dovecot(INBOX_DOT, expired=True, users=USERS) as old:
        profile(tmp_path, old)
        assert "expired" in one_line(run(tmp_path, "backup", exit=1))
        assert "expired" in one_line(run(tmp_path, "check", exit=1))
        profile(tmp_path, old, security="starttls", port=old.ports["plain"])
        assert "expired" in one_line(run(tmp_path, "backup", exit=1))
        assert "taro" not in old.log()  # no password went over it


def test_a_certificate_for_another_name_is_refused(tmp_path: Path) -> None:
    with dovecot(INBOX_DOT, names=("mail.other.test",), users=USERS) as old:
        profile(tmp_path, old)
        ran = run(tmp_path, "backup", exit=1)
        assert "another name" in one_line(ran) or HOST in one_line(ran)
        profile(tmp_path, old, host="mail.other.test")
        run(tmp_path, "backup", exit=0)


def test_a_closed_port_and_a_name_that_does_not_resolve_fail_in_one_line(tmp_path: Path, server: Dovecot) -> None:
    port = free_port()
    profile(tmp_path, server, port=port)
    assert f"port {port} of {HOST} (127.0.0.1) refused the connection" in one_line(run(tmp_path, "backup", exit=1))
    profile(tmp_path, server, host=TOO_LONG, address=None)
    assert "leads to no address" in one_line(run(tmp_path, "backup", exit=1))
    assert "leads to no address" in one_line(run(tmp_path, "check", exit=1))
    profile(tmp_path, server, host=TOO_LONG)
    assert "no certificate can be for the name" in one_line(run(tmp_path, "backup", exit=1))
    profile(tmp_path, server, port=server.ports["plain"])  # TLS to a port that speaks plain IMAP
    assert "TLS" in one_line(run(tmp_path, "backup", exit=1))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("user\ntaro@example.test\n", "password"),
        ("user,password\ntaro@example.test,one\nhanako@example.test,two\ntaro@example.test,one\n", ":4"),
        ("user,password\ntaro@example.test\n", ":2"),
        ("", "accounts.csv"),
    ],
    ids=["missing-column", "equal-rows", "missing-field", "empty"],
)
def test_a_bad_list_of_accounts_is_wrong_usage(tmp_path: Path, server: Dovecot, text: str, told: str) -> None:
    profile(tmp_path, server, accounts=text or "\n")
    for command in ("backup", "check", "push"):
        ran = run(tmp_path, command, exit=2)
        assert told in ran.err
    assert not (tmp_path / "vault").exists()


def test_plain_imap_says_so(tmp_path: Path, server: Dovecot) -> None:
    profile(tmp_path, server, security="plain", port=server.ports["plain"])
    ran = run(tmp_path, "backup", exit=0)
    assert ran.err.count("unencrypted") == 1
    profile(tmp_path, server, security="starttls", port=server.ports["plain"])
    assert "unencrypted" not in run(tmp_path, "backup", exit=0).err


def test_a_login_that_both_servers_refuse_leaves_the_vault_as_it_was(tmp_path: Path, server: Dovecot) -> None:
    profile(tmp_path, server)
    run(tmp_path, "backup", exit=0)
    before = sorted(str(path) for path in (tmp_path / "vault").rglob("*") if "state" not in path.parts)
    profile(tmp_path, server, password="not the password")
    run(tmp_path, "backup", exit=1)
    assert sorted(str(path) for path in (tmp_path / "vault").rglob("*") if "state" not in path.parts) == before
