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
    Recipient,
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
    encrypt_to: Many[Recipient] = ()
    """age recipients: what leaves this machine is encrypted to them."""
    mode: Literal["vault", "mirror"] = "vault"
    """vault: a copy from which everything can be restored; mirror: the newest state as plain files."""

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


class PathCopy(Section):
    """A copy of the vault on another disk."""

    name: Name
    """What the copy is called; the path by default."""
    path: LocalPath
    """A folder that exists; on another device than the vault, to count as off-machine."""
    encrypt_to: Many[Recipient] = ()
    """age recipients: what is copied is encrypted to them."""
    mode: Literal["vault", "mirror"] = "vault"
    """vault: a copy from which everything can be restored; mirror: the newest state as plain files."""

    @before
    @classmethod
    def _default_name(cls, value: Any) -> Any:
        path = value.get("path") if isinstance(value, dict) else None
        return with_default(value, "name", (path.rstrip("/\\") or path) if isinstance(path, str) else "?")


def _copy_form(value: object) -> type[BucketCopy | PathCopy]:
    table = value if isinstance(value, dict) else {}
    if ("bucket" in table) == ("path" in table):
        raise WrongValue("needs either bucket or path")
    return BucketCopy if "bucket" in table else PathCopy


Copy = Annotated[BucketCopy | PathCopy, OneOf(_copy_form)]
