"""Objects that a process of their own writes: as whole, as durable and as well told as those written here."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hostbackup import osal
from hostbackup.errors import DiskFull, VaultError
from hostbackup.vault import objects as module
from hostbackup.vault import writer_process
from hostbackup.vault.objects import ObjectFolder
from hostbackup.vault.receiver import BUFFER
from hostbackup.vault.vault import Vault
from hostbackup.vault.writer import Writer
from hostbackup.vault.writer_process import HEADER, NAME, WRITE

SIZES = [0, 1, 100, 4096, 70_000, BUFFER - 1, BUFFER, BUFFER + 1]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def some(count: int, seed: int = 0) -> list[bytes]:
    """Different contents of many sizes."""
    chance = random.Random(seed)
    return [number.to_bytes(4, "big") + chance.randbytes(SIZES[number % len(SIZES)]) for number in range(count)]


def put(objects: ObjectFolder, data: bytes) -> str:
    receiver = objects.open(len(data))
    receiver.write(data)
    digest, size = receiver.commit()
    assert size == len(data)
    return digest


def named(objects: ObjectFolder) -> set[str]:
    return {path.name for path in objects.folder.rglob("*") if path.is_file()}


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], ObjectFolder]]:
    """Makes folders of objects whose writer begins with the first object, whatever this machine has."""
    monkeypatch.setattr(module, "BEGIN", 1)
    monkeypatch.setattr(module, "worth_it", lambda: True)
    for name in ("objects", "incoming", "damaged"):
        (tmp_path / name).mkdir(mode=0o700)
    made: list[ObjectFolder] = []

    def make() -> ObjectFolder:
        made.append(ObjectFolder(tmp_path / "objects", tmp_path / "incoming", tmp_path / "damaged", held=()))
        return made[-1]

    yield make
    for objects in made:
        objects.close()


def process_on_a_disk_of(room: int, folder: Path) -> str:
    """A script that is the writer's process on a disk that is full after so many bytes."""
    script = folder / "full.py"
    script.write_text(
        f"import os\nwrite, left = os.write, [{room}]\n"
        "def limited(fd, data):\n"
        "    if fd > 2:\n"
        "        left[0] -= len(data)\n"
        "        if left[0] < 0: raise OSError(28, 'No space left on device')\n"
        "    return write(fd, data)\n"
        f"os.write = limited\nexec(open({writer_process.__file__!r}).read())\n"
    )
    return str(script)


def process_of(objects: ObjectFolder) -> subprocess.Popen[bytes]:
    assert objects._writer is not None
    return objects._writer._process


def test_many_objects_of_all_sizes_come_back_as_they_were_given(begun: Callable[[], ObjectFolder]) -> None:
    objects = begun()
    contents = some(1500)
    digests = [put(objects, data) for data in contents]
    assert digests == [sha256(data) for data in contents]
    assert process_of(objects).poll() is None
    objects.flush()
    assert named(objects) == set(digests)
    assert list(objects.incoming.iterdir()) == []
    assert all(good for _, good, _ in objects.prove(digests))
    assert all(objects.path(digest).stat().st_mode & 0o777 == 0o400 for digest in digests)


def test_a_run_of_few_objects_begins_no_process(tmp_path: Path) -> None:
    for name in ("objects", "incoming", "damaged"):
        (tmp_path / name).mkdir()
    objects = ObjectFolder(tmp_path / "objects", tmp_path / "incoming", tmp_path / "damaged", held=())
    for data in some(100):
        put(objects, data)
    assert objects._writer is None


