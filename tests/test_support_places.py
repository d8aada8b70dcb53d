"""The wrappers that other tests lean on do what they say."""

from __future__ import annotations

import pytest

from hostbackup.errors import LineCut
from hostbackup.model import Entry, Status
from tests.support.faults import Flaky, Recorder
from tests.support.memory import MemoryMail, MemoryTree
from tests.support.sink import HashSink, MemorySink, NullSink
from tests.support.worlds import claim, close, listings, prove, read, scanned, upload, write


@pytest.fixture
def tree() -> MemoryTree:
    tree = MemoryTree()
    for n in range(10):
        tree.file(b"f%d" % n, b"%d" % n)
    return tree


def test_each_nth_item_fails_and_never_reaches_the_place(tree: MemoryTree) -> None:
    recorder: Recorder[Entry] = Recorder(tree)
    flaky: Flaky[Entry] = Flaky(recorder, fail_every=3, code="permission")
    outcomes = read(flaky, scanned(tree).values(), HashSink())
    failed = {path: outcome.failure.code for path, outcome in outcomes.items() if outcome.failure}
    assert failed == {b"f2": "permission", b"f5": "permission", b"f8": "permission"}
    assert len(recorder.items("read")) == 7
    assert sum(1 for outcome in write(flaky, *(upload(b"g%d" % n) for n in range(6))).values() if outcome.failure) == 2


def test_the_line_is_cut_once_and_then_works(tree: MemoryTree) -> None:
    flaky: Flaky[Entry] = Flaky(tree, cut_after=4)
    with pytest.raises(LineCut):
        list(flaky.read(scanned(tree).values(), HashSink()))
    assert len(read(flaky, scanned(tree).values(), HashSink())) == 10
    assert len(listings(flaky)) == 1


def test_the_world_moves_on_between_scan_and_read(tree: MemoryTree) -> None:
    def change(entry: Entry) -> None:
        if entry.path == b"f3":
            tree.file(b"f3", b"changed")
        if entry.path == b"f4":
            tree.remove(b"f4")

    flaky: Flaky[Entry] = Flaky(tree, before_read=change)
    sink = MemorySink()
    outcomes = read(flaky, scanned(tree).values(), sink)
    assert sink.contents[outcomes[b"f3"].digest] == b"changed"
    assert outcomes[b"f4"].failure is not None


def test_a_liar_lies(tree: MemoryTree) -> None:
    entry = scanned(tree)[b"f1"]
    assert prove(Flaky(tree, lie=Status.VERIFIED), claim(entry, b"wrong"))[b"f1"].status is Status.VERIFIED
    assert prove(Flaky(tree, lie=Status.DIFFERENT), claim(entry, b"1"))[b"f1"].status is Status.DIFFERENT


def test_a_recorder_remembers_what_was_taken_and_given(tree: MemoryTree) -> None:
    recorder: Recorder[Entry] = Recorder(tree)
    scanned(recorder)
    outcomes = recorder.read(scanned(tree).values(), NullSink())
    next(outcomes)
    close(outcomes)
    recorder.close()
    assert recorder.verbs() == ["scan", "read", "close"]
    assert [entry.path for entry in recorder.items("read")] == [b"f0"]
    assert (recorder.calls[1].outcomes, recorder.calls[1].closed_early, recorder.calls[0].closed_early) == (1, True, False)


def test_what_a_place_offers_beside_the_verbs_is_still_there() -> None:
    mail = MemoryMail()
    assert Recorder(mail).prepare([]) == []
    assert Flaky(Recorder(mail)).separator == b"/"


def test_a_sink_refuses_receivers_that_are_misused() -> None:
    receiver = MemorySink().open()
    receiver.write(b"x")
    receiver.commit()
    with pytest.raises(AssertionError):
        receiver.abort()
    with pytest.raises(AssertionError):
        receiver.commit()
    with pytest.raises(AssertionError):
        receiver.write(b"y")
