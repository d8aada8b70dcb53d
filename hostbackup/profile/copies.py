"""Where the vault is copied to."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from hostbackup.errors import WrongValue
from hostbackup.profile.fields import (
    Bucket,
    Endpoint,
    Line,
    LocalPath,
    Many,
    Name,
    Prefix,
    Proxy,
    Recipient,
    RetainDays,
    StorageClass,
    with_default,
)
from hostbackup.profile.shape import OneOf, Section, after, before
from hostbackup.secrets import SecretSource


class BucketCopy(Section):
    """A copy of the vault in an S3-compatible bucket."""

    name: Name
    """What the copy is called; bucket/prefix by default."""
    bucket: Bucket
    """The bucket's name."""
    prefix: Prefix = ""
    """Where in the bucket."""
    endpoint: Endpoint | None = None
    """The store's address; Amazon's own by default."""
    region: Line | None = None
    """The store's region, where it wants one."""
    access_key: SecretSource | None = None
    """Key id; without both keys boto3 looks where it always does."""
    secret_key: SecretSource | None = None
    """Secret key."""
    addressing: Literal["auto", "path", "virtual"] = "auto"
    """Whether the bucket's name goes into the path of requests or in front of the endpoint's name; auto: into the path, at Amazon in front."""
    storage_class: StorageClass | None = None
    """How the store is to keep the objects; its own default without it. None from which nothing can be read at once, such as GLACIER."""
    sse: Literal["AES256", "aws:kms"] | None = None
    """How the store is to encrypt what it keeps, with keys of its own."""
    sse_key: Line | None = None
    """Which of the store's keys, with aws:kms."""
    retain_days: RetainDays | None = None
    """For how many days from its upload nobody can delete or replace an object (Object Lock; the bucket must have been made for it)."""
    retain_mode: Literal["governance", "compliance"] | None = None
    """governance (the default): who has a special right may delete before; compliance: nobody, not even the owner of the bucket."""
    ca_file: LocalPath | None = None
    """PEM file of the certificate authorities to trust instead of the system's."""
    proxy: Proxy | None = None
    """The proxy that requests go through, such as http://user@proxy.example.jp:3128; by default HTTPS_PROXY of the environment decides."""
    proxy_password: SecretSource | None = None
    """The proxy's password."""
    encrypt_to: Many[Recipient] = ()
    """age recipients (public keys, age1… or SSH's): what leaves this machine is encrypted to them."""
    identity: LocalPath | None = None
    """A file with an age secret key, to read an encrypted copy with; what only writes needs none, so it may lie on a disk not plugged in."""
    mode: Literal["vault", "mirror"] = "vault"
    """vault: a copy from which everything can be restored; mirror: the newest snapshot's web trees as plain files."""

    @before
    @classmethod
    def _default_name(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        where = [value.get("bucket"), value.get("prefix", "")]
        return with_default(value, "name", "/".join(where).strip("/") if all(isinstance(text, str) for text in where) else "?")

    @after
    def _both_keys(self) -> None:
        if (self.access_key is None) != (self.secret_key is None):
            raise WrongValue("needs access_key and secret_key, or neither")
        if self.sse_key and self.sse != "aws:kms":
            raise WrongValue('sse_key needs sse = "aws:kms"')
        if self.retain_mode and not self.retain_days:
            raise WrongValue("retain_mode needs retain_days")
        if self.proxy_password and "@" not in (self.proxy or ""):
            raise WrongValue("proxy_password needs a proxy with a user in it, such as http://user@proxy.example.jp:3128")

    @after
    def _plain_mirror(self) -> None:
        _check_mirror(self)


class PathCopy(Section):
    """A copy of the vault on another disk."""

    name: Name
    """What the copy is called; the path by default."""
    path: LocalPath
    """A folder that exists; on another device than the vault, to count as off-machine."""
    encrypt_to: Many[Recipient] = ()
    """age recipients (public keys, age1… or SSH's): what is copied is encrypted to them."""
    identity: LocalPath | None = None
    """A file with an age secret key, to read an encrypted copy with; what only writes needs none, so it may lie on a disk not plugged in."""
    mode: Literal["vault", "mirror"] = "vault"
    """vault: a copy from which everything can be restored; mirror: the newest snapshot's web trees as plain files."""

    @before
    @classmethod
    def _default_name(cls, value: Any) -> Any:
        path = value.get("path") if isinstance(value, dict) else None
        return with_default(value, "name", (path.rstrip("/\\") or path) if isinstance(path, str) else "?")

    @after
    def _plain_mirror(self) -> None:
        _check_mirror(self)


def _check_mirror(copy: BucketCopy | PathCopy) -> None:
    if copy.mode != "mirror":
        return
    if copy.encrypt_to:
        raise WrongValue('a mirror is plain files, for all who may read them to see: encrypt_to goes with mode = "vault" alone')
    if isinstance(copy, BucketCopy) and copy.retain_days:
        raise WrongValue('the files of a mirror are replaced when the site changes: retain_days goes with mode = "vault" alone')


def _copy_form(value: object) -> type[BucketCopy | PathCopy]:
    table = value if isinstance(value, dict) else {}
    if ("bucket" in table) == ("path" in table):
        raise WrongValue("needs either bucket or path")
    return BucketCopy if "bucket" in table else PathCopy


Copy = Annotated[BucketCopy | PathCopy, OneOf(_copy_form)]
