"""Mirrors: a snapshot's web trees as plain files, three-way, without a byte sent twice and without a word of anybody else's touched."""

from __future__ import annotations

import datetime
import hashlib
import io
import os
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostbackup.errors import Exit, UsageError, VaultError
from hostbackup.jobs.mirror import Mirror, Mirrored
from hostbackup.jobs.mirror_names import Keys, too_long
from hostbackup.jobs.mirror_state import MirrorState
from hostbackup.jobs.mirror_types import content_type
from hostbackup.jobs.mirror_verify import MirrorProof
from hostbackup.jobs.restore_names import Names
from hostbackup.jobs.result import Result
from hostbackup.model import Entry, Part, Stored
from hostbackup.protocols.s3 import Facts
from hostbackup.vault.bucket import BucketStore
from hostbackup.vault.disk import FolderStore
from hostbackup.vault.snapshots import PartState
from hostbackup.vault.stores import Described, Listed, Outcome, Proven, Store, Upload, Wanted, valid_key
from hostbackup.vault.tree import SegmentRef, TreeRoot
from hostbackup.vault.vault import Vault
from tests.support.memory_store import Killed, MemoryStore, Wrapped, dies_after
from tests.support.s3 import S3Server, moto_server
from tests.support.sample_vault import NOW, SITE, WEB, File, state_of, write_tree

OTHER = Part("web", "shop")
Trees = Mapping[Part, Mapping[bytes, File]]
_BEGIN = 1_700_000_000_000_000_000


