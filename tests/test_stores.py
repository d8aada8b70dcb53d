"""The object-store contract on every store, and what is particular to each."""

from __future__ import annotations

import base64
import errno
import functools
import hashlib
import itertools
import os
import socket
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hostbackup.errors import HostbackupError, LineCut, Locked, LoginRefused, PlaceMissing, Unreachable, UsageError
from hostbackup.model import Method, Status
from hostbackup.protocols import s3
from hostbackup.vault.bucket import BucketStore
from hostbackup.vault.disk import FolderStore
from hostbackup.vault.stores import mark
from tests.contract_stores import ObjectLockContract, StoreContract, World, key_of, listing, put, upload, wanted
from tests.support.memory_store import MemoryStore
from tests.support.s3 import S3Server, moto_server, rclone_server

_numbers = itertools.count(1)
small_parts = functools.partial(BucketStore, whole=8 << 20, part=5 << 20)  # as small as S3 allows: they are slow to make and to serve


class TestMemory(StoreContract, ObjectLockContract):
    @pytest.fixture
    def world(self) -> World:
        store = MemoryStore()

        def gone() -> MemoryStore:
            lost = MemoryStore()
            lost.gone = True
            return lost

        return World(store, store.objects.__setitem__, gone, store.again)


class TestFolder(StoreContract):
    @pytest.fixture
    def world(self, tmp_path: Path) -> World:
        root = tmp_path / "disk"
        root.mkdir()

        def gone() -> FolderStore:
            lost = tmp_path / f"lost{next(_numbers)}"
            lost.mkdir()
            store = FolderStore(lost)
            lost.rmdir()
            return store

        return World(FolderStore(root), lambda key, data: _overwrite(root / key, data), gone, lambda: FolderStore(root))


class TestFolderWithoutLocks(TestFolder, ObjectLockContract):
    @pytest.fixture(autouse=True)
    def _no_locks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from hostbackup import osal

        def refuse(path: Path, *, exclusive: bool) -> None:
            raise OSError(errno.ENOLCK, "No locks available", str(path))

        monkeypatch.setattr(osal.FileLock, "take", refuse)


def _overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o600)
    path.write_bytes(data)


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with moto_server() as server:
        yield server


@pytest.fixture(scope="module")
def checking_moto() -> Iterator[S3Server]:
    with moto_server(checks_sha256=True) as server:
        yield server


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with rclone_server(tmp_path_factory.mktemp("rclone")) as server:
        yield server


def bucket_world(server: S3Server, method: Method = Method.BUCKET_REREAD, prefix: str = "example.jp") -> Iterator[World]:
    bucket = f"bucket-{next(_numbers)}"
    server.make_bucket(bucket)
    client = server.client()
    store = small_parts(server.target(bucket, prefix))
    lead = f"{prefix}/" if prefix else ""

    def write(key: str, data: bytes) -> None:
        client.put_object(Bucket=bucket, Key=lead + key, Body=data)

    again = lambda: BucketStore(server.target(bucket, prefix))  # noqa: E731
    yield World(store, write, lambda: BucketStore(server.target("no-such-bucket", prefix)), again, method)
    store.close()


class TestMoto(StoreContract, ObjectLockContract):
    @pytest.fixture
    def world(self, moto: S3Server) -> Iterator[World]:
        yield from bucket_world(moto)


class TestMotoThatChecks(StoreContract, ObjectLockContract):
    @pytest.fixture
    def world(self, checking_moto: S3Server) -> Iterator[World]:
        yield from bucket_world(checking_moto, Method.BUCKET_SHA256, prefix="")


class TestRclone(StoreContract, ObjectLockContract):
    @pytest.fixture
    def world(self, rclone: S3Server) -> Iterator[World]:
        yield from bucket_world(rclone)


# ------------------------------------------------------------ buckets


def test_a_store_that_believes_any_checksum_is_told_none(moto: S3Server) -> None:
    world = next(bucket_world(moto))
    put(world.store, upload("x", b"good"))
    [proven] = world.store.prove([wanted("x", b"good")])
    assert (proven.status, proven.method) == (Status.VERIFIED, Method.BUCKET_REREAD)


