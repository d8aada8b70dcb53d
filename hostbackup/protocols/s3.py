"""One S3-compatible bucket, over boto3: the requests a copy needs, and boto3's errors mapped to ours in one place.

Checksums are sent only as asked for here (`when_required`): the CRC32 that boto3 adds by default is refused by many stores. A whole object
travels with its Content-MD5 and, where the store is found to check it, its SHA-256; the parts of a large one with a Content-MD5 each.
The API is Amazon S3's, version 2006-03-01.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import io
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

from hostbackup.errors import (
    CertificateRefused,
    Damaged,
    DiskFull,
    HostbackupError,
    LineCut,
    LoginRefused,
    PlaceMissing,
    ProtocolBroken,
    Unreachable,
    UsageError,
)

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

PART = 8 << 20  # bytes; larger objects go up in parts of at least this size
_MAX_PARTS = 9_000  # S3 allows 10,000
_STALE = datetime.timedelta(days=1)
_RESUMES = 4  # times one download is taken up again after a cut
_PROBE = "checksum-probe"


@dataclass(frozen=True, slots=True)
class S3Target:
    """A bucket and how to get at it. Without keys, boto3's own credential chain decides."""

    bucket: str
    prefix: str = ""
    endpoint: str | None = None  # a URL; None is Amazon
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    region: str | None = None

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix.strip('/')}".rstrip("/")


class ObjectAbsent(Damaged):
    """The bucket has no object of that name."""

    code = "missing"


class Found(NamedTuple):
    """An object as it is listed. `modified`: seconds since the epoch, by the store's clock."""

    key: str
    size: int
    etag: str
    modified: float


class Head(NamedTuple):
    size: int
    sha256: str  # hex, as the store computed it over the whole object; "" where it offers none
    metadata: Mapping[str, str] = {}  # names in lower case


@dataclass(frozen=True, slots=True)
class About:
    """What a bucket tells of an object to whoever fetches it. Names and values of metadata are ASCII."""

    content_type: str = ""
    metadata: tuple[tuple[str, str], ...] = ()

    def request(self) -> dict[str, Any]:
        return {key: told for key, told in (("ContentType", self.content_type), ("Metadata", dict(self.metadata))) if told}


_NOTHING = About()


