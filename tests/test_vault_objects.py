"""Objects: durable before named, stored once, whole after any kill, set aside when damaged."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hostbackup import osal
from hostbackup.errors import Damaged, DiskFull, VaultError
from hostbackup.vault import objects as module
from hostbackup.vault.objects import ObjectFolder
from hostbackup.vault.partial import Origin
from hostbackup.vault.receiver import BUFFER


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def folder(root: Path) -> ObjectFolder:
    for name in ("objects", "incoming", "damaged"):
        (root / name).mkdir(mode=0o700, exist_ok=True)
    return ObjectFolder(root / "objects", root / "incoming", root / "damaged")


def put(objects: ObjectFolder, data: bytes, pieces: int = 1) -> tuple[str, int]:
    receiver = objects.open(len(data))
    step = max(1, -(-len(data) // pieces))
    for start in range(0, len(data), step):
        receiver.write(data[start : start + step])
    return receiver.commit()


def named(root: Path) -> set[str]:
    return {path.name for path in (root / "objects").rglob("*") if path.is_file()}


@pytest.mark.parametrize("size", [0, 1, BUFFER - 1, BUFFER, BUFFER + 1, 3 * BUFFER + 7])
@pytest.mark.parametrize("pieces", [1, 3, 50])
def test_bytes_come_back_as_they_were_given(tmp_path: Path, size: int, pieces: int) -> None:
    data = random.Random(size).randbytes(size)
    objects = folder(tmp_path)
    assert put(objects, data, pieces) == (sha256(data), size)
    with objects.read(sha256(data)) as file:
        assert file.read() == data
    path = objects.path(sha256(data))
    assert path == tmp_path / "objects" / sha256(data)[:2] / sha256(data)
    assert path.stat().st_mode & 0o777 == 0o400
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_every_kind_of_buffer_is_counted_in_bytes(tmp_path: Path) -> None:
    receiver = folder(tmp_path).open()
    receiver.write(b"ab")
    receiver.write(bytearray(b"cd"))
    receiver.write(memoryview(b"efgh")[1:3])
    assert receiver.commit() == (sha256(b"abcdfg"), 6)


def test_nothing_is_named_before_it_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = folder(tmp_path)
    seen: list[set[str]] = []
    real = osal.sync_tree

    def sync(where: Path) -> bool:
        seen.append(named(tmp_path))
        return real(where)

    monkeypatch.setattr(osal, "sync_tree", sync)
    digest, _ = put(objects, b"x")
    assert objects.has(digest)
    assert named(tmp_path) == set()
    objects.flush()
    assert seen[0] == set(), "the first sync comes before the name"
    assert seen[-1] == {digest}, "the last sync makes the name itself durable"
    assert list((tmp_path / "incoming").iterdir()) == []


def test_a_flush_with_nothing_new_syncs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = folder(tmp_path)
    put(objects, b"x")
    objects.flush()
    monkeypatch.setattr(osal, "sync_tree", lambda where: pytest.fail("synced"))
    objects.flush()


def test_where_one_sync_for_all_is_not_to_be_had_each_file_and_folder_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = folder(tmp_path)
    synced: set[Path] = set()
    monkeypatch.setattr(osal, "sync_tree", lambda where: False)
    monkeypatch.setattr(osal, "sync_file", synced.add)
    monkeypatch.setattr(osal, "sync_folder", synced.add)
    digests = {put(objects, b"%d" % number)[0] for number in range(5)}
    objects.flush()
    expected = {tmp_path / "incoming" / digest for digest in digests} | {tmp_path / "objects" / digest[:2] for digest in digests}
    assert synced == expected | {tmp_path / "objects"}


def test_much_that_is_pending_is_synced_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SYNC_BYTES", 1000)
    objects = folder(tmp_path)
    for number in range(9):
        put(objects, b"%d" % number * 200)
    assert len(named(tmp_path)) >= 5


def test_what_waits_long_is_synced_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    objects = folder(tmp_path)
    put(objects, b"a")
    assert named(tmp_path) == set()
    now[0] += module.SYNC_SECONDS
    put(objects, b"b")
    assert named(tmp_path) == {sha256(b"a"), sha256(b"b")}


def test_the_same_bytes_are_stored_once(tmp_path: Path) -> None:
    objects = folder(tmp_path)
    large = os.urandom(BUFFER * 2)
    for _ in range(3):
        put(objects, b"small")
        put(objects, large)
        objects.flush()
    assert sorted(objects.list()) == sorted([(sha256(b"small"), 5), (sha256(large), len(large))])
    assert list((tmp_path / "incoming").iterdir()) == []


def test_an_object_of_the_wrong_length_makes_room_for_the_good_bytes(tmp_path: Path) -> None:
    objects = folder(tmp_path)
    digest, _ = put(objects, b"good bytes")
    path = objects.path(digest)
    path.chmod(0o600)
    path.write_bytes(b"cut")
    put(objects, b"good bytes")
    objects.flush()
    assert path.read_bytes() == b"good bytes"
    assert (tmp_path / "damaged" / f"{digest}.1").read_bytes() == b"cut"


def test_receivers_of_many_threads_do_not_meet(tmp_path: Path) -> None:
    objects = folder(tmp_path)
    contents = [random.Random(number % 60).randbytes((number % 60) * 5000) for number in range(240)]
    failures: list[BaseException] = []

    def work(share: list[bytes]) -> None:
        try:
            for number, data in enumerate(share):
                assert put(objects, data, pieces=3) == (sha256(data), len(data))
                if number % 20 == 7:
                    objects.flush()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(contents[start::6],)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    objects.flush()
    assert {digest for digest, _ in objects.list()} == {sha256(data) for data in contents}
    assert all(good for _, good, _ in objects.prove(digest for digest, _ in objects.list()))
    assert list((tmp_path / "incoming").iterdir()) == []


def test_an_abort_leaves_nothing(tmp_path: Path) -> None:
    objects = folder(tmp_path)
    for size in (10, BUFFER * 2):
        receiver = objects.open()
        receiver.write(b"x" * size)
        receiver.abort()
        receiver.abort()
    objects.flush()
    assert list(objects.list()) == []
    assert list((tmp_path / "incoming").iterdir()) == []


def test_a_full_disk_is_said_and_leaves_what_was_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = folder(tmp_path)
    digest, _ = put(objects, b"safe")
    real = os.write

    def full(fd: int, data: bytes) -> int:
        if len(data) > 1000:
            raise OSError(28, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr("os.write", full)
    receiver = objects.open()
    receiver.write(b"x" * 5000)
    with pytest.raises(DiskFull, match=r"the disk is full; 4\.9 KiB more"):
        receiver.commit()
    objects.flush()
    assert named(tmp_path) == {digest}
    assert list((tmp_path / "incoming").iterdir()) == []


def test_an_object_that_cannot_fit_is_refused_before_it_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(osal, "free_bytes", lambda where: 1024)
    with pytest.raises(DiskFull, match=r"10\.0 GiB more"):
        folder(tmp_path).open(10 * 1024**3)


@pytest.mark.parametrize("size", [1 << 50, 1 << 63, (1 << 64) - 1])
def test_a_size_that_no_file_has_keeps_nothing_from_being_stored(tmp_path: Path, size: int) -> None:
    objects = folder(tmp_path)
    for receiver in (objects.open(size), objects.resume(Origin("web/site", b"f", size, 5))):
        receiver.write(b"all there is")
        assert receiver.commit() == (sha256(b"all there is"), 12)


def test_after_a_failed_sync_nothing_of_that_batch_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = folder(tmp_path)
    digest, _ = put(objects, b"x")
    with monkeypatch.context() as broken:

        def fail(where: Path) -> bool:
            raise OSError(5, "Input/output error")

        broken.setattr(osal, "sync_tree", fail)
        with pytest.raises(VaultError, match="input/output error"):
            objects.flush()
    with pytest.raises(VaultError):
        objects.flush()  # a later snapshot must not think that all is well
    with pytest.raises(VaultError):
        put(objects, b"y")
    assert folder(tmp_path).adopt() == 0
    assert named(tmp_path) == set()
    assert not folder(tmp_path).has(digest)


def test_adopt_takes_whole_leftovers_and_drops_the_rest(tmp_path: Path) -> None:
    objects = folder(tmp_path)
    incoming = tmp_path / "incoming"
    (incoming / sha256(b"whole")).write_bytes(b"whole")
    (incoming / sha256(b"torn")).write_bytes(b"to")
    (incoming / "0123-4.part").write_bytes(b"half")
    (incoming / "manifests").mkdir()
    assert objects.adopt() == 1
    assert named(tmp_path) == {sha256(b"whole")}
    assert [path.name for path in incoming.iterdir()] == ["manifests"]
    assert objects.adopt() == 0


WRITER = textwrap.dedent(
    """
    import os, pathlib, random, sys
    from hostbackup.vault import objects as module
    module.SYNC_BYTES = 300_000
    root = pathlib.Path(sys.argv[1])
    held = [os.dup(1)]  # standard output ends when nobody writes to the folder any more
    objects = module.ObjectFolder(root / "objects", root / "incoming", root / "damaged", held=held)
    print("ready", flush=True)
    for number in range(100_000):
        data = random.Random(number).randbytes(number % 97 * 2000)
        receiver = objects.open(len(data))
        for start in range(0, len(data), 30_000):
            receiver.write(data[start:start + 30_000])
        receiver.commit()
        if number % 40 == 39:
            objects.flush()
            print(number, flush=True)
    """
)


@pytest.mark.parametrize("flushes", [1, 6, 11])
def test_killed_at_any_moment_it_holds_all_that_was_flushed_and_nothing_torn(tmp_path: Path, flushes: int) -> None:
    folder(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    flushed = -1
    for line in process.stdout:
        if line.strip() != "ready":
            flushed = int(line)
            flushes -= 1
        if not flushes:
            break
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    process.stdout.read()
    process.stdout.close()
    for digest in named(tmp_path):
        path = tmp_path / "objects" / digest[:2] / digest
        assert sha256(path.read_bytes()) == digest, "only whole bytes ever stand under a name"
    objects = folder(tmp_path)
    objects.adopt()
    for number in range(flushed + 1):
        data = random.Random(number).randbytes(number % 97 * 2000)
        assert objects.has(sha256(data)), number
    assert list((tmp_path / "incoming").iterdir()) == []
    assert all(good for _, good, _ in objects.prove(sorted(named(tmp_path))))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def drop(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(("harm", "reason"), [(flip, "have the SHA-256"), (drop, "missing")])
def test_proving_finds_what_is_wrong(tmp_path: Path, harm: Callable[[Path], None], reason: str) -> None:
    objects = folder(tmp_path)
    good, bad = put(objects, b"good")[0], put(objects, b"bad")[0]
    objects.flush()
    harm(objects.path(bad))
    told = {digest: (whole, why) for digest, whole, why in objects.prove([good, bad])}
    assert told[good] == (True, "")
    assert told[bad][0] is False
    assert reason in told[bad][1]


def test_what_is_damaged_is_set_aside_with_the_reason_and_never_lost(tmp_path: Path) -> None:
    objects = folder(tmp_path)
    digest, _ = put(objects, b"bytes")
    for number in (1, 2):
        objects.path(digest)
        flip(objects.path(digest))
        objects.set_aside(digest, "it rotted")
        assert not objects.has(digest)
        assert (tmp_path / "damaged" / f"{digest}.{number}").exists()
        assert "why: it rotted" in (tmp_path / "damaged" / f"{digest}.{number}.txt").read_text()
        put(objects, b"bytes")
        objects.flush()
    objects.set_aside(sha256(b"never there"), "nothing")


def test_a_missing_object_is_damage_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match="copy --repair"):
        folder(tmp_path).read(sha256(b"nowhere"))


@pytest.mark.parametrize("text", ["", "..", "../../etc/passwd", "A" * 64, "g" * 64, "0" * 63, "0" * 64 + "\n"])
def test_only_a_digest_names_an_object(tmp_path: Path, text: str) -> None:
    with pytest.raises(VaultError, match="not a SHA-256"):
        folder(tmp_path).read(text)


def test_the_list_is_sorted_and_knows_only_objects(tmp_path: Path) -> None:
    objects = folder(tmp_path)
    for number in range(300):
        put(objects, b"%d" % number)
    objects.flush()
    (tmp_path / "objects" / "README").write_text("not ours")
    (tmp_path / "objects" / "00").mkdir(exist_ok=True)
    (tmp_path / "objects" / "00" / "note.txt").write_text("not ours")
    listed = list(objects.list())
    assert len(listed) == 300
    assert listed == sorted(listed)
    assert all(size == len(str(number)) for number in range(300) for digest, size in listed if digest == sha256(b"%d" % number))


def test_removal_tells_what_it_freed(tmp_path: Path) -> None:
    objects = folder(tmp_path)
    digest, _ = put(objects, b"12345")
    objects.flush()
    assert objects.remove(digest) == 5
    assert objects.remove(digest) == 0
    assert not objects.has(digest)


def test_a_receiver_that_failed_or_ended_takes_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = folder(tmp_path)

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    failed = objects.open()
    with monkeypatch.context() as disk:
        disk.setattr("os.write", full)
        with pytest.raises(DiskFull):
            failed.write(b"x" * BUFFER)
    ended, aborted = objects.open(), objects.open()
    ended.write(b"y")
    ended.commit()
    aborted.abort()
    for receiver in (failed, ended, aborted):
        with pytest.raises(VaultError, match="after its end"):
            receiver.write(b"more")
        with pytest.raises(VaultError, match="after its end"):
            receiver.commit()
    objects.flush()
    assert named(tmp_path) == {sha256(b"y")}


def test_two_of_the_same_bytes_at_the_same_time_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = folder(tmp_path)
    first, second = objects.open(), objects.open()
    first.write(b"same")
    second.write(b"same")
    write, done = os.write, []

    def slow(fd: int, data: bytes) -> int:
        monkeypatch.setattr(os, "write", write)
        done.append(second.commit())  # while the first is half-way
        return write(fd, data)

    monkeypatch.setattr(os, "write", slow)
    done.append(first.commit())
    assert done == [(sha256(b"same"), 4)] * 2
    objects.flush()
    assert objects.read(sha256(b"same")).read() == b"same"
    assert list(objects.incoming.iterdir()) == []


def test_an_object_that_another_was_dropped_for_and_that_fails_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = folder(tmp_path)
    first, second = objects.open(), objects.open()
    first.write(b"same")
    second.write(b"same")
    write = os.write

    def full(fd: int, data: bytes) -> int:
        monkeypatch.setattr(os, "write", write)
        second.commit()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(DiskFull):
        first.commit()
    with pytest.raises(VaultError):
        objects.flush()
    assert list(objects.incoming.iterdir()) == []
    assert not objects.has(sha256(b"same"))


def test_a_flush_waits_for_what_another_thread_is_writing_and_a_commit_relied_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = folder(tmp_path)
    write, begun, go_on = os.write, threading.Event(), threading.Event()

    def slow(fd: int, data: bytes) -> int:
        monkeypatch.setattr(os, "write", write)
        begun.set()
        assert go_on.wait(60)
        return write(fd, data)

    monkeypatch.setattr(os, "write", slow)
    first = threading.Thread(target=put, args=(objects, b"same"))
    first.start()
    assert begun.wait(60)
    put(objects, b"same")
    real_wait = objects._written.wait_for

    def waits(predicate: Callable[[], object], timeout: float | None = None) -> object:
        assert not predicate()
        go_on.set()
        return real_wait(predicate, timeout)

    monkeypatch.setattr(objects._written, "wait_for", waits)
    objects.flush()
    assert named(tmp_path) == {sha256(b"same")}
    first.join()


def test_a_flush_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.0)
    objects = folder(tmp_path)
    objects.whole_name(sha256(b"same"))
    put(objects, b"same")
    with pytest.raises(VaultError, match="does not end"):
        objects.flush()


@pytest.mark.parametrize("moment", ["rename", "sync"])
def test_an_interrupt_while_names_are_given_loses_nothing_of_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    objects = folder(tmp_path)
    contents = [b"1", b"2", b"3"]
    for data in contents:
        put(objects, data)
    rename, calls = os.rename, []

    def second(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(source, target)

    def stopped(where: Path) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupt:
        interrupt.setattr(*((os, "rename", second) if moment == "rename" else (osal, "sync_tree", stopped)))
        with pytest.raises(KeyboardInterrupt):
            objects.flush()
    assert all(objects.has(sha256(data)) for data in contents)
    objects.flush()
    assert named(tmp_path) == {sha256(data) for data in contents}


def test_an_interrupt_in_the_sync_of_a_commit_leaves_the_object_pending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = folder(tmp_path)

    def stopped(where: Path) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupt:
        interrupt.setattr(module, "SYNC_BYTES", 1)
        interrupt.setattr(osal, "sync_tree", stopped)
        with pytest.raises(KeyboardInterrupt):
            put(objects, b"x")
    objects.flush()
    assert named(tmp_path) == {sha256(b"x")}


def test_a_torn_file_under_a_digest_is_never_adopted(tmp_path: Path) -> None:
    objects = folder(tmp_path)
    torn = objects.incoming / sha256(b"whole")
    torn.write_bytes(b"who")
    assert objects.adopt() == 0
    assert not torn.exists()
    assert not objects.has(sha256(b"whole"))
