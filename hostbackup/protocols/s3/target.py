"""Which bucket, and how to get at it."""

from __future__ import annotations

import datetime
import urllib.parse
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class S3Target:
    """A bucket and how to get at it. Without keys, boto3's own credential chain decides."""

    bucket: str
    prefix: str = ""
    endpoint: str | None = None  # a URL; None is Amazon
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    region: str | None = None
    addressing: Literal["auto", "path", "virtual"] = "auto"  # bucket in the path or in the host name; auto: the latter at Amazon only
    storage_class: str | None = None
    sse: str | None = None  # "AES256" or "aws:kms": how the store encrypts what it keeps
    sse_key: str | None = None
    retain_days: int = 0  # for so long no lasting object can be deleted or replaced (Object Lock)
    retain_mode: Literal["governance", "compliance"] = "governance"
    ca: str | None = None  # a file of certificates to trust instead of the system's
    proxy: str | None = field(default=None, repr=False)  # a URL, perhaps with a password

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix.strip('/')}".rstrip("/")

    @property
    def place(self) -> str:
        """What the facts found of a store hold for: another endpoint, bucket or encryption may behave in another way."""
        return " ".join(part for part in (self.endpoint or "aws", self.bucket, self.sse) if part)

    def until(self) -> datetime.datetime | None:
        """Till when an object that is put now is kept from deletion: UTC, whole seconds; None without retention."""
        if not self.retain_days:
            return None
        return datetime.datetime.now(datetime.UTC).replace(microsecond=0) + datetime.timedelta(days=self.retain_days)

    def settings(
        self, *, until: datetime.datetime | None = None, content_type: str = "", metadata: tuple[tuple[str, str], ...] = ()
    ) -> dict[str, Any]:
        """The part of a PutObject or CreateMultipartUpload that is alike for all objects. `until`: as from `until()`, for lasting ones."""
        wanted: dict[str, Any] = {}
        if self.storage_class:
            wanted["StorageClass"] = self.storage_class
        if self.sse:
            wanted["ServerSideEncryption"] = self.sse
        if self.sse_key:
            wanted["SSEKMSKeyId"] = self.sse_key
        if until:
            wanted |= {"ObjectLockMode": self.retain_mode.upper(), "ObjectLockRetainUntilDate": until.strftime("%Y-%m-%dT%H:%M:%SZ")}
        if content_type:
            wanted["ContentType"] = content_type
        if metadata:
            wanted["Metadata"] = dict(metadata)
        return wanted

    def secrets(self) -> list[str]:
        """What must not be shown: both keys, and the proxy's password in the forms it may turn up in."""
        found = [self.secret_key, self.access_key]
        if self.proxy:
            password = urllib.parse.urlsplit(self.proxy).password
            found += [password, urllib.parse.unquote(password)] if password else []
        return [secret for secret in found if secret]