@pytest.mark.parametrize("script", ["raise SystemExit(1)", None])
def test_where_the_process_cannot_be_begun_objects_are_written_here(
    begun: Callable[[], ObjectFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None
) -> None:
    if script is None:
        monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    else:
        (tmp_path / "ends.py").write_text(script)
        monkeypatch.setattr(writer_process, "__file__", str(tmp_path / "ends.py"))
    objects = begun()
    digests = {put(objects, data) for data in some(20)}
    objects.flush()
    assert objects._writer is None
    assert named(objects) == digests


def test_the_same_bytes_are_handed_over_once(begun: Callable[[], ObjectFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    objects = begun()
    handed: list[str] = []
    write = Writer.write

    def counted(self: Writer, digest: str, data: bytearray) -> None:
        handed.append(digest)
        write(self, digest, data)

    monkeypatch.setattr(Writer, "write", counted)
    put(objects, b"same")
    put(objects, b"same")
    objects.flush()
    put(objects, b"same")
    assert handed == [sha256(b"same")]


def test_an_object_is_there_for_whoever_asks_before_the_flush(begun: Callable[[], ObjectFolder]) -> None:
    objects = begun()
    digests = {put(objects, data): data for data in some(50)}
    assert all(objects.has(digest) for digest in digests)
    assert all(objects.read(digest).read() == data for digest, data in digests.items())


def test_nothing_is_named_before_all_of_it_is_whole_and_synced(begun: Callable[[], ObjectFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    objects = begun()
    contents = {sha256(data): data for data in some(300)}
    sync, seen = osal.sync_tree, []

    def looks(folder: Path) -> bool:
        if folder == objects.incoming:
            seen.append(({path.name: path.read_bytes() for path in folder.iterdir()}, named(objects)))
        return sync(folder)

    monkeypatch.setattr(osal, "sync_tree", looks)
    for data in contents.values():
        put(objects, data)
    objects.flush()
    assert seen == [(contents, set())]
    assert named(objects) == set(contents)


def test_much_that_is_pending_is_synced_beside_what_goes_on(begun: Callable[[], ObjectFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    objects = begun()
    here, threads = threading.current_thread(), []
    sync = osal.sync_tree
    monkeypatch.setattr(module, "SYNC_BYTES", 1 << 20)

    def seen(folder: Path) -> bool:
        threads.append(threading.current_thread())
        return sync(folder)

    monkeypatch.setattr(osal, "sync_tree", seen)
    digests = {put(objects, data) for data in some(300)}
    objects.flush()
    assert any(thread is not here for thread in threads)
    assert named(objects) == digests


def test_receivers_of_many_threads_do_not_meet(begun: Callable[[], ObjectFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    objects = begun()
    monkeypatch.setattr(module, "SYNC_BYTES", 1 << 20)
    contents = some(400)

    def work(seed: int) -> None:
        order = list(contents)
        random.Random(seed).shuffle(order)
        for data in order:
            put(objects, data)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    objects.flush()
    assert named(objects) == {sha256(data) for data in contents}
    assert list(objects.incoming.iterdir()) == []
    assert all(good for _, good, _ in objects.prove(sorted(named(objects))))


def test_what_a_killed_run_left_under_the_name_makes_room(begun: Callable[[], ObjectFolder]) -> None:
    objects = begun()
    (objects.incoming / sha256(b"whole")).write_bytes(b"who")
    put(objects, b"whole")
    objects.flush()
    assert objects.read(sha256(b"whole")).read() == b"whole"


def test_a_writer_that_is_killed_is_told_and_nothing_torn_is_named(begun: Callable[[], ObjectFolder]) -> None:
    objects = begun()
    first = {put(objects, data) for data in some(200, seed=1)}
    objects.flush()
    for data in some(50, seed=2):
        put(objects, b"more" + data)
    process_of(objects).kill()
    with pytest.raises(VaultError, match="has ended"):
        objects.flush()
    with pytest.raises(VaultError, match="has ended"):
        put(objects, b"one more")
    assert named(objects) == first
    objects.close()
    again = begun()
    again.adopt()
    assert all(good for _, good, _ in again.prove(sorted(named(again))))
    whole = {put(again, data) for data in some(200, seed=1)} | {put(again, b"more" + data) for data in some(50, seed=2)}
    again.flush()
    assert named(again) == whole


def test_a_writer_that_is_killed_while_much_is_handed_over_ends_the_run(begun: Callable[[], ObjectFolder]) -> None:
    objects = begun()
    put(objects, b"first")
    process_of(objects).kill()
    process_of(objects).wait()
    with pytest.raises(VaultError, match="has ended"):
        for data in some(2000):
            put(objects, data)


def test_what_the_disk_refuses_is_told(begun: Callable[[], ObjectFolder]) -> None:
    objects = begun()
    put(objects, b"first")
    objects.flush()
    objects.incoming.rmdir()
    put(objects, b"second")
    with pytest.raises(VaultError, match="no such file"):
        objects.flush()
    with pytest.raises(VaultError, match="no such file"):
        put(objects, b"third")


def test_a_full_disk_is_said_as_such_and_leaves_what_was_stored(
    begun: Callable[[], ObjectFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_process, "__file__", process_on_a_disk_of(100_000, tmp_path))
    objects = begun()
    stored = put(objects, b"small")
    objects.flush()
    with pytest.raises(DiskFull) as caught:
        for data in some(100):
            put(objects, data)
        objects.flush()
    assert "free space" in caught.value.hint
    assert named(objects) == {stored}


def test_the_reason_is_told_whoever_meets_the_end_of_the_process_first(
    begun: Callable[[], ObjectFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A settle waits for its answer while others hand over: both are told of the full disk."""
    monkeypatch.setattr(writer_process, "__file__", process_on_a_disk_of(0, tmp_path))
    objects = begun()
    put(objects, b"first")
    assert objects._writer is not None
    writer, told = objects._writer, []

    def settles() -> None:
        try:
            writer.settle()
        except (OSError, VaultError) as error:
            told.append(error)

    threads = [threading.Thread(target=settles) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [getattr(error, "errno", None) for error in told] == [28] * 4


def test_an_interrupt_before_all_is_written_forgets_nothing(begun: Callable[[], ObjectFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    objects = begun()
    digests = {put(objects, data) for data in some(30)}

    def stopped(self: Writer) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupt:
        interrupt.setattr(Writer, "settle", stopped)
        with pytest.raises(KeyboardInterrupt):
            objects.flush()
    objects.flush()
    assert named(objects) == digests


def test_after_a_failed_sync_nothing_that_came_is_believed_later(begun: Callable[[], ObjectFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    objects = begun()
    put(objects, b"of the batch")

    def fails(folder: Path) -> bool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "SYNC_BYTES", 1 << 40)
            put(objects, b"of the next")
        assert objects._writer is not None
        objects._writer.settle()
        assert (folder / sha256(b"of the next")).exists()
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as sync:
        sync.setattr(osal, "sync_tree", fails)
        with pytest.raises(VaultError):
            objects.flush()
    assert list(objects.incoming.iterdir()) == []
    again = begun()
    assert again.adopt() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_all_processes_of_a_run_leaves_the_end_to_the_parent(begun: Callable[[], ObjectFolder], number: signal.Signals) -> None:
    objects = begun()
    digests = {put(objects, data) for data in some(30)}
    process_of(objects).send_signal(number)
    digests |= {put(objects, b"later" + data) for data in some(30)}
    objects.flush()
    assert named(objects) == digests


def test_an_interrupt_that_does_not_wait_leaves_nothing_to_be_believed(begun: Callable[[], ObjectFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    objects = begun()
    kept = put(objects, b"kept")
    objects.flush()
    put(objects, b"under way")

    def stopped(self: Writer) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupt:
        interrupt.setattr(Writer, "_answer", stopped)
        with pytest.raises(KeyboardInterrupt):
            objects.flush()
    with pytest.raises(VaultError, match="interrupted"):
        objects.flush()
    assert named(objects) == {kept}


def test_nothing_is_written_for_a_parent_that_is_gone(tmp_path: Path) -> None:
    for name in ("objects", "incoming"):
        (tmp_path / name).mkdir()
    arguments = [str(tmp_path / name) for name in ("incoming", "objects")]
    frame = HEADER.pack(WRITE, bytes.fromhex(sha256(b"x")), 1) + b"x"
    for parent, written in ((os.getpid(), [sha256(b"x")]), (1, [])):
        done = subprocess.run([sys.executable, writer_process.__file__, str(parent), *arguments], input=frame, capture_output=True, check=True)
        assert done.stdout == b""
        assert [path.name for path in (tmp_path / "incoming").iterdir()] == written
        for path in (tmp_path / "incoming").iterdir():
            path.unlink()


@pytest.mark.parametrize("cut", [1, HEADER.size - 1, HEADER.size, HEADER.size + 3])
def test_a_frame_that_is_cut_off_writes_nothing(tmp_path: Path, cut: int) -> None:
    frame = HEADER.pack(WRITE, bytes.fromhex(sha256(b"whole")), 5) + b"whole"
    command = [sys.executable, writer_process.__file__, str(os.getpid()), str(tmp_path), str(tmp_path)]
    subprocess.run(command, input=frame[:cut], check=True)
    assert list(tmp_path.iterdir()) == []


def test_a_name_for_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    frame = HEADER.pack(NAME, bytes(32), 0)
    command = [sys.executable, writer_process.__file__, str(os.getpid()), str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, input=frame, capture_output=True, check=True)
    assert writer_process.REPLY.unpack(done.stdout) == (2, bytes(32))


def test_a_vault_is_locked_until_nobody_writes_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEGIN", 1)
    monkeypatch.setattr(module, "worth_it", lambda: True)
    vault = Vault.open(tmp_path / "vault", "write", create=True)
    put(vault.objects, b"x")
    writer = process_of(vault.objects)
    for lock in vault._locks:
        lock.release()  # as if this process had been killed
    for number in range(5):
        put(vault.manifests, b"%d" % number)
    assert vault.manifests._writer is None, "which would hold no lock"
    with (tmp_path / "vault" / "lock").open("r+b") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        vault.close()
        assert writer.returncode == 0
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
