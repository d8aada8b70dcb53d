"""What boto3 raises, as members of our error tree, in words for people."""

from __future__ import annotations

import datetime
import email.utils
import time
from collections.abc import Mapping
from typing import Any

from hostbackup.errors import (
    CertificateRefused,
    ConnectionFailed,
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
from hostbackup.protocols.s3.target import S3Target


class ObjectAbsent(Damaged):
    """The bucket has no object of that name."""

    code = "missing"


class Archived(ConnectionFailed):
    """The object is there, in a storage class from which nothing can be read at once."""

    code = "archived"


class CredentialsExpired(LoginRefused):
    """The keys were good for a time only, which is over: no other request will fare better."""


class Hurt(LineCut):
    """What arrived at the store is not what its checksum said."""


class UploadGone(ProtocolBroken):
    """The store knows nothing of this upload in parts: it was finished or given up."""


class ConditionFailed(ProtocolBroken):
    """The store obeyed a condition of a request, which did not hold (412)."""


class NotConfigured(ProtocolBroken):
    """The bucket has no setting of this kind."""


_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
_REFUSED = {
    "AccountProblem", "AllAccessDisabled", "AuthorizationHeaderMalformed", "Forbidden", "InvalidAccessKeyId", "InvalidClientTokenId",
    "InvalidSecurity", "InvalidToken", "NotSignedUp", "SignatureDoesNotMatch", "Unauthorized", "UnauthorizedAccess", "401", "403",
}  # fmt: skip
_FULL = {"QuotaExceeded", "InsufficientStorage", "StorageFull", "XMinioStorageFull", "BucketQuotaExceeded", "XMinioAdminBucketQuotaExceeded", "507"}
_BUSY = {
    "InternalError", "ServiceUnavailable", "SlowDown", "SlowDownRead", "SlowDownWrite", "RequestTimeout", "Throttling", "ThrottlingException",
    "TooManyRequests", "OperationAborted", "500", "502", "503", "504",
}  # fmt: skip
_HURT = {"BadDigest", "IncompleteBody", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}
_ELSEWHERE = {"PermanentRedirect", "TemporaryRedirect", "IllegalLocationConstraintException", "301", "307", "308"}
_DOES = {
    "DeleteObject": "delete",
    "PutObject": "write",
    "CreateMultipartUpload": "write",
    "UploadPart": "write",
    "CompleteMultipartUpload": "write",
    "GetObject": "read",
    "HeadObject": "read",
    "ListObjectsV2": "list",
    "ListMultipartUploads": "list unfinished uploads",
    "AbortMultipartUpload": "give up unfinished uploads",
}


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
        hint = "" if target.ca else "a store with a certificate of its own making needs `ca_file`, with the certificate of who issued it"
        return CertificateRefused(f"the certificate of {endpoint} is not accepted: {text}", where=where, hint=hint)
    if isinstance(error, boto.ProxyConnectionError):
        return Unreachable(f"the proxy on the way to {endpoint} cannot be reached or refuses", where=where, hint="check `proxy`")
    if isinstance(error, (boto.EndpointConnectionError, boto.ConnectTimeoutError)):
        return Unreachable(f"{endpoint} cannot be reached", where=where, hint="check `endpoint`, the network and any proxy")
    if isinstance(error, boto.ReadTimeoutError):
        return LineCut(f"{endpoint} does not answer any more", where=where, hint="run it again later: what is stored stays")
    if isinstance(error, (boto.IncompleteReadError, boto.ResponseStreamingError)):
        return LineCut(f"the download from {endpoint} broke off: {text}", where=where)
    if isinstance(error, boto.HTTPClientError):
        return LineCut(f"the connection to {endpoint} broke or stood still: {text}", where=where, hint="run it again: what is stored stays")
    if isinstance(error, (boto.ParamValidationError, boto.InvalidRegionError, ValueError)):
        return UsageError(f"these settings make no request: {text}", where=where, hint="check bucket, prefix and endpoint (a URL)")
    if isinstance(error, OSError):
        return UsageError(f"the certificates of {target.ca} cannot be read: {text}", where=where, hint="check `ca_file`")
    return ProtocolBroken(text, where=where)


def _client_error(error: Any, target: S3Target, where: str) -> HostbackupError:
    response: Mapping[str, Any] = error.response
    code = str(response.get("Error", {}).get("Code", ""))
    status = str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    said = _clean(str(response.get("Error", {}).get("Message", "")), target)
    if code == "NoSuchBucket":
        return PlaceMissing(f"there is no bucket {target.bucket}", where=where, hint="create it, or correct `bucket` and `endpoint`")
    if code == "RequestTimeTooSkewed":
        return LoginRefused(f"the store refuses us for our clock{_skew(response)}", where=where, hint="set the clock of this machine")
    if code in _ELSEWHERE:
        return PlaceMissing("the bucket lives in another region", where=where, hint="set `region`, or the bucket's own `endpoint`")
    if code in _FULL or status == "507":
        return DiskFull(f"the bucket is full ({code})", where=where, hint="free space there and run it again: what is stored stays")
    if code == "InvalidObjectState":
        hint = "have it restored there first (RestoreObject), and run it again"
        return Archived("it lies in an archive of the store and cannot be read at once", where=where, hint=hint)
    if code in _EXPIRED:
        hint = "get new ones and run it again: what is stored stays"
        return CredentialsExpired(f"the credentials have expired ({code})", where=where, hint=hint)
    if code == "AccessDenied":
        does = _DOES.get(error.operation_name, "do this")
        return LoginRefused(f"these credentials may not {does} there ({code})", where=where, hint="have whoever runs the store allow it")
    if code in _REFUSED or status in ("401", "403"):
        return LoginRefused(f"the store refuses these credentials ({code})", where=where, hint="check access_key, secret_key and what they may do")
    if code == "PreconditionFailed" or status == "412":
        return ConditionFailed("it is not as it was a moment ago: somebody else writes there", where=where, hint="run it again")
    if code == "ObjectLockConfigurationNotFoundError":
        return NotConfigured("the bucket was not made for Object Lock", where=where)
    if code == "NoSuchUpload":
        return UploadGone("the store knows nothing of this upload any more", where=where, hint="run it again")
    if code in ("NoSuchKey", "404", "NotFound"):
        return ObjectAbsent("is not in the bucket", where=where)
    if code in _HURT:
        return Hurt(f"the bytes arrived at the store damaged ({code})", where=where, hint="run it again")
    if code in _BUSY or status == "429" or status.startswith("5"):
        return LineCut(f"the store is failing ({code or status})", where=where, hint="run it again later: what is stored stays")
    if code == "InvalidBucketName":
        return UsageError(f"{target.bucket} is no bucket name", where=where)
    return ProtocolBroken(f"the store answered {code or status}: {said}", where=where)


def _skew(response: Mapping[str, Any]) -> str:
    seconds = skew(response)
    minutes = round(abs(seconds or 0) / 60)
    return f", which is {minutes} minutes {'ahead' if seconds and seconds > 0 else 'behind'}" if minutes else ""


def skew(response: Mapping[str, Any]) -> float | None:
    """Seconds that this machine's clock is ahead of the store's, by what a refusal says, else by its Date header; else None."""
    said = str(response.get("Error", {}).get("ServerTime", ""))
    header = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    try:
        told = datetime.datetime.fromisoformat(said) if said else email.utils.parsedate_to_datetime(header)
        return time.time() - told.timestamp()
    except (TypeError, ValueError):
        return None


def _clean(text: str, target: S3Target) -> str:
    for secret in target.secrets():
        text = text.replace(secret, "***")
    return "".join(c if c.isprintable() else " " for c in text)[:300]
