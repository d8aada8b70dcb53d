"""What every object store promises. Each test takes a `world`: a fresh store and a way to tamper with what it holds."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from hostbackup.errors import HostbackupError, Locked, PlaceMissing
from hostbackup.model import Method, Status
from hostbackup.vault.stores import LOCKS, Absent, Outcome, Store, Upload, Wanted, mark


@dataclass
class World:
    store: Store
    write: Callable[[str, bytes], None]  # changes an object behind the store's back
    gone: Callable[[], Store]  # the same kind of store, whose bucket or folder is not there
    again: Callable[[], Store]  # the same store, as another run has it
    method: Method = Method.BUCKET_REREAD


def upload(key: str, data: bytes, *, told: bytes | None = None) -> Upload:
    """An upload of `data`; with `told`, one that was said to be `told`."""
    said = data if told is None else told
    return Upload(key, len(said), hashlib.sha256(said).hexdigest(), lambda: io.BytesIO(data))


def wanted(key: str, data: bytes) -> Wanted:
    return Wanted(key, hashlib.sha256(data).hexdigest(), len(data))


def key_of(data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    return f"objects/{digest[:2]}/{digest}"


def put(store: Store, *items: Upload) -> dict[str, Outcome]:
    return {outcome.key: outcome for outcome in store.put(items)}


def listing(store: Store, prefix: str = "") -> list[tuple[str, int]]:
    return [(listed.key, listed.size) for listed in store.list(prefix)]


class StoreContract:
    """Subclass it with a fixture `world`."""

    def test_an_object_comes_back_as_it_was_put(self, world: World) -> None:
        assert put(world.store, upload("a/b", b"hello"))["a/b"].ok
        with world.store.get("a/b") as stream:
            assert stream.read() == b"hello"

    def test_an_empty_object_is_an_object(self, world: World) -> None:
        assert put(world.store, upload("empty", b""))["empty"].ok
        with world.store.get("empty") as stream:
            assert stream.read() == b""
        assert [proven.status for proven in world.store.prove([wanted("empty", b"")])] == [Status.VERIFIED]

    def test_listing_gives_keys_and_sizes_in_order_below_a_prefix(self, world: World) -> None:
        put(world.store, upload("b/2", b"22"), upload("b/1", b"1"), upload("a", b""), upload("bb", b"333"), upload("b-", b"-"))
        assert listing(world.store) == [("a", 0), ("b-", 1), ("b/1", 1), ("b/2", 2), ("bb", 3)]
        assert listing(world.store, "b/") == [("b/1", 1), ("b/2", 2)]
        assert list(world.store.list("nothing/")) == []

    def test_many_objects_go_up_and_are_proven(self, world: World) -> None:
        contents = {key_of(data): data for data in (b"object %d" % n for n in range(100))}
        outcomes = put(world.store, *(upload(key, data) for key, data in contents.items()))
        assert set(outcomes) == set(contents)
        assert all(outcome.ok for outcome in outcomes.values())
        assert listing(world.store, "objects/") == sorted((key, len(data)) for key, data in contents.items())
        proven = list(world.store.prove(wanted(key, data) for key, data in contents.items()))
        assert {one.wanted.key for one in proven} == set(contents)
        assert {(one.status, one.method) for one in proven} == {(Status.VERIFIED, world.method)}

    def test_a_large_object_goes_up_whole(self, world: World) -> None:
        block = bytes(range(256)) * 4096
        data = b"".join(bytes([n]) + block[1:] for n in range(12))
        assert put(world.store, upload(key_of(data), data))[key_of(data)].ok
        assert [one.status for one in world.store.prove([wanted(key_of(data), data)])] == [Status.VERIFIED]
        with world.store.get(key_of(data)) as stream:
            assert hashlib.sha256(stream.read()).digest() == hashlib.sha256(data).digest()

    def test_putting_an_equal_object_again_is_harmless(self, world: World) -> None:
        for _ in range(2):
            assert put(world.store, upload("x", b"same"))["x"].ok
        assert listing(world.store) == [("x", 4)]

    def test_putting_replaces_what_was_damaged(self, world: World) -> None:
        put(world.store, upload("x", b"good"))
        world.write("x", b"b\0d!")
        assert put(world.store, upload("x", b"good"))["x"].ok
        assert [one.status for one in world.store.prove([wanted("x", b"good")])] == [Status.VERIFIED]

    @pytest.mark.parametrize("damage", [b"gOod", b"goo", b"good!", b""])
    def test_damage_is_seen(self, world: World, damage: bytes) -> None:
        put(world.store, upload("x", b"good"), upload("y", b"other"))
        world.write("x", damage)
        proven = {one.wanted.key: one for one in world.store.prove([wanted("x", b"good"), wanted("y", b"other")])}
        assert proven["x"].status is Status.DIFFERENT
        assert proven["x"].reason
        assert proven["y"].status is Status.VERIFIED

    def test_reading_all_of_it_finds_damage_whatever_the_store_says(self, world: World) -> None:
        put(world.store, upload("x", b"good"))
        proven = list(world.store.prove([wanted("x", b"good")], read=True))
        assert [(one.status, one.method) for one in proven] == [(Status.VERIFIED, Method.BUCKET_REREAD)]

    def test_a_range_of_an_object_comes_alone(self, world: World) -> None:
        put(world.store, upload("x", bytes(range(100))))
        for start, size in ((0, 10), (90, 10), (17, 1), (5, 0), (0, 100)):
            with world.store.get("x", start, size) as stream:
                assert stream.read() == bytes(range(start, start + size))
        with world.store.get("x", 40) as stream:
            assert stream.read() == bytes(range(40, 100))
        with pytest.raises(HostbackupError):
            world.store.get("x", 95, 10).read()

    @pytest.mark.parametrize("size", [0, 5, 12 << 20])
    def test_bytes_whose_digest_is_not_known_before_are_told_after(self, world: World, size: int) -> None:
        data = b"stream" * (size // 6 + 1)
        outcome = put(world.store, Upload("s", size, "", lambda: io.BytesIO(data)))["s"]
        assert (outcome.code, outcome.size, outcome.digest) == ("", len(data), hashlib.sha256(data).hexdigest())
        assert [one.status for one in world.store.prove([wanted("s", data)])] == [Status.VERIFIED]

    def test_a_missing_object_is_told_and_not_raised(self, world: World) -> None:
        put(world.store, upload("x", b"good"))
        proven = {one.wanted.key: one.status for one in world.store.prove([wanted("x", b"good"), wanted("gone", b"good")])}
        assert proven == {"x": Status.VERIFIED, "gone": Status.MISSING}
        with pytest.raises(Absent):
            world.store.get("gone").read()

    def test_bytes_that_are_not_what_was_said_are_not_stored(self, world: World) -> None:
        big = b"x" * (9 << 20)
        bad = [
            upload("flipped", b"b\0d", told=b"bad"),
            upload("short", b"ba", told=b"bad"),
            upload("long", b"bad!", told=b"bad"),
            upload("big", big[:-1] + b"y", told=big),
        ]
        outcomes = put(world.store, *bad, upload("fine", b"fine"))
        assert {key: outcome.code for key, outcome in outcomes.items()} == {
            **dict.fromkeys(("flipped", "short", "long", "big"), "source-damaged"),
            "fine": "",
        }
        assert [listed.key for listed in world.store.list()] == ["fine"]

    def test_a_source_that_cannot_be_read_stops_nothing_else(self, world: World) -> None:
        def refuse() -> io.BytesIO:
            raise HostbackupError("the vault has lost it")

        lost = Upload("lost", 4, hashlib.sha256(b"lost").hexdigest(), refuse)
        outcomes = put(world.store, lost, upload("fine", b"fine"))
        assert outcomes["fine"].ok
        assert "lost it" in outcomes["lost"].reason

    def test_items_are_taken_only_as_far_ahead_as_is_worked_on(self, world: World) -> None:
        taken = itertools.count()

        def endless() -> Iterator[Upload]:
            for n in taken:
                yield upload(f"n{n}", b"x" * (1 << 20))

        outcomes = world.store.put(endless())
        assert next(iter(outcomes)).ok
        close = getattr(outcomes, "close", None)
        assert close is not None
        close()
        assert next(taken) < 400

    def test_deleting_leaves_the_rest_and_may_be_repeated(self, world: World) -> None:
        put(world.store, upload("x", b"1"), upload("y", b"2"), upload("z", b"3"))
        assert all(outcome.ok for _ in range(2) for outcome in world.store.delete(["x", "z"]))
        assert [listed.key for listed in world.store.list()] == ["y"]

    def test_one_run_writes_at_a_time_and_the_other_hears_who(self, world: World) -> None:
        other = world.again()
        with world.store.hold():
            with pytest.raises(Locked) as caught, other.hold():
                pass
            assert f"{socket.gethostname()} (process {os.getpid()}), since 2" in caught.value.reason
            assert "wait" in caught.value.hint
            assert put(world.store, upload("x", b"1"))["x"].ok
            assert all(outcome.ok for outcome in world.store.delete(["x"]))
        with other.hold():
            assert put(other, upload("x", b"1"))["x"].ok
        assert [listed.key for listed in world.store.list()] == ["x"]

    def test_listing_tells_when_an_object_was_put(self, world: World) -> None:
        put(world.store, upload("x", b"1"))
        [listed] = world.store.list()
        assert listed.modified > 1_700_000_000

    def test_names_of_web_pages_are_keys(self, world: World) -> None:
        keys = ["tree/.htaccess", "tree/100%25 & +.html", "tree/会社案内/地図.html"]
        outcomes = put(world.store, *(upload(key, key.encode()) for key in keys))
        assert all(outcomes[key].ok for key in keys)
        assert [listed.key for listed in world.store.list("tree/")] == keys
        with world.store.get(keys[2]) as stream:
            assert stream.read() == keys[2].encode()
        assert all(outcome.ok for outcome in world.store.delete(keys))
        assert list(world.store.list()) == []

    def test_a_version_is_told_from_another_by_its_mark(self, world: World) -> None:
        told = mark(put(world.store, replace(upload("x", b"one"), mtime_ns=10**18))["x"])
        assert [mark(listed) for listed in world.store.list()] == [told]
        world.write("x", b"two")
        assert [mark(listed) for listed in world.store.list()] != [told]

    def test_an_object_is_described(self, world: World) -> None:
        put(world.store, upload("x", b"four"))
        assert world.store.describe("x").size == 4
        assert world.store.describe("x").sha256 in ("", hashlib.sha256(b"four").hexdigest())
        with pytest.raises(Absent):
            world.store.describe("y")

    def test_a_store_that_is_not_there_is_one_error(self, world: World) -> None:
        with pytest.raises(PlaceMissing):
            list(world.gone().list())
        with pytest.raises(PlaceMissing):
            list(world.gone().put([upload("x", b"x")]))
        with pytest.raises(PlaceMissing):
            list(world.gone().prove([wanted("x", b"x")]))
        with pytest.raises(PlaceMissing), world.gone().hold():
            pass


class ObjectLockContract:
    """Of stores whose lock is an object."""

    def test_the_lock_that_a_killed_run_left_is_taken_over_by_its_successor(self, world: World) -> None:
        killed = world.again()
        left = killed.hold()
        left.__enter__()
        with pytest.raises(Locked), world.store.hold():
            pass
        with world.store.hold([left.key, "locks/" + "0" * 32]) as ours:
            assert [listed.key for listed in world.store.list(LOCKS)] == [ours.key]
