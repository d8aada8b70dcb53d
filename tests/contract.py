"""What every place that holds a tree promises. The mailbox's half stands in `contract_mail.py`.

Subclass `TreeContract` with a fixture `world`: a place over a tree of its own, with hands to change that tree behind it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hostbackup.errors import DiskFull, LineCut, PlaceMissing
from hostbackup.model import Claim, Entry, Kind, Status, Write
from tests.support.memory import NOON, digest_of
from tests.support.sink import HashSink, MemorySink
from tests.support.worlds import (
    BIG,
    ODD_NAMES,
    FullSink,
    Meter,
    TreeWorld,
    breaking,
    claim,
    close,
    folder_at,
    link_to,
    listings,
    prove,
    read,
    scanned,
    upload,
    write,
    written,
)

HOUR = 3_600_000_000_000  # nanoseconds


class ScanContract:
    def test_a_scan_tells_each_entry_once_with_its_true_metadata(self, world: TreeWorld) -> None:
        world.file(b"a/b/one.txt", b"12345", mtime_ns=NOON - HOUR, mode=0o600)
        world.file(b"top", b"", mode=0o755)
        world.link(b"a/up", b"../top")
        world.folder(b"a/b", mtime_ns=NOON - 2 * HOUR, mode=0o750)
        found = scanned(world.place)
        assert sorted(found) == [b"a", b"a/b", b"a/b/one.txt", b"a/up", b"top"]
        assert found[b"a/b/one.txt"] == Entry(b"a/b/one.txt", Kind.FILE, 5, NOON - HOUR, 0o600)
        assert found[b"top"] == Entry(b"top", Kind.FILE, 0, NOON, 0o755)
        assert found[b"a/b"] == Entry(b"a/b", Kind.DIR, 0, NOON - 2 * HOUR, 0o750)
        assert (found[b"a/up"].kind, found[b"a/up"].target, found[b"a/up"].size) == (Kind.LINK, b"../top", 0)

    def test_there_is_one_listing_a_folder_parents_first_and_names_sorted(self, world: TreeWorld) -> None:
        for path in (b"b/x", b"a/z", b"a/y/deep/er", b"a-/k", b"c"):
            world.file(path, b"data")
        world.folder(b"empty")
        found = listings(world.place)
        assert sorted(found) == [b"", b"a", b"a-", b"a/y", b"a/y/deep", b"b", b"empty"]
        order = list(found)
        assert order[0] == b""
        assert all(order.index(path.rpartition(b"/")[0]) < order.index(path) for path in order if path)
        for container, listing in found.items():
            assert listing.last
            assert listing.failure is None
            assert [entry.path for entry in listing.items] == sorted(entry.path for entry in listing.items)
            assert all(entry.parent == container for entry in listing.items)
        assert list(found[b"empty"].items) == []

    def test_an_empty_tree_is_one_empty_listing(self, world: TreeWorld) -> None:
        assert [(listing.container, list(listing.items)) for listing in world.place.scan()] == [(b"", [])]

    def test_names_are_bytes_and_come_through_unharmed(self, world: TreeWorld) -> None:
        for name in ODD_NAMES:
            world.file(name, b"in " + name)
            world.file(b"folder " + name[:100] + b"/" + name, b"below " + name)
            world.link(b"link " + name[:100], name)
        found = scanned(world.place)
        assert {name for name, entry in found.items() if entry.kind is Kind.FILE and b"/" not in name} == set(ODD_NAMES)
        for name in ODD_NAMES:
            assert found[b"link " + name[:100]].target == name
        sink = MemorySink()
        outcomes = read(world.place, [entry for entry in found.values() if entry.kind is Kind.FILE], sink)
        for name in ODD_NAMES:
            assert sink.contents[outcomes[name].digest] == b"in " + name
            assert sink.contents[outcomes[b"folder " + name[:100] + b"/" + name].digest] == b"below " + name

    def test_links_are_told_and_never_followed(self, world: TreeWorld) -> None:
        world.file(b"real/file", b"x")
        world.link(b"loop", b".")
        world.link(b"real/again", b"../real")
        world.link(b"gone", b"nowhere")
        world.link(b"out", b"/etc")
        found = scanned(world.place)
        assert sorted(found) == [b"gone", b"loop", b"out", b"real", b"real/again", b"real/file"]
        assert {path: entry.target for path, entry in found.items() if entry.kind is Kind.LINK} == {
            b"loop": b".",
            b"real/again": b"../real",
            b"gone": b"nowhere",
            b"out": b"/etc",
        }

    def test_what_is_excluded_is_not_told(self, world: TreeWorld) -> None:
        for path in (b"cache/a", b"keep/cache/b", b"keep/x.log", b"keep/x.txt", b"only/top", b"sub/only/top", b"logs"):
            world.file(path, b"data")
        place = world.another(exclude=["cache/", "*.log", "/only", "logs/"])
        assert sorted(scanned(place)) == [b"keep", b"keep/x.txt", b"logs", b"sub", b"sub/only", b"sub/only/top"]
        place.close()

    def test_a_root_that_is_not_there_is_said(self, world: TreeWorld) -> None:
        place = world.another(missing=True)
        entry = world.file(b"f", b"1")
        for verb in (
            lambda: list(place.scan()),
            lambda: list(place.read([entry], HashSink())),
            lambda: list(place.prove([claim(entry, b"1")])),
            lambda: list(place.write([upload(b"f", b"1")])),
        ):
            with pytest.raises(PlaceMissing) as told:
                verb()
            assert told.value.where
        place.close()

    def test_two_scans_tell_the_same(self, world: TreeWorld) -> None:
        world.file(b"a/one", b"1")
        world.file(b"two", b"22")
        assert scanned(world.place) == scanned(world.place)


class ReadContract:
    def test_contents_arrive_byte_for_byte_whatever_their_size(self, world: TreeWorld) -> None:
        sizes = (0, 1, 4095, 4096, 32767, 32768, 32769, 65536, 262144, 262145, 1 << 20)
        contents = {b"s%d" % size: BIG[7 : 7 + size] for size in sizes} | {b"big": BIG}
        for name, data in contents.items():
            world.file(name, data)
        sink = MemorySink()
        outcomes = read(world.place, scanned(world.place).values(), sink)
        for name, data in contents.items():
            outcome = outcomes[name]
            assert outcome.failure is None
            assert (outcome.digest, outcome.size) == (digest_of(data), len(data))
            assert sink.contents[outcome.digest] == data
            assert outcome.item == scanned(world.place)[name]

    def test_thousands_can_be_asked_for_in_one_call_in_any_order(self, world: TreeWorld) -> None:
        for n in range(3000):
            world.file(b"d%d/f%04d" % (n % 7, n), b"%d" % n)
        found = [entry for entry in scanned(world.place).values() if entry.kind is Kind.FILE]
        found.sort(key=lambda entry: digest_of(entry.path))
        outcomes = read(world.place, found, HashSink())
        assert len(outcomes) == 3000
        assert all(outcomes[b"d%d/f%04d" % (n % 7, n)].digest == digest_of(b"%d" % n) for n in range(3000))

    def test_the_input_is_not_drained_before_the_first_outcome(self, world: TreeWorld) -> None:
        entry = world.file(b"one", b"x")
        asked = Meter(entry for _ in range(5000))
        outcomes = world.place.read(asked, HashSink())
        next(outcomes)
        assert asked.taken < 2500
        assert sum(1 for _ in outcomes) == 4999

    def test_what_is_missing_is_told_and_the_rest_arrives(self, world: TreeWorld) -> None:
        for n in range(10):
            world.file(b"f%d" % n, b"%d" % n)
        found = [entry for entry in scanned(world.place).values() if entry.kind is Kind.FILE]
        world.remove(b"f3")
        world.remove(b"f7")
        nowhere = Entry(b"no/such/folder", Kind.FILE, 1, NOON, 0o644)
        outcomes = read(world.place, [*found, nowhere], HashSink())
        for path in (b"f3", b"f7", b"no/such/folder"):
            failure = outcomes.pop(path).failure
            assert failure is not None
            assert (failure.code, failure.name, bool(failure.reason), bool(failure.side), bool(failure.part)) == ("vanished", path, True, True, True)
        assert all(outcome.failure is None and outcome.digest for outcome in outcomes.values())

    def test_what_changed_since_the_scan_comes_with_its_new_metadata(self, world: TreeWorld) -> None:
        before = world.file(b"f", b"before", mtime_ns=NOON)
        now = world.file(b"f", b"and after", mtime_ns=NOON + HOUR)
        outcome = read(world.place, [before], HashSink())[b"f"]
        assert (outcome.asked, outcome.item, outcome.digest) == (before, now, digest_of(b"and after"))

    def test_a_link_in_a_files_place_is_not_followed(self, world: TreeWorld) -> None:
        world.file(b"secret", b"secret")
        planted = [world.file(b"f", b"x")]
        world.remove(b"f")
        world.link(b"f", b"secret")
        failure = read(world.place, planted, HashSink())[b"f"].failure
        assert failure is not None
        assert failure.code == "changed-kind"

    def test_a_folder_in_a_files_place_is_told(self, world: TreeWorld) -> None:
        was = world.file(b"f", b"x")
        world.remove(b"f")
        world.folder(b"f")
        failure = read(world.place, [was], HashSink())[b"f"].failure
        assert failure is not None
        assert failure.code == "changed-kind"

    def test_the_sinks_trouble_ends_the_read_and_leaves_nothing_open(self, world: TreeWorld) -> None:
        entries = [world.file(b"f%02d" % n, b"data %d" % n) for n in range(50)]
        sink = FullSink()
        with pytest.raises(DiskFull):
            list(world.place.read(entries, sink))
        assert sink.open_now == 0
        assert len(read(world.place, entries, HashSink())) == 50

    def test_closing_early_frees_what_was_held(self, world: TreeWorld) -> None:
        entries = [world.file(b"f%03d" % n, b"data %d" % n) for n in range(200)]
        entries.append(world.file(b"large", BIG))
        sink = HashSink()
        outcomes = world.place.read(entries, sink)
        next(outcomes)
        close(outcomes)
        assert sink.open_now == 0
        listing = world.place.scan()
        next(listing)
        close(listing)
        assert len(read(world.place, entries, HashSink())) == 201

    def test_nothing_is_changed_by_looking(self, world: TreeWorld) -> None:
        world.file(b"a/b", b"data")
        world.file(b"c", b"", mode=0o600)
        world.link(b"l", b"c")
        world.folder(b"a", mtime_ns=NOON - HOUR)
        before = world.state()
        found = scanned(world.place)
        read(world.place, [entry for entry in found.values() if entry.kind is Kind.FILE], HashSink())
        prove(world.place, claim(found[b"a/b"], b"data"), claim(found[b"c"], b""))
        assert world.state() == before


class WriteContract:
    def test_entries_are_brought_there_whole_with_modes_and_times(self, world: TreeWorld) -> None:
        items = [
            folder_at(b"d", mode=0o711, mtime_ns=NOON - HOUR),
            folder_at(b"d/empty", mode=0o500, mtime_ns=NOON - 2 * HOUR),
            upload(b"d/f", b"contents", mode=0o640, mtime_ns=NOON + HOUR),
            upload(b"d/zero", b"", mode=0o600),
            upload(b"big", BIG, mode=0o444),
            link_to(b"d/l", b"../big"),
        ]
        told = written(world.place, *items)
        found = scanned(world.place)
        assert sorted(found) == [b"big", b"d", b"d/empty", b"d/f", b"d/l", b"d/zero"]
        for item in items:
            if item.item.kind is Kind.LINK:
                assert (found[item.item.path].kind, found[item.item.path].target) == (Kind.LINK, b"../big")
            else:
                assert found[item.item.path] == item.item
            assert told[item.item.path] == found[item.item.path]
        assert world.contents(b"big") == BIG
        assert world.contents(b"d/f") == b"contents"

    def test_odd_names_are_written_as_they_are(self, world: TreeWorld) -> None:
        items = [upload(name, b"in " + name) for name in ODD_NAMES]
        written(world.place, folder_at(b"links"), *items, *(link_to(b"links/%d" % n, name) for n, name in enumerate(ODD_NAMES)))
        found = scanned(world.place)
        assert {name for name in found if not name.startswith(b"links")} == set(ODD_NAMES)
        for n, name in enumerate(ODD_NAMES):
            assert world.contents(name) == b"in " + name
            assert found[b"links/%d" % n].target == name

    def test_writing_twice_leaves_one(self, world: TreeWorld) -> None:
        items = [folder_at(b"d"), upload(b"d/f", b"once", replace=True), link_to(b"d/l", b"f", replace=True)]
        first = written(world.place, *items)
        second = written(world.place, *items)
        found = scanned(world.place)
        assert sorted(found) == [b"d", b"d/f", b"d/l"]
        assert found[b"d/f"] == first[b"d/f"] == second[b"d/f"]
        assert world.contents(b"d/f") == b"once"

    def test_what_is_there_is_left_alone_unless_told_otherwise(self, world: TreeWorld) -> None:
        world.file(b"f", b"theirs")
        world.file(b"same size", b"theirs")
        world.file(b"d/inside", b"theirs")
        world.link(b"l", b"theirs")
        before = world.state()
        outcomes = write(world.place, upload(b"f", b"ours, longer"), upload(b"same size", b"ours.."), upload(b"d", b"ours"), link_to(b"l", b"ours"))
        for outcome in outcomes.values():
            assert outcome.failure is not None
            assert outcome.failure.code == "exists"
        assert {path: facts for path, facts in world.state().items() if path} == {path: facts for path, facts in before.items() if path}

    def test_replace_replaces_files_and_links_but_never_folders(self, world: TreeWorld) -> None:
        world.file(b"f", b"theirs", mtime_ns=NOON - HOUR)
        world.file(b"d/inside", b"theirs")
        world.link(b"l", b"theirs")
        items = (upload(b"f", b"ours", replace=True), upload(b"d", b"ours", replace=True), link_to(b"l", b"ours", replace=True))
        outcomes = write(world.place, *items)
        assert outcomes[b"d"].failure is not None
        assert outcomes[b"d"].failure.code == "exists"
        found = scanned(world.place)
        assert found[b"f"] == items[0].item
        assert found[b"l"].target == b"ours"
        assert (world.contents(b"f"), world.contents(b"d/inside")) == (b"ours", b"theirs")
        assert sorted(found) == [b"d", b"d/inside", b"f", b"l"]

    def test_nothing_is_written_through_a_link_in_a_folders_place(self, world: TreeWorld) -> None:
        world.file(b"private/theirs", b"theirs")
        world.link(b"d", b"private")
        outcomes = write(world.place, upload(b"d/f", b"ours"), upload(b"d/theirs", b"ours", replace=True), link_to(b"d/l", b"x"), folder_at(b"d/in"))
        assert [path for path, outcome in outcomes.items() if outcome.failure is None] == []
        outcomes = write(world.place, folder_at(b"d"), upload(b"d/f", b"ours"))
        assert [path for path, outcome in outcomes.items() if outcome.failure is None] == []
        assert sorted(scanned(world.place)) == [b"d", b"private", b"private/theirs"]
        assert world.contents(b"private/theirs") == b"theirs"

    def test_a_folder_that_is_there_keeps_what_is_in_it(self, world: TreeWorld) -> None:
        world.file(b"d/theirs", b"theirs")
        written(world.place, folder_at(b"d", mode=0o700), upload(b"d/ours", b"ours"))
        assert sorted(scanned(world.place)) == [b"d", b"d/ours", b"d/theirs"]
        assert scanned(world.place)[b"d"].mode == 0o700
        assert write(world.place, folder_at(b"d/theirs"))[b"d/theirs"].failure is not None
        assert world.contents(b"d/theirs") == b"theirs"

    def test_thousands_can_be_written_in_one_call(self, world: TreeWorld) -> None:
        items = [folder_at(b"d%d" % n) for n in range(5)] + [upload(b"d%d/f%04d" % (n % 5, n), b"%d" % n) for n in range(2000)]
        assert len(written(world.place, *items)) == 2005
        found = scanned(world.place)
        assert len(found) == 2005
        assert all(world.contents(b"d%d/f%04d" % (n % 5, n)) == b"%d" % n for n in range(0, 2000, 37))

    def test_no_more_is_taken_from_the_input_than_is_under_way(self, world: TreeWorld) -> None:
        asked = Meter(upload(b"f%04d" % n, b"%d" % n) for n in range(3000))
        outcomes = world.place.write(asked)
        next(outcomes)
        assert asked.taken < 1500
        close(outcomes)
        assert all(path.startswith(b"f") for path in scanned(world.place)), "what was under way is tidied up"
        assert all(world.contents(path) == b"%d" % int(path[1:]) for path in scanned(world.place))

    def test_an_input_that_fails_leaves_nothing_half_done(self, world: TreeWorld) -> None:
        def items() -> Iterator[Write[Entry]]:
            for n in range(20):
                yield upload(b"f%02d" % n, b"data")
            raise LineCut("the source's line was cut", where="test")

        with pytest.raises(LineCut):
            list(world.place.write(items()))
        assert set(scanned(world.place)) <= {b"f%02d" % n for n in range(20)}

    def test_contents_that_fail_leave_nothing_and_stop_nobody(self, world: TreeWorld) -> None:
        wrong = upload(b"wrong", b"not what was promised")
        wrong = type(wrong)(wrong.item, digest_of(b"promised"), wrong.size, wrong.open)
        outcomes = write(world.place, upload(b"before", b"1"), breaking(b"broken"), wrong, upload(b"after", b"2"))
        for path in (b"broken", b"wrong"):
            failure = outcomes[path].failure
            assert failure is not None
            assert failure.code == "damaged"
        assert sorted(scanned(world.place)) == [b"after", b"before"]

    def test_an_entry_without_its_folder_is_told(self, world: TreeWorld) -> None:
        outcomes = write(world.place, upload(b"no/folder/f", b"1"), upload(b"fine", b"2"))
        failure = outcomes[b"no/folder/f"].failure
        assert failure is not None
        assert failure.code == "parent"
        assert outcomes[b"fine"].failure is None

    def test_no_name_leads_out_of_the_tree(self, world: TreeWorld) -> None:
        world.file(b"inside/f", b"x")
        bad = (b"../out", b"inside/../../out", b"/out", b"inside//out", b"./out", b"inside/..")
        outcomes = write(world.place, *(upload(path, b"bad") for path in bad))
        assert {path for path, outcome in outcomes.items() if outcome.failure is not None} == set(bad)
        assert sorted(scanned(world.place)) == [b"inside", b"inside/f"]

    def test_a_root_that_is_not_there_is_made_when_it_is_written(self, world: TreeWorld) -> None:
        place = world.another(missing=True)
        written(place, folder_at(b"", mode=0o755), folder_at(b"d"), upload(b"d/f", b"1"))
        assert sorted(scanned(place)) == [b"d", b"d/f"]
        place.close()


class ProveContract:
    def test_the_same_bytes_are_verified(self, world: TreeWorld) -> None:
        contents = {b"f%d" % n: b"data %d" % n for n in range(20)} | {b"zero": b"", b"big": BIG, "名前 $(x)\n'".encode(): b"odd"}
        for name, data in contents.items():
            world.file(name, data)
        found = scanned(world.place)
        proofs = prove(world.place, *(claim(found[name], data) for name, data in contents.items()))
        assert {proof.status for proof in proofs.values()} == {Status.VERIFIED}
        # Of an empty file some servers make no digest.
        assert {proof.method for name, proof in proofs.items() if name.isalnum() and name != b"zero"} == {world.method}

    def test_what_was_just_written_is_verified(self, world: TreeWorld) -> None:
        told = written(world.place, upload(b"f", b"ours"), upload(b"big", BIG))
        proofs = prove(world.place, claim(told[b"f"], b"ours"), claim(told[b"big"], BIG))
        assert {proof.status for proof in proofs.values()} == {Status.VERIFIED}

    def test_other_bytes_under_the_same_metadata_are_damage(self, world: TreeWorld) -> None:
        good, bad = world.file(b"good", b"data"), world.file(b"bad", b"data")
        world.tamper(bad)
        assert scanned(world.place)[b"bad"] == bad
        proofs = prove(world.place, claim(good, b"data"), claim(bad, b"data"))
        assert {path: proof.status for path, proof in proofs.items()} == {b"good": Status.VERIFIED, b"bad": Status.DIFFERENT}

    def test_what_moved_on_is_changed_not_damage(self, world: TreeWorld) -> None:
        entries = {path: world.file(path, b"data") for path in (b"longer", b"later", b"link", b"folder")}
        world.file(b"longer", b"data and more")
        world.file(b"later", b"atad", mtime_ns=NOON + HOUR)
        world.remove(b"link")
        world.link(b"link", b"longer")
        world.remove(b"folder")
        world.folder(b"folder")
        proofs = prove(world.place, *(claim(entry, b"data") for entry in entries.values()))
        assert {path: proof.status for path, proof in proofs.items()} == dict.fromkeys(entries, Status.CHANGED)

    def test_what_is_gone_is_missing(self, world: TreeWorld) -> None:
        here, gone = world.file(b"here", b"1"), world.file(b"d/gone", b"2")
        world.remove(b"d")
        proofs = prove(world.place, claim(gone, b"2"), claim(here, b"1"))
        assert {path: proof.status for path, proof in proofs.items()} == {b"here": Status.VERIFIED, b"d/gone": Status.MISSING}

    def test_links_and_folders_are_proven_as_what_they_are(self, world: TreeWorld) -> None:
        world.link(b"same", b"target")
        world.link(b"other", b"another target")
        world.folder(b"d")
        found = scanned(world.place)
        said = [found[b"same"], Entry(b"other", Kind.LINK, 0, NOON, 0o777, b"target"), found[b"d"], Entry(b"gone", Kind.DIR)]
        proofs = prove(world.place, *(Claim(entry, "", 0) for entry in said))
        assert [proofs[entry.path].status for entry in said] == [Status.VERIFIED, Status.CHANGED, Status.VERIFIED, Status.MISSING]

    def test_many_claims_are_proven_in_one_call(self, world: TreeWorld) -> None:
        claims = [claim(world.file(b"f%04d" % n, b"%d" % n), b"%d" % n) for n in range(1500)]
        assert {proof.status for proof in prove(world.place, *claims).values()} == {Status.VERIFIED}

    def test_a_wrong_claim_about_an_empty_file_is_seen(self, world: TreeWorld) -> None:
        entry = world.file(b"zero", b"")
        assert prove(world.place, claim(entry, b"not empty"))[b"zero"].status is Status.DIFFERENT


class TreeContract(ScanContract, ReadContract, WriteContract, ProveContract):
    def test_closing_twice_is_fine(self, world: TreeWorld) -> None:
        world.file(b"f", b"x")
        assert list(scanned(world.place)) == [b"f"]
        world.place.close()
        world.place.close()

    def test_closing_without_having_begun_is_fine(self, world: TreeWorld) -> None:
        world.another().close()