def test_the_checksum_of_a_checking_store_shows_other_bytes(checking_moto: S3Server) -> None:
    world = next(bucket_world(checking_moto, Method.BUCKET_SHA256))
    put(world.store, upload("x", b"good"), upload("y", b"well"))
    put(world.store, upload("x", b"evil"))
    proven = {one.wanted.key: (one.status, one.method) for one in world.store.prove([wanted("x", b"good"), wanted("y", b"well")])}
    assert proven == {"x": (Status.DIFFERENT, Method.BUCKET_SHA256), "y": (Status.VERIFIED, Method.BUCKET_SHA256)}


def test_an_object_in_parts_is_proven_by_what_the_store_computed_over_them(checking_moto: S3Server) -> None:
    world = next(bucket_world(checking_moto, Method.BUCKET_SHA256))
    data, other = (bytes([n]) * (11 << 20) for n in (1, 2))
    told = put(world.store, upload("x", data))["x"]
    digests = b"".join(hashlib.sha256(data[at : at + (5 << 20)]).digest() for at in (0, 5 << 20, 10 << 20))
    assert told.checksum == base64.b64encode(hashlib.sha256(digests).digest()).decode() + "-3"
    known, unknown = wanted("x", data)._replace(checksum=told.checksum), wanted("x", data)
    assert [(one.status, one.method) for one in world.store.prove([known])] == [(Status.VERIFIED, Method.BUCKET_SHA256)]
    assert [(one.status, one.method) for one in world.store.prove([unknown])] == [(Status.VERIFIED, Method.BUCKET_REREAD)]
    put(world.store, upload("x", other))
    assert [(one.status, one.method) for one in world.store.prove([known])] == [(Status.DIFFERENT, Method.BUCKET_REREAD)]


def test_a_store_with_parts_that_checks_nothing_tells_no_checksum_of_them(moto: S3Server) -> None:
    world = next(bucket_world(moto))
    assert put(world.store, upload("x", b"z" * (11 << 20)))["x"].checksum == ""


def test_what_is_known_of_a_store_is_not_asked_again(checking_moto: S3Server) -> None:
    world = next(bucket_world(checking_moto))
    put(world.store, upload("x", b"1"))
    assert isinstance(world.store, BucketStore)
    facts = world.store.facts
    assert (facts.sha256, facts.md5_etag) == (True, True)
    bucket = world.store.label.split("/")[2]
    again = BucketStore(checking_moto.target(bucket, "example.jp"), facts=s3.Facts.from_json(facts.to_json(), facts.place))
    with checking_moto.watching() as requests:
        put(again, upload("y", b"2"))
    assert [(one.method, one.path) for one in requests] == [("PUT", f"/{bucket}/example.jp/y")]


@pytest.mark.parametrize("kept", [None, [], {"place": "another"}, {"place": "here", "sha256": "yes"}, {"place": "here", "new": 1}])
def test_what_was_kept_in_another_form_or_of_another_place_is_not_known(kept: object) -> None:
    assert s3.Facts.from_json(kept, "here") == s3.Facts("here")


def test_listing_goes_on_over_all_pages(rclone: S3Server) -> None:
    world = next(bucket_world(rclone))
    assert rclone.folder is not None
    folder = rclone.folder / world.store.label.split("/")[2] / "example.jp" / "objects"
    folder.mkdir(parents=True)
    for number in range(2100):
        (folder / f"{number:04}").write_bytes(b"")
    assert [key for key, _ in listing(world.store)] == [f"objects/{number:04}" for number in range(2100)]


def test_prefixes_keep_apart(moto: S3Server) -> None:
    moto.make_bucket("shared")
    one, ten = (BucketStore(moto.target("shared", prefix)) for prefix in ("a", "a0/b/"))
    put(one, upload("x", b"1"))
    put(ten, upload("y", b"22"))
    assert listing(one) == [("x", 1)]
    assert listing(ten) == [("y", 2)]
    assert (one.label, ten.label) == ("s3://shared/a", "s3://shared/a0/b")


def test_the_wrong_secret_is_refused_in_clear_words_without_it(rclone: S3Server) -> None:
    rclone.make_bucket("guarded")
    store = BucketStore(rclone.target("guarded", secret_key="wrong-wrong-wrong"))
    for attempt in (lambda: list(store.list()), lambda: list(store.put([upload("x", b"x")])), lambda: list(store.prove([wanted("x", b"x")]))):
        with pytest.raises(LoginRefused) as caught:
            attempt()
        assert "wrong-wrong" not in str(caught.value)
        assert "s3://guarded" in str(caught.value)


