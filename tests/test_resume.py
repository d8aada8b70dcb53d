"""Large files that a run did not bring to their end: the next one goes on from what is on the disk for certain, and never from anything else."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from hostbackup import osal
from hostbackup.errors import DiskFull, VaultError
from hostbackup.jobs.arrivals import Arrivals
from hostbackup.model import Entry, Kind, Observer, ResumableReceiver, ResumingSink
from hostbackup.vault import large, partial
from hostbackup.vault.objects import ObjectFolder
from hostbackup.vault.partial import Origin
from tests.support.moves import PAST, Move, ended, until, whole_vault
from tests.support.sshd import Relay, Sshd, sshd

MIB = 1 << 20
DATA = random.Random(5).randbytes(5 * MIB + 4321)
ORIGIN = Origin("web/site", b"big\xff.iso", len(DATA), 1_700_000_000 * 10**9)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def folder(root: Path) -> ObjectFolder:
    for name in ("objects", "incoming", "damaged"):
        (root / name).mkdir(mode=0o700, exist_ok=True)
    return ObjectFolder(root / "objects", root / "incoming", root / "damaged")


def give(receiver: ResumableReceiver, data: bytes, piece: int = 100_000) -> None:
    for at in range(0, len(data), piece):
        receiver.write(data[at : at + piece])


def incoming(root: Path) -> set[str]:
    return {path.name for path in (root / "incoming").iterdir()}


def part_way(root: Path, origin: Origin = ORIGIN, data: bytes = DATA[: 3 * MIB]) -> None:
    """What a run leaves that was asked to stop."""
    receiver = folder(root).resume(origin)
    give(receiver, data)
    receiver.suspend()


def goes_on(root: Path, expected: int, origin: Origin = ORIGIN, data: bytes = DATA) -> None:
    """A new run has so many bytes to begin with, and ends with the right object and nothing left over."""
    objects = folder(root)
    objects.adopt()
    receiver = objects.resume(origin)
    assert receiver.received == expected
    give(receiver, data[expected:])
    assert receiver.commit() == (sha256(data), len(data))
    objects.flush()
    with objects.read(sha256(data)) as file:
        assert file.read() == data
    assert objects.path(sha256(data)).stat().st_mode & 0o777 == 0o400
    assert incoming(root) == set()


# -- the vault


def test_what_was_let_go_of_is_gone_on_with(tmp_path: Path) -> None:
    part_way(tmp_path)
    goes_on(tmp_path, 3 * MIB)


def test_the_same_run_goes_on_without_reading_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = folder(tmp_path)
    for at in range(0, len(DATA), MIB):
        receiver = objects.resume(ORIGIN)
        assert receiver.received == at
        give(receiver, DATA[at : at + MIB])
        receiver.suspend()
        monkeypatch.setattr(partial, "_hash", lambda fd, size: pytest.fail("read again"))
    assert objects.resume(ORIGIN).commit() == (sha256(DATA), len(DATA))


def test_a_killed_run_leaves_what_was_synced_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "NOTED", 2 * MIB)
    monkeypatch.setattr(large, "APART", 0.0)
    receiver = folder(tmp_path).resume(ORIGIN)
    give(receiver, DATA)
    until(lambda: '"offset": 4' in note(tmp_path).read_text() if note(tmp_path).exists() else False)
    goes_on(tmp_path, json.loads(note(tmp_path).read_text())["offset"])


def test_what_was_never_synced_is_not_gone_on_with(tmp_path: Path) -> None:
    give(folder(tmp_path).resume(ORIGIN), DATA)
    goes_on(tmp_path, 0)


def test_a_note_is_written_only_when_its_bytes_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "NOTED", MIB)
    monkeypatch.setattr(large, "APART", 0.0)
    synced: list[int] = []
    real_sync, real_note = osal.sync_fd, partial.Partials.note

    def syncing(fd: int) -> None:
        real_sync(fd)
        synced.append(os.fstat(fd).st_size)

    monkeypatch.setattr(osal, "sync_fd", syncing)

    def noting(self: partial.Partials, origin: Origin, seen: partial.Hash, offset: int) -> None:
        assert synced[-1] == offset
        assert seen.hexdigest() == sha256(DATA[:offset])
        real_note(self, origin, seen, offset)

    monkeypatch.setattr(partial.Partials, "note", noting)
    receiver = folder(tmp_path).resume(ORIGIN)
    give(receiver, DATA)
    assert receiver.commit() == (sha256(DATA), len(DATA))
    assert len(synced) >= 4


def data_file(root: Path) -> Path:
    return root / "incoming" / f"{ORIGIN.name}.partial"


def note(root: Path) -> Path:
    return root / "incoming" / f"{ORIGIN.name}.partial.json"


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def renote(root: Path, **changes: object) -> None:
    note(root).write_text(json.dumps({**json.loads(note(root).read_text()), **changes}))


def never_written(root: Path) -> None:
    os.truncate(data_file(root), 2 * MIB)
    os.truncate(data_file(root), 3 * MIB)


def link(root: Path) -> None:
    data_file(root).rename(root / "x")
    data_file(root).symlink_to(root / "x")


HARM: dict[str, Callable[[Path], object]] = {
    "a bit flipped": lambda root: flip(data_file(root), 2 * MIB),
    "the tail torn off": lambda root: os.truncate(data_file(root), 3 * MIB - 1),
    "the tail never written": never_written,
    "the data gone": lambda root: data_file(root).unlink(),
    "the note gone": lambda root: note(root).unlink(),
    "the note torn": lambda root: note(root).write_bytes(note(root).read_bytes()[:-40]),
    "the note empty": lambda root: note(root).write_bytes(b""),
    "a note of something else": lambda root: note(root).write_bytes(b"[1]\n"),
    "a note of another file": lambda root: renote(root, part="web/other"),
    "an offset of nothing": lambda root: renote(root, offset=0),
    "an offset beyond the file": lambda root: renote(root, offset=len(DATA) + 1),
    "another digest": lambda root: renote(root, sha256="0" * 64),
    "a link in its place": link,
    "many days gone by": lambda root: os.utime(note(root), (PAST, PAST)),
}


@pytest.mark.parametrize("harm", HARM)
def test_what_is_not_surely_what_came_is_read_from_the_start(tmp_path: Path, harm: str) -> None:
    part_way(tmp_path)
    HARM[harm](tmp_path)
    goes_on(tmp_path, 0)


def test_more_bytes_than_the_note_knows_of_are_cut_off(tmp_path: Path) -> None:
    part_way(tmp_path)
    with data_file(tmp_path).open("ab") as file:
        file.write(b"never synced")
    # zeros are not written: what stood there would stay
    goes_on(tmp_path, 3 * MIB, data=DATA[: 3 * MIB] + bytes(len(DATA) - 3 * MIB))


@pytest.mark.parametrize(("size", "mtime_ns"), [(ORIGIN.size + 1, ORIGIN.mtime_ns), (ORIGIN.size, ORIGIN.mtime_ns + 1)])
def test_a_file_of_another_size_or_time_is_read_from_the_start(tmp_path: Path, size: int, mtime_ns: int) -> None:
    part_way(tmp_path)
    goes_on(tmp_path, 0, Origin(ORIGIN.part, ORIGIN.path, size, mtime_ns))


def test_what_was_given_up_is_gone(tmp_path: Path) -> None:
    part_way(tmp_path)
    receiver = folder(tmp_path).resume(ORIGIN)
    receiver.abort()
    receiver.abort()
    receiver.suspend()
    assert incoming(tmp_path) == set()


def test_a_start_keeps_what_can_be_gone_on_with_and_nothing_else(tmp_path: Path) -> None:
    part_way(tmp_path)
    keep = incoming(tmp_path)
    for name in ("1234-5.part", "a.partial", "b.partial.json", f".{ORIGIN.name}.partial.json.7.tmp"):
        (tmp_path / "incoming" / name).write_bytes(b"{}")
    for _ in range(2):
        assert folder(tmp_path).adopt() == 0
        assert incoming(tmp_path) == keep


def test_killed_between_the_objects_name_and_the_end_of_the_note_it_is_adopted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part_way(tmp_path)
    with monkeypatch.context() as killed:
        killed.setattr(partial.Partials, "settle", lambda self, name: None)
        receiver = folder(tmp_path).resume(ORIGIN)
        give(receiver, DATA[3 * MIB :])
        receiver.commit()
    objects = folder(tmp_path)
    assert objects.adopt() == 1
    assert objects.has(sha256(DATA))
    assert incoming(tmp_path) == set()


def test_a_run_that_ends_before_the_object_has_its_name_leaves_what_can_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part_way(tmp_path)

    def fails(source: str, target: str) -> None:
        assert Path(source).stat().st_mode & 0o777 == 0o600
        raise VaultError("the disk failed for another object")

    with monkeypatch.context() as broken:
        broken.setattr("os.rename", fails)
        receiver = folder(tmp_path).resume(ORIGIN)
        give(receiver, DATA[3 * MIB :])
        with pytest.raises(VaultError, match="failed for another"):
            receiver.commit()
    goes_on(tmp_path, 3 * MIB)


def test_killed_between_the_name_and_the_seal_it_is_sealed_when_it_is_adopted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as killed:
        killed.setattr("os.chmod", lambda path, mode: None)
        receiver = folder(tmp_path).resume(ORIGIN)
        give(receiver, DATA)
        receiver.commit()
    objects = folder(tmp_path)
    assert objects.adopt() == 1
    assert objects.path(sha256(DATA)).stat().st_mode & 0o777 == 0o400


def test_what_cannot_be_opened_is_dropped_and_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part_way(tmp_path)
    real = os.open

    def refused(path: os.PathLike[str] | str, flags: int, mode: int = 0o777) -> int:
        if Path(path) == data_file(tmp_path) and not flags & os.O_CREAT:
            raise PermissionError(13, "Permission denied")
        return real(path, flags, mode)

    with monkeypatch.context() as denied:
        denied.setattr("os.open", refused)
        goes_on(tmp_path, 0)


def full(fd: int, data: bytes) -> int:
    raise OSError(28, "No space left on device")


def test_a_full_disk_costs_nothing_that_was_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part_way(tmp_path)
    receiver = folder(tmp_path).resume(ORIGIN)
    with monkeypatch.context() as disk:
        disk.setattr("os.write", full)
        with pytest.raises(DiskFull):
            give(receiver, DATA[3 * MIB :])
            receiver.commit()
    with pytest.raises(VaultError, match="after its end"):
        receiver.write(b"more")
    with pytest.raises(VaultError, match="after its end"):
        receiver.commit()
    goes_on(tmp_path, 3 * MIB)


def test_too_little_room_for_the_rest_is_told_at_once_and_keeps_what_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = Origin(ORIGIN.part, ORIGIN.path, 10 << 30, ORIGIN.mtime_ns)
    part_way(tmp_path, huge)
    with monkeypatch.context() as disk:
        disk.setattr(osal, "free_bytes", lambda folder: (10 << 30) - 3 * MIB - 1)
        with pytest.raises(DiskFull):
            folder(tmp_path).resume(huge)
        disk.setattr(osal, "free_bytes", lambda folder: (10 << 30) - 3 * MIB)
        assert folder(tmp_path).resume(huge).received == 3 * MIB


def test_nothing_is_believed_of_a_file_whose_sync_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part_way(tmp_path)
    receiver = folder(tmp_path).resume(ORIGIN)
    give(receiver, DATA[3 * MIB :])

    def fails(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as disk:
        disk.setattr(osal, "sync_fd", fails)
        receiver.suspend()
    assert incoming(tmp_path) == set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_of_something_else_hangs_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(self: object, batch: object) -> None:
        raise MemoryError

    monkeypatch.setattr(large._Writer, "_store", dies)
    receiver = folder(tmp_path).resume(ORIGIN)
    with pytest.raises(VaultError, match="ended early"):
        for _ in range(3):
            give(receiver, DATA)
        receiver.commit()
    assert incoming(tmp_path) == set()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_buffer_that_its_owner_uses_again_is_not_lost(tmp_path: Path, kind: type) -> None:
    objects, buffer = folder(tmp_path), bytearray(50_000)
    receiver = objects.open(len(DATA) * 2)
    assert isinstance(receiver, large.LargeReceiver)
    for at in range(0, len(DATA), len(buffer)):
        count = len(DATA[at : at + len(buffer)])
        buffer[:count] = DATA[at : at + count]
        receiver.write(kind(buffer) if count == len(buffer) and kind is bytes else memoryview(buffer)[:count])
    assert receiver.commit() == (sha256(DATA), len(DATA))
    with objects.read(sha256(DATA)) as file:
        assert file.read() == DATA


def test_without_an_origin_nothing_is_left_of_what_did_not_end(tmp_path: Path) -> None:
    objects = folder(tmp_path)
    for end in ("abort", "suspend"):
        receiver = objects.large(len(DATA))
        give(receiver, DATA)
        getattr(receiver, end)()
        assert incoming(tmp_path) == set()


# -- zeros

PATTERNS = {
    "all zeros": bytes(20 * MIB),
    "zeros at the end": DATA[:MIB] + bytes(9 * MIB),
    "zeros at the start": bytes(9 * MIB) + DATA[:1],
    "zeros in the middle": DATA[: MIB + 1] + bytes(8 * MIB) + DATA[:777],
    "zeros here and there": b"".join(DATA[n : n + n % 90_000] + bytes(n % 200_000) for n in range(1, 3 * MIB, 99_991)),
}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("piece", [32_768, 255 * 1024, 1_000_003])
def test_zeros_take_no_room_and_come_back_as_zeros(tmp_path: Path, pattern: str, piece: int) -> None:
    data = PATTERNS[pattern]
    objects = folder(tmp_path)
    receiver = objects.large(len(data))
    give(receiver, data, piece)
    assert receiver.commit() == (sha256(data), len(data))
    objects.flush()
    path = objects.path(sha256(data))
    assert path.read_bytes() == data
    if pattern != "zeros here and there":
        assert path.stat().st_blocks * 512 <= 2 * MIB + 300_000


def test_a_prefix_that_ends_in_zeros_is_gone_on_with(tmp_path: Path) -> None:
    data = DATA[:MIB] + bytes(4 * MIB) + DATA[:MIB]
    origin = Origin("web/site", b"holes", len(data), 1)
    part_way(tmp_path, origin, data[: 3 * MIB])
    goes_on(tmp_path, 3 * MIB, origin, data)


# -- the job


class Heard(Observer):
    def __init__(self) -> None:
        self.entries = self.size = self.words = 0

    def advance(self, entries: int = 0, size: int = 0) -> None:
        assert size >= 0
        self.entries += entries
        self.size += size
        self.words += 1


BIG = Entry(b"big", Kind.FILE, len(DATA), 5)


def arrivals(root: Path, settled: bool = True) -> tuple[Arrivals, Heard]:
    heard = Heard()
    return Arrivals(folder(root), "web/site", heard, lambda entry: settled), heard


def test_a_large_file_shows_while_it_comes_and_counts_once(tmp_path: Path) -> None:
    sink, heard = arrivals(tmp_path)
    assert isinstance(sink, ResumingSink)
    for end in ("suspend", "abort", "commit"):
        receiver = sink.resume(BIG)
        give(receiver, DATA[receiver.received :])
        getattr(receiver, end)()
        assert (heard.entries, len(DATA) - heard.size < 2 * MIB) == (0, True)
    assert heard.words < 9
    sink.done(BIG)
    assert (heard.entries, heard.size) == (1, BIG.size)
    sink.done(Entry(b"small", Kind.FILE, 7, 5))
    assert (heard.entries, heard.size) == (2, BIG.size + 7)


def test_a_file_that_has_grown_shows_no_more_than_was_planned(tmp_path: Path) -> None:
    sink, heard = arrivals(tmp_path)
    receiver = sink.resume(BIG)
    give(receiver, DATA + DATA)
    receiver.commit()
    sink.done(BIG)
    assert heard.size == BIG.size


def test_what_is_too_fresh_is_never_put_together_from_two_readings(tmp_path: Path) -> None:
    for settled, there in ((True, 0), (True, 3 * MIB), (False, 0), (False, 0), (True, 0)):
        receiver = arrivals(tmp_path, settled)[0].resume(BIG)
        assert receiver.received == there
        give(receiver, DATA[there : 3 * MIB])
        receiver.suspend()


def test_what_is_kept_of_files_that_nobody_wants_now_goes(tmp_path: Path) -> None:
    for part, path, size in (
        ("web/site", b"big", len(DATA)),
        ("web/site", b"gone", 9 * MIB),
        ("web/site", b"other", 9 * MIB),
        ("web/x", b"y", 9 * MIB),
    ):
        part_way(tmp_path, Origin(part, path, size, 5))
    sink, _ = arrivals(tmp_path)
    sink.drop_others([BIG, Entry(b"other", Kind.FILE, 9 * MIB, 6)])
    partials = folder(tmp_path).partials
    assert [origin.path for origin in partials.of_part("web/site")] == [b"big"]
    assert [origin.path for origin in partials.of_part("web/x")] == [b"y"]


# -- whole runs


@pytest.fixture(scope="module")
def server() -> Iterator[Sshd]:
    with sshd(shell=False) as one:
        yield one


@pytest.fixture
def relay(server: Sshd) -> Iterator[Relay]:
    with Relay(server.port) as one:
        yield one


def site(move: Move, server: Sshd, relay: Relay, size: int) -> bytes:
    move.profile(move.ssh("old", server, port=relay.port), move.old_web())
    move.trust(relay.port, server)
    content = os.urandom(size)
    put(move, content)
    return content


def put(move: Move, content: bytes, when: int = PAST) -> None:
    move.site.mkdir(parents=True, exist_ok=True)
    (move.site / "big").write_bytes(content)
    os.utime(move.site / "big", (when, when))


def on_record(move: Move) -> int:
    """How many bytes a run could go on with now."""
    for path in (move.vault / "incoming").glob("*.partial.json"):
        return int(json.loads(path.read_bytes())["offset"])
    return 0


def shown(move: Move) -> bytes:
    assert {path.name for path in (move.vault / "incoming").iterdir()} == {"manifests"}
    whole_vault(move.vault)
    return (move.vault / "latest/web/public_html/big").read_bytes()


def test_a_run_killed_in_mid_file_is_gone_on_with(tmp_path: Path, server: Sshd, relay: Relay) -> None:
    move = Move(tmp_path)
    content = site(move, server, relay, 300_000_000)
    process = move.start("backup")
    assert until(lambda: on_record(move) >= 64 * MIB, process)
    ended(process, signal.SIGKILL)
    there, before = on_record(move), relay.brought
    assert move.run("backup").json["counts"]["read"] == 1
    assert relay.brought - before < len(content) - there + 4 * MIB
    assert shown(move) == content


def test_a_run_asked_to_stop_in_mid_file_is_gone_on_with(tmp_path: Path, server: Sshd, relay: Relay) -> None:
    move = Move(tmp_path)
    content = site(move, server, relay, 200_000_000)
    process = move.start("backup")
    assert until(lambda: relay.brought >= 50_000_000, process)
    assert ended(process, signal.SIGTERM).exit == 130
    there, before = on_record(move), relay.brought
    assert there > 20_000_000, "also what was not synced yet"
    move.run("backup")
    assert relay.brought - before < len(content) - there + 4 * MIB
    assert shown(move) == content


def test_a_line_cut_in_mid_file_costs_what_was_under_way(tmp_path: Path, server: Sshd) -> None:
    move = Move(tmp_path)
    with Relay(server.port, cut_after=60_000_000, cuts=2) as relay:
        content = site(move, server, relay, 150_000_000)
        ran = move.run("backup", patience=30)
        assert relay.accepted == 3
        assert relay.brought < len(content) + 2 * (large_window() + 8 * MIB)
    assert ran.json["counts"]["read"] == 1
    assert shown(move) == content


def large_window() -> int:
    from hostbackup.places.sftp_large import SPARE, WINDOW

    return WINDOW + SPARE


@pytest.mark.parametrize("change", ["time", "size", "gone"])
def test_a_file_that_changed_since_is_read_from_the_start(tmp_path: Path, server: Sshd, relay: Relay, change: str) -> None:
    move = Move(tmp_path)
    content = site(move, server, relay, 40_000_000)
    (move.site / "small").write_bytes(b"1")
    os.utime(move.site / "small", (PAST, PAST))
    process = move.start("backup")
    assert until(lambda: relay.brought >= 20_000_000, process)
    ended(process, signal.SIGTERM)
    assert on_record(move)
    if change == "gone":
        (move.site / "big").unlink()
        move.run("backup")
        assert {path.name for path in (move.vault / "incoming").iterdir()} == {"manifests"}
        return
    new = content[::-1] + b"more" * (change == "size")
    put(move, new, PAST + (change != "size"))
    move.run("backup")
    assert shown(move) == new


@pytest.mark.parametrize("where", ["all", "first", "last"])
def test_contents_replaced_under_the_same_size_and_time_are_read_from_the_start(tmp_path: Path, server: Sshd, relay: Relay, where: str) -> None:
    move = Move(tmp_path)
    content = site(move, server, relay, 40_000_000)
    process = move.start("backup")
    assert until(lambda: relay.brought >= 20_000_000, process)
    ended(process, signal.SIGTERM)
    there = on_record(move)
    assert there
    new = bytearray(content[::-1] if where == "all" else content)
    new[0 if where == "first" else there - 1] ^= 1
    put(move, bytes(new))
    move.run("backup")
    assert shown(move) == new


def test_with_checksum_nothing_is_put_together_from_two_runs(tmp_path: Path, server: Sshd, relay: Relay) -> None:
    """Contents that changed under the same size and time are what --checksum is for."""
    move = Move(tmp_path)
    content = site(move, server, relay, 40_000_000)
    process = move.start("backup")
    assert until(lambda: relay.brought >= 20_000_000, process)
    ended(process, signal.SIGTERM)
    assert on_record(move)
    put(move, content[::-1])
    move.run("backup", "--checksum")
    assert shown(move) == content[::-1]


def test_a_huge_file_of_zeros_takes_next_to_nothing_of_the_disk(tmp_path: Path, server: Sshd, relay: Relay) -> None:
    move = Move(tmp_path)
    site(move, server, relay, 0)
    os.truncate(move.site / "big", 400 * MIB)
    os.utime(move.site / "big", (PAST, PAST))
    move.run("backup")
    assert sum(path.lstat().st_blocks * 512 for path in move.vault.rglob("*") if path.is_file()) < 4 * MIB
    assert (move.vault / "latest/web/public_html/big").stat().st_size == 400 * MIB
    move.run("verify")


def test_notes_keep_their_distance_in_time_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    noted: list[int] = []
    monkeypatch.setattr(large, "NOTED", MIB)
    monkeypatch.setattr(large, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def noting(self: partial.Partials, origin: Origin, seen: partial.Hash, offset: int) -> None:
        noted.append(offset)
        clock[0] += large.APART / 2

    monkeypatch.setattr(partial.Partials, "note", noting)
    receiver = folder(tmp_path).resume(ORIGIN)
    give(receiver, DATA)
    receiver.commit()
    assert len(noted) == 1
