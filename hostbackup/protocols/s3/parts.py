"""An object that goes up in parts, several of them at once."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

from hostbackup.errors import HostbackupError, LineCut
from hostbackup.protocols.s3 import checksums
from hostbackup.protocols.s3.faults import UploadGone

if TYPE_CHECKING:
    from hostbackup.protocols.s3.bucket import Bucket

WHOLE = 64 << 20  # bytes; larger objects go up in parts
PART = 16 << 20  # bytes of a part, at least
_MAX_PARTS = 9_000  # S3 allows 10,000


def part_size(size: int, least: int = PART) -> int:
    """Bytes of each part of an object of `size` bytes, so that S3's limit on their number holds; whole MiB."""
    return max(least, -(-size // _MAX_PARTS) + (1 << 20) - 1 >> 20 << 20)


class Parts:
    """One upload that was begun, for `finish` or `abort` to end. Nothing of it shows before `finish`; `put` may be called from several threads."""

    def __init__(self, bucket: Bucket, key: str, settings: dict[str, Any]) -> None:
        self._bucket = bucket
        self._key = key
        self._sha256 = bool(bucket.facts.sha256)
        extra = {"ChecksumAlgorithm": "SHA256"} if self._sha256 else {}
        self._upload = bucket.ask("create_multipart_upload", key, **settings, **extra)["UploadId"]
        self._done: dict[int, dict[str, Any]] = {}
        self._digests: dict[int, bytes] = {}
        self._size = 0
        self._lock = threading.Lock()

    def put(self, number: int, data: bytes) -> None:
        """Sends part `number`, from 1. Raises what ends the upload: LineCut too where the store says that it keeps other bytes than it was sent."""
        if self._sha256:
            digest = checksums.sha256(data)
            sent: dict[str, Any] = checksums.sha256_headers(digest)
        else:
            digest = checksums.md5(data)
            sent = {"ContentMD5": checksums.told(digest)}
        told = self._bucket.ask("upload_part", self._key, UploadId=self._upload, PartNumber=number, Body=data, **sent)
        if self._sha256:
            wrong = told.get("ChecksumSHA256", sent["ChecksumSHA256"]) != sent["ChecksumSHA256"]
        else:
            wrong = bool(self._bucket.facts.md5_etag) and told.get("ETag", "").strip('"') != digest.hex()
        if wrong:
            raise LineCut("the store says that it keeps other bytes of a part than it was sent", where=self._bucket.where(self._key))
        with self._lock:
            sha256 = {"ChecksumSHA256": sent["ChecksumSHA256"]} if self._sha256 else {}
            self._done[number] = {"PartNumber": number, "ETag": told["ETag"], **sha256}
            self._digests[number] = digest
            self._size += len(data)

    def finish(self) -> tuple[str, str]:
        """Makes an object of the parts. Its ETag, and what the store computed over the parts ("…-3"), "" where it did not.

        Raises ProtocolBroken where the object that came of it is not what was sent; it is taken away again then.
        """
        parts = [self._done[number] for number in sorted(self._done)]
        digests = [self._digests[number] for number in sorted(self._done)]
        expected = checksums.composite(digests) if self._sha256 else ""
        try:
            answer = self._bucket.ask("complete_multipart_upload", self._key, UploadId=self._upload, MultipartUpload={"Parts": parts})
        except UploadGone:  # the answer to an earlier attempt was lost on its way
            answer = {}
        etag, computed = answer.get("ETag", "").strip('"'), answer.get("ChecksumSHA256", "")
        if not (etag and expected and computed == expected):
            head = self._bucket.head(self._key)
            etag, computed = head.etag, head.composite
            if head.size != self._size:
                self._bucket.refuse(self._key, f"the store kept {head.size} bytes of {self._size}")
        if expected and computed and computed != expected:
            self._bucket.refuse(self._key, "the store has other bytes than it was sent")
        return etag, computed if computed == expected else ""

    def abort(self) -> None:
        """Gives it up. Where that cannot be told to the store, a later run does it."""
        with contextlib.suppress(HostbackupError):
            self._bucket.ask("abort_multipart_upload", self._key, UploadId=self._upload)
