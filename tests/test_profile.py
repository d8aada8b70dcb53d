"""The profile: what is accepted, what is refused and with which words."""

from __future__ import annotations

import datetime
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostbackup import profile
from hostbackup.errors import AccountsError, Exit, ProfileError
from hostbackup.profile import BucketCopy, PathCopy, Profile
from hostbackup.profile.explain import dotted, explain, line_of, positions
from hostbackup.profile.root import login_at
from hostbackup.profile.schema import json_schema
from hostbackup.profile.shape import read

PIN = "SHA256:" + "a" * 43
AGE = "age1" + "q" * 58

# Every section and key that a profile may have.
WHOLE = f"""
name  = "example.jp"
vault = "vault"
view  = "copy"

[old.ssh]
host = "www.example.jp"
address = "203.0.113.10"
port = 2222
user = "example"
password = {{ env = "OLD_SSH_PASSWORD" }}
key = "id"
passphrase = {{ file = "passphrase" }}
host_key = "{PIN}"
known_hosts = "~/.ssh/known_hosts"
shell = "never"
client = "openssh"
legacy = true

[[old.web]]
path = "public_html"
name = "site"
exclude = ["cache/", "*.log"]
volatile = ["logs/"]
[[old.web]]
path = "/srv/second"

[old.imap]
host = "mail.example.jp"
address = ["203.0.113.11", "2001:db8::1"]
port = 993
security = "tls"
accounts = "accounts.csv"
ca_file = "ca.pem"
[[old.imap.account]]
user = "taro@example.jp"
password = {{ command = "pass show taro" }}
address = "203.0.113.12"
new_user = "taro"
new_password = {{ keyring = "taro" }}
host = "mail2.example.jp"

[old.pop3]
host = "pop.example.jp"
[[old.pop3.account]]
user = "jiro"

[mail]
expected = "mailboxes.txt"
folders = {{ "送信済みアイテム" = "Sent" }}

[[local]]
path = "by-hand/"

[new.ssh]
host = "new.example.net"
[[new.web]]
from = "site"
path = "/var/www/html"
adapted = ["wp-config.php"]
[new.imap]
host = "imap.example.net"
security = "starttls"

[[copy]]
bucket = "example-backup"
prefix = "example.jp"
endpoint = "https://s3.example-store.jp"
region = "jp-east"
access_key = {{ env = "S3_KEY" }}
secret_key = {{ env = "S3_SECRET" }}
encrypt_to = ["{AGE}"]
mode = "vault"
[[copy]]
path = "/media/usb/example.jp/"
encrypt_to = []
mode = "mirror"

[domain]
name = "example.jp"
zone = "zone.txt"
new_nameservers = ["ns1.new.example"]
dns_now = "old-host"
dns_after = "new-host"
transfer = true
expires = 2027-09-30
authcode = {{ keyring = "example.jp" }}
authcode_issued = 2026-12-01

[contract]
provider = "j-motto"
timezone = "Asia/Tokyo"
notice_posted = 2026-11-20
notice_accepted = 2026-11-25
end = 2026-12-31
new_start = 2026-12-01
switch_wanted = 2026-12-10
switch_booked = 2026-12-10T10:00:00
switched = 2026-12-10T10:30:00+09:00
overlap_days = 14
closed_days = [2026-12-29, "12-30"]
asked = {{ "until when may files be fetched" = 2026-12-28 }}
groupware = "keep"
cutoff_day = 25
end_months = 1
switch_lead_days = 7
transfer_business_days = 10
domain_days_left = 31
authcode_days = 34
quiet_days = 7

[sync]
steps = ["check", "backup", "verify", "push", "copy", "dns", "report"]
"""

Loader = Callable[..., Profile]


@pytest.fixture
def load(tmp_path: Path) -> Loader:
    """Loads a profile from its text, beside the files that `WHOLE` names."""
    for name, text in {
        "accounts.csv": "user,password\nhanako@example.jp,\n",
        "id": "",
        "passphrase": "p",
        "ca.pem": "",
        "mailboxes.txt": "",
        "zone.txt": "",
    }.items():
        (tmp_path / name).write_text(text)

    def from_text(text: str, name: str = "customer.toml", mode: int = 0o644) -> Profile:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
        return profile.load(path)

    return from_text