def connect(target: S3Target, *, connections: int = 16, timeout: float = 60.0) -> Bucket:
    """A bucket ready to use; nothing is sent yet. Raises UsageError without boto3 or with impossible settings, LoginRefused without credentials."""
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise UsageError("copies in a bucket need boto3, which is not installed", hint="pip install 'hostbackup[s3]'") from error
    options: dict[str, Any] = {
        "connect_timeout": min(timeout, 20.0),
        "read_timeout": timeout,
        "max_pool_connections": connections,
        "retries": {"mode": "standard", "total_max_attempts": 5},
        "s3": {"addressing_style": "path" if target.endpoint else "auto"},
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
    known = {name: value for name, value in options.items() if name in Config.OPTION_DEFAULTS}
    try:
        client = boto3.session.Session().client(
            "s3",
            endpoint_url=target.endpoint,
            aws_access_key_id=target.access_key,
            aws_secret_access_key=target.secret_key,
            region_name=target.region or ("us-east-1" if target.endpoint else None),
            config=Config(**known),
        )
    except (BotoCoreError, ValueError) as error:
        raise translate(error, target) from error
    return Bucket(target, client)


_REFUSED = {
    "AccessDenied", "AccountProblem", "AllAccessDisabled", "AuthorizationHeaderMalformed", "ExpiredToken", "Forbidden", "InvalidAccessKeyId",
    "InvalidClientTokenId", "InvalidSecurity", "InvalidToken", "NotSignedUp", "SignatureDoesNotMatch", "TokenRefreshRequired", "Unauthorized",
    "UnauthorizedAccess", "401", "403",
}  # fmt: skip
_FULL = {"QuotaExceeded", "InsufficientStorage", "StorageFull", "XMinioStorageFull", "BucketQuotaExceeded", "XMinioAdminBucketQuotaExceeded", "507"}
_BUSY = {"InternalError", "ServiceUnavailable", "SlowDown", "RequestTimeout", "ThrottlingException", "OperationAborted", "500", "502", "503", "504"}
_ELSEWHERE = {"PermanentRedirect", "TemporaryRedirect", "IllegalLocationConstraintException", "301", "307", "308"}


def translate(error: Exception, target: S3Target, key: str = "") -> HostbackupError:
    """What boto3 raised, as one of ours, without secrets."""
    from botocore import exceptions as boto

    where = f"{target.url}/{key}" if key else target.url
    endpoint = target.endpoint or "Amazon S3"
    text = _clean(str(error), target)
    if isinstance(error, boto.ClientError):
        return _client_error(error, target, where)
    if isinstance(error, (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError)):
        hint = "set access_key and secret_key of this copy, or what boto3 looks for (AWS_ACCESS_KEY_ID …)"
        return LoginRefused("there are no usable credentials for the bucket", where=where, hint=hint)
    if isinstance(error, boto.SSLError):
        return CertificateRefused(f"the certificate of {endpoint} is not accepted: {text}", where=where)
    if isinstance(error, (boto.EndpointConnectionError, boto.ConnectTimeoutError, boto.ProxyConnectionError)):
        return Unreachable(f"{endpoint} cannot be reached", where=where, hint="check `endpoint`, the network and any proxy")
    if isinstance(error, boto.HTTPClientError):
        return LineCut(f"the connection to {endpoint} broke or stood still: {text}", where=where, hint="run it again: what is stored stays")
    if isinstance(error, (boto.ReadTimeoutError, boto.IncompleteReadError, boto.ResponseStreamingError)):
        return LineCut(f"the download from {endpoint} broke off: {text}", where=where)
    if isinstance(error, (boto.ParamValidationError, boto.InvalidRegionError, ValueError)):
        return UsageError(f"these settings make no request: {text}", where=where, hint="check bucket, prefix and endpoint (a URL)")
    return ProtocolBroken(text, where=where)


def _client_error(error: Any, target: S3Target, where: str) -> HostbackupError:
    response: Mapping[str, Any] = error.response
    code = str(response.get("Error", {}).get("Code", ""))
    status = str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    said = _clean(str(response.get("Error", {}).get("Message", "")), target)
    if code == "NoSuchBucket":
        return PlaceMissing(f"there is no bucket {target.bucket}", where=where, hint="create it, or correct `bucket` and `endpoint`")
    if code == "RequestTimeTooSkewed":
        return LoginRefused("the store says this machine's clock is wrong", where=where, hint="set the clock")
    if code in _ELSEWHERE:
        return PlaceMissing("the bucket lives in another region", where=where, hint="set AWS_DEFAULT_REGION, or the bucket's own `endpoint`")
    if code in _FULL or status == "507":
        return DiskFull(f"the bucket is full ({code})", where=where)
    if code in _REFUSED or status in ("401", "403"):
        return LoginRefused(f"the store refuses these credentials ({code})", where=where, hint="check access_key, secret_key and what they may do")
    if code in ("NoSuchKey", "404", "NotFound"):
        return ObjectAbsent("is not in the bucket", where=where)
    if code in _BUSY or status.startswith("5"):
        return LineCut(f"the store is failing ({code or status})", where=where, hint="run it again later: what is stored stays")
    if code == "InvalidBucketName":
        return UsageError(f"{target.bucket} is no bucket name", where=where)
    return ProtocolBroken(f"the store answered {code or status}: {said}", where=where)


def _clean(text: str, target: S3Target) -> str:
    for secret in (target.secret_key, target.access_key):
        if secret:
            text = text.replace(secret, "***")
    return "".join(c if c.isprintable() else " " for c in text)[:300]


class Bucket:
    """The objects under a target's prefix. Keys are relative to it. Safe to use from several threads.

    Every method raises members of our error tree: those of `translate`.
    """

    def __init__(self, target: S3Target, client: S3Client) -> None:
        self.target = target
        self._client = client
        self._name = target.bucket
        prefix = target.prefix.strip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._checks_sha256: bool | None = None  # None: not known yet
        self._finding_out = threading.Lock()

    def close(self) -> None:
        self._client.close()

    def list(self, prefix: str = "", limit: int | None = None) -> Iterator[Found]:
        """Objects in the store's order (binary by the standard), a page of 1,000 a request."""
        wanted: dict[str, Any] = {"Prefix": self._prefix + prefix} | ({"MaxKeys": limit} if limit is not None else {})
        while True:
            page = self._ask("list_objects_v2", **wanted)
            for entry in page.get("Contents", ()):
                modified = entry.get("LastModified")
                yield Found(
                    entry["Key"][len(self._prefix) :], entry["Size"], entry.get("ETag", "").strip('"'), modified.timestamp() if modified else 0.0
                )
            if limit is not None or not page.get("IsTruncated"):
                return
            following = page.get("NextContinuationToken")
            if not following or wanted.get("ContinuationToken") == following:
                raise ProtocolBroken("the store cut its listing short", where=self.target.url)
            wanted["ContinuationToken"] = following

    def head(self, key: str) -> Head:
        """Size, checksum and metadata. Raises ObjectAbsent."""
        told = self._ask("head_object", key, ChecksumMode="ENABLED")
        digest = ""
        if told.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT":
            with contextlib.suppress(ValueError):  # "…-3" is a composite: no digest of the object
                digest = base64.b64decode(told.get("ChecksumSHA256", ""), validate=True).hex()
        metadata = {name.lower(): value for name, value in told.get("Metadata", {}).items()}
        return Head(told["ContentLength"], digest if len(digest) == 64 else "", metadata)

    def get(self, key: str, start: int = 0, length: int | None = None) -> tuple[int, BinaryIO]:
        """Size and contents of an object, or of `length` bytes of it from `start` on.

        The stream takes up a cut download again, and raises rather than end early. Raises ObjectAbsent, or ProtocolBroken where there are too few.
        """
        if length == 0:
            return 0, io.BytesIO()
        last = "" if length is None else str(start + length - 1)
        first = self._ask("get_object", key, **({"Range": f"bytes={start}-{last}"} if start or last else {}))
        size, etag = first["ContentLength"], first.get("ETag", "")
        if length is not None and size != length:
            first["Body"].close()
            raise ProtocolBroken(f"the store sent {size} bytes where {length} were asked for", where=f"{self.target.url}/{key}")

        def again(at: int) -> Any:
            wanted: dict[str, Any] = {"Range": f"bytes={start + at}-{last}"} | ({"IfMatch": etag} if etag else {})
            answer = self._ask("get_object", key, **wanted)
            if answer["ContentLength"] != size - at:
                raise LineCut("the download broke off, and the store cannot go on from there", where=f"{self.target.url}/{key}")
            return answer["Body"]

        raw = Download(first["Body"], size, again, lambda error: translate(error, self.target, key))
        return size, cast(BinaryIO, io.BufferedReader(raw, 1 << 17))

    def put(self, key: str, data: bytes, about: About = _NOTHING) -> str:
        """Stores a whole object; its ETag. The store has checked its MD5 or SHA-256, or has at least the size right."""
        md5 = hashlib.md5(data, usedforsecurity=False)
        if self._checks_sha256 is None:
            with self._finding_out:
                if self._checks_sha256 is None:
                    self._checks_sha256 = self._probe()
        extra = self._sha256(data) if self._checks_sha256 else {}
        told = self._put(key, data, md5.digest(), extra | about.request())
        etag: str = told.get("ETag", "").strip('"')
        if etag != md5.hexdigest() and not (extra and told.get("ChecksumSHA256") == extra["ChecksumSHA256"]):
            self._compare_size(key, len(data))
        return etag

    def put_small(self, key: str, data: bytes) -> None:
        """Stores a whole object that nothing depends on, with its Content-MD5 alone: without finding out first what the store checks."""
        self._put(key, data, hashlib.md5(data, usedforsecurity=False).digest(), {})

    def _probe(self) -> bool:
        """Whether the store refuses an object that is not what its SHA-256 says, and takes one that is.

        A store that keeps whatever it is told would later hand the sender's word back as its own finding, so it is not told any.
        """
        right = b"hostbackup asks whether this store checks SHA-256\n"
        told = self._sha256(right)
        takes_wrong, _ = self._try(right[:-1], told)
        takes_right, answer = (False, {}) if takes_wrong else self._try(right, told)
        if takes_wrong or takes_right:
            with contextlib.suppress(HostbackupError):  # keys that may not delete, or a locked bucket: then it stays, and is in nobody's way
                self.delete(_PROBE)
        return takes_right and bool(answer.get("ChecksumSHA256"))

    def _try(self, data: bytes, told: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
        try:
            return True, self._put(_PROBE, data, hashlib.md5(data, usedforsecurity=False).digest(), told)
        except (ProtocolBroken, ObjectAbsent):
            return False, {}

    @staticmethod
    def _sha256(data: bytes) -> dict[str, Any]:
        return {"ChecksumAlgorithm": "SHA256", "ChecksumSHA256": base64.b64encode(hashlib.sha256(data).digest()).decode()}

    def _put(self, key: str, data: bytes, md5: bytes, extra: dict[str, Any]) -> dict[str, Any]:
        told: dict[str, Any] = self._ask("put_object", key, Body=data, ContentMD5=base64.b64encode(md5).decode(), **extra)
        return told

    def put_parts(self, key: str, parts: Iterable[bytes], about: About = _NOTHING) -> str:
        """Stores a large object; its ETag. `parts`, all but the last of `part_size(size)` bytes, come in order. It shows once all is there."""
        self._abort(key, lambda name, _since: name == self._prefix + key)
        upload = self._ask("create_multipart_upload", key, **about.request())["UploadId"]
        done: list[dict[str, Any]] = []
        size = 0
        try:
            for number, data in enumerate(parts, 1):
                md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
                told = self._ask("upload_part", key, UploadId=upload, PartNumber=number, Body=data, ContentMD5=md5)
                done.append({"PartNumber": number, "ETag": told["ETag"]})
                size += len(data)
            told = self._ask("complete_multipart_upload", key, UploadId=upload, MultipartUpload={"Parts": done})
        except BaseException:
            with contextlib.suppress(HostbackupError):  # a later run aborts it
                self._ask("abort_multipart_upload", key, UploadId=upload)
            raise
        self._compare_size(key, size)
        etag: str = told.get("ETag", "").strip('"')
        return etag

    def _compare_size(self, key: str, size: int) -> None:
        stored = self.head(key).size
        if stored != size:
            raise ProtocolBroken(f"the store kept {stored} bytes of {size}", where=f"{self.target.url}/{key}")

    def delete(self, key: str) -> None:
        """Removes an object; one that is not there is no error."""
        with contextlib.suppress(ObjectAbsent):
            self._ask("delete_object", key)

    def abort_stale(self) -> None:
        """Gives up multipart uploads under the prefix that were begun more than a day ago and never finished: they cost money and do not show."""
        limit = datetime.datetime.now(datetime.UTC) - _STALE
        self._abort("", lambda _name, since: since < limit)

    def _abort(self, prefix: str, wanted: Callable[[str, datetime.datetime], bool]) -> None:
        with contextlib.suppress(ProtocolBroken, LoginRefused, ObjectAbsent):  # a store without the request, or keys that may not ask
            for upload in self._ask("list_multipart_uploads", Prefix=self._prefix + prefix).get("Uploads", ()):
                if wanted(upload["Key"], upload["Initiated"]):
                    self._ask("abort_multipart_upload", upload["Key"][len(self._prefix) :], UploadId=upload["UploadId"])

    def _ask(self, operation: str, key: str = "", **wanted: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        if key:
            wanted["Key"] = self._prefix + key
        try:
            return getattr(self._client, operation)(Bucket=self._name, **wanted)
        except (BotoCoreError, ClientError) as error:
            raise translate(error, self.target, key) from error


def part_size(size: int) -> int:
    """Bytes of each part of an object of `size` bytes, so that S3's limit on their number holds; whole MiB."""
    return max(PART, -(-size // _MAX_PARTS) + (1 << 20) - 1 >> 20 << 20)


class Download(io.RawIOBase):
    """The bytes of one object, all of them or an error."""

    def __init__(self, body: Any, size: int, again: Callable[[int], Any], explain: Callable[[Exception], HostbackupError]) -> None:
        self._body = body
        self._size = size
        self._at = 0
        self._again = again
        self._explain = explain
        self._left = _RESUMES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        if self._at >= self._size:
            return 0
        data = self._some(len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _some(self, wanted: int) -> bytes:
        from botocore.exceptions import BotoCoreError

        while True:
            problem: HostbackupError
            try:
                data: bytes = self._body.read(min(wanted, self._size - self._at))
                if data:
                    return data
                problem = LineCut(f"the download ended after {self._at} of {self._size} bytes")
            except (BotoCoreError, OSError) as error:
                problem = self._explain(error)
            if not self._left:
                raise problem
            self._left -= 1
            self._body.close()
            self._body = self._again(self._at)

    def close(self) -> None:
        if not self.closed:
            self._body.close()
        super().close()
