"""S3 servers on loopback: moto's in this process, and rclone's `serve s3`, an independent implementation, beside it."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostbackup.protocols.s3 import S3Target
from tests.support.s3_faults import Asked, ChecksSha256, Middle, Rule

ACCESS = "AKIATESTTESTTEST"
SECRET = "s3cr3t-s3cr3t-s3cr3t"


@dataclass(frozen=True, slots=True)
class S3Server:
    endpoint: str
    folder: Path | None = None  # where rclone keeps the buckets as folders
    middle: Middle | None = None  # in front of moto

    def watching(self) -> AbstractContextManager[list[Asked]]:
        """What it is asked, of a moto server."""
        assert self.middle is not None
        return self.middle.watching()

    def misbehaving(self, rule: Rule) -> AbstractContextManager[None]:
        """A moto server that answers some requests in another way."""
        assert self.middle is not None
        return self.middle.misbehaving(rule)

    def target(self, bucket: str, prefix: str = "", *, access_key: str = ACCESS, secret_key: str = SECRET) -> S3Target:
        return S3Target(bucket, prefix, self.endpoint, access_key, secret_key)

    def client(self) -> Any:
        """A plain boto3 client, to look at a bucket or to tamper with it."""
        return _client(self.endpoint)

    def make_bucket(self, name: str) -> None:
        self.client().create_bucket(Bucket=name)


@functools.cache
def _client(endpoint: str) -> Any:
    import boto3

    return boto3.client("s3", endpoint_url=endpoint, aws_access_key_id=ACCESS, aws_secret_access_key=SECRET, region_name="us-east-1")


@contextmanager
def moto_server(*, checks_sha256: bool = False, certificate: tuple[Path, Path] | None = None) -> Iterator[S3Server]:
    """moto's server on a free port, over TLS with a certificate and its key. It believes checksums unless `checks_sha256`, and any credentials."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    app: Any = DomainDispatcherApplication(create_backend_app)
    middle = Middle(ChecksSha256(app) if checks_sha256 else app)
    handler = type("Handler", (MotoRequestHandler,), {"log": lambda *_: None, "protocol_version": "HTTP/1.1"})
    tls = tuple(map(str, certificate)) if certificate else None
    server = make_server("127.0.0.1", 0, middle, threaded=True, request_handler=handler, ssl_context=tls)  # type: ignore[arg-type]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield S3Server(f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}", middle=middle)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def rclone_server(folder: Path) -> Iterator[S3Server]:
    """rclone's S3 server over `folder`, whose subfolders are the buckets. It checks credentials."""
    rclone = Path(sys.executable).with_name("rclone")
    command = [str(rclone), "serve", "s3", "--addr", "127.0.0.1:0", "--auth-key", f"{ACCESS},{SECRET}", "--config", "/dev/null", str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = b""
    try:
        for line in process.stderr:
            said += line
            if found := re.search(rb"Starting s3 server on \[(http://127\.0\.0\.1:\d+)/?\]", line):
                drain = threading.Thread(target=process.stderr.read, daemon=True)
                drain.start()
                yield S3Server(found[1].decode(), folder)
                return
        raise RuntimeError(f"rclone did not start: {said.decode(errors='replace')}")
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()
