"""The programs that are compared at buckets, each ready to do one piece of work again and again.

What went up is fetched back after each run, by a program that only reads, past the relay and outside of the time, and compared byte for byte.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks import corpus
from scripts.benchmarks.copy_world import Bucket, CopyWorld
from scripts.benchmarks.corpus import Corpus
from scripts.benchmarks.ground import program
from scripts.benchmarks.trial import Contender, PreparationFailed, Trial, hostbackup, run_first
from tests.support.s3 import ACCESS, SECRET

LARGE = 32  # transfers and checkers of rclone
PREFIX = "copy"  # everyone works below it


class Program(ABC):
    """One that copies a tree to a bucket. Everything a run needs or makes is in the folder `at`."""

    name: str
    needs: Sequence[str]

    def __init__(self, world: CopyWorld, tree: Corpus) -> None:
        self.world, self.tree = world, tree

    @abstractmethod
    def ready(self, at: Path, bucket: Bucket) -> None:
        """What has to be done before the first copy to a bucket; not part of the time."""

    @abstractmethod
    def copy(self, at: Path, bucket: Bucket) -> list[str]:
        """The command that copies."""

    @abstractmethod
    def fetch(self, bucket: Bucket, endpoint: str, at: Path, to: Path) -> tuple[list[str], Path]:
        """The command that fetches everything to the empty folder `to` with nothing but the bucket, and where the tree stands afterwards."""


@dataclass(frozen=True)
class Same:
    """The tree byte for byte; `fetch` brings it to a folder first, where it has to be brought."""

    tree: Corpus
    fetch: Callable[[Path], Path] = lambda result: result

    @property
    def files(self) -> int:
        return self.tree.files

    def complaint(self, result: Path) -> str:
        try:
            missing, others = corpus.differences(self.tree.path, self.fetch(result))
        except PreparationFailed as error:
            return f"it could not be fetched back: {error}"
        if not missing and not others:
            return ""
        return f"of {self.tree.files:,} files {missing:,} did not come back as they were, and {others:,} are others"


# -- the work -----------------------------------------------------------------------------------------------------------------------------------


def first(one: Program, maker: str) -> Contender:
    """Everything to an empty bucket."""

    def trial(scratch: Path) -> Trial:
        bucket = one.world.bucket(maker)
        one.ready(scratch, bucket)
        return _copied(one, scratch, bucket, scratch, clear=bucket.clear)

    return Contender(one.name, one.needs, trial)


def again(one: Program, maker: str) -> Contender:
    """The same again."""
    full = Full(one, maker)
    return Contender(one.name, one.needs, lambda scratch: _copied(one, full.at, full.bucket, scratch), full.make)


def restore(one: Program, maker: str) -> Contender:
    """All of it back, with nothing but the bucket."""
    full = Full(one, maker)

    def trial(scratch: Path) -> Trial:
        command, where = one.fetch(full.bucket, full.bucket.endpoint, scratch, _empty(scratch / "back"))
        # hostbackup syncs before it ends.
        return Trial(command, where, Same(one.tree), sync=None if "hostbackup" in one.needs else scratch, traffic=full.bucket.line.traffic)

    return Contender(one.name, one.needs, trial, full.make)


class Full:
    """A bucket with a first copy in it, and the folder `at` of the program that made it."""

    bucket: Bucket

    def __init__(self, one: Program, maker: str) -> None:
        self._one, self._maker = one, maker
        self.at = one.world.folder / "copies" / _plain(one.name)

    def make(self) -> None:
        self.bucket = self._one.world.bucket(self._maker)
        self._one.ready(_empty(self.at), self.bucket)
        run_first(self._one.world, self._one.copy(self.at, self.bucket))


def _copied(one: Program, at: Path, bucket: Bucket, scratch: Path, *, clear: Callable[[], None] = lambda: None) -> Trial:
    """Everyone gets a sync on the server's side inside the time. `scratch` is to fetch back in: what is remembered in `at` must not help."""

    def fetch(to: Path) -> Path:
        command, where = one.fetch(bucket, bucket.near, scratch, _empty(to))
        run_first(one.world, command)
        return where

    wanted = Same(one.tree, fetch)
    return Trial(one.copy(at, bucket), scratch / "back", wanted, sync=bucket.folder, traffic=bucket.line.traffic, clear=clear)


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


# -- hostbackup ---------------------------------------------------------------------------------------------------------------------------------


