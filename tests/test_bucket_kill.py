"""kill -9 while a copy goes to a bucket, at each kind of request: the next run goes on at once, and what comes of it is whole."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hostbackup.vault.bucket import BucketStore
from tests.support.cli import command, hostbackup, write_profile
from tests.support.s3 import ACCESS, SECRET, S3Server, moto_server
from tests.support.s3_faults import Answer, App, Asked, Fault, cut

BEFORE, AFTER = False, True
STEPS = (
    *(("PUT p/locks/", BEFORE), ("PUT p/locks/", AFTER), ("PUT p/format.json", AFTER), ("PUT p/packs/", BEFORE), ("PUT p/index/", BEFORE)),
    *(("PUT p/index/", AFTER), ("PUT p/snapshots/", AFTER), ("PUT p/evidence/", AFTER), ("DELETE p/locks/", BEFORE)),
)


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with moto_server(checks_sha256=True) as server:
        yield server


class Killer:
    """Kills a process when the store gets a request that begins so: before it does as it is asked, or right after."""

    def __init__(self, step: str, after: bool) -> None:
        self._step = step
        self._after = after
        self.process: subprocess.Popen[bytes] | None = None
        self.met = False

    def __call__(self, asked: Asked) -> Fault | None:
        return self._kill if f"{asked.method} {asked.key}".startswith(self._step) and not self.met else None

    def _kill(self, asked: Asked, app: App, start_response: Answer) -> Iterable[bytes]:
        assert self.process is not None
        self.met = True
        if self._after:
            told: list[Any] = []
            for _ in app(asked.environ, lambda *answer: told.append(answer)):
                pass
        self.process.kill()
        return cut(asked, app, start_response)


def begin(tmp_path: Path, moto: S3Server, bucket: str) -> None:
    """A vault with one snapshot, to be copied to that bucket."""
    (tmp_path / "site").mkdir()
    for number in range(30):
        (tmp_path / "site" / f"page{number}").write_text(f"page {number}")
    text = (
        f'[[copy]]\nname = "s3"\nbucket = "{bucket}"\nprefix = "p"\nendpoint = "{moto.endpoint}"\naccess_key = "{ACCESS}"\nsecret_key = "{SECRET}"\n'
    )
    write_profile(tmp_path, f'vault = "vault"\n[[local]]\npath = "site"\n{text}')
    assert hostbackup("backup", "move.toml", cwd=tmp_path).exit == 0


def test_a_copy_that_is_killed_at_each_step_is_gone_on_with(moto: S3Server, tmp_path: Path) -> None:
    bucket = "killed"
    moto.make_bucket(bucket)
    begin(tmp_path, moto, bucket)
    for step, after in STEPS:
        killer = Killer(step, after)
        with moto.misbehaving(killer):
            killer.process = subprocess.Popen(
                command("copy", "move.toml"), cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            killer.process.wait(60)
        assert killer.met, step
    ran = hostbackup("copy", "move.toml", cwd=tmp_path)
    assert ran.exit == 0, ran.err
    assert hostbackup("verify", "move.toml", "--against", "copy", cwd=tmp_path).exit == 0
    names = [entry["Key"] for entry in moto.client().list_objects_v2(Bucket=bucket)["Contents"]]
    assert [name for name in names if "/locks/" in name] == []
    assert len([name for name in names if "/snapshots/" in name]) == 1


def test_a_copy_that_somebody_else_writes_to_is_left_alone_with_exit_code_7(moto: S3Server, tmp_path: Path) -> None:
    moto.make_bucket("in-use")
    begin(tmp_path, moto, "in-use")
    with BucketStore(moto.target("in-use", "p")).hold():
        ran = hostbackup("copy", "move.toml", cwd=tmp_path)
        assert ran.exit == 7
        assert f"another run is writing to this copy: {socket.gethostname()} (process {os.getpid()})" in ran.err
        keys = [entry["Key"] for entry in moto.client().list_objects_v2(Bucket="in-use")["Contents"]]
        assert all(key.startswith("p/locks/") for key in keys)
    assert hostbackup("copy", "move.toml", cwd=tmp_path).exit == 0
