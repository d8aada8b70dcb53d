"""Where copies to buckets happen: S3 servers of two makes on loopback, and in front of each a relay that counts requests and bytes."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from scripts.benchmarks.ground import RESULTS, Ground, working_folder
from scripts.benchmarks.relay import HOST, Running, counting
from tests.support.s3 import ACCESS, SECRET, S3Server, moto_server, rclone_server

PASSWORD = "no-secret"  # of restic's repositories


@dataclass(frozen=True)
class Bucket:
    """An empty bucket of its own. `endpoint` is the relay, `near` the server itself; `line` tells what passes between them."""

    name: str
    endpoint: str
    near: str
    line: Running
    folder: Path | None
    """Where the server keeps it, if as files."""

    def clear(self) -> None:
        """Takes the disk space back. A server that keeps objects in memory keeps them."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class Shop:
    """A server and the relay in front of it."""

    server: S3Server
    line: Running


@dataclass(frozen=True)
class CopyWorld(Ground):
    """The servers, by the names of their makers."""

    shops: Mapping[str, Shop]
    _numbers: Iterator[int]

    @property
    def environment(self) -> dict[str, str]:
        """With the servers' keys, where every program looks for them, and none of a person's own."""
        kept = {key: value for key, value in super().environment.items() if not key.startswith(("AWS_", "RESTIC_", "BOTO"))}
        keys = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
        return kept | keys | {"RESTIC_PASSWORD": PASSWORD}

    def bucket(self, maker: str) -> Bucket:
        """A new one."""
        shop, name = self.shops[maker], f"bench-{next(self._numbers)}"
        shop.server.make_bucket(name)
        folder = shop.server.folder / name if shop.server.folder else None
        return Bucket(name, f"http://{HOST}:{shop.line.port}", shop.server.endpoint, shop.line, folder)


@contextlib.contextmanager
def copy_world(keep: Path | None, delay_ms: float) -> Iterator[CopyWorld]:
    """Servers and relays, up until the end. What rclone's server keeps stands among the results of single runs and goes with them."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(working_folder(keep))
        buckets = folder / RESULTS / "buckets"
        buckets.mkdir(parents=True)
        servers = {"rclone": stack.enter_context(rclone_server(buckets)), "moto": stack.enter_context(moto_server())}
        shops = {
            name: Shop(server, stack.enter_context(counting(urlsplit(server.endpoint).port or 80, delay_ms, http=True)))
            for name, server in servers.items()
        }
        yield CopyWorld(folder, delay_ms, shops, itertools.count(1))
