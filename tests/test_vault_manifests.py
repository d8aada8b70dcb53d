"""Manifests: canonical JSON, trees and mailboxes that come back as written, boundaries that hardly move."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostbackup.errors import Damaged, VaultTooNew
from hostbackup.model import Entry, Folder, Kind, Message, Part, Stored
from hostbackup.vault import tree as tree_module
from hostbackup.vault.layout import mail_meta
from hostbackup.vault.mailbox import RANGE, MailRoot, MailWriter
from hostbackup.vault.manifests import Manifests
from hostbackup.vault.records import PartTotals, canonical, check_component, check_path, order, parse_line, parse_lines
from hostbackup.vault.tree import TreeRoot, TreeWriter

WEB = Part("web", "public_html")
MAIL = Part("mail", "taro@example.jp")
HERE = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

NAME = st.binary(min_size=1, max_size=12).filter(lambda name: name not in (b".", b"..") and not set(name) & {0, 0x2F})
DIGEST = st.integers(0, 2**256 - 1).map(lambda number: f"{number:064x}")
TEXT = st.text(max_size=12)


def folder(root: Path) -> Manifests:
    for name in ("manifests", "incoming", "damaged"):
        (root / name).mkdir(exist_ok=True)
    return Manifests(root / "manifests", root / "incoming", root / "damaged")


# ------------------------------------------------------------ canonical JSON

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@HERE
@given(st.dictionaries(st.text(max_size=5), JSON, max_size=5))
def test_canonical_json_is_one_line_and_one_way_to_say_it(value: dict[str, object]) -> None:
    line = canonical(value)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert parse_line(line, "") == value
    assert canonical(dict(reversed(list(value.items())))) == line
    assert canonical(json.loads(line)) == line


def test_canonical_json_keeps_what_utf8_cannot_hold() -> None:
    assert canonical({"b": "\udc80", "a": "日本"}) == '{"a":"日本","b":"\\udc80"}\n'.encode()
    assert parse_line(canonical({"b": "\udc80"}), "") == {"b": "\udc80"}


@pytest.mark.parametrize("line", [b"", b"[]", b"{", b"\xff", b"1"])
def test_what_is_no_line_is_damage(line: bytes) -> None:
    with pytest.raises(Damaged):
        parse_line(line, "here")


LINES = b'{"name":"a"}\n{"name":"b"}\n'


@pytest.mark.parametrize(
    "data", [LINES + b"[]\n", LINES + b"{\n", LINES + b"1\n", b'{"a":[1\n2]}\n', b'{"a":1},{"b":2}\n', b'{"a":\n1}\n', b"\xff\n"]
)
def test_what_are_no_lines_is_damage_also_where_it_would_do_as_one_text(data: bytes) -> None:
    assert parse_lines(LINES, "here") == [{"name": "a"}, {"name": "b"}]
    with pytest.raises(Damaged, match="a line that is no JSON"):
        parse_lines(data, "here")


@pytest.mark.parametrize("path", [b"a/../b", b"/a", b"a/", b"a//b", b".", b"..", b"a\0b"])
def test_no_path_of_a_manifest_leads_out(path: bytes) -> None:
    with pytest.raises(ValueError, match="not a name"):
        check_path(path)


def test_a_manifest_is_proven_while_it_is_read(tmp_path: Path) -> None:
    manifests = folder(tmp_path)
    digest = manifests.put([{"b": 1, "a": "x\ny"}, {"c": []}])
    assert list(manifests.get(digest)) == [{"a": "x\ny", "b": 1}, {"c": []}]
    path = manifests.path(digest)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes().replace(b"1", b"2"))
    with pytest.raises(Damaged, match="not what was written"):
        list(manifests.get(digest))


# ------------------------------------------------------------ trees


def stored(draw: st.DrawFn, path: bytes, kind: Kind) -> Stored[Entry]:
    vanished = draw(st.sampled_from(["", "20261125T031500Z"]))
    if kind is not Kind.FILE:
        target = draw(st.binary(max_size=20)) if kind is Kind.LINK else b""
        item = Entry(path, kind, 0, draw(st.integers(-(2**60), 2**60)), draw(st.integers(0, 0o7777)), target)
        return Stored(item, vanished=vanished, failed=draw(TEXT))
    item = Entry(path, kind, draw(st.integers(0, 2**50)), draw(st.integers(-(2**60), 2**60)), draw(st.integers(0, 0o7777)))
    digest = draw(st.just("") | DIGEST)
    return Stored(item, digest, draw(st.integers(0, 2**50)), draw(TEXT), draw(TEXT), vanished, draw(st.booleans()))


@st.composite
def trees(draw: st.DrawFn) -> dict[bytes, list[Stored[Entry]]]:
    found: dict[bytes, list[Stored[Entry]]] = {b"": []}
    for _ in range(draw(st.integers(0, 4))):
        parent = draw(st.sampled_from(sorted(found)))
        for name in sorted(draw(st.sets(NAME, max_size=4))):
            path = parent + b"/" + name if parent else name
            if any(record.item.path == path for record in found[parent]):
                continue
            record = stored(draw, path, draw(st.sampled_from(list(Kind))))
            found[parent].append(record)
            if record.item.kind is Kind.DIR:
                found.setdefault(path, [])
    return {path: sorted(records, key=lambda record: record.item.name) for path, records in found.items()}


def write(manifests: Manifests, tree: dict[bytes, list[Stored[Entry]]], meta: dict[str, object] | None = None) -> PartTotals:
    writer = TreeWriter(manifests, WEB, meta or {})
    for path in sorted(tree, key=order):
        writer.add(path, tree[path])
    return writer.finish()


@HERE
@given(trees())
def test_a_tree_comes_back_as_it_was_written(tmp_path: Path, tree: dict[bytes, list[Stored[Entry]]]) -> None:
    manifests = folder(tmp_path)
    totals = write(manifests, tree, {"path": "public_html"})
    root = TreeRoot.open(manifests, totals.root)
    assert root.part == WEB
    assert root.meta == {"path": "public_html"}
    assert root.totals == totals
    assert list(root.folders()) == sorted(tree, key=order)
    assert {path: root.records(path) for path in tree} == tree
    everything = [record for path in sorted(tree, key=order) for record in tree[path]]
    assert list(root.walk(vanished=True)) == everything
    assert list(root.walk()) == [record for record in everything if not record.vanished]
    assert all(root.find(record.item.path) == record for record in everything)
    assert root.find(b"nowhere/at all") is None
    live = [record for record in everything if not record.vanished]
    assert totals.entries == sum(1 for record in live if record.digest)
    assert totals.bytes == sum(record.size for record in live if record.digest)
    assert totals.folders == sum(1 for record in live if record.item.kind is Kind.DIR)
    assert totals.vanished == len(everything) - len(live)


@HERE
@given(trees())
def test_parents_come_before_what_is_in_them(tmp_path: Path, tree: dict[bytes, list[Stored[Entry]]]) -> None:
    manifests = folder(tmp_path)
    seen = {b""}
    for record in TreeRoot.open(manifests, write(manifests, tree).root).walk(vanished=True):
        assert record.item.parent in seen
        seen.add(record.item.path)


@HERE
@given(trees())
def test_a_kept_tree_is_the_same_tree(tmp_path: Path, tree: dict[bytes, list[Stored[Entry]]]) -> None:
    manifests = folder(tmp_path)
    totals = write(manifests, tree)
    root = TreeRoot.open(manifests, totals.root)
    writer = TreeWriter(manifests, WEB, {})
    for _, refs in root.by_folder():
        writer.keep(refs)
    assert writer.finish() == totals


def file(path: bytes, content: int = 0) -> Stored[Entry]:
    number = f"{content:064x}" if content else hashlib.sha256(path).hexdigest()
    return Stored(Entry(path, Kind.FILE, 1234, 1_700_000_000_000_000_000, 0o644), number, 1234)


def test_one_name_may_have_been_other_kinds_before(tmp_path: Path) -> None:
    manifests = folder(tmp_path)
    link = Stored(Entry(b"a", Kind.LINK, 0, 1, 0o777, b"b"))
    old_file = Stored(Entry(b"a", Kind.FILE, 1, 1, 0o644), "1" * 64, 1, vanished="20260101T000000Z")
    old_folder = Stored(Entry(b"a", Kind.DIR, 0, 1, 0o755), vanished="20260102T000000Z")
    totals = write(manifests, {b"": [link, old_file, old_folder]})
    root = TreeRoot.open(manifests, totals.root)
    assert root.records(b"") == [link, old_file, old_folder]
    assert root.find(b"a") == link


@pytest.mark.parametrize(
    "records",
    [
        [file(b"b"), file(b"a")],
        [file(b"a"), file(b"a")],
        [file(b"sub/a")],
        [file(b"")],
        [file(b"..")],
    ],
)
def test_a_folder_out_of_order_is_refused(tmp_path: Path, records: list[Stored[Entry]]) -> None:
    with pytest.raises(ValueError, match=r"in order|sorted|not a name"):
        write(folder(tmp_path), {b"": records})


@pytest.mark.parametrize("second", [b"", b"a", b"A", b"a/../b", b"b/", b"/b"])
def test_folders_come_in_order_and_once(tmp_path: Path, second: bytes) -> None:
    writer = TreeWriter(folder(tmp_path), WEB, {})
    writer.add(b"a", [])
    with pytest.raises(ValueError, match=r"in order|not a name"):
        writer.add(second, [])


@pytest.mark.parametrize("name", ["..", "a/b", "", ".", "a\0"])
def test_a_manifest_that_leads_out_of_its_folder_is_damage(tmp_path: Path, name: str) -> None:
    manifests = folder(tmp_path)
    segment = manifests.put([{"name": name, "kind": "file", "digest": "0" * 64}])
    header = {"type": "tree", "version": 1, "part": WEB.id, "meta": {}, "totals": {}}
    root = manifests.put([header, {"type": "segment", "digest": segment, "folder": ""}])
    with pytest.raises(Damaged, match="makes no sense"):
        list(TreeRoot.open(manifests, root).walk())


@pytest.mark.parametrize(
    "line",
    [
        {"type": "segment", "digest": "0" * 64, "folder": "../x"},
        {"type": "segment", "folder": ""},
        {"type": "index", "digest": "0" * 64, "begin": "a", "end": "/etc"},
        {"type": "surprise"},
        {"type": "segment", "digest": "0" * 64, "folder_b64": "not base64!"},
    ],
)
def test_a_root_that_makes_no_sense_is_damage(tmp_path: Path, line: dict[str, object]) -> None:
    manifests = folder(tmp_path)
    header = {"type": "tree", "version": 1, "part": WEB.id, "meta": {}, "totals": {}}
    with pytest.raises(Damaged):
        list(TreeRoot.open(manifests, manifests.put([header, line])).walk())


def test_a_newer_manifest_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    manifests = folder(tmp_path)
    with pytest.raises(VaultTooNew):
        TreeRoot.open(manifests, manifests.put([{"type": "tree", "version": 2, "part": WEB.id}]))
    with pytest.raises(Damaged, match="root of a mail"):
        MailRoot.open(manifests, manifests.put([{"type": "tree", "version": 1, "part": WEB.id}]))


# ------------------------------------------------------------ growth


def many(count: int, width: int) -> list[Stored[Entry]]:
    return [file(b"photo-%0*d.jpg" % (width, number), number + 1) for number in range(count)]


def added_bytes(manifests: Manifests, before: set[str]) -> int:
    manifests.flush()
    return sum(size for digest, size in manifests.list() if digest not in before)


def known(manifests: Manifests) -> set[str]:
    manifests.flush()
    return {digest for digest, _ in manifests.list()}


@pytest.mark.parametrize("place", [17, 49_999])
def test_one_name_among_50000_in_a_folder_moves_few_segments(tmp_path: Path, place: int) -> None:
    manifests = folder(tmp_path)
    records = many(50_000, 9)
    root = TreeRoot.open(manifests, write(manifests, {b"": records}).root)
    assert 20 < len(root.refs(b"")) < 120
    before = known(manifests)
    inserted = file(records[place].item.path + b".new", 999_999_999)
    changed = sorted([*records, inserted], key=lambda record: record.item.name)
    new = TreeRoot.open(manifests, write(manifests, {b"": changed}).root)
    assert len({ref.digest for ref in new.refs(b"")} - before) <= 3
    assert added_bytes(manifests, before) < 900_000
    assert new.records(b"") == changed
    assert new.find(inserted.item.path) == inserted
    assert new.find(records[123].item.path) == records[123]


def test_an_unchanged_tree_adds_nothing_and_one_change_among_many_folders_little(tmp_path: Path) -> None:
    manifests = folder(tmp_path)
    folders = [b"customer-%05d" % number for number in range(1500)]
    tree: dict[bytes, list[Stored[Entry]]] = {b"": [Stored(Entry(name, Kind.DIR, 0, 1, 0o755)) for name in folders]}
    tree |= {name: [file(name + b"/index.html")] for name in folders}
    first = write(manifests, tree)
    before = known(manifests)
    assert write(manifests, tree) == first
    assert added_bytes(manifests, before) == 0
    tree[folders[321]] = [file(folders[321] + b"/index.html", 7)]
    second = write(manifests, tree)
    assert added_bytes(manifests, before) < 250_000
    root = TreeRoot.open(manifests, second.root)
    assert root.totals.entries == 1500
    assert root.find(folders[321] + b"/index.html") == tree[folders[321]][0]
    assert list(root.folders()) == [b"", *folders]
    assert set(root.indexes()), "so many folders are grouped"
    assert set(root.manifests()) <= known(manifests)
    assert manifests.path(second.root).stat().st_size < 30_000


def test_levels_of_indexes_nest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_module, "INDEX_REFS", 8)
    monkeypatch.setattr(tree_module, "_INDEX_AVERAGE", 4)
    monkeypatch.setattr(tree_module, "_INDEX_LARGEST", 8)
    manifests = folder(tmp_path)
    rng = random.Random(5)
    folders = sorted({b"/".join(b"%x" % rng.randrange(6) for _ in range(rng.randrange(1, 5))) for _ in range(900)}, key=order)
    tree: dict[bytes, list[Stored[Entry]]] = {b"": []} | {name: [file(name + b"/f")] for name in folders}
    root = TreeRoot.open(manifests, write(manifests, tree).root)
    assert list(root.folders()) == sorted(tree, key=order)
    assert all(root.records(name) == tree[name] for name in tree)
    assert len(list(root.indexes())) > len(folders) / 8
    writer = TreeWriter(manifests, WEB, {})
    for _, refs in root.by_folder():
        writer.keep(refs)
    assert writer.finish().root == root.digest


def test_long_names_split_a_folder_before_4096(tmp_path: Path) -> None:
    manifests = folder(tmp_path)
    records = [file(b"%04d" % number + b"x" * 240, number + 1) for number in range(3000)]
    root = TreeRoot.open(manifests, write(manifests, {b"": records}).root)
    assert len(root.refs(b"")) > 1
    assert all(size < 700_000 for _, size in manifests.list())
    assert root.records(b"") == records


# ------------------------------------------------------------ mailboxes


def message(name: bytes, uid: int, uidvalidity: int = 7, flags: Sequence[str] = (), vanished: str = "") -> Stored[Message]:
    item = Message(name, uidvalidity, uid, 100 + uid, " 1-Jul-2026 02:44:25 +0900", tuple(sorted(flags)))
    return Stored(item, f"{uid + uidvalidity * 10**9:064x}", 100 + uid, vanished=vanished)


def write_mail(manifests: Manifests, folders: Sequence[tuple[Folder, Iterable[Stored[Message]]]]) -> PartTotals:
    writer = MailWriter(manifests, MAIL, mail_meta(MAIL.name, b"INBOX.", b"."))
    for mail_folder, records in folders:
        writer.folder(mail_folder)
        batch: list[Stored[Message]] = []
        for record in records:
            if batch and (batch[0].item.uidvalidity, batch[0].item.uid // RANGE) != (record.item.uidvalidity, record.item.uid // RANGE):
                writer.add(batch)
                batch = []
            batch.append(record)
        writer.add(batch)
    return writer.finish()


FLAGS = st.sets(st.sampled_from(["\\Seen", "\\Flagged", "$Label1", "日本", "a b"]), max_size=3)


@HERE
@given(
    st.dictionaries(
        st.binary(min_size=1, max_size=12),
        st.tuples(st.dictionaries(st.integers(1, 20_000), FLAGS, max_size=8), st.dictionaries(st.integers(1, 20_000), FLAGS, max_size=4)),
        max_size=4,
    )
)
def test_a_mailbox_comes_back_as_it_was_written(tmp_path: Path, boxes: dict[bytes, tuple[dict[int, set[str]], dict[int, set[str]]]]) -> None:
    manifests = folder(tmp_path)
    folders: list[tuple[Folder, list[Stored[Message]]]] = []
    for name, (now, before) in boxes.items():
        old = [message(name, uid, 9, sorted(before[uid]), "20260101T000000Z") for uid in sorted(before)]
        records = old + [message(name, uid, 7, sorted(now[uid])) for uid in sorted(now)]
        folders.append((Folder(name, b".", ("\\HasNoChildren",), "\\Sent", True, 7, 30_000, len(now)), records))
    totals = write_mail(manifests, folders)
    root = MailRoot.open(manifests, totals.root)
    assert root.meta == mail_meta(MAIL.name, b"INBOX.", b".")
    assert root.part == MAIL
    assert root.folders() == [mail_folder for mail_folder, _ in folders]
    for mail_folder, records in folders:
        assert list(root.records(mail_folder.name)) == records
        for uidvalidity, number, _ in root.ranges(mail_folder.name):
            expected = [record for record in records if (record.item.uidvalidity, record.item.uid // RANGE) == (uidvalidity, number)]
            assert root.range_records(mail_folder.name, uidvalidity, number) == expected
    everything = [record for _, records in folders for record in records]
    assert list(root.walk(vanished=True)) == everything
    assert list(root.walk()) == [record for record in everything if not record.vanished]
    assert totals.entries == sum(1 for record in everything if not record.vanished)
    assert totals.folders == len(folders)
    manifests.flush()
    assert set(root.manifests()) <= {digest for digest, _ in manifests.list()}
    writer = MailWriter(manifests, MAIL, root.meta)
    for mail_folder, _ in folders:
        writer.folder(mail_folder)
        for ref in root.refs(mail_folder.name):
            writer.keep(ref)
    assert writer.finish() == totals


def test_reading_mail_rewrites_only_flags(tmp_path: Path) -> None:
    manifests = folder(tmp_path)
    inbox = Folder(b"INBOX", b".", uidvalidity=7, uidnext=9000, exists=8000)
    write_mail(manifests, [(inbox, (message(b"INBOX", uid) for uid in range(1, 8001)))])
    before = known(manifests)
    read = write_mail(manifests, [(inbox, (message(b"INBOX", uid, flags=["\\Seen"] if uid == 4000 else []) for uid in range(1, 8001)))])
    assert added_bytes(manifests, before) < 2000
    assert MailRoot.open(manifests, read.root).range_records(b"INBOX", 7, 0)[3999].item.flags == ("\\Seen",)


def test_one_message_among_many_touches_one_range(tmp_path: Path) -> None:
    manifests = folder(tmp_path)
    inbox = Folder(b"INBOX", b".", uidvalidity=7)
    write_mail(manifests, [(inbox, (message(b"INBOX", uid, flags=["\\Seen"]) for uid in range(1, 30_001)))])
    before = known(manifests)
    write_mail(manifests, [(inbox, (message(b"INBOX", uid, flags=["\\Seen"]) for uid in range(1, 30_002)))])
    assert added_bytes(manifests, before) < 900_000
    assert len(known(manifests) - before) == 3, "the last range, its flags, the root"


@pytest.mark.parametrize(
    "batches",
    [
        [[message(b"INBOX", 5), message(b"INBOX", 4)]],
        [[message(b"INBOX", 5), message(b"INBOX", 5)]],
        [[message(b"INBOX", 5), message(b"INBOX", RANGE + 5)]],
        [[message(b"INBOX", RANGE + 5)], [message(b"INBOX", 5)]],
        [[message(b"INBOX", 5)], [message(b"INBOX", 6)]],
        [[message(b"INBOX", 5)], [message(b"INBOX", 5, 9)], [message(b"INBOX", RANGE + 5)]],
        [[message(b"Other", 5)]],
    ],
)
def test_ranges_out_of_order_are_refused(tmp_path: Path, batches: list[list[Stored[Message]]]) -> None:
    writer = MailWriter(folder(tmp_path), MAIL, {})
    writer.folder(Folder(b"INBOX"))
    with pytest.raises(ValueError, match=r"UID|range|folder"):
        for batch in batches:
            writer.add(batch)


def test_a_folder_comes_once_and_before_its_messages(tmp_path: Path) -> None:
    writer = MailWriter(folder(tmp_path), MAIL, {})
    with pytest.raises(ValueError, match="outside its folder"):
        writer.add([message(b"INBOX", 1)])
    writer.folder(Folder(b"INBOX"))
    with pytest.raises(ValueError, match="twice"):
        writer.folder(Folder(b"INBOX"))


def test_the_root_tells_where_each_folder_stands_in_the_view(tmp_path: Path) -> None:
    manifests = folder(tmp_path)
    totals = write_mail(manifests, [(Folder(b"INBOX", b"."), []), (Folder(b"INBOX.a/b", b"."), [])])
    assert [line.get("maildir") for line in manifests.get(totals.root)] == [None, "", ".a\\2fb"]


@given(st.binary(max_size=6))
def test_only_good_components_pass(name: bytes) -> None:
    good = name not in (b"", b".", b"..") and b"/" not in name and b"\0" not in name
    try:
        assert check_component(name) == name
        assert good
    except ValueError:
        assert not good


def test_a_large_folder_is_found_across_indexes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("INDEX_REFS", 8),
        ("_INDEX_AVERAGE", 4),
        ("_INDEX_LARGEST", 8),
        ("SEGMENT_NAMES", 4),
        ("_SEGMENT_AVERAGE", 2),
        ("_INDEXES_HELD", 2),
    ):
        monkeypatch.setattr(tree_module, name, value)
    manifests = folder(tmp_path)
    sizes = {b"": 3, b"a": 300, b"b": 1, b"c": 0, b"c/d": 200, b"c/e": 5, b"f": 90}
    tree = {path: [file((path + b"/" if path else b"") + b"n%04d" % number) for number in range(size)] for path, size in sizes.items()}
    root = TreeRoot.open(manifests, write(manifests, tree).root)
    assert len(root.refs(b"a")) > 50
    assert {path: root.records(path) for path in tree} == tree
    assert [path for path, _ in root.by_folder()] == list(tree)
    for path in (b"0", b"aa", b"c/dd", b"z"):
        assert root.records(path) == []
    for records in tree.values():
        assert all(root.find(record.item.path) == record for record in records[::9])


# ------------------------------------------------------------ is a folder as it was

FILE = Stored(Entry(b"d/a", Kind.FILE, 3, 5, 0o644), "1" * 64, 3)
RAW = Stored(Entry(b"d/b\xff", Kind.FILE, 3, 5, 0o644), "2" * 64, 3)
LINK = Stored(Entry(b"d/c", Kind.LINK, 0, 5, 0o777, b"a"))
INNER = Stored(Entry(b"d/e", Kind.DIR, 0, 5, 0o755))
AS_IT_WAS = [FILE, RAW, LINK, INNER]


def listing(tmp_path: Path, records: Iterable[Stored[Entry]]) -> TreeRoot:
    manifests = folder(tmp_path)
    writer = TreeWriter(manifests, WEB, {})
    writer.add(b"d", records)
    return TreeRoot.open(manifests, writer.finish().root)


def test_a_folder_that_is_as_it_was_is_known_by_its_entries(tmp_path: Path) -> None:
    root = listing(tmp_path, AS_IT_WAS)
    assert root.unchanged(b"d", [record.item for record in AS_IT_WAS]) == [FILE.digest, RAW.digest]
    assert root.unchanged(b"never listed", []) is None


@pytest.mark.parametrize(
    "changed",
    [
        replace(FILE, stale="x"),
        replace(FILE, failed="x"),
        replace(FILE, racy=True),
        replace(FILE, vanished="x"),
        replace(FILE, size=4),
        replace(FILE, digest="", size=0, failed="x"),
        replace(FILE, digest=""),
        replace(FILE, item=replace(FILE.item, size=4), size=4),
        replace(FILE, item=replace(FILE.item, mtime_ns=6)),
        replace(FILE, item=replace(FILE.item, mode=0o600)),
        replace(FILE, item=replace(FILE.item, path=b"d/A")),
        Stored(Entry(b"d/a", Kind.DIR, 0, 5, 0o644)),
        Stored(Entry(b"d/a", Kind.LINK, 3, 5, 0o644, b"x")),
    ],
)
def test_whatever_else_is_known_of_an_entry_its_folder_is_looked_at_closely(tmp_path: Path, changed: Stored[Entry]) -> None:
    root = listing(tmp_path, [changed, RAW, LINK, INNER])
    assert root.unchanged(b"d", [record.item for record in AS_IT_WAS]) is None


@pytest.mark.parametrize(
    "listed",
    [
        AS_IT_WAS[:-1],
        AS_IT_WAS[1:],
        [*AS_IT_WAS, Stored(Entry(b"d/z", Kind.DIR, 0, 5, 0o755))],
        [FILE, RAW, replace(LINK, item=replace(LINK.item, target=b"b")), INNER],
    ],
)
def test_a_folder_that_lost_or_got_something_is_not_as_it_was(tmp_path: Path, listed: list[Stored[Entry]]) -> None:
    root = listing(tmp_path, AS_IT_WAS)
    assert root.unchanged(b"d", [record.item for record in listed]) is None


def test_a_folder_of_several_segments_is_known_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_module, "SEGMENT_NAMES", 2)
    root = listing(tmp_path, AS_IT_WAS)
    assert len(root.refs(b"d")) == 2
    assert root.unchanged(b"d", [record.item for record in AS_IT_WAS]) == [FILE.digest, RAW.digest]
