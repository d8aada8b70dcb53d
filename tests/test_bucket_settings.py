"""What a profile can ask of a bucket: addressing, storage class, encryption by the store, Object Lock, certificates, a proxy."""

from __future__ import annotations

import base64
import datetime
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hostbackup.errors import CertificateRefused, SecretError, Unreachable, UsageError
from hostbackup.jobs.connect import Connections
from hostbackup.profile import BucketCopy, parse
from hostbackup.protocols import s3
from hostbackup.vault.bucket import BucketStore
from tests.contract_stores import put, upload
from tests.support.certificates import Authority
from tests.support.s3 import S3Server, moto_server


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with moto_server(checks_sha256=True) as server:
        yield server


def store_of(target: s3.S3Target) -> BucketStore:
    return BucketStore(target, whole=8 << 20, part=5 << 20)


def target_of(profile: Path, text: str) -> s3.S3Target:
    """The target of a profile's only copy."""
    found = parse(f'vault = "v"\n[[copy]]\nbucket = "bb"\n{text}', profile / "p.toml")
    [copy] = found.copies
    assert isinstance(copy, BucketCopy)
    store = Connections(found).store(copy)
    assert isinstance(store, BucketStore)
    return store.target


@pytest.mark.parametrize("size", [100, 11 << 20])
def test_what_is_lasting_is_locked_for_the_days_asked_for(moto: S3Server, size: int) -> None:
    bucket = f"locked-{size}"
    moto.client().create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    store = store_of(replace(moto.target(bucket, "p"), retain_days=30, retain_mode="compliance"))
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    with moto.watching() as requests, store.hold():  # moto keeps the lock of objects in parts not at all, so it is looked for in what it is asked
        outcomes = put(store, upload("kept", b"x" * size), replace(upload("fleeting", b"x" * size), lasting=False))
    asked = {
        one.key: (one.environ.get("HTTP_X_AMZ_OBJECT_LOCK_MODE"), one.environ.get("HTTP_X_AMZ_OBJECT_LOCK_RETAIN_UNTIL_DATE"))
        for one in requests
        if one.operation in ("PutObject", "CreateMultipartUpload")
    }
    until = datetime.datetime.strptime(outcomes["kept"].until, "%Y%m%dT%H%M%S%z")  # comparable with the time stamps of prune
    assert asked.pop("p/kept") == ("COMPLIANCE", until.strftime("%Y-%m-%dT%H:%M:%SZ"))
    assert len(asked) == 3  # the fleeting one, the lock, and the one that finds out what the store checks
    assert set(asked.values()) == {(None, None)}
    assert outcomes["fleeting"].until == ""
    days = datetime.timedelta(days=30)
    assert before + days <= until <= datetime.datetime.now(datetime.UTC) + days


@pytest.mark.parametrize("size", [100, 11 << 20])
def test_storage_class_and_encryption_by_the_store_go_along(moto: S3Server, size: int) -> None:
    bucket = f"classes-{size}"
    moto.make_bucket(bucket)
    put(store_of(replace(moto.target(bucket), storage_class="STANDARD_IA", sse="aws:kms", sse_key="key-1")), upload("x", b"x" * size))
    told = moto.client().head_object(Bucket=bucket, Key="x")
    assert (told["StorageClass"], told["ServerSideEncryption"], told["SSEKMSKeyId"]) == ("STANDARD_IA", "aws:kms", "key-1")


def test_facts_of_a_store_hold_for_its_kind_of_encryption_only() -> None:
    plain = s3.S3Target("b", "p", "http://x")
    assert plain.place != replace(plain, sse="aws:kms").place
    assert plain.place == replace(plain, prefix="q").place


@pytest.mark.parametrize(
    ("addressing", "endpoint", "url"),
    [
        ("auto", "http://s3.example.test", "http://s3.example.test/bucket/"),
        ("path", "http://s3.example.test", "http://s3.example.test/bucket/"),
        ("virtual", "http://s3.example.test", "http://bucket.s3.example.test/"),
        ("auto", None, "https://bucket.s3.ap-northeast-1.amazonaws.com/"),
        ("path", None, "https://s3.ap-northeast-1.amazonaws.com/bucket/"),
    ],
)
def test_the_bucket_stands_where_it_was_asked_to(addressing: str, endpoint: str | None, url: str) -> None:
    target = s3.S3Target("bucket", "", endpoint, "key", "secret", "ap-northeast-1", addressing=addressing)  # type: ignore[arg-type]
    client = s3.connect(target)._client
    asked: list[str] = []

    class Enough(Exception):
        pass

    def see(request: object, **_: object) -> None:
        asked.append(request.url)  # type: ignore[attr-defined]
        raise Enough

    client.meta.events.register("before-send.s3", see)
    with pytest.raises(Enough):
        client.get_object(Bucket="bucket", Key="k")
    assert asked == [f"{url}k"]


