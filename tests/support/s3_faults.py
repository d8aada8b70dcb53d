"""WSGI middleware in front of an S3 server: remembers what was asked, and misbehaves as a test scripts it."""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import io
import socket
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Answer = Callable[..., Any]
App = Callable[[dict[str, Any], Answer], Iterable[bytes]]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. `operation`: its name in Amazon's documentation, as far as tests tell them apart."""

    method: str
    path: str
    query: str
    environ: dict[str, Any] = field(repr=False, compare=False)

    @property
    def operation(self) -> str:
        names = urllib.parse.parse_qs(self.query, keep_blank_values=True)
        if "uploadId" in names:
            return {"PUT": "UploadPart", "POST": "CompleteMultipartUpload", "DELETE": "AbortMultipartUpload"}[self.method]
        if "uploads" in names:
            return "CreateMultipartUpload" if self.method == "POST" else "ListMultipartUploads"
        if self.path.strip("/").count("/") == 0:
            return "ListObjectsV2" if "list-type" in names else f"{self.method} bucket"
        return {"PUT": "PutObject", "GET": "GetObject", "HEAD": "HeadObject", "DELETE": "DeleteObject"}[self.method]

    @property
    def key(self) -> str:
        return urllib.parse.unquote(self.path.strip("/").partition("/")[2])


Fault = Callable[[Asked, App, Answer], Iterable[bytes]]
Rule = Callable[[Asked], Fault | None]  # the fault to answer a request with, or None to let it pass


class Middle:
    """Use: `with middle.watching() as requests` and `with middle.misbehaving(rule)`."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._rules: list[Rule] = []
        self._watchers: list[list[Asked]] = []
        self._lock = threading.Lock()

    @contextmanager
    def watching(self) -> Iterator[list[Asked]]:
        seen: list[Asked] = []
        self._watchers.append(seen)
        try:
            yield seen
        finally:
            self._watchers.remove(seen)

    @contextmanager
    def misbehaving(self, rule: Rule) -> Iterator[None]:
        self._rules.append(rule)
        try:
            yield
        finally:
            self._rules.remove(rule)

    def __call__(self, environ: dict[str, Any], start_response: Answer) -> Iterable[bytes]:
        asked = Asked(environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("QUERY_STRING", ""), environ)
        with self._lock:
            for seen in self._watchers:
                seen.append(asked)
            fault = next((found for rule in self._rules if (found := rule(asked))), None)
        return fault(asked, self._app, start_response) if fault else self._app(environ, start_response)


def on(operation: str, fault: Fault, *, times: int = 1_000_000, after: int = 0, key: str = "") -> Rule:
    """The fault, `times` times, for requests of this operation (and key, where one is given), once `after` of them went through."""
    seen = iter(range(1_000_000_000))

    def rule(asked: Asked) -> Fault | None:
        if asked.operation != operation or key not in asked.key:
            return None
        return fault if after <= next(seen) < after + times else None

    return rule


def error(status: str, code: str, more: str = "") -> Fault:
    """An answer that refuses, in S3's XML."""

    def fault(asked: Asked, _app: App, start_response: Answer) -> Iterable[bytes]:
        _drain(asked)
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message>{more}</Error>".encode() if asked.method != "HEAD" else b""
        start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]

    return fault


def cut(_asked: Asked, _app: App, _start_response: Answer) -> Iterable[bytes]:
    """The connection breaks before the request was read."""
    _hang_up(_asked)
    raise ConnectionResetError


def hanging(until: threading.Event) -> Fault:
    """No answer, before the test sets the event."""

    def fault(asked: Asked, _app: App, _start_response: Answer) -> Iterable[bytes]:
        until.wait(60)
        _hang_up(asked)
        raise ConnectionResetError

    return fault


def cut_after(asked: Asked, app: App, _start_response: Answer) -> Iterable[bytes]:
    """The request is carried out, and the connection breaks before it is answered."""
    for _ in app(asked.environ, lambda *_: None):
        pass
    _hang_up(asked)
    raise ConnectionResetError


def altered(change: Callable[[bytes], bytes] = lambda body: body, **headers: str) -> Fault:
    """The answer with another body, and some headers replaced; its length is told as it was. Shorter than told: the connection breaks there."""

    def fault(asked: Asked, app: App, start_response: Answer) -> Iterable[bytes]:
        told: list[Any] = []
        body = b"".join(app(asked.environ, lambda *answer: told.append(answer)))
        status, fields = told[0][0], told[0][1]
        replaced = {name.replace("_", "-").lower(): value for name, value in headers.items()}
        kept = [(name, value) for name, value in fields if name.lower() not in replaced]
        start_response(status, kept + list(replaced.items()))
        changed = change(body)
        yield changed
        if len(changed) < len(body):
            _hang_up(asked)

    return fault


def without_condition(asked: Asked, app: App, start_response: Answer) -> Iterable[bytes]:
    """A store that does not know If-None-Match."""
    asked.environ.pop("HTTP_IF_NONE_MATCH", None)
    return app(asked.environ, start_response)


def by_the_clock_of(seconds_ahead: float) -> Fault:
    """A store whose clock is so far ahead, and which says so and refuses."""
    now = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds_ahead)
    return error("403 Forbidden", "RequestTimeTooSkewed", f"<ServerTime>{now:%Y-%m-%dT%H:%M:%SZ}</ServerTime>")


def _drain(asked: Asked) -> None:
    left = int(asked.environ.get("CONTENT_LENGTH") or 0)
    while left > 0 and (data := asked.environ["wsgi.input"].read(min(left, 1 << 16))):
        left -= len(data)


def _hang_up(asked: Asked) -> None:
    with contextlib.suppress(OSError):
        asked.environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)


class ChecksSha256:
    """Does what Amazon does and moto does not: refuses a body that is not what its SHA-256 header says."""

    def __init__(self, app: App) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Answer) -> Iterable[bytes]:
        told = environ.get("HTTP_X_AMZ_CHECKSUM_SHA256")
        if told:
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            environ["wsgi.input"] = io.BytesIO(body)
            if base64.b64encode(hashlib.sha256(body).digest()).decode() != told:
                start_response("400 Bad Request", [("Content-Type", "application/xml")])
                return [b"<?xml version='1.0'?><Error><Code>BadDigest</Code><Message>The SHA256 you specified did not match</Message></Error>"]
        return self._app(environ, start_response)
