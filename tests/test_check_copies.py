"""`check --probe` finds out how a store behaves, tidies up, and what it found is not asked again."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hostbackup.protocols import s3
from hostbackup.report.stores import store_lines
from hostbackup.vault.bucket import BucketStore
from tests.contract_stores import put, upload
from tests.support.cli import hostbackup
from tests.support.cli import write_profile as written
from tests.support.json_doc import undocumented
from tests.support.s3 import ACCESS, SECRET, S3Server, moto_server, rclone_server
from tests.support.s3_faults import error, on, without_condition

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with moto_server(checks_sha256=True) as server:
        yield server


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with rclone_server(tmp_path_factory.mktemp("rclone")) as server:
        yield server


def probed(server: S3Server, *, lock: bool = False) -> tuple[BucketStore, tuple[tuple[str, str], ...]]:
    bucket = f"probed-{next(_numbers)}"
    server.client().create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=lock)
    store = BucketStore(server.target(bucket, "p"), patience=s3.Patience(lambda _: None))
    left = store.probe()
    assert left or list(store.list()) == []
    return store, left


def test_a_store_that_can_do_all_of_it(moto: S3Server) -> None:
    store, left = probed(moto, lock=True)
    facts = store.facts
    assert (facts.sha256, facts.md5_etag, facts.multipart, facts.parts_sha256, facts.conditional) == (True, True, True, True, True)
    assert (facts.object_lock, facts.versioning) == ("enabled", "enabled")
    assert facts.keys == {"unicode": True, "space": True, "plus": True}
    assert facts.skew is not None
    assert abs(facts.skew) < 60
    assert left == ()


def test_a_store_that_can_do_less(rclone: S3Server) -> None:
    facts = probed(rclone)[0].facts
    assert (facts.sha256, facts.md5_etag, facts.multipart, facts.parts_sha256) == (False, True, True, False)


def test_a_store_that_ignores_a_condition_is_found_out_and_written_to_safely(moto: S3Server) -> None:
    with moto.misbehaving(on("PutObject", without_condition)):
        store, _ = probed(moto)
        assert store.facts.conditional is False
        with store.hold():
            assert put(store, upload("x", b"1"))["x"].ok


@pytest.mark.parametrize("fault", [error("501 Not Implemented", "NotImplemented"), error("403 Forbidden", "AccessDenied")])
def test_what_a_store_does_not_know_or_not_tell_is_no_failure(moto: S3Server, fault: Any) -> None:
    operations = ("CreateMultipartUpload", "GET bucket")
    rules = [on(operation, fault) for operation in operations]
    with moto.misbehaving(rules[0]), moto.misbehaving(rules[1]):
        facts = probed(moto)[0].facts
    assert (facts.multipart, facts.parts_sha256, facts.object_lock, facts.versioning) == (False, None, None, None)
    assert facts.sha256 is True


def test_keys_that_do_not_come_back_are_named(moto: S3Server) -> None:
    with moto.misbehaving(on("PutObject", error("400 Bad Request", "InvalidArgument"), key="a b")):
        facts = probed(moto)[0].facts
    assert facts.keys == {"unicode": True, "space": False, "plus": True}


def test_what_cannot_be_taken_away_again_is_named(moto: S3Server) -> None:
    with moto.misbehaving(on("DeleteObject", error("403 Forbidden", "AccessDenied"))):
        _, left = probed(moto)
    assert len(left) == 5
    assert all("may not delete" in reason for _, reason in left)


# ------------------------------------------------------------ the command


@pytest.fixture
def move(tmp_path: Path) -> Path:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("<p>hello</p>")
    return tmp_path


def write_profile(move: Path, server: S3Server, bucket: str, more: str = "") -> None:
    written(
        move,
        f'vault = "vault"\n[[local]]\npath = "site"\n[[copy]]\nname = "s3"\nbucket = "{bucket}"\nendpoint = "{server.endpoint}"\n'
        f'access_key = "{ACCESS}"\nsecret_key = "{SECRET}"\n{more}\n',
    )


def test_what_was_found_is_told_kept_and_not_asked_again(move: Path, moto: S3Server) -> None:
    moto.make_bucket("told")
    write_profile(move, moto, "told")
    assert hostbackup("backup", "move.toml", cwd=move).exit == 0
    ran = hostbackup("check", "move.toml", "--probe", "--json", cwd=move)
    assert ran.exit == 0
    assert undocumented(ran.json) == set()
    [copy] = ran.json["copies"]
    assert copy["store"]["sha256"] is True
    assert copy["store"]["keys"] == {"unicode": True, "space": True, "plus": True}
    with moto.watching() as requests:
        assert hostbackup("copy", "move.toml", cwd=move).exit == 0
    assert [one.key for one in requests if "probe" in one.key] == []
    with moto.watching() as requests:
        assert hostbackup("copy", "move.toml", cwd=move).exit == 0
    assert len(requests) < 20
    shown = hostbackup("check", "move.toml", "--probe", cwd=move)
    assert "checks SHA-256, and tells it" in shown.out


def test_without_probe_nothing_is_written(move: Path, moto: S3Server) -> None:
    moto.make_bucket("looked-at")
    write_profile(move, moto, "looked-at")
    with moto.watching() as requests:
        assert hostbackup("check", "move.toml", cwd=move).exit == 0
    assert {one.method for one in requests} <= {"GET", "HEAD"}


def test_retention_that_the_bucket_cannot_give_is_found_out_before(move: Path, moto: S3Server) -> None:
    moto.make_bucket("unlocked")
    write_profile(move, moto, "unlocked", "retain_days = 30")
    ran = hostbackup("check", "move.toml", "--probe", "--json", cwd=move)
    assert ran.exit == 3
    [failure] = ran.json["failures"]
    assert (failure["side"], failure["code"]) == ("copy:s3", "object-lock")
    assert "made for Object Lock" in failure["reason"]


def test_a_copy_whose_credentials_expire_ends_with_1_and_the_next_one_goes_on(move: Path, moto: S3Server) -> None:
    moto.make_bucket("expiring")
    write_profile(move, moto, "expiring")
    for number in range(40):
        (move / "site" / f"large{number}").write_bytes(os.urandom(1 << 20))
    assert hostbackup("backup", "move.toml", cwd=move).exit == 0
    with moto.misbehaving(on("PutObject", error("400 Bad Request", "ExpiredToken"), after=6)):
        ran = hostbackup("copy", "move.toml", cwd=move)
    assert ran.exit == 1
    assert "the credentials have expired" in ran.err + ran.out
    assert hostbackup("copy", "move.toml", cwd=move).exit == 0
    assert hostbackup("verify", "move.toml", "--against", "copy", cwd=move).exit == 0


# ------------------------------------------------------------ words


def test_facts_in_words() -> None:
    facts = {**s3.Facts().to_json(), "skew_seconds": None}
    assert store_lines({}) == []
    assert all("not told" in line or "none" in line for line in store_lines(facts))
    bad = {**facts, "sha256": False, "conditional": False, "multipart": False, "keys": {"unicode": False, "space": True}, "skew_seconds": -900.0}
    told = "\n".join(store_lines(bad))
    for words in ("reading back", "ignored", "above 64 MiB cannot be stored", "space come back; unicode do not", "15 minutes behind"):
        assert words in told