def test_a_closed_endpoint_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    store = BucketStore(s3.S3Target("b", "", f"http://127.0.0.1:{port}", "key", "secret"))
    with pytest.raises(Unreachable, match="cannot be reached"):
        list(store.list())


def test_a_bucket_without_credentials_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, moto: S3Server) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(LoginRefused, match="credentials"):
        list(BucketStore(s3.S3Target("b", "", moto.endpoint)).list())


def test_impossible_settings_are_wrong_usage() -> None:
    with pytest.raises(UsageError):
        BucketStore(s3.S3Target("b", "", "not a url", "key", "secret"))
    with pytest.raises(UsageError):
        list(BucketStore(s3.S3Target("No Such Name!", "", "http://127.0.0.1:9", "key", "secret")).list())


def test_an_interrupted_multipart_upload_leaves_nothing(moto: S3Server) -> None:
    world = next(bucket_world(moto))
    data = b"z" * (20 << 20)
    bad = upload(key_of(data), data[:-1] + b"!", told=data)
    assert put(world.store, bad)[bad.key].code == "source-damaged"
    assert list(world.store.list()) == []
    name = world.store.label.split("/")[2]
    assert "Uploads" not in moto.client().list_multipart_uploads(Bucket=name)


def test_an_upload_that_a_killed_run_began_is_given_up_when_the_object_is_put(moto: S3Server) -> None:
    world = next(bucket_world(moto))
    data = b"q" * (9 << 20)
    bucket = world.store.label.split("/")[2]
    client = moto.client()
    client.create_multipart_upload(Bucket=bucket, Key=f"example.jp/{key_of(data)}")
    client.create_multipart_upload(Bucket=bucket, Key="example.jp/other")
    assert put(world.store, upload(key_of(data), data))[key_of(data)].ok
    assert [one["Key"] for one in client.list_multipart_uploads(Bucket=bucket)["Uploads"]] == ["example.jp/other"]


def test_uploads_begun_long_ago_are_tidied_away_below_the_prefix_only(moto: S3Server) -> None:
    world = next(bucket_world(moto))
    bucket = world.store.label.split("/")[2]
    client = moto.client()
    for key in ("example.jp/mine", "example.com/another's"):  # moto dates every upload in 2010
        client.create_multipart_upload(Bucket=bucket, Key=key)
    world.store.tidy()
    assert [one["Key"] for one in client.list_multipart_uploads(Bucket=bucket)["Uploads"]] == ["example.com/another's"]


class Cut:
    """A response body that gives so many bytes and then ends, or breaks."""

    def __init__(self, data: bytes, error: Exception | None = None) -> None:
        self._data = data
        self._error = error

    def read(self, size: int) -> bytes:
        data, self._data = self._data[:size], self._data[size:]
        if not data and self._error:
            raise self._error
        return data

    def close(self) -> None:
        """Nothing is held."""


@pytest.mark.parametrize("error", [None, ConnectionResetError("reset")])
def test_a_download_that_is_cut_goes_on_where_it_was(error: Exception | None) -> None:
    data = bytes(range(256)) * 100
    started: list[int] = []

    def again(start: int) -> Cut:
        started.append(start)
        return Cut(data[start : start + 9000], error)

    stream = s3.Download(Cut(data[:5000], error), len(data), again, lambda problem: LineCut(str(problem)))
    assert b"".join(iter(lambda: stream.read(4096) or b"", b"")) == data
    assert started == [5000, 14000, 23000]


@pytest.mark.parametrize("error", [None, ConnectionResetError("reset")])
def test_a_download_that_is_cut_for_good_raises_rather_than_end(error: Exception | None) -> None:
    stream = s3.Download(Cut(b"abc", error), 10, lambda _: Cut(b"", error), lambda problem: LineCut(str(problem)))
    with pytest.raises(LineCut):
        while stream.read(4096):
            pass