def test_a_profile_tells_the_store_all_of_it(tmp_path: Path) -> None:
    import certifi

    (tmp_path / "ca.pem").write_bytes(Path(certifi.where()).read_bytes())
    told = target_of(
        tmp_path,
        'endpoint = "https://s3.example.test"\naddressing = "virtual"\nstorage_class = "STANDARD_IA"\nsse = "aws:kms"\nsse_key = "k"\n'
        'retain_days = 7\nca_file = "ca.pem"\nproxy = "http://proxy:3128"',
    )
    assert (told.addressing, told.storage_class, told.sse, told.sse_key) == ("virtual", "STANDARD_IA", "aws:kms", "k")
    assert (told.retain_days, told.retain_mode, told.ca, told.proxy) == (7, "governance", str(tmp_path / "ca.pem"), "http://proxy:3128")


def test_requests_go_through_the_proxy_and_its_password_is_shown_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROXY", "p@ss/w:rd")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    told = target_of(
        tmp_path,
        'endpoint = "https://s3.example.test"\naccess_key = "k"\nsecret_key = "s"\n'
        f'proxy = "http://user@127.0.0.1:{port}"\nproxy_password = {{ env = "PROXY" }}',
    )
    assert told.proxy == f"http://user:p%40ss%2Fw%3Ard@127.0.0.1:{port}"
    assert "p%40ss" not in repr(told)
    with pytest.raises(Unreachable, match="proxy") as caught:
        list(BucketStore(told).list())
    assert "p%40ss" not in str(caught.value)
    monkeypatch.delenv("PROXY")
    with pytest.raises(SecretError):
        target_of(tmp_path, 'proxy = "http://user@127.0.0.1:1"\nproxy_password = { env = "PROXY" }')


def test_a_proxy_that_wants_a_password_gets_it(tmp_path: Path, moto: S3Server) -> None:
    moto.make_bucket("behind")
    address = moto.endpoint.removeprefix("http://")  # moto takes requests for other addresses as a proxy does
    target = replace(moto.target("behind"), endpoint="http://127.0.0.1:9", proxy=f"http://user:p%40ss@{address}")
    store = store_of(target)
    with moto.watching() as requests:
        assert put(store, upload("x", b"1"))["x"].ok
        assert [listed.key for listed in store.list()] == ["x"]
    expected = "Basic " + base64.b64encode(b"user:p@ss").decode()
    assert {one.environ.get("HTTP_PROXY_AUTHORIZATION") for one in requests} == {expected}
    assert {one.environ["HTTP_HOST"] for one in requests} == {"127.0.0.1:9"}


def test_a_file_of_certificates_that_is_none_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    for name in ("ca.pem", "gone.pem"):
        with pytest.raises(UsageError, match=rf"{name} cannot be read"):
            BucketStore(s3.S3Target("bb", "", "https://127.0.0.1:9", "key", "secret", ca=str(tmp_path / name)))


def test_a_certificate_counts_with_the_file_of_its_issuer_alone(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with moto_server(checks_sha256=True, certificate=authority.issue("127.0.0.1")) as server:
        trusting = replace(server.target("secured", "p"), ca=str(authority.pem))
        s3.connect(trusting).ask("create_bucket")
        store = store_of(trusting)
        with store.hold(), server.watching() as requests:
            outcomes = put(store, upload("small", b"1"), upload("large", b"x" * (11 << 20)))
        assert all(outcome.ok for outcome in outcomes.values())
        sent = {one.operation: one.environ["HTTP_X_AMZ_CONTENT_SHA256"] for one in requests}
        assert {sent["PutObject"], sent["UploadPart"]} == {"UNSIGNED-PAYLOAD"}  # their checksums are signed: the bytes are not hashed once more
        assert sent["CompleteMultipartUpload"] != "UNSIGNED-PAYLOAD"
        with pytest.raises(CertificateRefused, match="certificate") as caught:
            list(BucketStore(server.target("secured", "p")).list())
        assert "`ca_file`" in caught.value.hint
