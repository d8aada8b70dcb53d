"""The requests: list, look, fetch, store, delete."""

from __future__ import annotations

import contextlib
import datetime
import io
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, NoReturn, cast

from hostbackup.errors import HostbackupError, LineCut, LoginRefused, ProtocolBroken
from hostbackup.protocols.s3 import checksums
from hostbackup.protocols.s3.download import Download
from hostbackup.protocols.s3.facts import Facts
from hostbackup.protocols.s3.faults import Hurt, ObjectAbsent, translate
from hostbackup.protocols.s3.parts import Parts
from hostbackup.protocols.s3.retry import Patience
from hostbackup.protocols.s3.target import S3Target

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

_STALE = datetime.timedelta(days=1)
PROBE = "checksum-probe"


class Found(NamedTuple):
    """An object as it is listed. `modified`: seconds since the epoch, by the store's clock."""

    key: str
    size: int
    etag: str
    modified: float


class Head(NamedTuple):
    """What the store says of an object that it computed itself; "" where it offers nothing."""

    size: int
    sha256: str  # of the whole object, lower-case hex
    composite: str  # over the SHA-256s of its parts: "…-3"
    etag: str = ""
    metadata: Mapping[str, str] = {}  # names in lower case


class Bucket:
    """The objects under a target's prefix. Keys are relative to it. Safe to use from several threads.

    Every method raises members of our error tree: those of `translate`. `facts` is what is known of the store; more is found out on the way.
    """

    def __init__(self, target: S3Target, client: S3Client, facts: Facts | None = None, patience: Patience | None = None) -> None:
        self.target = target
        self.facts = facts if facts and facts.place == target.place else Facts(target.place)
        self._client = client
        self._patience = patience or Patience()
        self._name = target.bucket
        prefix = target.prefix.strip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._finding_out = threading.Lock()

    def hurry(self) -> None:
        """From now on a request that fails is not tried again, and nobody waits for that any more."""
        self._patience.stop()

    def close(self) -> None:
        self.hurry()
        self._client.close()

    def where(self, key: str) -> str:
        return f"{self.target.url}/{key}"

    def ask(self, operation: str, key: str = "", **wanted: Any) -> Any:
        """One request, tried again where that may help."""
        return self._patience.ask(lambda: self.ask_once(operation, key, **wanted))

    def ask_once(self, operation: str, key: str = "", **wanted: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        if key:
            wanted["Key"] = self._prefix + key
        try:
            return getattr(self._client, operation)(Bucket=self._name, **wanted)
        except (BotoCoreError, ClientError) as error:
            raise translate(error, self.target, key) from error

    # ------------------------------------------------------------ looking and fetching

    def list(self, prefix: str = "", limit: int | None = None) -> Iterator[Found]:
        """Objects in the store's order (binary by the standard), a page of 1,000 a request."""
        wanted: dict[str, Any] = {"Prefix": self._prefix + prefix} | ({"MaxKeys": limit} if limit is not None else {})
        while True:
            page = self.ask("list_objects_v2", **wanted)
            for entry in page.get("Contents", ()):
                modified = entry.get("LastModified")
                key, etag = entry["Key"][len(self._prefix) :], entry.get("ETag", "").strip('"')
                yield Found(key, entry["Size"], etag, modified.timestamp() if modified else 0.0)
            if limit is not None or not page.get("IsTruncated"):
                return
            following = page.get("NextContinuationToken")
            if not following or wanted.get("ContinuationToken") == following:
                raise ProtocolBroken("the store cut its listing short", where=self.target.url)
            wanted["ContinuationToken"] = following

    def head(self, key: str) -> Head:
        """Size, checksums and metadata. Raises ObjectAbsent."""
        told = self.ask("head_object", key, ChecksumMode="ENABLED")
        size, etag, checksum = told["ContentLength"], told.get("ETag", "").strip('"'), told.get("ChecksumSHA256", "")
        metadata = {name.lower(): value for name, value in told.get("Metadata", {}).items()}
        _, dash, parts = etag.rpartition("-")
        if checksum and (told.get("ChecksumType") == "COMPOSITE" or "-" in checksum or dash):
            composite = checksum if "-" in checksum else f"{checksum}-{parts}"  # some leave out the number of parts
            return Head(size, "", composite, etag, metadata)
        return Head(size, checksums.hex_of(checksum), "", etag, metadata)

    def get(self, key: str, start: int = 0, length: int | None = None) -> tuple[int, BinaryIO]:
        """Size and contents of an object, or of `length` bytes of it from `start` on.

        The stream takes up a cut download again, and raises rather than end early. Raises ObjectAbsent, or ProtocolBroken where there are too few.
        """
        if length == 0:
            return 0, io.BytesIO()
        last = "" if length is None else str(start + length - 1)
        first = self.ask("get_object", key, **({"Range": f"bytes={start}-{last}"} if start or last else {}))
        size, etag = first["ContentLength"], first.get("ETag", "")
        if length is not None and size != length:
            first["Body"].close()
            raise ProtocolBroken(f"the store sent {size} bytes where {length} were asked for", where=self.where(key))

        def again(at: int) -> Any:
            wanted: dict[str, Any] = {"Range": f"bytes={start + at}-{last}"} | ({"IfMatch": etag} if etag else {})
            answer = self.ask("get_object", key, **wanted)
            if answer["ContentLength"] != size - at or answer.get("ETag", "") != etag:
                answer["Body"].close()
                raise LineCut("the download broke off, and the store cannot go on from there", where=self.where(key))
            return answer["Body"]

        raw = Download(first["Body"], size, again, lambda error: translate(error, self.target, key))
        return size, cast(BinaryIO, io.BufferedReader(raw, 1 << 17))

    # ------------------------------------------------------------ storing

    def put(self, key: str, data: bytes, digest: bytes, settings: dict[str, Any]) -> str:
        """Stores a whole object, whose SHA-256 is `digest`; its ETag. The store has checked that or its MD5, or has at least the size right.

        Raises ProtocolBroken where what it keeps is not what it was sent; it is taken away again then.
        """
        if self.facts.sha256 is None:
            self.learn_checksums()
        if self.facts.sha256:
            told = self.ask("put_object", key, Body=data, **checksums.sha256_headers(digest), **settings)
            etag, answer = told.get("ETag", "").strip('"'), told.get("ChecksumSHA256", "")
            right, wrong = answer == checksums.told(digest), bool(answer)
        else:
            md5 = checksums.md5(data)
            told = self.ask("put_object", key, Body=data, ContentMD5=checksums.told(md5), **settings)
            etag = told.get("ETag", "").strip('"')
            right, wrong = etag == md5.hex(), bool(self.facts.md5_etag)
        if not right and wrong:
            self.refuse(key, "the store says that it keeps other bytes than it was sent")
        if not right and (stored := self.head(key).size) != len(data):
            self.refuse(key, f"the store kept {stored} bytes of {len(data)}")
        return str(etag)

    def put_small(self, key: str, data: bytes) -> None:
        """Stores a whole object that nothing depends on, with its Content-MD5 alone: without finding out first what the store checks."""
        self.ask("put_object", key, Body=data, ContentMD5=checksums.told(checksums.md5(data)))

    def parts(self, key: str, settings: dict[str, Any]) -> Parts:
        """Begins an upload in parts. One of the same object that a killed run began is given up first."""
        if self.facts.sha256 is None:
            self.learn_checksums()
        self._abort(key, lambda name, _since: name == self._prefix + key)
        return Parts(self, key, settings)

    def refuse(self, key: str, reason: str) -> NoReturn:
        """Takes away an object that did not become what it should be: by its key and size it would pass for it."""
        try:
            self.delete(key)
        except HostbackupError:
            raise ProtocolBroken(f"{reason}, and it could not be removed", where=self.where(key), hint="run `copy --repair`") from None
        raise ProtocolBroken(reason, where=self.where(key), hint="run it again")

    # ------------------------------------------------------------ finding out

    def learn_checksums(self) -> None:
        """Finds out whether the store refuses an object that is not what its SHA-256 says, and takes one that is; and what its ETags are.

        A store that keeps whatever it is told would later hand the sender's word back as its own finding, so it is not told any.
        """
        with self._finding_out:
            if self.facts.sha256 is not None:
                return
            right = b"hostbackup asks whether this store checks SHA-256\n"
            sent = checksums.sha256_headers(checksums.sha256(right))
            takes_wrong, answer = self._try(right[:-1], sent)
            takes_right = False
            if not takes_wrong:
                takes_right, answer = self._try(right, sent)
            if takes_wrong or takes_right:
                etag = answer.get("ETag", "").strip('"')
                self.facts.md5_etag = etag == checksums.md5(right[:-1] if takes_wrong else right).hex()
                with contextlib.suppress(HostbackupError):  # keys that may not delete, or a locked bucket: then it stays, and is in nobody's way
                    self.delete(PROBE)
            self.facts.sha256 = takes_right and answer.get("ChecksumSHA256") == sent["ChecksumSHA256"]

    def _try(self, data: bytes, sent: dict[str, str]) -> tuple[bool, dict[str, Any]]:
        def attempt() -> tuple[bool, dict[str, Any]]:
            try:
                return True, self.ask_once("put_object", PROBE, Body=data, ContentMD5=checksums.told(checksums.md5(data)), **sent)
            except (Hurt, ProtocolBroken, ObjectAbsent):
                return False, {}

        return self._patience.ask(attempt)

    # ------------------------------------------------------------ taking away

    def delete(self, key: str) -> None:
        """Removes an object; one that is not there is no error."""
        with contextlib.suppress(ObjectAbsent):
            self.ask("delete_object", key)

    def abort_stale(self) -> None:
        """Gives up multipart uploads under the prefix that were begun more than a day ago and never finished: they cost money and do not show."""
        limit = datetime.datetime.now(datetime.UTC) - _STALE
        self._abort("", lambda _name, since: since < limit)

    def _abort(self, prefix: str, wanted: Callable[[str, datetime.datetime], bool]) -> None:
        asked: dict[str, Any] = {"Prefix": self._prefix + prefix}
        with contextlib.suppress(ProtocolBroken, LoginRefused, ObjectAbsent):  # a store without the request, or keys that may not ask
            while True:
                page = self.ask("list_multipart_uploads", **asked)
                for upload in page.get("Uploads", ()):
                    if wanted(upload["Key"], upload["Initiated"]):
                        self.ask("abort_multipart_upload", upload["Key"][len(self._prefix) :], UploadId=upload["UploadId"])
                following = {"KeyMarker": page.get("NextKeyMarker"), "UploadIdMarker": page.get("NextUploadIdMarker")}
                if not page.get("IsTruncated") or not all(following.values()) or following.items() <= asked.items():
                    return
                asked |= following