class Hostbackup(Program):
    """From a vault that a backup has filled."""

    name = "hostbackup"
    needs = ("hostbackup", "cp")

    @functools.cached_property
    def vault(self) -> Path:
        """The one that every run gets a copy of, so that none knows of an earlier one."""
        at = _empty(self.world.folder / "copies" / f"{_plain(self.name)}-vault")
        run_first(self.world, hostbackup("backup", self.world.profile(at, at / "vault", ['view = "none"', self._local()])))
        return at / "vault"

    def ready(self, at: Path, bucket: Bucket) -> None:
        (at / "vault").mkdir(mode=0o700)
        for one in self.vault.iterdir():  # objects never change: links do for them
            subprocess.run(["cp", "-al" if one.name == "objects" else "-a", str(one), str(at / "vault" / one.name)], check=True)
        self._profile(at, bucket)

    def _profile(self, at: Path, bucket: Bucket, *more: str) -> None:
        keys = f'access_key = "{ACCESS}"\nsecret_key = "{SECRET}"\n{self.more()}'
        told = f'[[copy]]\nname = "bucket"\nbucket = "{bucket.name}"\nprefix = "{PREFIX}"\nendpoint = "{bucket.endpoint}"\n{keys}'
        self.world.profile(at, at / "vault", ['view = "none"', self._local(), told, *more])

    def more(self) -> str:
        """Further lines of [[copy]]."""
        return ""

    def _local(self) -> str:
        return f'[[local]]\npath = "{self.tree.path}"\nname = "site"\n'

    def copy(self, at: Path, bucket: Bucket) -> list[str]:
        return hostbackup("copy", at / "move.toml")

    def fetch(self, bucket: Bucket, endpoint: str, at: Path, to: Path) -> tuple[list[str], Path]:
        source = ["--from", f"s3://{bucket.name}/{PREFIX}", "--endpoint", endpoint]
        return [program("hostbackup"), "restore", *source, "--to", str(to), "--quiet"], to / "local" / "site"


class Encrypted(Hostbackup):
    """The copy is encrypted, as restic's always is."""

    name = "hostbackup (age)"

    @functools.cached_property
    def _key(self) -> Path:
        """A file with a secret key; beside it stands the public one."""
        from pyrage import x25519

        key, path = x25519.Identity.generate(), self.world.folder / "copies" / "key.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(f"{key}\n")
        path.with_suffix(".pub").write_text(str(key.to_public()))
        return path

    def more(self) -> str:
        return f'encrypt_to = ["{self._key.with_suffix(".pub").read_text()}"]\n'

    def fetch(self, bucket: Bucket, endpoint: str, at: Path, to: Path) -> tuple[list[str], Path]:
        command, where = super().fetch(bucket, endpoint, at, to)
        return [*command, "--identity", str(self._key)], where


class BackupAndCopy(Hostbackup):
    """From the tree: backup and copy in one command, as restic does with one."""

    name = "hostbackup (backup, copy)"

    def ready(self, at: Path, bucket: Bucket) -> None:
        self._profile(at, bucket, '[sync]\nsteps = ["backup", "copy"]\n')

    def copy(self, at: Path, bucket: Bucket) -> list[str]:
        return hostbackup("sync", at / "move.toml")


# -- the others ---------------------------------------------------------------------------------------------------------------------------------


class Restic(Program):
    name = "restic"
    needs = ("restic",)

    def _restic(self, bucket: Bucket, endpoint: str, cache: Path, *words: str) -> list[str]:
        return [program("restic"), "--repo", f"s3:{endpoint}/{bucket.name}/{PREFIX}", "--cache-dir", str(cache), "--quiet", *words]

    def ready(self, at: Path, bucket: Bucket) -> None:
        run_first(self.world, self._restic(bucket, bucket.near, at / "cache", "init"))

    def copy(self, at: Path, bucket: Bucket) -> list[str]:
        return self._restic(bucket, bucket.endpoint, at / "cache", "backup", str(self.tree.path))

    def fetch(self, bucket: Bucket, endpoint: str, at: Path, to: Path) -> tuple[list[str], Path]:
        where = to / self.tree.path.relative_to("/")
        return self._restic(bucket, endpoint, at / "fresh-cache", "restore", "latest", "--target", str(to)), where


class Rclone(Program):
    name = "rclone"
    needs = ("rclone",)

    def _rclone(self, endpoint: str, at: Path, source: str, target: str) -> list[str]:
        config = at / "rclone.conf"
        config.write_text(f"[s3]\ntype = s3\nprovider = Other\naccess_key_id = {ACCESS}\nsecret_access_key = {SECRET}\nendpoint = {endpoint}\n")
        several = ["--transfers", str(LARGE), "--checkers", str(LARGE)]
        return [program("rclone"), "--config", str(config), "copy", source, target, *several, "--stats", "0", "--log-level", "ERROR"]

    def ready(self, at: Path, bucket: Bucket) -> None:
        """Nothing."""

    def copy(self, at: Path, bucket: Bucket) -> list[str]:
        return self._rclone(bucket.endpoint, at, str(self.tree.path), f"s3:{bucket.name}/{PREFIX}")

    def fetch(self, bucket: Bucket, endpoint: str, at: Path, to: Path) -> tuple[list[str], Path]:
        return self._rclone(endpoint, at, f"s3:{bucket.name}/{PREFIX}", str(to)), to


class Aws(Program):
    name = "aws s3 sync"
    needs = ("aws",)

    def _sync(self, endpoint: str, source: str, target: str) -> list[str]:
        return [program("aws"), "s3", "sync", source, target, "--endpoint-url", endpoint, "--only-show-errors"]

    def ready(self, at: Path, bucket: Bucket) -> None:
        """Nothing."""

    def copy(self, at: Path, bucket: Bucket) -> list[str]:
        return self._sync(bucket.endpoint, str(self.tree.path), f"s3://{bucket.name}/{PREFIX}")

    def fetch(self, bucket: Bucket, endpoint: str, at: Path, to: Path) -> tuple[list[str], Path]:
        return self._sync(endpoint, f"s3://{bucket.name}/{PREFIX}", str(to)), to