@pytest.fixture
def reason(load: Loader, tmp_path: Path) -> Callable[[str], str]:
    """The error's text, without the folder's name."""

    def of(text: str) -> str:
        with pytest.raises(ProfileError) as caught:
            load(text)
        assert caught.value.exit == Exit.USAGE
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
        return str(caught.value).replace(f"{tmp_path}/", "")

    return of


def test_every_section_and_key_of_the_contract_is_understood(load: Loader, tmp_path: Path) -> None:
    whole = load(WHOLE)
    assert (whole.name, whole.vault, whole.view) == ("example.jp", tmp_path / "vault", "copy")
    ssh = whole.old.ssh
    assert ssh is not None
    assert (ssh.host, ssh.address, ssh.port, ssh.user, ssh.key) == ("www.example.jp", ("203.0.113.10",), 2222, "example", tmp_path / "id")
    assert (ssh.host_key, ssh.known_hosts, ssh.shell, ssh.client, ssh.legacy) == (PIN, Path.home() / ".ssh/known_hosts", "never", "openssh", True)
    assert [(web.path, web.name, web.exclude, web.volatile) for web in whole.old.web] == [
        ("public_html", "site", ("cache/", "*.log"), ("logs/",)),
        ("/srv/second", "second", (), ()),
    ]
    imap = whole.old.imap
    assert imap is not None
    assert (imap.address, imap.port, imap.security) == (("203.0.113.11", "2001:db8::1"), 993, "tls")
    assert whole.new.imap is not None
    assert (whole.new.imap.port, whole.new.imap.security) == (143, "starttls")
    assert whole.old.pop3 is not None
    assert whole.old.pop3.port == 995
    assert whole.mail.folders == {"送信済みアイテム": "Sent"}
    assert [(local.name, local.path) for local in whole.local] == [("by-hand", tmp_path / "by-hand")]
    assert [(web.source, web.path, web.adapted) for web in whole.new.web] == [("site", "/var/www/html", ("wp-config.php",))]
    bucket, disk = whole.copies
    assert isinstance(bucket, BucketCopy)
    assert isinstance(disk, PathCopy)
    assert (bucket.name, bucket.region, bucket.encrypt_to, bucket.mode) == ("example-backup/example.jp", "jp-east", (AGE,), "vault")
    assert (disk.name, disk.path, disk.mode) == ("/media/usb/example.jp", Path("/media/usb/example.jp"), "mirror")
    assert whole.domain is not None
    assert whole.domain.expires == datetime.date(2027, 9, 30)
    contract = whole.contract
    assert contract is not None
    assert contract.switch_wanted == datetime.date(2026, 12, 10)
    assert contract.switched == datetime.datetime(2026, 12, 10, 10, 30, tzinfo=datetime.timezone(datetime.timedelta(hours=9)))
    assert contract.closed_days == (datetime.date(2026, 12, 29), "12-30")
    assert whole.sync.steps[-1] == "report"


def test_a_section_is_what_it_was_read_as_and_stays_so(load: Loader) -> None:
    one, other = load(WHOLE), load(WHOLE)
    assert one == other
    assert one.old.imap == other.old.imap
    assert hash(one.old.imap) == hash(other.old.imap)
    assert one.old.imap != one.new.imap
    assert one.old.ssh != one.old
    for change in ("host", "port", "unknown"):
        with pytest.raises(AttributeError, match=f"Ssh.{change} is not to be changed"):
            setattr(one.old.ssh, change, "x")
    assert one.mail.folders is not load('vault = "v"').mail.folders is not load('vault = "v"').mail.folders
    assert one.old.pop3 is not None
    assert one.old.pop3.given == {"host", "account"}
    assert one.old.pop3.apop
    assert repr(one.old.pop3).startswith("Pop3(host='pop.example.jp', address=(), port=995, ")


def test_a_number_with_a_fraction_may_be_told_without_one(load: Loader, reason: Callable[[str], str]) -> None:
    told = load('vault = "v"\n[limits]\nstall_timeout = 5').limits.stall_timeout
    assert (told, type(told)) == (5.0, float)
    assert "limits.stall_timeout: expected more than 0, found 0" in reason('vault = "v"\n[limits]\nstall_timeout = 0')
    assert 'limits.stall_timeout: expected a number, found "5"' in reason('vault = "v"\n[limits]\nstall_timeout = "5"')


