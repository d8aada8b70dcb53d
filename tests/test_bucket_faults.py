"""What a store does wrong, and what becomes of it: nothing that is not there passes for stored, and each error says what to do."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pytest

from hostbackup.errors import DiskFull, Exit, HostbackupError, LineCut, Locked, LoginRefused, PlaceMissing
from hostbackup.model import Method, Status
from hostbackup.protocols import s3
from hostbackup.vault.bucket import BucketStore
from hostbackup.vault.hold import ObjectHold
from hostbackup.vault.stores import Upload
from tests.contract_stores import listing, put, upload, wanted
from tests.support.s3 import S3Server, moto_server
from tests.support.s3_faults import Answer, App, Asked, altered, by_the_clock_of, cut, cut_after, error, hanging, on

_numbers = itertools.count(1)
LARGE = b"large" * (11 << 18)  # three parts


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with moto_server() as server:
        yield server


@pytest.fixture(scope="module")
def checking_moto() -> Iterator[S3Server]:
    with moto_server(checks_sha256=True) as server:
        yield server


@dataclass
class World:
    server: S3Server
    bucket: str = field(default_factory=lambda: f"faults-{next(_numbers)}")
    waited: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.server.make_bucket(self.bucket)
        self.store = self.another()
        put(self.store, upload("first", b"1"))  # what the store checks is known from here on

    def another(self, *, timeout: float = 60.0) -> BucketStore:
        patience = s3.Patience(self.waited.append)
        return BucketStore(self.server.target(self.bucket, "p"), patience=patience, timeout=timeout, whole=8 << 20, part=5 << 20)

    def keys(self) -> list[str]:
        return [key for key, _ in listing(self.another())]


@pytest.fixture
def world(moto: S3Server) -> World:
    return World(moto)


@pytest.fixture
def checking(checking_moto: S3Server) -> World:
    return World(checking_moto)


# ------------------------------------------------------------ busy stores and cut lines


@pytest.mark.parametrize(("status", "code"), [("503 Slow Down", "SlowDown"), ("500 Internal Server Error", "InternalError"), ("429 Too Many", "x")])
@pytest.mark.parametrize("operation", ["PutObject", "UploadPart", "CreateMultipartUpload", "CompleteMultipartUpload"])
def test_a_busy_store_is_asked_again_later_and_later(world: World, status: str, code: str, operation: str) -> None:
    with world.server.misbehaving(on(operation, error(status, code), times=3)):
        assert put(world.store, upload("x", b"1" if operation == "PutObject" else LARGE))["x"].ok
    assert len(world.waited) == 3
    assert sum(world.waited) <= 3.5
    assert world.keys() == ["first", "x"]


def test_waits_grow(world: World) -> None:
    with world.server.misbehaving(on("PutObject", error("503 Slow Down", "SlowDown"))):
        outcome = put(world.store, upload("x", b"1"))["x"]
    assert (outcome.code, outcome.hint) == ("line-cut", "run it again later: what is stored stays")
    assert "SlowDown" in outcome.reason
    assert [least / 2 <= waited <= least for waited, least in zip(world.waited, (0.5, 1, 2, 4, 8), strict=True)] == [True] * 5
    assert world.keys() == ["first"]


@pytest.mark.parametrize("fault", [cut, cut_after])
@pytest.mark.parametrize("operation", ["PutObject", "UploadPart", "CompleteMultipartUpload", "DeleteObject", "ListObjectsV2", "HeadObject"])
def test_a_line_that_is_cut_once_costs_nothing_but_time(checking: World, operation: str, fault: object) -> None:
    with checking.server.misbehaving(on(operation, fault, times=1)):  # type: ignore[arg-type]
        outcomes = put(checking.store, upload("small", b"1"), upload("large", LARGE), upload("gone", b"2"))
        assert all(outcome.ok for outcome in outcomes.values())
        assert all(outcome.ok for outcome in checking.store.delete(["gone"]))
        proven = checking.store.prove([wanted("small", b"1"), wanted("large", LARGE)._replace(checksum=outcomes["large"].checksum)])
        assert {(one.status, one.method) for one in proven} == {(Status.VERIFIED, Method.BUCKET_SHA256)}
    assert checking.keys() == ["first", "large", "small"]
    assert checking.waited


def test_an_interrupt_does_not_wait_for_a_busy_store(world: World) -> None:
    waiting = threading.Barrier(3)
    ended: list[bool] = []

    def wait(_: float) -> None:
        waiting.wait(60)
        ended.append(patience.stopped.wait(60))

    patience = s3.Patience(wait)
    store = BucketStore(world.server.target(world.bucket, "p"), patience=patience, facts=world.store.facts)

    def items() -> Iterator[Upload]:
        yield upload("x", b"1")
        yield upload("y", b"1")
        waiting.wait(60)
        raise KeyboardInterrupt

    with world.server.misbehaving(on("PutObject", error("503 Slow Down", "SlowDown"))), pytest.raises(KeyboardInterrupt):
        list(store.put(items()))
    assert ended == [True, True]


def test_a_lock_that_is_lost_in_mid_upload_leaves_nothing_half(checking: World) -> None:
    store = checking.store

    others: list[ObjectHold] = []

    def fault(asked: Asked, app: App, start_response: Answer) -> Iterable[bytes]:
        """Another run takes the lock over meanwhile, as after a long silence of ours."""
        client = checking.server.client()
        [ours] = client.list_objects_v2(Bucket=checking.bucket, Prefix="p/locks/")["Contents"]
        client.delete_object(Bucket=checking.bucket, Key=ours["Key"])
        others.append(checking.another().hold())
        others[0].__enter__()
        hold._renewed -= 3600
        return app(asked.environ, start_response)

    with store.hold() as hold, checking.server.misbehaving(on("UploadPart", fault, times=1)), pytest.raises(Locked, match="took it over"):
        put(store, upload("x", LARGE))
    others[0].__exit__(None, None, None)
    assert checking.keys() == ["first"]
    assert "Uploads" not in checking.server.client().list_multipart_uploads(Bucket=checking.bucket)


def test_a_store_that_stands_still_is_given_up_and_asked_again(world: World) -> None:
    woken = threading.Event()
    with world.server.misbehaving(on("PutObject", hanging(woken), times=1, key="x")):
        store = world.another(timeout=0.2)
        assert put(store, upload("x", b"1"))["x"].ok
        woken.set()
    assert len(world.waited) == 1


def test_an_upload_that_is_never_finished_leaves_nothing(world: World) -> None:
    with world.server.misbehaving(on("UploadPart", cut, after=1)):
        assert put(world.store, upload("x", LARGE), upload("y", b"1"))["x"].code == "line-cut"
    assert world.keys() == ["first", "y"]
    assert "Uploads" not in world.server.client().list_multipart_uploads(Bucket=world.bucket)


# ------------------------------------------------------------ stores that keep something else


@pytest.mark.parametrize("operation", ["PutObject", "UploadPart"])
def test_a_wrong_etag_means_that_nothing_was_stored(world: World, operation: str) -> None:
    with world.server.misbehaving(on(operation, altered(ETag='"0123456789abcdef0123456789abcdef"'))):
        outcome = put(world.store, upload("x", b"1" if operation == "PutObject" else LARGE))["x"]
    assert not outcome.ok
    assert "keeps other bytes" in outcome.reason
    assert world.keys() == ["first"]


@pytest.mark.parametrize("operation", ["PutObject", "UploadPart"])
def test_a_wrong_checksum_in_the_answer_means_that_nothing_was_stored(checking: World, operation: str) -> None:
    with checking.server.misbehaving(on(operation, altered(x_amz_checksum_sha256="A" * 43 + "="))):
        outcome = put(checking.store, upload("x", b"1" if operation == "PutObject" else LARGE))["x"]
    assert not outcome.ok
    assert "keeps other bytes" in outcome.reason
    assert checking.keys() == ["first"]


def test_what_cannot_be_taken_away_again_is_told(world: World) -> None:
    refused = on("DeleteObject", error("403 Forbidden", "AccessDenied"))
    with world.server.misbehaving(on("PutObject", altered(ETag='"0123456789abcdef0123456789abcdef"'))), world.server.misbehaving(refused):
        outcome = put(world.store, upload("x", b"1"))["x"]
    assert "could not be removed" in outcome.reason
    assert outcome.hint == "run `copy --repair`"


def test_etags_that_are_no_md5_are_taken_as_they_are(moto: S3Server) -> None:
    with moto.misbehaving(on("PutObject", altered(ETag='"0123456789abcdef0123456789abcdef"'))):  # such as those of a store that encrypts
        world = World(moto)
        assert world.store.facts.md5_etag is False
        assert put(world.store, upload("x", b"1"))["x"].ok
    assert world.keys() == ["first", "x"]


def test_bytes_that_were_hurt_on_their_way_are_sent_again(world: World) -> None:
    with world.server.misbehaving(on("PutObject", error("400 Bad Request", "BadDigest"), times=1)):
        assert put(world.store, upload("x", b"1"))["x"].ok
    assert len(world.waited) == 1


# ------------------------------------------------------------ downloads


def test_a_truncated_download_is_gone_on_with(world: World) -> None:
    data = bytes(range(256)) * 4000
    put(world.store, upload("x", data))
    with world.server.misbehaving(on("GetObject", altered(lambda body: body[: len(body) // 2]), times=2)), world.store.get("x") as stream:
        assert stream.read() == data


def test_a_download_that_is_truncated_for_ever_is_no_proof(world: World) -> None:
    data = bytes(range(256)) * 4000
    put(world.store, upload("x", data))
    with world.server.misbehaving(on("GetObject", altered(lambda body: body[:-1] if len(body) > 1 else b""))):
        [proven] = world.store.prove([wanted("x", data)])
        with pytest.raises(LineCut), world.store.get("x") as stream:
            stream.read()
    assert proven.status is Status.FAILED


def test_a_download_is_not_gone_on_with_in_another_object(world: World) -> None:
    data = bytes(range(256)) * 4000
    put(world.store, upload("x", data))
    halved = on("GetObject", altered(lambda body: body[: len(body) // 2]), times=1)
    with world.server.misbehaving(halved), world.store.get("x") as stream:
        assert stream.read(1000) == data[:1000]
        world.server.client().put_object(Bucket=world.bucket, Key="p/x", Body=data[::-1])
        with pytest.raises(HostbackupError):
            stream.read()


def test_a_flipped_bit_in_a_download_is_a_difference(checking: World) -> None:
    put(checking.store, upload("x", b"bytes"))
    with checking.server.misbehaving(on("GetObject", altered(lambda body: body[:-1] + bytes([body[-1] ^ 1])))):
        [proven] = checking.store.prove([wanted("x", b"bytes")], read=True)
    assert (proven.status, proven.method) == (Status.DIFFERENT, Method.BUCKET_REREAD)


def test_an_archived_object_is_there_and_cannot_be_read(world: World) -> None:
    put(world.store, upload("x", b"1"))
    with world.server.misbehaving(on("GetObject", error("403 Forbidden", "InvalidObjectState"))):
        with pytest.raises(s3.Archived, match="in an archive of the store") as caught:
            world.store.get("x")
        [proven] = world.store.prove([wanted("x", b"1")])
    assert "RestoreObject" in caught.value.hint
    assert proven.status is Status.FAILED
    assert "archive" in proven.reason


# ------------------------------------------------------------ refusals


@pytest.mark.parametrize(("ahead", "words"), [(900, "15 minutes behind"), (-3600, "60 minutes ahead")])
def test_a_clock_that_is_wrong_is_named_as_the_reason(world: World, ahead: float, words: str) -> None:
    with world.server.misbehaving(on("PutObject", by_the_clock_of(ahead))), pytest.raises(LoginRefused, match=words) as caught:
        put(world.store, upload("x", b"1"))
    assert "set the clock" in caught.value.hint
    assert not world.waited


def test_credentials_that_expire_end_the_run_and_what_is_stored_stays(world: World) -> None:
    stored: list[str] = []
    with world.server.misbehaving(on("PutObject", error("400 Bad Request", "ExpiredToken"), after=3)), pytest.raises(LoginRefused) as caught:
        stored.extend(outcome.key for outcome in world.store.put(upload(f"k{number}", b"1") for number in range(100)) if outcome.ok)
    assert (caught.value.exit, caught.value.reason) == (Exit.FAILED, "the credentials have expired (ExpiredToken)")
    assert "what is stored stays" in caught.value.hint
    assert len(world.keys()) == 4
    with world.server.misbehaving(on("GetObject", error("400 Bad Request", "ExpiredToken"))), pytest.raises(LoginRefused, match="expired"):
        list(world.store.prove([wanted("first", b"1")]))
    with world.server.misbehaving(on("DeleteObject", error("400 Bad Request", "ExpiredToken"))), pytest.raises(LoginRefused, match="expired"):
        list(world.store.delete(["first"]))


def test_a_full_bucket_ends_the_run_and_what_is_stored_stays(world: World) -> None:
    with world.server.misbehaving(on("PutObject", error("403 Forbidden", "QuotaExceeded"), after=3)), pytest.raises(DiskFull, match="full") as caught:
        put(world.store, *(upload(f"k{number}", b"1") for number in range(100)))
    assert "what is stored stays" in caught.value.hint
    assert len(world.keys()) == 4


def test_a_bucket_that_is_gone_ends_the_run(world: World) -> None:
    with world.server.misbehaving(on("PutObject", error("404 Not Found", "NoSuchBucket"), after=3)), pytest.raises(PlaceMissing, match="no bucket"):
        put(world.store, *(upload(f"k{number}", b"1") for number in range(100)))


def test_keys_that_may_not_delete_are_told_so_and_can_write_all_the_same(world: World) -> None:
    with world.server.misbehaving(on("DeleteObject", error("403 Forbidden", "AccessDenied"))):
        [outcome] = world.store.delete(["first"])
        assert (outcome.code, outcome.reason) == ("login-refused", "these credentials may not delete there (AccessDenied)")
        for name in ("x", "y"):
            with world.another().hold():
                assert put(world.store, upload(name, b"1"))[name].ok
                with pytest.raises(Locked), world.another().hold():
                    pass
        assert {listed.size for listed in world.store.list("locks/")} == {0}


def test_keys_that_may_not_write_are_refused_at_once(world: World) -> None:
    refused = on("PutObject", error("403 Forbidden", "AccessDenied"))
    with world.server.misbehaving(refused), pytest.raises(LoginRefused, match=r"may not write there \(AccessDenied\)"):
        put(world.store, upload("x", b"1"))
    assert not world.waited
