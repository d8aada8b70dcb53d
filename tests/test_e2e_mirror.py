"""Mirrors by the real command line: a bucket of rclone's S3 server, and a folder."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hostbackup.vault.vault import Vault
from tests.support.cli import command, hostbackup, write_profile
from tests.support.s3 import ACCESS, SECRET, S3Server, rclone_server
from tests.support.sample_vault import BY_HAND, LOCAL, SITE, WEB, File, make_vault, snapshot, write_tree

PAGES = {name: file for name, file in SITE.items() if not file.failed}


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with rclone_server(tmp_path_factory.mktemp("rclone")) as server:
        server.make_bucket("public")
        yield server


def a_vault(folder: Path, files: dict[bytes, File], minute: int = 1) -> None:
    with Vault.open(folder / "vault", "write", create=True, command="test") as vault:
        snapshot(vault, (WEB, write_tree(vault, WEB, files)), (LOCAL, write_tree(vault, LOCAL, BY_HAND)), minute=minute)


def a_profile(folder: Path, server: S3Server, prefix: str) -> None:
    (folder / "disk").mkdir()
    keys = f'endpoint = "{server.endpoint}"\naccess_key = "{ACCESS}"\nsecret_key = "{SECRET}"\n'
    bucket = f'[[copy]]\nname = "site"\nmode = "mirror"\nbucket = "public"\nprefix = "{prefix}"\n{keys}'
    write_profile(folder, f'name = "move"\nvault = "vault"\n{bucket}[[copy]]\nname = "usb"\nmode = "mirror"\npath = "disk"\n')


def link(server: S3Server, key: str) -> str:
    """What a browser can open, without credentials of its own."""
    import boto3
    from botocore.config import Config

    session = boto3.Session(aws_access_key_id=ACCESS, aws_secret_access_key=SECRET, region_name="us-east-1")
    client = session.client("s3", endpoint_url=server.endpoint, config=Config(signature_version="s3v4"))
    return str(client.generate_presigned_url("get_object", {"Bucket": "public", "Key": key}))


def evidence(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for path in sorted((folder / "vault/evidence").iterdir()) for line in path.read_text().splitlines()]
    return [line for line in lines if line["type"] == kind]


def test_a_site_is_served_from_a_bucket_and_lies_on_a_disk(rclone: S3Server, tmp_path: Path) -> None:
    a_vault(tmp_path, PAGES)
    a_profile(tmp_path, rclone, "whole")
    checked = hostbackup("check", "move.toml", cwd=tmp_path)
    assert (checked.exit, "mirror" in checked.out) == (0, True)
    ran = hostbackup("copy", "move.toml", "--json", cwd=tmp_path)
    assert ran.exit == 0, ran.err
    assert {name: (done["mode"], done["uploaded"], done["links"]) for name, done in ran.json["copies"].items()} == {
        "site": ("mirror", 7, 2),
        "usb": ("mirror", 7, 2),
    }
    assert (tmp_path / "disk/public_html/会社案内/地図.html").read_text() == "地図"
    with urllib.request.urlopen(link(rclone, "whole/public_html/index.html")) as answer:
        assert (answer.headers["Content-Type"], answer.read()) == ("text/html", b"<h1>example</h1>\n")
    again = hostbackup("copy", "move.toml", "--json", cwd=tmp_path)
    assert (again.exit, again.json["counts"]["uploaded"], again.json["counts"]["skipped"]) == (0, 0, 14)
    proven = hostbackup("verify", "move.toml", "--against", "copy", "--json", cwd=tmp_path)
    assert {row["side"]: row["counts"] for row in proven.json["proven"] if row["side"].startswith("copy:")} == {
        "copy:site": {"verified": 7},
        "copy:usb": {"verified": 7},
    }
    copies = evidence(tmp_path, "copy")
    assert {(line["side"], line["mode"]) for line in copies} == {("copy:site", "mirror"), ("copy:usb", "mirror")}
    assert {line["mode"] for line in evidence(tmp_path, "proof") if line["side"].startswith("copy:")} == {"mirror"}


def test_a_process_that_is_killed_is_gone_on_with(rclone: S3Server, tmp_path: Path) -> None:
    pages = {b"d%d/p%d.html" % (n % 7, n): File(b"page %d " % n * 100) for n in range(300)}
    a_vault(tmp_path, pages)
    a_profile(tmp_path, rclone, "killed")
    assert rclone.folder is not None
    there = rclone.folder / "public/killed/public_html"
    for wanted in (1, 100):
        process = subprocess.Popen(command("copy", "move.toml", "--name", "site", "--quiet"), cwd=tmp_path, stderr=subprocess.DEVNULL)
        while sum(1 for _ in there.glob("*/*.html")) < wanted and process.poll() is None:
            time.sleep(0.002)
        process.kill()
        process.wait()
    a_vault(tmp_path, {**pages, b"d0/p0.html": File(b"changed meanwhile")}, minute=2)
    ran = hostbackup("copy", "move.toml", "--name", "site", "--json", cwd=tmp_path)
    done = ran.json["copies"]["site"]
    assert (ran.exit, done["conflicts"], done["uploaded"] + done["skipped"], done["skipped"] >= 99) == (0, 0, 300, True)
    assert {path.name: path.read_bytes() for path in there.glob("*/*.html")} == {
        **{name.decode().rpartition("/")[2]: file.data for name, file in pages.items()},
        "p0.html": b"changed meanwhile",
    }
    again = hostbackup("copy", "move.toml", "--name", "site", "--json", cwd=tmp_path)
    assert (again.exit, again.json["counts"]["uploaded"]) == (0, 0)


def test_others_work_is_left_alone_and_what_is_gone_goes_only_when_asked(rclone: S3Server, tmp_path: Path) -> None:
    a_vault(tmp_path, PAGES)
    a_profile(tmp_path, rclone, "shared")
    hostbackup("copy", "move.toml", cwd=tmp_path)
    rclone.client().put_object(Bucket="public", Key="shared/public_html/index.html", Body=b"edited there")
    rclone.client().put_object(Bucket="public", Key="shared/public_html/img/logo.png", Body=b"edited there")
    (tmp_path / "disk/public_html/empty.txt").chmod(0o600)
    (tmp_path / "disk/public_html/empty.txt").write_text("edited there")
    kept = {name: file for name, file in PAGES.items() if name not in (b"empty.txt", b"img/copy of logo.png")}
    a_vault(tmp_path, {**kept, b"index.html": File(b"edited here")}, minute=2)
    ran = hostbackup("copy", "move.toml", "--delete-vanished", cwd=tmp_path)
    assert ran.exit == 3
    assert "changed on the old server, and in the mirror too" in ran.err
    assert "usb: web/public_html/empty.txt: is gone from the old server, and was changed in the mirror" in ran.out
    keys = {
        row["Key"].removeprefix("shared/public_html/"): row["Size"]
        for row in rclone.client().list_objects_v2(Bucket="public", Prefix="shared/")["Contents"]
    }
    assert ("empty.txt" in keys, "img/copy of logo.png" in keys, keys["index.html"], keys["img/logo.png"]) == (False, False, 12, 12)
    assert (tmp_path / "disk/public_html/index.html").read_text() == "edited here"
    assert (tmp_path / "disk/public_html/empty.txt").read_text() == "edited there"
    assert not (tmp_path / "disk/public_html/img/copy of logo.png").exists()


def test_a_mirror_is_no_copy_of_the_vault(rclone: S3Server, tmp_path: Path) -> None:
    make_vault(tmp_path / "vault").close()
    a_profile(tmp_path, rclone, "none")
    hostbackup("copy", "move.toml", cwd=tmp_path)
    told = hostbackup("restore", "move.toml", "--from", "copy", "--to", "out", cwd=tmp_path)
    assert (told.exit, "is a mirror" in told.err) == (2, True)
    told = hostbackup("restore", "--from", tmp_path / "disk", "--to", "out", cwd=tmp_path)
    assert (told.exit, "no copy of a vault here" in told.err, "a mirror is none" in told.err) == (1, True, True)
    told = hostbackup("prune", "move.toml", "--copies", "--apply", "--json", cwd=tmp_path)
    assert (told.exit, told.json.get("copies", {})) == (0, {})
    assert (tmp_path / "disk/public_html/index.html").exists()


def test_a_restore_from_the_copy_passes_mirrors_by(tmp_path: Path) -> None:
    a_vault(tmp_path, PAGES)
    (tmp_path / "plain").mkdir()
    (tmp_path / "packed").mkdir()
    copies = '[[copy]]\npath = "plain"\nmode = "mirror"\n[[copy]]\npath = "packed"\n'
    write_profile(tmp_path, f'vault = "vault"\n{copies}')
    assert hostbackup("copy", "move.toml", cwd=tmp_path).exit == 0
    told = hostbackup("restore", "move.toml", "web", "--from", "copy", "--to", "out", cwd=tmp_path)
    assert (told.exit, (tmp_path / "out/web/public_html/index.html").read_bytes()) == (0, b"<h1>example</h1>\n")


def test_what_cannot_be_is_wrong_usage(tmp_path: Path) -> None:
    make_vault(tmp_path / "vault").close()
    (tmp_path / "disk").mkdir()
    recipient = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
    write_profile(tmp_path, f'vault = "vault"\n[[copy]]\npath = "disk"\nmode = "mirror"\nencrypt_to = ["{recipient}"]\n')
    told = hostbackup("copy", "move.toml", cwd=tmp_path)
    assert (told.exit, "plain files" in told.err) == (2, True)
    write_profile(tmp_path, 'vault = "vault"\n[[copy]]\npath = "disk"\n')
    told = hostbackup("copy", "move.toml", "--delete-vanished", cwd=tmp_path)
    assert (told.exit, "none of these copies is one" in told.err) == (2, True)
    assert list((tmp_path / "disk").iterdir()) == []
    write_profile(tmp_path, 'vault = "vault"\n[[copy]]\nname = "usb"\npath = "disk"\nmode = "mirror"\n')
    told = hostbackup("verify", "move.toml", "--against", "copy", cwd=tmp_path)
    assert (told.exit, "nothing was put into this mirror yet" in told.err) == (3, True)


def test_a_disk_that_is_not_there_is_a_failure_and_its_folder_is_not_made(tmp_path: Path) -> None:
    make_vault(tmp_path / "vault").close()
    write_profile(tmp_path, 'vault = "vault"\n[[copy]]\npath = "unmounted"\nmode = "mirror"\n')
    told = hostbackup("copy", "move.toml", cwd=tmp_path)
    assert (told.exit, "is the disk mounted?" in told.err) == (1, True)
    assert not (tmp_path / "unmounted").exists()