def test_a_profile_needs_nothing_but_a_vault(load: Loader) -> None:
    least = load('vault = "/srv/vault"')
    assert (least.name, least.view, least.sync.steps) == ("customer", "link", ("backup", "verify", "copy"))
    assert (least.old.ssh, least.old.web, least.new.imap, least.copies, least.domain) == (None, (), None, (), None)
    assert least.old_accounts() == []


def _paths(value: Any, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    inner = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    return [path for key, one in inner for path in [(*at, key), *_paths(one, (*at, key))]]


@pytest.mark.parametrize(
    "section",
    [
        path
        for path in _paths(tomllib.loads(WHOLE))
        if path[-1] in ("ssh", "web", "imap", "pop3", "mail", "local", "new", "copy", "domain", "contract", "sync", "old")
    ],
)
def test_any_section_may_be_left_out(section: tuple[str, ...], load: Loader, tmp_path: Path) -> None:
    table = tomllib.loads(WHOLE)
    here = table
    for key in section[:-1]:
        here = here[key]
    del here[section[-1]]
    if section in (("old",), ("old", "web")):
        table.get("new", {}).pop("web")  # [[new.web]] speaks of an [[old.web]]
    load('vault = "v"')  # the folder's files
    table["vault"] = str(table["vault"])
    assert read(Profile, table, tmp_path)[1] == []


def test_paths_are_relative_to_the_profile_and_a_home_is_expanded(load: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/taro")
    monkeypatch.chdir("/")
    assert load('vault = "v/../w"').vault == tmp_path / "v/../w"
    assert load('vault = "~/backup"').vault == Path("/home/taro/backup")
    assert load('vault = "/srv/x"').vault == Path("/srv/x")


def test_a_name_that_no_file_can_have_is_no_profile() -> None:
    with pytest.raises(ProfileError, match="there is no such profile"):
        profile.load("p" * 300)


def test_a_bare_name_is_looked_for_in_the_folder_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/example.jp.toml").write_text('vault = "v"')
    (tmp_path / "example.jp").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("example.jp", "example.jp.toml", "profiles/example.jp.toml"):
        loaded = profile.load(name)
        assert (loaded.name, loaded.vault) == ("example.jp", tmp_path / "profiles/v")
    with pytest.raises(ProfileError, match=r"exmaple: there is no such profile \(profiles here: example\.jp\)"):
        profile.load("exmaple")
    with pytest.raises(ProfileError, match="is a folder"):
        profile.load("profiles")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name = "x"', "customer.toml: vault: is missing: The folder of the backup"),
        ("vault = 3", "customer.toml:1: vault: expected a path in quotes, found 3"),
        ('vault = "v"\nveiw = "copy"', "customer.toml:2: veiw: unknown key; did you mean view?"),
        ('vault = "v"\nview = "lnk"', "customer.toml:2: view: expected 'link', 'copy' or 'none', found \"lnk\""),
        ('vault = "v"\n[old.ssh]\nport = 22', "customer.toml:2: old.ssh.host: is missing"),
        ('vault = "v"\n[old.ssh]\nhost = "h"\nprot = 22', "customer.toml:4: old.ssh.prot: unknown key; did you mean port?"),
        ('vault = "v"\n[old.ssh]\nhost = "h"\nport = "22"', 'customer.toml:4: old.ssh.port: expected a whole number, found "22"'),
        ('vault = "v"\n[old.ssh]\nhost = "h"\nport = 0', "old.ssh.port: expected at least 1, found 0"),
        ('vault = "v"\n[old.ssh]\nhost = "h"\nport = 65536', "old.ssh.port: expected at most 65535, found 65536"),
        ('vault = "v"\n[old.ssh]\nhost = "h"\nport = true', "old.ssh.port: expected a whole number, found true"),
        ('vault = "v"\n[old.ssh]\nhost = "user@h"', "old.ssh.host: expected a bare host name"),
        ('vault = "v"\n[old.ssh]\nhost = "h"\naddress = "www.example.jp"', "old.ssh.address: 'www.example.jp' is no IPv4 or IPv6 address"),
        ('vault = "v"\n[old.ssh]\nhost = "h"\naddress = ["::1", 4]', "old.ssh.address[1]: expected text in quotes, found 4"),
        ('vault = "v"\n[old.ssh]\nhost = "h"\nhost_key = "SHA256:abc"', "old.ssh.host_key: expected a fingerprint"),
        ('vault = "v"\n[old.ssh]\nhost = "h"\nkey = "nokey"', "customer.toml:4: old.ssh.key: there is no file nokey"),
        ('vault = "v"\n[old.ssh]\nhost = "h"\nlegacy = true', "legacy = true needs client"),
        ('vault = "v"\n[old.ssh]\nhost = "h"\npassphrase = {env="A"}', "passphrase is of use only with key"),
        ('vault = "v"\n[old.ssh]\nhost = "h"\nvault = "w"', "customer.toml:4: old.ssh.vault: unknown key; vault belongs at the top of the file"),
        ('vault = "v"\nhost = "h"', "customer.toml:2: host: unknown key; it belongs in [old.ssh]"),
        ('vault = "v"\nold = 1', "customer.toml:2: old: expected a table, found a number"),
        ('vault = "v"\n[[old.ssh]]\nhost = "h"', "old.ssh: expected a table, found a list"),
        ('vault = "v"\n[old.web]\npath = "p"', "old.web: expected a list, [ … ], found a table"),
        (
            'vault = "v"\n[[old.web]]\npath = "a"\n[[old.web]]\npath = "b"\nexlude = []',
            "customer.toml:6: old.web[1].exlude: unknown key; did you mean exclude?",
        ),
        ('vault = "v"\n[[old.web]]\npath = "/"', "customer.toml:2: old.web[0]: the path '/' ends in no name; add name = …"),
        ('vault = "v"\n[[old.web]]\npath = "a/\\u0000b"', "old.web[0].path: expected a path on the server"),
        ('vault = "v"\n[[old.web]]\npath = "a"\nexclude = ["!"]', "old.web[0].exclude: '!' is no gitignore pattern"),
        ('vault = "v"\n[[old.web]]\npath = "a/x"\n[[old.web]]\npath = "b/x/"', "two web trees 'x'; give one of them a name"),
        ('vault = "v"\n[[local]]\npath = "a/x"\n[[local]]\npath = "b/x/"', "two [[local]] folders named 'x'"),
        ('vault = "v"\n[[old.web]]\npath = "a"\n[[new.web]]\nfrom = "b"\npath = "w"', "new.web.from = 'b' names no old.web; there are a"),
        (
            'vault = "v"\n[[old.web]]\npath = "a"\n[[new.web]]\nfrom = "a"\npath = "w"\n[[new.web]]\nfrom = "a"\npath = "w/"',
            "two web trees at the path 'w'",
        ),
        ('vault = "v"\n[[old.web]]\npath = "p"\nname = "' + "長" * 30 + '"', "old.web[0].name: is too long"),
        ('vault = "v"\n[old.imap]\nhost = "h"\nsecurity = "ssl"', "old.imap.security: expected 'tls', 'starttls' or 'plain', found \"ssl\""),
        ('vault = "v"\n[old.imap]\nhost = "h"\naccounts = "no.csv"', "customer.toml:4: old.imap.accounts: there is no file no.csv"),
        (
            'vault = "v"\n[old.imap]\nhost = "h"\n[[old.imap.account]]\nuser="a"\n[[old.imap.account]]\nuser="a"',
            "old.imap: two accounts of the user 'a'",
        ),
        ('vault = "v"\n[mail]\nexpected = "no.txt"', "customer.toml:3: mail.expected: there is no file no.txt"),
        ('vault = "v"\n[domain]\nname = "a.jp"\nzone = "no.txt"', "customer.toml:4: domain.zone: there is no file no.txt"),
        ('vault = "v"\n[[copy]]\nprefix = "x"', "customer.toml:2: copy[0]: needs either bucket or path"),
        ('vault = "v"\n[[copy]]\npath = "x"\nbucket = "bb"', "customer.toml:2: copy[0]: needs either bucket or path"),
        ('vault = "v"\n[[copy]]\nbucket = "bb"\nprefx = "x"', "customer.toml:4: copy[0].prefx: unknown key; did you mean prefix?"),
        ('vault = "v"\n[[copy]]\nbucket = "a/b"', "copy[0].bucket: expected the bucket's bare name"),
        ('vault = "v"\n[[copy]]\nbucket = "bb"\nprefix = "../x"', "copy[0].prefix: expected a key prefix"),
        ('vault = "v"\n[[copy]]\nbucket = "bb"\naccess_key = {env="A"}', "copy[0]: needs access_key and secret_key, or neither"),
        ('vault = "v"\n[[copy]]\nbucket = "bb"\nendpoint = "s3.example.jp"', "copy[0].endpoint: expected the address of the store"),
        ('vault = "v"\n[[copy]]\nbucket = "bb"\nendpoint = "http://["', "copy[0].endpoint: expected the address of the store"),
        ('vault = "v"\n[[copy]]\nbucket = "bb"\nendpoint = "http://s3.example.jp:x"', "copy[0].endpoint: expected the address of the store"),
        ('vault = "v"\n[[old.web]]\npath = "a"\nexclude = ["[z-a]"]', "old.web[0].exclude: '[z-a]' is no gitignore pattern"),
        ('vault = "v"\n[limits]\nbwlimit = "' + "9" * 400 + '"', "limits.bwlimit: expected bytes a second"),
        ('vault = "v"\n[limits]\nstall_timeout = 0x' + "f" * 5000, "limits.stall_timeout: expected a number, found a number that is too large"),
        ('vault = "v"\n[old.ssh]\nhost = "h"\nport = 0x' + "f" * 5000, "old.ssh.port: expected a whole number, found a number that is too large"),
        ('vault = "v"\n[old.ssh]\nhost = "h"\nkey = "' + "k" * 5000 + '"', "customer.toml:4: old.ssh.key: there is no file"),
        ('vault = "v"\n[mail]\nfolders = { "a" = "/" }', "mail.folders: 'a' = '/': expected the names of two folders"),
        ('vault = "v"\n[[copy]]\nbucket = "bb"\naddressing = "host"', "customer.toml:4: copy[0].addressing: expected"),
        ('vault = "v"\n[[copy]]\nbucket = "bb"\nsse = "AES128"', "customer.toml:4: copy[0].sse: expected"),
        ('vault = "v"\n[[copy]]\nbucket = "bb"\nsse_key = "k"', 'copy[0]: sse_key needs sse = "aws:kms"'),
        ('vault = "v"\n[[copy]]\nbucket = "bb"\nretain_days = 0', "customer.toml:4: copy[0].retain_days: expected"),
        ('vault = "v"\n[[copy]]\nbucket = "bb"\nretain_mode = "compliance"', "copy[0]: retain_mode needs retain_days"),
        ('vault = "v"\n[[copy]]\nbucket = "bb"\nstorage_class = "cold ice"', "copy[0].storage_class: expected a storage class"),
        ('vault = "v"\n[[copy]]\nbucket = "bb"\nproxy = "proxy:3128"', "copy[0].proxy: expected the address of the proxy"),
        (
            'vault = "v"\n[[copy]]\nbucket = "bb"\nproxy = "http://u:hunter2@proxy"',
            "copy[0].proxy: a password of the proxy belongs in proxy_password",
        ),
        ('vault = "v"\n[[copy]]\nbucket = "bb"\nproxy = "http://proxy"\nproxy_password = "x"', "copy[0]: proxy_password needs a proxy with a user"),
        ('vault = "v"\n[[copy]]\nbucket = "bb"\nca_file = "no.pem"', "customer.toml:4: copy[0].ca_file: there is no file"),
        ('vault = "v"\n[[copy]]\npath = "x"\nca_file = "no.pem"', "customer.toml:4: copy[0].ca_file: unknown key"),
        ('vault = "v"\n[[copy]]\npath = "x"\nencrypt_to = ["age2abc"]', "copy[0].encrypt_to[0]: expected an age recipient"),
        ('vault = "v"\n[[copy]]\npath = "x"\nmode = "mirror"\nencrypt_to = ["' + AGE + '"]', "copy[0]: a mirror is plain files"),
        ('vault = "v"\n[[copy]]\nbucket = "xyz"\nmode = "mirror"\nretain_days = 9', "copy[0]: the files of a mirror are replaced"),
        ('vault = "v"\n[[copy]]\npath = "x"\n[[copy]]\npath = "x/"', "two [[copy]] copies named 'x'"),
        ('vault = "v"\n[contract]\nprovider = "nobody"', "contract.provider: expected 'j-motto', found \"nobody\""),
        ('vault = "v"\n[contract]\nend = "2026-12-31"', "contract.end: expected a date without quotes"),
        ('vault = "v"\n[contract]\nend = 2026-12-31T00:00:00', "contract.end: expected a date without quotes"),
        ('vault = "v"\n[contract]\nswitched = "soon"', 'contract.switched: expected a date without quotes, such as 2026-11-25, found "soon"'),
        ('vault = "v"\n[contract]\ntimezone = "Nippon"', "contract.timezone: expected a time zone's name"),
        ('vault = "v"\n[contract]\nclosed_days = ["13-01"]', "contract.closed_days[0]: expected a date"),
        ('vault = "v"\n[sync]\nsteps = ["backup", "bakup"]', "customer.toml:3: sync.steps[1]: expected 'check', 'backup'"),
        ('vault = "v"\n[sync]\nsteps = []', "sync.steps: expected a list that is not empty"),
    ],
)
def test_what_is_wrong_is_told_with_line_key_and_what_was_expected(text: str, said: str, reason: Callable[[str], str]) -> None:
    told = reason(text)
    assert said in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('vault = "v"\n[old.ssh\nhost = "h"', "customer.toml:2: not TOML: Expected ']' at the end of a table declaration"),
        ('vault = "v"\nvault = "w"', "customer.toml:2: not TOML: Cannot overwrite a value"),
        ('vault = "v"\nname = "\\q"', "customer.toml:2: not TOML: "),
        ('vault = "v"\nname = ', "customer.toml:2: not TOML: Invalid value"),
        ('vault = "v"\nname = ' + "9" * 5000, "customer.toml: a number in it has thousands of digits"),
        ('vault = "v"\nname = ' + "[" * 5000, "lists and tables are nested by the hundred"),
    ],
)
def test_a_slip_in_toml_is_told_with_its_line(text: str, said: str, reason: Callable[[str], str]) -> None:
    assert said in reason(text)


