"""The scratch file jobs plan in."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostbackup.errors import DiskFull
from hostbackup.jobs.scratch import MailScratch, Scratch
from hostbackup.model import Entry, Kind, Message, Stored


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Scratch[Entry]]:
    with Scratch(tmp_path) as scratch:
        yield scratch


def file(path: bytes, size: int = 1) -> Entry:
    return Entry(path, Kind.FILE, size, 1_700_000_000_123_456_789, 0o644)


def test_records_come_back_as_they_were_noted(scratch: Scratch[Entry]) -> None:
    records = [
        Stored(Entry(b"a/b\xff\n", Kind.FILE, 2**64 - 1, -5, 0o7777), "ab" * 32, 7, stale="permission 権限 \udcff", racy=True),
        Stored(Entry(b"a/c", Kind.LINK, 0, 2**70, 0o777, b"\xe3\x81../x")),
        Stored(Entry(b"a/d", Kind.DIR, mode=0o755)),
        Stored(Entry(b"a/e", Kind.OTHER), failed="no"),
        Stored(Entry(b"a/f", Kind.FILE), "cd" * 32, 0, vanished="20261125T031500Z"),
    ]
    scratch.put(b"a", [(record, False) for record in reversed(records)])
    assert scratch.records(b"a") == records
    assert scratch.records(b"") == scratch.records(b"never put") == []


def test_a_vanished_record_stands_beside_what_has_its_name_now(scratch: Scratch[Entry]) -> None:
    now = Stored(Entry(b"x", Kind.DIR))
    was_file = Stored(file(b"x"), "ab" * 32, 1, vanished="20261125T031500Z")
    was_link = Stored(Entry(b"x", Kind.LINK, target=b"y"), vanished="20261124T031500Z")
    scratch.put(b"", [(now, True), (was_file, False), (was_link, False)])
    assert scratch.records(b"") == [now, was_file, was_link]
    scratch.result(b"x", Stored(Entry(b"x", Kind.DIR, mode=0o700)))
    assert scratch.records(b"")[1:] == [was_file, was_link]
    scratch.drop(b"x")
    assert scratch.records(b"") == [was_file, was_link]


def test_wanted_items_come_in_the_order_of_the_scan(scratch: Scratch[Entry]) -> None:
    scratch.put(b"z", [(Stored(file(b"z/2")), True), (Stored(file(b"z/1")), True), (Stored(file(b"z/3")), False)])
    scratch.keep(b"m")
    scratch.put(b"a", [(Stored(file(b"a/1", 10)), True)])
    assert [entry.path for entry in scratch.wanted()] == [b"z/1", b"z/2", b"a/1"]
    assert scratch.totals() == (3, 12)


def test_results_may_be_stored_while_the_wanted_are_listed(scratch: Scratch[Entry]) -> None:
    for folder in (b"one", b"two"):
        scratch.put(folder, [(Stored(file(b"%s/%04d" % (folder, n))), True) for n in range(2500)])
    seen = []
    for entry in scratch.wanted():
        scratch.result(entry.path, Stored(file(entry.path, 99), "ab" * 32, 99))
        seen.append(entry.path)
    assert seen == [b"%s/%04d" % (folder, n) for folder in (b"one", b"two") for n in range(2500)]
    assert all(record.digest and record.item.size == 99 for folder in scratch.folders() for record in scratch.records(folder))


def test_another_thread_may_ask_for_the_wanted(scratch: Scratch[Entry]) -> None:
    scratch.put(b"", [(Stored(file(b"%05d" % n)), True) for n in range(3000)])
    asked: SimpleQueue[Entry | None] = SimpleQueue()

    def ask() -> None:
        for entry in scratch.wanted():
            asked.put(entry)
        asked.put(None)

    asker = threading.Thread(target=ask)
    asker.start()
    seen = []
    while (entry := asked.get(timeout=60)) is not None:
        seen.append(entry.path)
        scratch.result(entry.path, Stored(entry, "ab" * 32))
    asker.join()
    assert seen == [b"%05d" % n for n in range(3000)]


@given(st.sets(st.lists(st.binary(min_size=1, max_size=3).filter(lambda name: not {0, 47} & set(name)), max_size=4).map(b"/".join), max_size=20))
def test_folders_come_sorted_by_components(tmp_path_factory: pytest.TempPathFactory, names: set[bytes]) -> None:
    with Scratch(tmp_path_factory.getbasetemp()) as scratch:
        for name in names:
            scratch.keep(name)
        assert list(scratch.folders()) == sorted(names, key=lambda name: name.split(b"/") if name else [])


def test_a_kept_folder_is_one_that_was_never_put(scratch: Scratch[Entry]) -> None:
    scratch.keep(b"kept")
    scratch.put(b"put", [])
    scratch.put(b"both", [])
    scratch.keep(b"both")
    assert [folder for folder in scratch.folders() if scratch.is_kept(folder)] == [b"kept"]
    assert list(scratch.folders()) == [b"both", b"kept", b"put"]
    assert not scratch.is_kept(b"unknown")


def test_a_result_for_nothing_is_an_error(scratch: Scratch[Entry]) -> None:
    scratch.put(b"", [(Stored(file(b"here")), True)])
    with pytest.raises(KeyError):
        scratch.result(b"not here", Stored(file(b"not here")))
    with pytest.raises(KeyError):
        scratch.result(b"no/here", Stored(file(b"no/here")))
    with pytest.raises(KeyError):
        scratch.drop(b"not here")


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    scratch.put(b"", [(Stored(file(b"here")), True)])
    scratch.close()
    scratch.close()
    assert list(tmp_path.iterdir()) == []


def test_whether_all_is_kept_is_known_however_much_it_is(scratch: Scratch[Entry]) -> None:
    assert scratch.all_kept()
    names = sorted(b"%05d" % number for number in range(2500))
    for name in names:
        scratch.keep(name)
    assert scratch.all_kept()
    scratch.put(names[7], [])
    assert not scratch.all_kept()
    assert list(scratch.folders()) == names
    assert [name for name in names if not scratch.is_kept(name)] == [names[7]]


def test_a_group_is_put_whether_it_was_kept_before_or_after(scratch: Scratch[Entry]) -> None:
    scratch.keep(b"before")
    assert scratch.is_kept(b"before")
    scratch.put(b"before", [])
    scratch.put(b"after", [])
    scratch.keep(b"after")
    assert not scratch.is_kept(b"before")
    assert not scratch.is_kept(b"after")


def test_mail_is_kept_by_ranges_of_uids(tmp_path: Path) -> None:
    old = Message(b"INBOX", 7, 9, 100, " 1-Jul-2026 02:44:25 +0900", ("$Junk", "\\Seen"))
    new = Message(b"INBOX", 2**32 - 1, 4096, 200)
    first = Message(b"INBOX", 2**32 - 1, 3, 300)
    other = Message(b"INBOX.&U,BTFw-", 1, 2**32 - 1, 400)
    with MailScratch(tmp_path) as scratch:
        scratch.keep((b"Archive", 1, 0))
        for message in (new, old, other, first):
            scratch.put((message.folder, message.uidvalidity, message.uid // 4096), [(Stored(message), message is not old)])
        assert list(scratch.folders()) == [
            (b"Archive", 1, 0),
            (b"INBOX", 7, 0),
            (b"INBOX", 2**32 - 1, 0),
            (b"INBOX", 2**32 - 1, 1),
            (b"INBOX.&U,BTFw-", 1, 2**20 - 1),
        ]
        assert list(scratch.wanted()) == [new, other, first]
        assert scratch.totals() == (3, 900)
        scratch.result((b"INBOX", 2**32 - 1, 4096), Stored(new, "ab" * 32, 201))
        assert scratch.records((b"INBOX", 2**32 - 1, 1)) == [Stored(new, "ab" * 32, 201)]
        assert scratch.records((b"INBOX", 7, 0)) == [Stored(old)]


def test_a_full_disk_is_said_in_one_line(scratch: Scratch[Entry], tmp_path: Path) -> None:
    assert scratch._base is not None
    scratch._base.execute("PRAGMA max_page_count = 100")  # SQLite answers as it does to ENOSPC
    with pytest.raises(DiskFull) as told:
        scratch.put(b"d", ((Stored(file(b"d/%0200d" % n)), True) for n in range(10_000)))
    assert told.value.where == str(tmp_path)
    assert "\n" not in str(told.value)


_MANY = """
import resource, sys
from pathlib import Path
from hostbackup.jobs.scratch import Scratch
from hostbackup.model import Entry, Kind, Stored
with Scratch(Path(sys.argv[1])) as scratch:
    for step in range(2):
        for n in range(40 if step else 4):
            folder = b"%d-%04d" % (step, n)
            scratch.put(folder, ((Stored(Entry(b"%s/%06d.html" % (folder, m), Kind.FILE, m)), True) for m in range(2500)))
        assert sum(1 for _ in scratch.wanted()) and scratch.totals()[0]
        if not step:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def test_memory_stays_flat(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", _MANY, str(tmp_path)], capture_output=True, text=True, timeout=120, check=True)
    assert int(ran.stdout) < 16_000, "kilobytes more for 100,000 entries than for 10,000"


def test_many_results_are_noted_at_once_and_one_that_nobody_asked_for_is_told(scratch: Scratch[Entry]) -> None:
    scratch.put(b"a", [(Stored(file(b"a/1")), True), (Stored(file(b"a/2")), True), (Stored(file(b"a/3")), True)])
    scratch.results([(path, Stored(file(path), "ab" * 32, 1)) for path in (b"a/1", b"a/3")])
    assert [entry.path for entry in scratch.wanted()] == [b"a/2"]
    assert [record.digest for record in scratch.records(b"a")] == ["ab" * 32, "", "ab" * 32]
    scratch.results([])
    with pytest.raises(KeyError):
        scratch.results([(b"a/2", Stored(file(b"a/2"), "ab" * 32, 1)), (b"a/4", Stored(file(b"a/4"), "ab" * 32, 1))])
