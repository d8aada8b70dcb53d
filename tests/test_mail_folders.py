"""Where an old folder's messages go on the new server."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostbackup.model import Folder
from hostbackup.places.mail_folders import FolderMap, Mapped
from hostbackup.places.mail_names import same, special_use_by_name
from hostbackup.protocols.imap import names


def _folder(text: str, separator: str = ".", special_use: str = "") -> Folder:
    return Folder(separator.encode().join(names.encode(part) for part in text.split(separator)), separator.encode(), special_use=special_use)


def _to_slash(**more: Any) -> FolderMap:
    return FolderMap(old_prefix=b"INBOX.", new_prefix=b"", new_separator=b"/", **more)


def _to_dot(**more: Any) -> FolderMap:
    return FolderMap(old_prefix=b"", new_prefix=b"INBOX.", new_separator=b".", **more)


def test_prefix_and_separator_are_the_new_servers() -> None:
    assert _to_slash().target(_folder("INBOX.営業.2026")) == names.encode("営業") + b"/2026"
    assert _to_dot().target(_folder("営業/2026", "/")) == b"INBOX." + names.encode("営業") + b".2026"
    assert _to_dot().target(_folder("INBOX/sub", "/")) == b"INBOX.sub"
    assert _to_slash().target(_folder("outside")) == b"outside"


@pytest.mark.parametrize("name", [b"INBOX", b"inbox", b"Inbox"])
def test_inbox_is_inbox(name: bytes) -> None:
    for made in (_to_slash(), _to_dot()):
        row = made.row(Folder(name, b"."))
        assert (row.new, row.rule) == (b"INBOX", "inbox")


def test_special_use_on_both_sides_joins_folders_of_different_names() -> None:
    there = [Folder(b"INBOX", b"/"), Folder(b"Sent", b"/", special_use="\\Sent")]
    row = _to_slash(new_folders=there).row(_folder("INBOX.Gesendet", special_use="\\Sent"))
    assert (row.new, row.rule, row.special_use) == (b"Sent", "special-use", "\\Sent")


def test_japanese_and_english_names_tell_the_special_use() -> None:
    there = [Folder(b"Sent", b"/", special_use="\\Sent"), Folder(b"Deleted Items", b"/"), Folder(b"Spam", b"/"), Folder(b"Junk", b"/")]
    made = _to_slash(new_folders=there)
    assert made.row(_folder("INBOX.送信済みアイテム")).new == b"Sent"
    assert _to_slash(new_folders=there).row(_folder("INBOX.Sent Messages")).rule == "name"
    assert made.target(_folder("INBOX.ごみ箱")) == b"Deleted Items"
    assert made.target(_folder("INBOX.迷惑メール")) == names.encode("迷惑メール"), "two folders could be meant: the name stays"
    assert made.target(_folder("INBOX.案件.送信済みアイテム")) == names.encode("案件") + b"/" + names.encode("送信済みアイテム")


def test_without_such_a_folder_there_the_name_stays_and_the_use_is_told() -> None:
    row = _to_slash().row(_folder("INBOX.下書き"))
    assert (row.new, row.rule, row.special_use) == (names.encode("下書き"), "path", "\\Drafts")


@pytest.mark.parametrize(
    ("text", "use"),
    [
        ("送信済みアイテム", "\\Sent"),
        ("送信済みメール", "\\Sent"),
        ("送信済み", "\\Sent"),
        ("下書き", "\\Drafts"),
        ("ごみ箱", "\\Trash"),
        ("迷惑メール", "\\Junk"),
        ("Sent Items", "\\Sent"),
        ("sent messages", "\\Sent"),
        ("Deleted Items", "\\Trash"),
        ("Drafts", "\\Drafts"),
        ("Junk E-mail", "\\Junk"),
        ("SPAM", "\\Junk"),
        ("Trash", "\\Trash"),
        ("Ｓｅｎｔ", "\\Sent"),
        ("送信", ""),
        ("Presentations", ""),
    ],
)
def test_the_built_in_names(text: str, use: str) -> None:
    assert special_use_by_name(text) == use


@pytest.mark.parametrize("key", ["送信済みアイテム", "INBOX.送信済みアイテム"])
def test_the_profile_has_the_last_word(key: str) -> None:
    there = [Folder(b"Sent", b"/", special_use="\\Sent")]
    row = _to_slash(new_folders=there, named={key: "保管/送信"}, earlier=[Mapped(b"INBOX.x", b"y", "path")]).row(_folder("INBOX.送信済みアイテム"))
    assert (row.new, row.rule) == (names.encode("保管") + b"/" + names.encode("送信"), "profile")


@pytest.mark.parametrize(
    ("value", "wire"),
    [
        *(("Sent", b"INBOX.Sent"), ("INBOX.Sent", b"INBOX.Sent"), ("INBOX/Sent", b"INBOX.Sent"), ("a/b", b"INBOX.a.b")),
        *(("inbox", b"INBOX"), ("INBOX.", b"INBOX")),
    ],
)
def test_a_name_in_the_profile_needs_no_prefix(value: str, wire: bytes) -> None:
    assert _to_dot(named={"送信済み": value}).target(_folder("送信済み", "/")) == wire


def test_a_decomposed_name_from_a_mac_is_the_same_name() -> None:
    assert _to_dot(named={"バックアップ": "Sent"}).target(_folder("ハ\u3099ックアッフ\u309a", "/")) == b"INBOX.Sent"


def test_an_earlier_decision_holds_when_the_new_server_changes() -> None:
    old = _folder("INBOX.送信済みアイテム")
    first = _to_slash()
    later = _to_slash(new_folders=[Folder(b"Sent", b"/", special_use="\\Sent")], earlier=[first.row(old)])
    assert later.row(old).rule == "earlier"
    assert later.target(old) == first.target(old)


def test_the_new_separator_inside_a_component_is_replaced_and_recorded() -> None:
    row = _to_dot().row(_folder("v1.2/報告", "/"))
    assert row.new == b"INBOX." + names.encode("v1．2") + b"." + names.encode("報告")
    assert row.replaced == ((b"v1.2", names.encode("v1．2")),)
    assert row.as_json()["replaced"] == [{"old": "v1.2", "new": "v1&,w4-2"}]
    assert _to_slash().target(_folder("INBOX.a/b")) == names.encode("a／b")


def test_names_that_the_new_server_would_refuse_become_valid() -> None:
    raw = Folder(b"INBOX." + "送信".encode(), b".")
    assert _to_slash().target(raw) == names.encode("送信")
    assert names.decode(_to_slash().target(Folder(b"INBOX.&broken.\xff", b".")))
    assert _to_slash().target(Folder(b"INBOX.a..b", b".")) == b"a/_/b"


def _between(*folders: Folder, to_dot: bool = False, there: tuple[Folder, ...] = (), **more: Any) -> dict[bytes, Mapped]:
    facts = (b"", b"INBOX.", b".") if to_dot else (b"INBOX.", b"", b"/")
    made = FolderMap.between(folders, there, old_prefix=facts[0], new_prefix=facts[1], new_separator=facts[2], **more)
    return {row.old: row for row in made.rows}


def test_two_old_folders_lead_to_one_where_the_profile_says_so_of_both() -> None:
    named = {"Sent Items": "Sent", "送信済み": "Sent"}
    rows = _between(_folder("INBOX.Sent Items"), _folder("INBOX.送信済み"), named=named)
    assert {row.new for row in rows.values()} == {b"Sent"}
    assert len(rows) == 2
    alone = _between(_folder("INBOX.Sent"), _folder("INBOX.送信済み"), named={"送信済み": "Sent"})
    assert [row.new for row in alone.values()] == [b"Sent (2)", b"Sent"], "nobody said that of the other one"


def test_of_two_folders_with_one_use_the_one_that_the_old_server_tells_gets_the_new_servers() -> None:
    there = (Folder(b"Sent Items", b"/", special_use="\\Sent"),)
    told, by_name, both = _folder("INBOX.Gesendet", special_use="\\Sent"), _folder("INBOX.送信済み"), _folder("INBOX.Sent Items")
    rows = _between(by_name, told, both, there=there)
    assert [(row.new, row.rule) for row in rows.values()] == [
        (names.encode("送信済み"), "path"),
        (b"Sent Items", "special-use"),
        (b"Sent Items (2)", "path"),
    ]
    assert "number" in rows[both.name].why
    assert [row.special_use for row in rows.values()] == ["", "\\Sent", ""], "only one has such a folder made"
    assert _between(by_name, both, there=there)[both.name].rule == "name", "of two that are only called so, the one that needs no other name"
    broken = _between(_folder("INBOX.a", special_use="\\Sent"), _folder("INBOX.b", special_use="\\Sent"), there=there)
    assert [row.new for row in broken.values()] == [b"Sent Items", b"b"]


@pytest.mark.parametrize("use", ["\\All", "\\Flagged"])
def test_a_view_of_the_new_server_gets_no_messages(use: str) -> None:
    rows = _between(_folder("INBOX.x", special_use=use), there=(Folder(b"View", b"/", special_use=use),))
    assert [(row.new, row.rule, row.special_use) for row in rows.values()] == [(b"x", "path", "")]


def test_replaced_separators_that_meet_another_folder_give_way_to_it() -> None:
    rows = _between(_folder("a.b/x", "/"), _folder("a．b/x", "/"), _folder("a．b", "/"), to_dot=True)
    wide = names.encode("a．b")
    assert [row.new for row in rows.values()] == [b"INBOX." + wide + b" (2).x", b"INBOX." + wide + b".x", b"INBOX." + wide]
    assert "'a.b'" in rows[b"a.b/x"].why


def test_what_stands_below_inbox_and_beside_it_stays_apart() -> None:
    rows = _between(_folder("INBOX/sub", "/"), _folder("sub", "/"), _folder("INBOX", "/"), to_dot=True)
    assert len({row.new for row in rows.values()}) == 3
    rows = _between(Folder(b"INBOX", b"."), _folder("INBOX.INBOX"), _folder("INBOX.Inbox"), _folder("outside"), _folder("INBOX.outside"))
    assert sorted(row.new for row in rows.values()) == [b"INBOX", b"INBOX (2)", b"Inbox (2)", b"outside", b"outside (2)"]


def test_broken_and_sound_spellings_of_one_name_stay_apart() -> None:
    rows = _between(Folder(b"INBOX." + "送信".encode(), b"."), _folder("INBOX.送信"))
    assert sorted(row.new for row in rows.values()) == [names.encode("送信"), names.encode("送信") + b" (2)"]


def test_a_map_on_record_is_read_back_and_one_of_an_earlier_version_too() -> None:
    rows = _between(_folder("v1.2/報告", "/"), _folder("下書き", "/"), to_dot=True)
    for row in rows.values():
        assert Mapped.from_record(row.as_record()) == row
    again = _between(_folder("v1.2/報告", "/"), _folder("下書き", "/"), to_dot=True, earlier=rows.values())
    assert {row.rule for row in again.values()} == {"earlier"}
    assert [row.as_record() for row in again.values()] == [row.as_record() for row in rows.values()], "nothing of it is forgotten"
    old = [
        {"old": "INBOX.A", "new": "Sent", "rule": "earlier", "special_use": ""},
        {"old": "INBOX.B", "new": "Sent", "rule": "path", "special_use": ""},
    ]
    merged = _between(_folder("INBOX.A"), _folder("INBOX.B"), _folder("INBOX.Sent"), earlier=map(Mapped.from_record, old))
    assert [row.new for row in merged.values()] == [b"Sent", b"Sent", b"Sent (2)"], "what was put together stays, and nothing joins it"


def test_what_is_added_below_a_folder_later_stands_below_it() -> None:
    first = _between(_folder("a.b/x", "/"), _folder("a．b", "/"), to_dot=True)
    later = _between(_folder("a.b", "/"), _folder("a.b/y", "/"), to_dot=True, earlier=first.values())
    assert later[b"a.b/y"].new == b"INBOX." + names.encode("a．b") + b" (2).y", "as an unknown folder: nothing tells where a.b went"
    both = _between(_folder("a.b/x", "/"), _folder("a.b", "/"), _folder("a.b/y", "/"), to_dot=True, earlier=first.values())
    assert both[b"a.b/y"].new == first[b"a.b/x"].new.replace(b".x", b".y")
    assert both[b"a.b"].new == first[b"a.b/x"].new.removesuffix(b".x")


def test_another_name_takes_along_what_is_below() -> None:
    parent, child, deep = _folder("INBOX.SENT"), _folder("INBOX.SENT.x"), _folder("INBOX.SENT.y.z")
    made = FolderMap.between([parent, child, deep, _folder("INBOX.sent")], [], old_prefix=b"INBOX.", new_prefix=b"", new_separator=b"/")
    assert made.another(parent, "'SENT' is another folder's there", taken=True)
    assert [made.target(one) for one in (parent, child, deep)] == [b"SENT (2)", b"SENT (2)/x", b"SENT (2)/y/z"]
    assert made.row(parent).why == "'SENT' is another folder's there"
    assert made.is_free(b"SENT", child), "the name is nobody's now"


def test_names_become_plainer_from_one_refusal_to_the_next() -> None:
    folder = _folder("INBOX. ~Kunden 2024% ")
    made = FolderMap.between([folder], [], old_prefix=b"INBOX.", new_prefix=b"", new_separator=b"/")
    tried = [made.target(folder)]
    while made.another(folder, "refused"):
        tried.append(made.target(folder))
    assert [names.display(name) for name in tried[:2]] == [" ~Kunden 2024% ", "_～Kunden 2024％_"]
    flat, last = tried[2:]
    assert re.fullmatch(rb"__Kunden_2024__-[0-9a-f]{8}", flat)
    assert re.fullmatch(rb"folder-[0-9a-f]{12}", last)
    assert made.target(folder) == last, "it stays nobody else's"


def test_levels_are_short_enough_for_a_file_system_once_they_were_refused() -> None:
    folders = [_folder("INBOX." + "長" * 200 + end) for end in ("甲", "乙")]
    made = FolderMap.between(folders, [], old_prefix=b"INBOX.", new_prefix=b"", new_separator=b"/")
    for folder in folders:
        assert made.another(folder, "too long")
    short = [made.target(folder) for folder in folders]
    assert len(set(short)) == 2
    assert all(len(name) <= 100 and names.display(name).startswith("長長") for name in short)


def test_a_server_without_hierarchy_gets_flat_names() -> None:
    made = FolderMap(old_prefix=b"", new_prefix=b"", new_separator=b"")
    assert made.target(_folder("a/b", "/")) == b"a_b"


_COMPONENT = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="./"), min_size=1).filter(
    lambda text: text.upper() != "INBOX" and not special_use_by_name(text)
)


@given(st.lists(_COMPONENT, min_size=1, max_size=4))
def test_there_and_back_is_the_same_name(parts: list[str]) -> None:
    dotted = Folder(b"INBOX." + b".".join(names.encode(part) for part in parts), b".")
    slashed = Folder(_to_slash().target(dotted), b"/")
    assert slashed.name == b"/".join(names.encode(part) for part in parts)
    assert _to_dot().target(slashed) == dotted.name


@given(st.binary(max_size=40), st.sampled_from([b"", b".", b"/", b"\\"]), st.sampled_from([b"", b".", b"/", b"|"]))
def test_any_name_at_all_maps_to_a_valid_one(name: bytes, old_separator: bytes, new_separator: bytes) -> None:
    made = FolderMap(old_prefix=b"", new_prefix=b"", new_separator=new_separator)
    new = made.target(Folder(name, old_separator))
    assert names.encode(names.decode(new)) == new
    assert new


_LEVEL = st.sampled_from(["a", "A", "a.b", "a．b", "a/b", "Sent", "送信済み", "INBOX", "inbox", "", " a", "a (2)", "~", "%", "\x01", "長" * 90])
_OLD = st.lists(st.lists(_LEVEL, min_size=1, max_size=3).map(tuple), min_size=1, max_size=12, unique=True)
_THERE = (Folder(b"INBOX", b"."), Folder(b"INBOX.Sent", b".", special_use="\\Sent"), Folder(b"INBOX.a", b"."))


def _olds(paths: list[tuple[str, ...]]) -> list[Folder]:
    """On a server with `|` between levels; a whole name that is INBOX in any case is INBOX."""
    wire = {b"|".join(names.encode(part) for part in path) for path in paths}
    return [Folder(name, b"|") for name in sorted({b"INBOX" if names.is_inbox(name) else name for name in wire} - {b""})]


def _one_to_one(rows: list[Mapped], separator: bytes) -> None:
    new = [same(row.new, separator) for row in rows]
    assert len(set(new)) == len(rows), "back from each new name leads one way only"
    for row in rows:
        assert names.encode(names.decode(row.new)) == row.new
        assert row.new not in (b"", b"INBOX.")


@given(_OLD, _OLD, st.sampled_from([(b"", b"/"), (b"INBOX.", b"."), (b"", b"")]))
def test_no_two_folders_share_a_name_and_later_ones_change_no_earlier_one(
    first: list[tuple[str, ...]], more: list[tuple[str, ...]], layout: tuple[bytes, bytes]
) -> None:
    facts: dict[str, Any] = {"old_prefix": b"", "new_prefix": layout[0], "new_separator": layout[1]}
    there = [Folder(one.name.replace(b"INBOX.", layout[0]), layout[1], special_use=one.special_use) for one in _THERE]
    rows = FolderMap.between(_olds(first), there, **facts).rows
    _one_to_one(rows, layout[1])
    again = FolderMap.between(reversed(_olds(first)), there, **facts).rows
    assert {row.old: row.new for row in again} == {row.old: row.new for row in rows}, "whatever the order"
    record = [Mapped.from_record(row.as_record()) for row in rows]
    later = FolderMap.between(_olds(first + more), [], earlier=record, **facts).rows
    _one_to_one(later, layout[1])
    assert {row.old: row.new for row in later}.items() >= {row.old: row.new for row in rows}.items()


@given(_OLD, st.data())
def test_whatever_a_server_refuses_no_two_folders_share_a_name(paths: list[tuple[str, ...]], data: st.DataObject) -> None:
    folders = _olds([*paths, ("x",)])
    made = FolderMap.between(folders, _THERE, old_prefix=b"", new_prefix=b"INBOX.", new_separator=b".")
    for folder, taken in data.draw(st.lists(st.tuples(st.sampled_from(folders), st.booleans()), max_size=30)):
        before = made.target(folder)
        if made.another(folder, "no", taken=taken):
            assert made.target(folder) != before
        _one_to_one(made.rows, b".")