def test_all_that_is_wrong_is_told_at_once_in_the_order_of_the_file(reason: Callable[[str], str]) -> None:
    told = reason('nmae = "x"\n[old.ssh]\nport = "x"\n[mail]\nfolders = 5').splitlines()
    assert [line.split(": ")[0:2] for line in told] == [
        ["customer.toml", "vault"],
        ["customer.toml:1", "nmae"],
        ["customer.toml:2", "old.ssh.host"],
        ["customer.toml:3", "old.ssh.port"],
        ["customer.toml:5", "mail.folders"],
    ]


def test_text_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_bytes('vault = "v"\nname = "会社"\n'.encode("cp932"))
    with pytest.raises(ProfileError, match=r"p\.toml:2: is not UTF-8"):
        profile.load(tmp_path / "p.toml")


def test_a_byte_order_mark_and_windows_line_ends_are_no_matter(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_bytes('vault = "v"\r\nname = "会社"\r\n'.encode("utf-8-sig"))
    assert profile.load(tmp_path / "p.toml").name == "会社"


@pytest.mark.parametrize(
    "line",
    [
        "password = 12345678",
        'password = ["topsecret"]',
        'password = { evn = "topsecret" }',
        'password = { env = "A", file = "topsecret" }',
        'password = { env = ["topsecret"] }',
        'pasword = "topsecret"',
        'passphrase = "topsecret"',
        'password = { topsecret = "A" }',
        '[old]\nimap = "imaps://user:topsecret@h"',
        '[old.imap]\nhost = "h"\nmaster = "admin:topsecret"',
        '[old.imap]\nhost = "h"\naccount = "user:topsecret"',
        '[old.imap]\nhost = "h"\naccount = ["user:topsecret"]',
    ],
)
def test_no_error_ever_tells_a_secret(line: str, reason: Callable[[str], str]) -> None:
    told = reason(f'vault = "v"\n[old.ssh]\nhost = "h"\n{line}\n')
    assert "topsecret" not in told
    assert "12345678" not in told
    assert "customer.toml:" in told


def test_a_secret_in_a_profile_that_others_can_read_is_refused(load: Loader) -> None:
    text = 'vault = "v"\n[old.ssh]\nhost = "h"\npassword = "topsecret"\n'
    for mode in (0o644, 0o640, 0o604):
        with pytest.raises(ProfileError, match=r"customer\.toml:4: old\.ssh\.password: a secret stands here.*chmod 600") as caught:
            load(text, mode=mode)
        assert "topsecret" not in str(caught.value)
    loaded = load(text, mode=0o600)
    assert "topsecret" not in repr(loaded)
    assert "topsecret" not in str(vars(loaded))
    assert "topsecret" not in str(vars(loaded.old))


def test_secrets_are_named_by_their_keys_and_checked_together(load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OLD_SSH_PASSWORD", "S3_KEY", "S3_SECRET"):
        monkeypatch.delenv(name, raising=False)
    whole = load(WHOLE)
    assert [key for key, _ in whole.secrets()] == [
        "old.ssh.password",
        "old.ssh.passphrase",
        "old.imap.account[0].password",
        "old.imap.account[0].new_password",
        "copy[0].access_key",
        "copy[0].secret_key",
        "domain.authcode",
    ]
    assert [error.where for error in whole.check_secrets("old.ssh", "copy")] == ["old.ssh.password", "copy[0].access_key", "copy[0].secret_key"]


def test_accounts_come_from_the_csv_and_the_profile(load: Loader, tmp_path: Path) -> None:
    whole = load(WHOLE)
    assert [(account.user, account.protocol) for account in whole.old_accounts()] == [
        ("hanako@example.jp", "imap"),
        ("taro@example.jp", "imap"),
        ("jiro", "pop3"),
    ]
    (tmp_path / "accounts.csv").write_text("user,password\ntaro@example.jp,\n")
    with pytest.raises(ProfileError, match=r"user 'taro@example\.jp' is also in .*accounts\.csv:2"):
        load(WHOLE).old_accounts()
    (tmp_path / "accounts.csv").write_text("user\n")
    with pytest.raises(AccountsError):
        load(WHOLE).old_accounts()


def test_an_account_of_imap_and_pop3_is_read_by_imap(load: Loader) -> None:
    both = load(WHOLE.replace('user = "jiro"', 'user = "taro@example.jp"\n[[old.pop3.account]]\nuser = "jiro"'))
    assert [(account.user, account.protocol) for account in both.old_accounts()] == [
        ("hanako@example.jp", "imap"),
        ("taro@example.jp", "imap"),
        ("jiro", "pop3"),
    ]
    assert {both.new_account_for(account).protocol for account in both.old_accounts()} == {"imap"}


def test_an_account_keeps_its_name_and_password_unless_told_otherwise(load: Loader, tmp_path: Path) -> None:
    (tmp_path / "accounts.csv").write_text("user,password,new_user,new_password,host,address\na,pa,,,h,192.0.2.1\nb,pb,bb,,,\nc,pc,,nc,,\nd,pd,,,,\n")
    (tmp_path / "accounts.csv").chmod(0o600)
    told_there = '[[new.imap.account]]\nuser = "d"\npassword = { env = "D" }\naddress = "192.0.2.9"'
    loaded = load(f'vault = "v"\n[old.imap]\nhost = "o"\naccounts = "accounts.csv"\n[new.imap]\nhost = "n"\n{told_there}')
    told = []
    for account in loaded.old_accounts():
        new = loaded.new_account_for(account)
        assert new.password is not None
        told.append((new.user, new.password.literal.reveal() if new.password.literal else str(new.password), new.host, new.address))
    assert told == [("a", "pa", "", ()), ("bb", "pb", "", ()), ("c", "nc", "", ()), ("d", "environment variable D", "", ("192.0.2.9",))]


def test_an_account_with_a_host_of_its_own_is_not_looked_for_at_the_sections_address(load: Loader) -> None:
    loaded = load(
        'vault="v"\n[old.imap]\nhost="h"\naddress="192.0.2.1"\n[[old.imap.account]]\nuser="a"\nhost="g"\n[[old.imap.account]]\nuser="b"\n[[old.imap.account]]\nuser="c"\nhost="g"\naddress="192.0.2.2"'
    )
    section = loaded.old.imap
    assert section is not None
    assert [login_at(section, account) for account in loaded.old_accounts()] == [("g", ()), ("h", ("192.0.2.1",)), ("g", ("192.0.2.2",))]


def test_a_command_can_say_which_section_it_needs(load: Loader) -> None:
    loaded = load('vault = "v"\n[[old.web]]\npath = "p"')
    loaded.need("old.web", "backup")
    for key in ("old.ssh", "copy", "domain", "new.imap"):
        with pytest.raises(ProfileError, match=rf"`sync` needs a section \[{key}\]"):
            loaded.need(key, "sync")


def _as_json(text: str) -> Any:
    return json.loads(json.dumps(tomllib.loads(text), default=lambda value: value.isoformat()))


def test_the_schema_accepts_what_the_profile_accepts() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    validator.validate(_as_json(WHOLE))
    validator.validate(_as_json(Path("profiles/example.toml").read_text(encoding="utf-8")))
    validator.validate({"vault": "v"})


def test_the_schema_refuses_what_the_profile_refuses() -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    for wrong in (
        {},
        {"vault": 1},
        {"vault": "v", "vualt": "w"},
        {"vault": "v", "old": {"ssh": {"port": 22}}},
        {"vault": "v", "copy": [{"bucket": "b", "path": "p"}]},
    ):
        assert not validator.is_valid(wrong), wrong


def test_the_schema_describes_every_key() -> None:
    schema = json_schema()
    for model in (schema, *schema["$defs"].values()):
        for key, told in model.get("properties", {}).items():
            referred = schema["$defs"].get(str(told.get("$ref")).rpartition("/")[2], {})
            assert told.get("description") or referred.get("description"), (model["title"], key)
    assert "null" not in json.dumps(schema)


def test_positions_find_keys_through_tables_arrays_quotes_and_long_texts() -> None:
    text = 'a = """\n[no]\nb = 1\n"""\n"日 本".c = 1\n[[x]]\ny = 1\n[[x]]\n[x.z]\n"k e" = [\n 1,\n]\n[[x.w]]\nq.r = 2\n'
    lines = positions(text)
    assert lines[("a",)] == 1
    assert ("no",) not in lines
    assert lines[("日 本", "c")] == 5
    assert lines[("x", 0, "y")] == 7
    assert lines[("x", 1, "z", "k e")] == 10
    assert lines[("x", 1, "w", 0, "q", "r")] == 14
    assert line_of(("x", 1, "z", "missing"), lines) == 9
    assert line_of(("x", 1, "w", 0, "q"), lines) == 14
    assert line_of(("nowhere",), lines) is None
    assert dotted(("x", 1, "日 本")) == "x[1].'\\u65e5 \\u672c'"


scalars = st.one_of(st.integers(), st.booleans(), st.text(max_size=20), st.dates(), st.floats(allow_nan=False))
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=4)


@given(path=st.sampled_from(_paths(tomllib.loads(WHOLE))), value=values)
def test_any_value_anywhere_is_accepted_or_refused_in_words(path: tuple[str | int, ...], value: object) -> None:
    table: Any = tomllib.loads(WHOLE)
    here = table
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = value
    found, problems = read(Profile, table, Path("/nowhere"))
    assert (found is None) == bool(problems)
    for problem in problems:
        assert explain(problem, Profile).isprintable()


@pytest.mark.parametrize(
    ("local", "copy", "expected"),
    [
        ("loc", "vault", "[[copy]] 'vault'"),
        ("loc", "vault/sub", "[[copy]] 'vault/sub'"),
        ("loc", ".", "[[copy]] '.'"),
        ("loc", "loc/../link", "[[copy]] 'loc/../link'"),
        (".", "cp", "[[local]] 'all'"),
        ("vault", "cp", "[[local]] 'all'"),
        ("vault/latest", "cp", "[[local]] 'all'"),
        ("cp/sub", "cp", "[[local]] 'all'"),
    ],
)
def test_vault_copies_and_sources_do_not_lie_in_one_another(tmp_path: Path, local: str, copy: str, expected: str) -> None:
    (tmp_path / "link").symlink_to("vault")
    path = tmp_path / "p.toml"
    path.write_text(f'vault = "vault"\n[[local]]\nname = "all"\npath = "{local}"\n[[copy]]\npath = "{copy}"\n')
    with pytest.raises(ProfileError, match="lie in one another") as caught:
        profile.load(path)
    assert expected in str(caught.value)


def test_neighbours_with_a_common_beginning_are_apart(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text('vault = "vault"\n[[local]]\npath = "vault-by-hand"\n[[copy]]\npath = "vault2"\n')
    assert profile.load(path).copies