class Watching:
    """A store that counts what is asked of it."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.puts: list[Upload] = []
        self.deleted: list[str] = []
        self.looks = 0  # requests about one object

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def put(self, items: Any, **more: Any) -> Iterator[Outcome]:
        def seen() -> Iterator[Upload]:
            for item in items:
                self.puts.append(item)
                yield item

        return self.inner.put(seen(), **more)

    def get(self, key: str, start: int = 0, size: int | None = None) -> Any:
        self.looks += 1
        return self.inner.get(key, start, size)

    def describe(self, key: str) -> Described:
        self.looks += 1
        return self.inner.describe(key)

    def delete(self, keys: Any) -> Iterator[Outcome]:
        kept = list(keys)
        self.deleted += kept
        return self.inner.delete(kept)


@dataclass
class World:
    """A vault, a place for a mirror, and somebody else who works there."""

    vault: Vault
    place: Store
    write: Callable[[str, bytes], None]
    remove: Callable[[str], None]
    name: str = "site"
    minute: int = 0
    result: Result = field(default_factory=Result)

    def snapshot(
        self, files: Mapping[bytes, File], part: Part = WEB, *, shrunk: bool = False, more: Mapping[Part, Mapping[bytes, File]] = {}
    ) -> None:
        states: dict[str, PartState] = {}
        for one, held in {part: files, **more}.items():
            state = state_of(one, write_tree(self.vault, one, held))
            flag = {"entries_before": 9, "entries_now": 1, "bytes_before": 9, "bytes_now": 1}
            states[one.id] = replace(state, shrunk=flag) if shrunk else state
        self.minute += 1
        self.vault.flush()
        now = NOW + datetime.timedelta(minutes=self.minute)
        self.vault.snapshots.write(states, [], command="backup", exit=0, profile="example.jp", now=now)

    def mirror(self, store: Store | None = None, **options: Any) -> tuple[Mirrored, Watching]:
        watching = Watching(store or self.place)
        self.result = Result()
        keys = options.pop("keys", None) or Keys.of(self.place)
        with self._state(keys) as state:
            snapshot = self.vault.snapshots.get("latest")
            work = Mirror(self.vault, watching, snapshot, state, keys, self.result, self.name, **options)
            return work.run(), watching

    def prove(self) -> tuple[dict[str, int], list[dict[str, Any]]]:
        self.result = Result()
        with self._state(Keys.of(self.place)) as state:
            proof = MirrorProof(self.place, state, Keys.of(self.place), self.vault.manifests, self.result, self.name)
            lines = list(proof.lines(self.vault.snapshots.get("latest")))
        return lines[0]["counts"], lines

    def _state(self, keys: Keys) -> MirrorState:
        return MirrorState(self.state_file, self.place.label, keys.rule)

    @property
    def state_file(self) -> Path:
        return MirrorState.where(self.vault.state, self.name)

    def forget(self) -> None:
        self.state_file.unlink()

    def there(self) -> dict[str, bytes]:
        return {listed.key: self.place.get(listed.key).read() for listed in self.place.list()}

    @property
    def codes(self) -> dict[bytes, str]:
        return {failure.name: failure.code for failure in self.result.failures}


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with Vault.open(tmp_path / "vault", "write", create=True, command="test") as vault:
        yield vault


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with moto_server() as server:
        yield server


_numbers = iter(range(1000))


def bucket_world(vault: Vault, server: S3Server, whole: int = 64 << 20, part: int = 16 << 20) -> World:
    bucket = f"mirror-{next(_numbers)}"
    server.make_bucket(bucket)
    client = server.client()

    def write(key: str, data: bytes) -> None:
        client.put_object(Bucket=bucket, Key=f"www/{key}", Body=data)

    return World(
        vault,
        BucketStore(server.target(bucket, "www"), whole=whole, part=part),
        write,
        lambda key: client.delete_object(Bucket=bucket, Key=f"www/{key}") and None,
    )


def memory_world(vault: Vault) -> World:
    store = MemoryStore()
    return World(vault, store, store.objects.__setitem__, store.objects.__delitem__)


def disk_world(vault: Vault, root: Path) -> World:
    root.mkdir()

    def write(key: str, data: bytes) -> None:
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(data)

    return World(vault, FolderStore(root), write, lambda key: (root / key).unlink())


@pytest.fixture(params=["disk", "memory"])
def world(request: pytest.FixtureRequest, vault: Vault, tmp_path: Path) -> World:
    return disk_world(vault, tmp_path / "disk") if request.param == "disk" else memory_world(vault)


@pytest.fixture(params=["bucket", "disk", "memory"])
def anywhere(request: pytest.FixtureRequest, vault: Vault, tmp_path: Path) -> World:
    if request.param == "bucket":  # a server of its own costs seconds, so it is asked where it may differ
        return bucket_world(vault, request.getfixturevalue("moto"))
    return disk_world(vault, tmp_path / "disk") if request.param == "disk" else memory_world(vault)


def page(text: str, minute: int = 0, **more: Any) -> File:
    """A file; of another minute, one that was written then."""
    return File(text.encode(), mtime_ns=_BEGIN + minute * 60_000_000_000, **more)


PAGES: dict[bytes, File] = {
    b"index.html": page("home"),
    b"css/site.css": page("x{}"),
    b"css/deep/a.css": page("a{}"),
    b"css-old/b.css": page("b{}"),
}


# ------------------------------------------------------------ what stands there


def test_files_stand_under_the_names_they_have(anywhere: World) -> None:
    world = anywhere
    world.snapshot(SITE, more={OTHER: {b"cart.html": page("cart")}})
    done, _ = world.mirror()
    assert world.there() == {
        "public_html/index.html": b"<h1>example</h1>\n",
        "public_html/img/logo.png": bytes(range(256)) * 40,
        "public_html/img/copy of logo.png": bytes(range(256)) * 40,
        "public_html/会社案内/地図.html": "地図".encode(),
        "public_html/caf%E9/men%FC.txt": b"latin-1 name",
        "public_html/empty.txt": b"",
        "public_html/cgi-bin/run.cgi": b"#!/bin/sh\n",
        "shop/cart.html": b"cart",
    }
    assert (done.uploaded, done.links, done.skipped) == (8, 2, 0)
    assert world.codes == {b"unread.txt": "failed"}
    assert [row["key"] for row in world.result.details["renamed"]] == ["public_html/caf%E9/men%FC.txt"]


def test_a_second_run_sends_nothing_and_asks_about_no_file(anywhere: World) -> None:
    world = anywhere
    world.snapshot(PAGES)
    world.mirror()
    done, watching = world.mirror()
    assert (done.uploaded, done.skipped, watching.puts, watching.looks) == (0, 4, [], 0)
    assert world.result.exit is Exit.OK


def test_only_what_changed_is_sent(world: World) -> None:
    world.snapshot(PAGES)
    world.mirror()
    world.snapshot({**PAGES, b"css/site.css": page("y{}", 1), b"new.html": page("new")})
    done, watching = world.mirror()
    assert sorted(item.key for item in watching.puts) == ["public_html/css/site.css", "public_html/new.html"]
    assert (done.uploaded, done.updated, done.skipped) == (2, 1, 3)
    assert world.there()["public_html/css/site.css"] == b"y{}"


def test_a_time_that_changed_alone_sends_nothing(world: World) -> None:
    world.snapshot(PAGES)
    world.mirror()
    world.snapshot({name: replace(file, mtime_ns=file.mtime_ns + 10**9, mode=0o600) for name, file in PAGES.items()})
    assert world.mirror()[0].uploaded == 0


def test_what_was_taken_away_there_comes_again(world: World) -> None:
    world.snapshot(PAGES)
    world.mirror()
    world.remove("public_html/index.html")
    done, _ = world.mirror()
    assert done.uploaded == 1
    assert world.there()["public_html/index.html"] == b"home"


def test_a_bucket_tells_type_time_mode_and_digest(vault: Vault, moto: S3Server) -> None:
    world = bucket_world(vault, moto)
    world.snapshot({b"a.html": File(b"<p>", mode=0o640, mtime_ns=1_600_000_000_500_000_000)})
    world.mirror()
    listed = moto.client().list_buckets()["Buckets"][-1]["Name"]
    told = moto.client().head_object(Bucket=listed, Key="www/public_html/a.html")
    assert told["ContentType"] == "text/html"
    assert told["Metadata"] == {"mode": "0640", "mtime": "1600000000.500000000", "sha256": hashlib.sha256(b"<p>").hexdigest()}


def test_a_file_on_a_disk_bears_its_time(vault: Vault, tmp_path: Path) -> None:
    world = disk_world(vault, tmp_path / "disk")
    world.snapshot({b"a.html": File(b"<p>", mtime_ns=1_600_000_000_000_000_000)})
    world.mirror()
    assert (tmp_path / "disk/public_html/a.html").stat().st_mtime_ns == 1_600_000_000_000_000_000


# ------------------------------------------------------------ what others do there


def test_somebody_elses_change_is_left_alone_and_listed(anywhere: World) -> None:
    world = anywhere
    world.snapshot(PAGES)
    world.mirror()
    world.write("public_html/index.html", b"mine")
    for looks in (2, 0):  # compared once, and known again by its version
        done, watching = world.mirror()
        assert (done.uploaded, done.left_alone, done.conflicts, done.skipped) == (0, 1, 0, 3)
        assert watching.looks <= looks
        assert [(row["name"], row["action"]) for row in world.result.details["left_alone"]] == [("index.html", "changed-in-mirror")]
        assert world.result.exit is Exit.OK
    assert world.there()["public_html/index.html"] == b"mine"


def test_a_change_on_both_sides_is_a_conflict_and_stays(anywhere: World) -> None:
    world = anywhere
    world.snapshot(PAGES)
    world.mirror()
    world.write("public_html/index.html", b"mine")
    world.snapshot({**PAGES, b"index.html": page("well", 1)})
    for looks in (2, 0):
        done, watching = world.mirror()
        assert (done.uploaded, done.conflicts) == (0, 1)
        assert watching.looks <= looks
        assert world.codes == {b"index.html": "conflict"}
        assert world.result.exit is Exit.INCOMPLETE
    assert world.there()["public_html/index.html"] == b"mine"


def test_what_was_there_before_and_differs_is_a_conflict(world: World) -> None:
    world.write("public_html/index.html", b"them")
    world.write("elsewhere/index.html", b"them")
    world.snapshot(PAGES)
    done, _ = world.mirror(delete=True)
    assert (done.uploaded, done.conflicts, world.codes) == (3, 1, {b"index.html": "conflict"})
    assert world.there()["public_html/index.html"] == world.there()["elsewhere/index.html"] == b"them"


def test_what_was_there_before_and_is_equal_is_ours_from_then_on(anywhere: World) -> None:
    world = anywhere
    world.write("public_html/index.html", b"home")
    world.snapshot(PAGES)
    done, _ = world.mirror()
    assert (done.uploaded, done.adopted, done.skipped) == (3, 1, 1)
    world.snapshot({**PAGES, b"index.html": page("well", 1)})
    assert world.mirror()[0].updated == 1
    assert world.there()["public_html/index.html"] == b"well"


def test_the_same_bytes_put_there_anew_are_no_change(world: World) -> None:
    world.snapshot(PAGES)
    world.mirror()
    world.write("public_html/index.html", b"home")
    world.snapshot({**PAGES, b"index.html": page("well", 1)})
    done, _ = world.mirror()
    assert (done.updated, done.conflicts, world.there()["public_html/index.html"]) == (1, 0, b"well")


def test_a_conflict_ends_when_the_other_version_is_taken_away(world: World) -> None:
    world.write("public_html/index.html", b"them")
    world.snapshot(PAGES)
    world.mirror()
    world.remove("public_html/index.html")
    done, _ = world.mirror()
    assert (done.uploaded, done.conflicts, world.result.exit) == (1, 0, Exit.OK)


def test_bytes_that_were_changed_on_a_disk_without_a_trace_are_not_overwritten(vault: Vault, tmp_path: Path) -> None:
    world = disk_world(vault, tmp_path / "disk")
    world.snapshot(PAGES)
    world.mirror()
    path = tmp_path / "disk/public_html/index.html"
    before = path.stat()
    path.chmod(0o600)
    path.write_bytes(b"mine")
    os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns))
    world.snapshot({**PAGES, b"index.html": page("well", 1)})
    done, _ = world.mirror()
    assert (done.updated, done.conflicts, path.read_bytes()) == (0, 1, b"mine")


# ------------------------------------------------------------ what is gone


def test_nothing_is_deleted_unless_asked(world: World) -> None:
    world.snapshot(PAGES)
    world.mirror()
    world.snapshot({b"index.html": page("home")})
    done, watching = world.mirror()
    assert (done.vanished, done.deleted, watching.deleted) == (3, 0, [])
    assert len(world.there()) == 4


def test_what_is_ours_and_gone_is_deleted_when_asked_and_nothing_else(anywhere: World) -> None:
    world = anywhere
    world.snapshot(PAGES)
    world.mirror()
    world.write("public_html/css/site.css", b"mine")
    world.write("public_html/theirs.html", b"theirs")
    world.snapshot({b"index.html": page("home")})
    done, _ = world.mirror(delete=True)
    assert (done.deleted, done.left_alone, done.vanished) == (2, 1, 0)
    assert world.there() == {"public_html/index.html": b"home", "public_html/css/site.css": b"mine", "public_html/theirs.html": b"theirs"}
    done, _ = world.mirror(delete=True)
    assert (done.deleted, done.uploaded) == (0, 0)


def test_a_file_that_could_not_be_read_is_not_gone(world: World) -> None:
    world.snapshot({b"a.html": page("a"), b"b.html": page("b")})
    world.mirror()
    world.snapshot({b"a.html": page("a"), b"b.html": File(failed="permission denied")})
    done, _ = world.mirror(delete=True)
    assert (done.deleted, world.codes, sorted(world.there())) == (0, {b"b.html": "failed"}, ["public_html/a.html", "public_html/b.html"])


def test_a_stale_file_is_mirrored_as_it_last_was_and_told(world: World) -> None:
    world.snapshot({b"a.html": replace(page("old"), stale="changing")})
    done, _ = world.mirror()
    assert (done.uploaded, world.there(), world.result.exit) == (1, {"public_html/a.html": b"old"}, Exit.OK)
    assert [(row["name"], row["reason"]) for row in world.result.details["stale"]] == [("a.html", "changing")]


def test_a_tree_that_shrank_is_not_touched(world: World) -> None:
    world.snapshot(PAGES)
    world.mirror()
    world.snapshot({b"index.html": page("well", 1)}, shrunk=True)
    done, watching = world.mirror(delete=True)
    assert (done, watching.puts, watching.deleted) == (Mirrored(), [], [])
    [failure] = world.result.failures
    assert (failure.code, failure.side, world.result.exit) == ("shrunk", "copy:site", Exit.INCOMPLETE)
    assert "--accept-shrink web/public_html" in failure.hint


def test_a_tree_that_the_snapshot_has_not_is_told_and_left(world: World) -> None:
    world.snapshot(PAGES)
    world.mirror()
    world.snapshot({b"x.html": page("x")}, OTHER)
    done, _ = world.mirror(delete=True, expected=[WEB, OTHER])
    assert (done.deleted, done.uploaded, len(world.there())) == (0, 1, 5)
    assert [(failure.part, failure.code) for failure in world.result.failures] == [("web/public_html", "not-covered")]


def test_a_file_becomes_a_folder_on_a_disk(vault: Vault, tmp_path: Path) -> None:
    world = disk_world(vault, tmp_path / "disk")
    world.snapshot({b"a": page("file"), b"b/c": page("inner")})
    world.mirror()
    world.snapshot({b"a/x": page("inner"), b"b": page("file")})
    world.mirror()
    assert set(world.codes) == {b"a/x", b"b"}
    world.mirror(delete=True)
    assert world.there() == {"public_html/a/x": b"inner", "public_html/b": b"file"}
    assert world.result.exit is Exit.OK


# ------------------------------------------------------------ interrupted, lost, damaged


def test_a_lost_state_sends_nothing_again(anywhere: World) -> None:
    world = anywhere
    world.snapshot(SITE)
    world.mirror()
    world.forget()
    done, watching = world.mirror()
    assert (done.uploaded, done.adopted, watching.puts, world.codes) == (0, 7, [], {b"unread.txt": "failed"})
    assert world.mirror()[1].looks == 0


def test_an_object_in_parts_is_known_again_by_what_it_was_put_with(vault: Vault, moto: S3Server) -> None:
    world = bucket_world(vault, moto, whole=1 << 20, part=5 << 20)
    world.snapshot({b"film.mp4": File(bytes(9 << 20))})
    world.mirror()
    assert "-" in next(iter(world.place.list())).etag
    world.forget()
    done, watching = world.mirror()
    assert (done.uploaded, done.adopted, watching.looks) == (0, 1, 1)


def test_a_state_that_is_damaged_is_put_aside_and_made_anew(world: World) -> None:
    world.snapshot(PAGES)
    world.mirror()
    world.state_file.write_bytes(b"no database" * 100)
    done, _ = world.mirror()
    assert (done.uploaded, done.adopted) == (0, 4)
    assert world.state_file.with_suffix(".damaged").exists()


def test_another_place_under_the_same_name_is_begun_anew(vault: Vault, tmp_path: Path) -> None:
    one = disk_world(vault, tmp_path / "one")
    one.snapshot(PAGES)
    one.mirror()
    other = disk_world(vault, tmp_path / "other")
    assert other.mirror()[0].uploaded == 4


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_a_run_that_is_killed_at_any_upload_and_run_again_leaves_what_an_undisturbed_one_leaves(vault: Vault, tmp_path: Path, kind: str) -> None:
    after = {**PAGES, b"index.html": page("well", 1), b"css/site.css": page("much longer than before", 1), b"new.html": page("new", 1)}
    for puts in range(4):
        world = memory_world(vault) if kind == "memory" else disk_world(vault, tmp_path / f"disk{puts}")
        world.name = f"{kind}{puts}"
        world.snapshot(PAGES)
        world.mirror()
        world.snapshot(after)
        if puts < 3:
            with pytest.raises(Killed):
                world.mirror(dies_after(world.place, puts))
        done, _ = world.mirror()
        assert done.uploaded == 3 - puts if puts < 3 else 3
        assert world.there() == {f"public_html/{name.decode()}": file.data for name, file in after.items()}
        assert world.result.failures == []
        assert world.mirror()[1].puts == []


@pytest.mark.parametrize("kind", ["memory", "disk", "bucket"])
def test_what_a_killed_run_put_is_ours_though_the_site_moved_on(vault: Vault, moto: S3Server, tmp_path: Path, kind: str) -> None:
    world = bucket_world(vault, moto) if kind == "bucket" else memory_world(vault) if kind == "memory" else disk_world(vault, tmp_path / "disk")
    world.snapshot({b"a.html": page("one")})

    class Unheard(Wrapped):
        """The object is stored, and the run dies before it hears of it."""

        def put(self, items: Any, *, at_once: int | None = None) -> Iterator[Outcome]:
            for _ in self.inner.put(items):
                raise Killed
            yield from ()

    with pytest.raises(Killed):
        world.mirror(Unheard(world.place, lambda _item: None))
    assert world.there() == {"public_html/a.html": b"one"}
    world.snapshot({b"a.html": page("two", 1)})
    done, _ = world.mirror()
    assert (done.updated, done.conflicts, world.there()) == (1, 0, {"public_html/a.html": b"two"})


def test_what_the_vault_lost_is_damage_and_the_rest_goes_up(world: World) -> None:
    world.snapshot(PAGES)
    digest = hashlib.sha256(b"home").hexdigest()
    path = world.vault.objects.path(digest)
    path.chmod(0o600)
    path.write_bytes(b"hXme")
    done, _ = world.mirror()
    assert (done.uploaded, world.codes, world.result.exit) == (3, {b"index.html": "damaged"}, Exit.DAMAGE)
    assert "public_html/index.html" not in world.there()


def test_an_upload_that_fails_is_told_and_tried_again(vault: Vault) -> None:
    world = memory_world(vault)
    world.snapshot(PAGES)
    refusing = Wrapped(world.place, lambda item: Outcome(item.key, code="protocol", reason="no") if item.key.endswith("index.html") else None)
    done, _ = world.mirror(refusing)
    assert (done.uploaded, world.codes) == (3, {b"index.html": "protocol"})
    assert world.mirror()[0].uploaded == 1


def test_a_listing_in_any_order_is_understood(vault: Vault) -> None:
    world = memory_world(vault)
    world.snapshot(PAGES)
    world.mirror()

    class Backwards(Wrapped):
        def list(self, prefix: str = "") -> Iterator[Listed]:
            yield from reversed([*self.inner.list(prefix)])

    assert world.mirror(Backwards(world.place, lambda _item: None))[0].uploaded == 0


# ------------------------------------------------------------ names


_COMPONENT = st.binary(min_size=1, max_size=12).filter(lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b".."))


@given(st.lists(_COMPONENT, min_size=1, max_size=4), st.booleans(), st.sampled_from([b"", b" ", b" +"]))
def test_every_path_has_a_key_that_says_it(names: list[bytes], ascii: bool, refused: bytes) -> None:
    keys = Keys(ascii=ascii, refused=refused)
    key = keys.key("tree/", b"/".join(names))
    assert valid_key(key)
    assert set(refused.decode()).isdisjoint(key)
    assert key.isascii() or not ascii
    for name, shown in zip(names, key.removeprefix("tree/").split("/"), strict=True):
        assert name in (shown.encode(), urllib.parse.unquote_to_bytes(shown))


@given(_COMPONENT)
def test_a_disk_that_refuses_names_gets_names_it_takes(name: bytes) -> None:
    key = Keys(Names(windows=True, utf8=True, case=False)).name(name)
    assert valid_key(key)
    assert not set('<>:"|?*\\') & set(key)


def test_two_files_that_would_have_one_key_are_told_and_neither_is_mirrored(world: World) -> None:
    world.snapshot({b"caf\xe9.txt": page("one"), b"caf%E9.txt": page("two"), b"fine.txt": page("three")})
    done, _ = world.mirror()
    assert (done.uploaded, sorted(world.there())) == (1, ["public_html/fine.txt"])
    assert world.codes == {b"caf\xe9.txt": "collision", b"caf%E9.txt": "collision"}
    world.snapshot({b"caf%E9.txt": page("two"), b"fine.txt": page("three")})
    assert world.mirror()[0].uploaded == 1
    assert world.result.exit is Exit.OK


def test_names_that_differ_in_case_alone_collide_where_a_disk_does_not_tell_them(vault: Vault, tmp_path: Path) -> None:
    world = disk_world(vault, tmp_path / "disk")
    world.snapshot({b"A.html": page("one"), b"a.html": page("two"), b"b.html": page("three")})
    world.mirror(keys=Keys(Names(case=False)))
    assert (sorted(world.there()), set(world.codes.values())) == (["public_html/b.html"], {"collision"})


def test_two_trees_that_would_be_one_folder_are_refused_before_anything_moves(vault: Vault, tmp_path: Path) -> None:
    world = disk_world(vault, tmp_path / "disk")
    world.snapshot(PAGES, more={Part("web", "PUBLIC_HTML"): PAGES})
    with pytest.raises(UsageError, match="one folder"):
        world.mirror(keys=Keys(Names(case=False)))
    assert world.there() == {}


@pytest.mark.parametrize("name", ["locks", "incoming", "checksum-probe", "lost+found", "Locks"])
def test_a_tree_cannot_be_called_as_what_has_another_use_there(vault: Vault, name: str) -> None:
    world = memory_world(vault)
    world.snapshot(PAGES, Part("web", name))
    with pytest.raises(UsageError, match="another use"):
        world.mirror()
    assert world.there() == {}


def test_a_name_that_is_too_long_for_a_store_is_told(vault: Vault) -> None:
    world = memory_world(vault)
    deep = b"/".join([b"d" * 250] * 5)
    world.snapshot({deep: page("deep"), b"a": page("a")})
    done, _ = world.mirror()
    assert (done.uploaded, world.codes) == (1, {deep: "name"})
    assert too_long(Keys().key("public_html/", deep))


def test_names_are_found_out_anew_where_the_rule_for_keys_changed(vault: Vault) -> None:
    world = memory_world(vault)
    world.snapshot({"地図.html".encode(): page("map"), b"a.html": page("a")})
    world.mirror()
    done, _ = world.mirror(keys=Keys(ascii=True))
    assert (done.uploaded, done.skipped, done.vanished) == (1, 1, 1)
    assert "public_html/%E5%9C%B0%E5%9B%B3.html" in world.there()


def test_a_bucket_gets_the_keys_that_it_was_found_to_keep(moto: S3Server) -> None:
    target = moto.target("any", "www")
    assert Keys.of(BucketStore(target)) == Keys()
    told = Facts(target.place, keys={"unicode": False, "space": True, "plus": False})
    assert Keys.of(BucketStore(target, facts=told)).name("地 1+1".encode()) == "%E5%9C%B0 1%2B1"


def test_a_mirror_does_not_go_where_a_copy_of_a_vault_is(anywhere: World) -> None:
    world = anywhere
    world.write("format.json", b"{}")
    world.snapshot(PAGES)
    with pytest.raises(VaultError, match="copy of a vault"):
        world.mirror()


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("a/index.html", "text/html"),
        ("INDEX.HTM", "text/html"),
        ("site.css", "text/css"),
        ("app.js", "text/javascript"),
        ("app.mjs", "text/javascript"),
        ("data.json", "application/json"),
        ("logo.svg", "image/svg+xml"),
        ("photo.webp", "image/webp"),
        ("photo.avif", "image/avif"),
        ("font.woff2", "font/woff2"),
        ("app.wasm", "application/wasm"),
        ("feed.xml", "application/xml"),
        ("robots.txt", "text/plain"),
        ("photo.JPG", "image/jpeg"),
        ("all.tar.gz", "application/gzip"),
        ("logo.svgz", "application/gzip"),
        ("film.mov", "video/quicktime"),
        (".htaccess", "application/octet-stream"),
        (".css", "text/css"),
        ("index.php", "application/octet-stream"),
        ("a.b/c", "application/octet-stream"),
        ("地図.html", "text/html"),
    ],
)
def test_types_go_by_names(key: str, told: str) -> None:
    assert content_type(key) == told


# ------------------------------------------------------------ proof and repair


def test_a_mirror_is_proven(world: World) -> None:
    world.snapshot(PAGES)
    world.mirror()
    counts, [line] = world.prove()
    assert (counts, line["mode"], line["side"], world.result.exit) == ({"verified": 4}, "mirror", "copy:site", Exit.OK)


def test_what_is_not_as_it_was_put_is_told_by_whose_doing_it_is(anywhere: World) -> None:
    world = anywhere
    world.snapshot(PAGES)
    world.mirror()
    world.write("public_html/index.html", b"mine")
    world.remove("public_html/css/site.css")
    world.snapshot({**PAGES, b"new.html": page("new")})
    counts, _ = world.prove()
    assert counts == {"verified": 2, "changed-since": 1, "missing": 1, "unverified": 1}
    assert world.result.exit is Exit.INCOMPLETE
    assert world.codes == {b"index.html": "changed-since", b"css/site.css": "missing", b"new.html": "unverified"}


class Rotten(Wrapped):
    """What one object holds is not what its listing says."""

    def __init__(self, inner: MemoryStore, key: str) -> None:
        super().__init__(inner, lambda _item: None)
        self._held = inner
        self._key = key
        self._good = inner.objects[key]
        inner.objects[key] = b"r" * len(self._good)

    def list(self, prefix: str = "") -> Iterator[Listed]:
        for listed in self._held.list(prefix):
            rotten = listed.key == self._key and self._held.objects[self._key] != self._good
            yield listed._replace(etag=hashlib.md5(self._good).hexdigest()) if rotten else listed


def test_bytes_that_rotted_are_damage_and_are_put_again_on_repair(vault: Vault) -> None:
    world = memory_world(vault)
    world.snapshot(PAGES)
    world.mirror()
    assert isinstance(world.place, MemoryStore)
    world.place = Rotten(world.place, "public_html/index.html")
    assert world.mirror()[0].uploaded == 0
    counts, _ = world.prove()
    assert (counts, world.result.exit) == ({"verified": 3, "different": 1}, Exit.DAMAGE)
    done, _ = world.mirror(repair=True)
    assert (done.uploaded, done.repaired, done.skipped) == (1, 1, 3)
    assert world.prove()[0] == {"verified": 4}


def test_what_a_store_computed_over_an_object_in_parts_is_kept_for_its_proof(vault: Vault) -> None:
    world = memory_world(vault)
    world.snapshot(PAGES)
    asked: list[str] = []

    class InParts(Wrapped):
        def put(self, items: Iterable[Upload], *, at_once: int | None = None) -> Iterator[Outcome]:
            yield from (replace(outcome, checksum=f"{outcome.size}-2") for outcome in self.inner.put(items))

        def prove(self, items: Iterable[Wanted], *, read: bool | None = False) -> Iterator[Proven]:
            kept = list(items)
            asked.extend(wanted.checksum for wanted in kept)
            return self.inner.prove(kept)

    world.place = InParts(world.place, lambda _item: None)
    world.mirror()
    world.prove()
    assert sorted(asked) == ["3-2", "3-2", "3-2", "4-2"]
    world.mirror(repair=True)
    assert len(asked) == 8
    assert "" not in asked


def test_reading_gives_up_on_one_object_and_goes_on(vault: Vault) -> None:
    world = memory_world(vault)
    world.write("public_html/index.html", b"them")
    world.snapshot(PAGES)

    class Unreadable(Wrapped):
        def get(self, key: str, start: int = 0, size: int | None = None) -> io.BytesIO:
            raise VaultError("input/output error", where=key)

    done, _ = world.mirror(Unreadable(world.place, lambda _item: None))
    assert (done.uploaded, world.codes) == (3, {b"index.html": "failed"})


# ------------------------------------------------------------ many


def test_only_segments_that_changed_are_read(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    world = memory_world(vault)
    files = {b"d%d/f%d" % (folder, n): page(f"{folder} {n}") for folder in range(20) for n in range(5)}
    world.snapshot(files)
    world.mirror()
    world.snapshot({**files, b"d7/f3": page("changed", 1)})
    read: list[bytes] = []
    segment = TreeRoot.segment

    def watched(self: TreeRoot, ref: SegmentRef) -> Iterator[Stored[Entry]]:
        read.append(ref.folder)
        return segment(self, ref)

    monkeypatch.setattr(TreeRoot, "segment", watched)
    assert world.mirror()[0].updated == 1
    assert read == [b"d7", b"d7"]  # as it was, and as it is


def test_a_manifest_that_was_pruned_is_no_matter(vault: Vault) -> None:
    world = memory_world(vault)
    world.snapshot(PAGES)
    world.mirror()
    root = vault.snapshots.get("latest").parts[WEB.id].root
    world.snapshot({**PAGES, b"new.html": page("new")})
    Path(vault.manifests.where(root)).unlink()
    done, _ = world.mirror()
    assert (done.uploaded, done.skipped) == (1, 4)
