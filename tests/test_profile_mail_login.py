"""Keys of a mail section that say who logs in, through what, and whose certificate counts."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest

from hostbackup.accounts import Account
from hostbackup.errors import LoginRefused, ProfileError, SecretError
from hostbackup.jobs.connect import Connections
from hostbackup.profile import Profile, parse
from hostbackup.secrets import Secret, SecretSource

DIGEST = hashlib.sha256(b"certificate").digest()


def load(tmp_path: Path, section: str, accounts: str = '[[old.imap.account]]\nuser = "taro"\n', more: str = "") -> Profile:
    return parse(f'vault = "v"\n[old.imap]\nhost = "mail.example.test"\n{section}\n{accounts}\n{more}', tmp_path / "move.toml")


def target(connections: Connections, side: str = "old") -> Any:
    [account] = connections.profile.old_accounts()
    return connections.imap_target(side, account if side == "old" else connections.profile.new_account_for(account))


@pytest.mark.parametrize(
    "text",
    [
        "SHA256:" + DIGEST.hex(),
        "sha256:" + DIGEST.hex().upper(),
        "SHA256 Fingerprint=" + ":".join(f"{byte:02X}" for byte in DIGEST),
        DIGEST.hex(" "),
        "SHA256:" + base64.b64encode(DIGEST).decode(),
        "SHA-256: " + base64.b64encode(DIGEST).decode().rstrip("="),
    ],
)
def test_a_fingerprint_is_taken_however_a_person_has_it(tmp_path: Path, text: str) -> None:
    imap = load(tmp_path, f'certificate = "{text}"').old.imap
    assert imap is not None
    assert imap.certificate == "SHA256:" + DIGEST.hex()


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ('certificate = "SHA1:abcd"', "old.imap.certificate: expected SHA256:"),
        (f'certificate = "{DIGEST.hex()}"\nca_file = "ca.pem"', "certificate alone decides"),
        (f'certificate = "{DIGEST.hex()}"\ncertificate_name = "a.example"', "certificate alone decides"),
        (f'security = "plain"\ncertificate = "{DIGEST.hex()}"', "shows no certificate"),
        ("tunnel = []", "expected a program and its arguments"),
        ('tunnel = "ssh host"', "old.imap.tunnel: expected a list"),
        ('tunnel = ["ssh", "h", "imap", "--password={password}"]', "list of processes"),
        ('tunnel = ["ssh"]\nport = 993\nsecurity = "tls"', "take out port, security"),
        ('tunnel = ["ssh"]\n[[old.imap.account]]\nuser = "x"\naddress = "192.0.2.1"', "take out the address of accounts"),
        ('auth = "oauth"', "expected 'auto', 'password', 'xoauth2' or 'oauthbearer'"),
        ('auth = "xoauth2"', 'auth = "xoauth2" needs a token'),
        ('auth = "password"\ntoken = { env = "T" }', "of no use with auth"),
        ('token = { env = "T" }\nmaster = { user = "m", password = { env = "P" } }', "either master or token"),
        ('master = { user = "m" }', "old.imap.master.password: is missing"),
        ('[[old.imap.account]]\nuser = "x"\ntoken = { env = "T" }\npassword = { env = "P" }', "has password and token"),
    ],
)
def test_what_cannot_be_meant_is_told(tmp_path: Path, section: str, said: str) -> None:
    with pytest.raises(ProfileError) as caught:
        load(tmp_path, section)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_master_makes_passwords_needless(tmp_path: Path) -> None:
    connections = Connections(load(tmp_path, 'master = { user = "admin", password = "kagi-1", separator = "*" }'))
    made = target(connections)
    assert (made.login, made.authorize, made.password) == ("taro*admin", "", "kagi-1")
    made = target(Connections(load(tmp_path, 'master = { user = "admin", password = "kagi-1" }')))
    assert (made.login, made.authorize, made.password) == ("admin", "taro", "kagi-1")
    assert "kagi-1" not in repr(made)


def test_a_token_comes_from_a_command_that_is_told_of_whom(tmp_path: Path) -> None:
    (tmp_path / "access-token").write_text("#!/bin/sh\necho token-of-$1-$(cat count)\necho x >> count\n")
    (tmp_path / "access-token").chmod(0o700)
    (tmp_path / "count").write_text("")
    heard: list[Secret] = []
    connections = Connections(load(tmp_path, 'token = { command = ["./access-token", "{user}"] }'), on_secret=heard.append)
    made = target(connections)
    assert made.password == ""
    assert [made.token(), made.token()] == ["token-of-taro-", "token-of-taro-x"]
    assert [secret.reveal() for secret in heard] == ["token-of-taro-", "token-of-taro-x"]  # so that nothing printed shows one
    assert "token-of" not in repr(made)


@pytest.mark.parametrize(
    ("script", "said"), [("echo denied >&2; exit 3", "ended with 3: denied"), ("echo Your token: abc", "several words"), ("", "empty")]
)
def test_a_token_that_is_not_to_be_had_concerns_one_account(tmp_path: Path, script: str, said: str) -> None:
    (tmp_path / "access-token").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "access-token").chmod(0o700)
    made = target(Connections(load(tmp_path, 'token = { command = ["./access-token"] }')))
    with pytest.raises(LoginRefused, match=said) as caught:
        made.token()
    assert caught.value.where == "old.imap taro"


def test_a_password_of_its_own_comes_before_the_section_s_token_unless_auth_says_otherwise(tmp_path: Path) -> None:
    own = '[[old.imap.account]]\nuser = "taro"\npassword = { env = "TARO" }\n'
    account = Account("taro", SecretSource.of("secret"))
    made = Connections(load(tmp_path, 'token = { env = "T" }', own)).imap_target("old", account)
    assert (made.password, made.token) == ("secret", None)
    made = Connections(load(tmp_path, 'auth = "xoauth2"\ntoken = { env = "T" }', own)).imap_target("old", account)
    assert made.password == ""
    assert made.token is not None
    only_hanako = own + '[[old.imap.account]]\nuser = "hanako"\ntoken = { env = "T" }\n'
    with pytest.raises(SecretError, match="no token is known"):
        Connections(load(tmp_path, 'auth = "xoauth2"', only_hanako)).imap_target("old", account)


def test_the_old_password_is_not_tried_at_a_new_server_that_takes_tokens(tmp_path: Path) -> None:
    own = '[[old.imap.account]]\nuser = "taro"\npassword = { env = "TARO" }\n'
    connections = Connections(load(tmp_path, "", own, '[new.imap]\nhost = "imap.example.net"\ntoken = { env = "NEW_TOKEN" }\n'))
    assert target(connections, "new").token is not None


def test_a_tunnel_leads_to_each_mailbox_and_needs_no_password(tmp_path: Path) -> None:
    section = 'tunnel = ["ssh", "root@{host}", "/usr/lib/dovecot/imap", "-u", "{user}"]'
    connections = Connections(load(tmp_path, section))
    made = target(connections)
    assert made.tunnel == ("ssh", "root@mail.example.test", "/usr/lib/dovecot/imap", "-u", "taro")
    assert made.password == ""
    assert connections.reach(connections.imap_section("old")) == ()  # no name is looked up
    [line] = connections.weaker_settings()
    assert (line["section"], line["setting"]) == ("old.imap mail.example.test", "tunnel = ssh")
    for name in ("taro;reboot", "-oProxyCommand=x", "$(id)", "a b", "a\nb"):
        with pytest.raises(LoginRefused, match="a shell could take it for more"):
            connections.imap_target("old", Account(name))


def test_pins_are_weaker_settings_on_record(tmp_path: Path) -> None:
    own = '[[old.imap.account]]\nuser = "taro"\npassword = "geheim-1"\n'
    for section in (f'certificate = "SHA256:{DIGEST.hex()}"', 'certificate_name = "s12.provider.test"'):
        connections = Connections(load(tmp_path, section, own))
        target(connections)
        assert [line["setting"] for line in connections.weaker_settings()] == [section]