def test_a_store_that_keeps_failing_is_given_up(moto: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    world = next(bucket_world(moto))
    attempts: list[str] = []

    def fail(_: s3.Bucket, key: str, data: bytes, digest: bytes, settings: dict[str, object]) -> None:
        attempts.append(key)
        raise LineCut("the store is failing (SlowDown)")

    monkeypatch.setattr(s3.Bucket, "put", fail)
    with pytest.raises(LineCut, match="in a row"):
        put(world.store, *(upload(f"k{n}", b"x") for n in range(1000)))
    assert len(attempts) < 200


@pytest.mark.parametrize(("size", "expected"), [(0, 16 << 20), (140 << 30, 16 << 20), (5 << 40, 583 << 20)])
def test_parts_are_few_enough_for_s3(size: int, expected: int) -> None:
    assert s3.part_size(size) == expected
    assert -(-size // s3.part_size(size)) <= 10_000


def test_every_library_error_becomes_one_of_ours() -> None:
    from botocore import exceptions

    target = s3.S3Target("b", "", "http://x", "AKIA", "very-secret")
    made = 0
    for kind in vars(exceptions).values():
        if isinstance(kind, type) and issubclass(kind, exceptions.BotoCoreError):
            error = kind.__new__(kind)
            Exception.__init__(error, "very-secret thing")
            told = s3.translate(error, target)
            assert isinstance(told, HostbackupError)
            assert "very-secret" not in str(told)
            made += 1
    assert made > 50


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("NoSuchBucket", 404, "missing"),
        ("InvalidAccessKeyId", 403, "login-refused"),
        ("SignatureDoesNotMatch", 403, "login-refused"),
        ("RequestTimeTooSkewed", 403, "login-refused"),
        ("ExpiredToken", 400, "login-refused"),
        ("PermanentRedirect", 301, "missing"),
        ("SlowDown", 503, "line-cut"),
        ("InternalError", 500, "line-cut"),
        ("QuotaExceeded", 403, "disk-full"),
        ("InsufficientStorage", 507, "disk-full"),
        ("NoSuchKey", 404, "missing"),
        ("Weird", 418, "protocol"),
    ],
)
def test_what_a_store_answers_has_a_code(code: str, status: int, expected: str) -> None:
    from botocore.exceptions import ClientError

    error = ClientError({"Error": {"Code": code, "Message": "AKIA said\x1b[31m no"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")  # type: ignore[typeddict-item]
    told = s3.translate(error, s3.S3Target("b", "p", None, "AKIA", "secret"), "k")
    assert told.code == expected
    assert "AKIA" not in str(told)
    assert "\x1b" not in str(told)


# ------------------------------------------------------------ folders


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(PlaceMissing, match="mounted"):
        FolderStore(tmp_path / "usb" / "example.jp")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(PlaceMissing, match="not a folder"):
        FolderStore(tmp_path / "file")


def test_what_a_system_keeps_on_a_disk_is_not_listed(tmp_path: Path) -> None:
    for name in ("System Volume Information/x", "lost+found/y", ".Trash-1000/z", ".hidden", "$RECYCLE.BIN/q"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert list(FolderStore(tmp_path).list()) == []


def test_two_runs_do_not_write_to_one_disk_at_once(tmp_path: Path) -> None:
    first = FolderStore(tmp_path).put(upload(f"k{n}", b"x") for n in range(9000))
    assert isinstance(first, Generator)
    assert next(first).ok
    with pytest.raises(Locked):
        list(FolderStore(tmp_path).put([upload("x", b"x")]))
    first.close()
    assert [outcome.ok for outcome in FolderStore(tmp_path).put([upload("x", b"x")])] == [True]


def test_what_a_killed_run_left_arriving_is_cleared_away(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    put(store, upload("x", b"x"))
    (tmp_path / "incoming" / "abc-1.part").write_bytes(b"half")
    store.tidy()
    assert [path.name for path in (tmp_path / "incoming").iterdir()] == ["lock"]


def test_nothing_has_its_name_before_it_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hostbackup import osal

    named: list[int] = []

    def sync(_folder: Path) -> bool:
        named.append(sum(1 for _ in FolderStore(tmp_path).list()))
        return True

    monkeypatch.setattr(osal, "sync_tree", sync)
    put(FolderStore(tmp_path), upload("x", b"x"), upload("y", b"y"))
    assert named == [0, 2]


def test_without_syncfs_each_file_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hostbackup import osal

    synced: list[str] = []
    monkeypatch.setattr(osal, "sync_tree", lambda _folder: False)
    monkeypatch.setattr(osal, "sync_file", lambda path: synced.append(path.name))
    put(FolderStore(tmp_path), upload("a/x", b"x"), upload("b/y", b"y"))
    assert len(synced) == 2


def test_a_full_disk_is_said_to_be_full_and_keeps_what_arrived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hostbackup.errors import DiskFull

    written = os.write

    def full(fd: int, data: bytes) -> int:
        if bytes(data[:4]) == b"last":
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(fd, data)

    monkeypatch.setattr(os, "write", full)
    items = [upload(f"k{n}", b"x") for n in range(50)] + [upload("z", b"last")]
    with pytest.raises(DiskFull, match="full"):
        put(FolderStore(tmp_path), *items)
    kept = [listed.key for listed in FolderStore(tmp_path).list()]
    assert len(kept) >= 40
    assert "z" not in kept
    assert not list((tmp_path / "incoming").glob("*last*"))


def test_a_file_that_is_too_large_for_the_disk_keeps_no_other_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on FAT32, which ends at 4 GiB."""
    write = os.write

    def refuse(fd: int, data: bytes) -> int:
        if len(data) > 10:
            raise OSError(errno.EFBIG, "File too large")
        return write(fd, data)

    monkeypatch.setattr("hostbackup.vault.disk.os.write", refuse)
    outcomes = put(FolderStore(tmp_path), upload("large", b"x" * 20), upload("small", b"x"))
    assert (outcomes["large"].code, "exFAT" in outcomes["large"].hint, outcomes["small"].ok) == ("too-large", True, True)
    assert listing(FolderStore(tmp_path)) == [("small", 1)]


def test_keys_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    for key in ("../x", "a/../../x", "/x", "", "a//b", "incoming/x", "a/./b", ".x", "Incoming/x", "a\0b", "a\nb", "\udce9", "long" * 300):
        outcomes = put(FolderStore(root), upload(key, b"x"))
        assert outcomes[key].code == "name"
    assert not (tmp_path / "x").exists()


def test_a_planted_symlink_leads_nowhere(tmp_path: Path) -> None:
    root, outside = tmp_path / "disk", tmp_path / "outside"
    root.mkdir()
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "kept").write_bytes(b"theirs")
    (root / "tree").symlink_to(outside)
    store = FolderStore(root)
    for key in ("tree/x", "tree/deep/kept"):
        assert put(store, upload(key, b"ours"))[key].code == "name"
        [gone] = store.delete([key])
        assert gone.code == "name"
        with pytest.raises(HostbackupError, match="symlink"):
            store.get(key)
    assert [path.name for path in outside.rglob("*")] == ["deep", "kept"]
    assert (outside / "deep" / "kept").read_bytes() == b"theirs"
    assert [listed.key for listed in store.list()] == ["tree"]


def test_a_file_bears_the_time_that_was_asked_for_and_no_empty_folder_is_left(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    [outcome] = store.put([replace(upload("a/b/c", b"x"), mtime_ns=1_600_000_000_000_000_000)])
    assert (outcome.modified, (tmp_path / "a/b/c").stat().st_mtime) == (1_600_000_000.0, 1_600_000_000.0)
    assert [mark(listed) for listed in store.list()] == [mark(outcome)]
    put(store, upload("a/d", b"x"))
    assert all(gone.ok for gone in store.delete(["a/b/c"]))
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["d"]
    assert all(gone.ok for gone in store.delete(["a/d"]))
    assert not (tmp_path / "a").exists()


def test_what_stands_in_the_way_of_one_file_is_that_files_trouble(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    put(store, upload("page", b"a file"), upload("folder/x", b"x"))
    outcomes = put(store, upload("page/x", b"x"), upload("folder", b"x"), upload("fine", b"x"))
    assert [outcomes[key].ok for key in ("page/x", "folder", "fine")] == [False, False, True]
    assert (tmp_path / "page").read_bytes() == b"a file"
    assert list((tmp_path / "incoming").glob("*.part")) == []


# ------------------------------------------------------------ what a bucket tells of its objects


@pytest.mark.parametrize("size", [10, (8 << 20) + 10])
def test_a_bucket_tells_type_and_metadata_to_whoever_fetches_an_object(moto: S3Server, size: int) -> None:
    bucket = f"told-{size}"
    moto.make_bucket(bucket)
    store = small_parts(moto.target(bucket, "site"))
    item = replace(upload("page.html", b"x" * size), content_type="text/html", metadata=(("mode", "0644"), ("mtime", "1600000000.5")))
    [outcome] = store.put([item])
    told = moto.client().head_object(Bucket=bucket, Key="site/page.html")
    assert (told["ContentType"], told["Metadata"]) == ("text/html", {"mode": "0644", "mtime": "1600000000.5"})
    assert told["ETag"].strip('"') == outcome.etag != ""
    assert store.describe("page.html").metadata["mode"] == "0644"
