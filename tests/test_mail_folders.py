"""Where an old folder's messages go on the new server."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostbackup.model import Folder
from hostbackup.places.mail_folders import FolderMap, special_use_by_name
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
    assert made.row(_folder("INBOX.Sent Messages")).rule == "name"
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
    row = _to_slash(new_folders=there, named={key: "保管/送信"}, earlier={b"INBOX.x": b"y"}).row(_folder("INBOX.送信済みアイテム"))
    assert (row.new, row.rule) == (names.encode("保管") + b"/" + names.encode("送信"), "profile")


@pytest.mark.parametrize(("value", "wire"), [("Sent", b"INBOX.Sent"), ("INBOX.Sent", b"INBOX.Sent"), ("a/b", b"INBOX.a.b"), ("inbox", b"INBOX")])
def test_a_name_in_the_profile_needs_no_prefix(value: str, wire: bytes) -> None:
    assert _to_dot(named={"送信済み": value}).target(_folder("送信済み", "/")) == wire


def test_a_decomposed_name_from_a_mac_is_the_same_name() -> None:
    assert _to_dot(named={"バックアップ": "Sent"}).target(_folder("ハ\u3099ックアッフ\u309a", "/")) == b"INBOX.Sent"


def test_an_earlier_decision_holds_when_the_new_server_changes() -> None:
    old = _folder("INBOX.送信済みアイテム")
    first = _to_slash()
    later = _to_slash(new_folders=[Folder(b"Sent", b"/", special_use="\\Sent")], earlier={old.name: first.target(old)})
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


def test_two_old_folders_may_lead_to_one_and_the_table_tells_both() -> None:
    there = [Folder(b"Sent", b"/", special_use="\\Sent")]
    made = FolderMap.between(
        [_folder("INBOX.Sent Items"), _folder("INBOX.送信済み")], there, old_prefix=b"INBOX.", new_prefix=b"", new_separator=b"/"
    )
    assert {row.new for row in made.rows} == {b"Sent"}
    assert len({row.old for row in made.rows}) == 2


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
