"""Folders brought to a server that does not take every name, and a mailbox that goes there whole all the same."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostbackup.model import Failure, Folder, Part
from hostbackup.places.mail import MailAccount
from hostbackup.places.mail_folders import FolderMap, Mapped
from hostbackup.places.mail_prepare import Preparation
from hostbackup.protocols.imap import names
from hostbackup.protocols.imap.framer import Answer, Tagged
from hostbackup.protocols.imap.session import Listed
from tests.support.imap_script import FakeBox, FakeImap, Hangup, Talk

PART = Part("mail", "user")
Refusal = Callable[[bytes], bytes]  # a name: what CREATE is answered with, b"" for yes


def _takes_all(name: bytes) -> bytes:
    return b""


@dataclass
class Picky:
    """A server with names of its own mind. `hollow` names hold no mail until they are made; `spelled` is how it writes down what it is asked for."""

    refuses: Refusal = _takes_all
    boxes: Sequence[bytes] = (b"INBOX",)
    hollow: Counter[bytes] = field(default_factory=Counter)  # how many CREATEs it takes until one works
    spelled: Callable[[bytes], bytes] = bytes
    uses: dict[bytes, bytes] = field(default_factory=dict)
    capabilities: bytes = b"IMAP4rev1 LITERAL+ UIDPLUS UNSELECT"
    hidden: bytes = b"-"  # LIST does not show it
    fake: FakeImap = field(init=False)

    def __post_init__(self) -> None:
        self.fake = FakeImap({name: FakeBox() for name in self.boxes}, self.capabilities, self._hook)

    def _hook(self, talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "LIST":
            for name in self.fake.boxes:
                if name != self.hidden:
                    talk.send(b'* LIST (%s) "/" "%s"\r\n' % (self.uses.get(name, b""), name.replace(b"\\", b"\\\\")))
            for name in self.hollow:
                talk.send(b'* LIST (\\Noselect) "/" "%s"\r\n' % name)
        elif verb == "CREATE":
            quoted, _, use = rest.partition(b" (USE")
            asked = quoted.strip(b'"').replace(b"\\\\", b"\\")
            name = self.spelled(asked)
            refusal = self.refuses(name + use)
            if not refusal and self.hollow.get(name, 0) > 1:
                self.hollow[name] -= 1
                refusal = b"NO [ALREADYEXISTS] there it is"
            if refusal or self._same(name) in map(self._same, self.fake.boxes):
                talk.send(tag + b" " + (refusal or b"NO [ALREADYEXISTS] there it is") + b"\r\n")
                return True
            self.hollow.pop(name, None)
            self.fake.boxes[name] = FakeBox()
            if use:
                self.uses[name] = use.strip(b" ()")
        else:
            return False
        talk.send(tag + b" OK done\r\n")
        return True

    def _same(self, name: bytes) -> bytes:
        return self.spelled(name)

    @contextmanager
    def place(self) -> Iterator[MailAccount]:
        with self.fake.running():
            place = MailAccount(self.fake.factory, side="new", part=PART, pause=lambda seconds: None)
            yield place
            place.close()

    def bring(
        self, *old: str | Folder, named: dict[str, str] | None = None, earlier: Iterable[Mapped] = ()
    ) -> tuple[dict[bytes, Mapped], list[Failure]]:
        """The rows for these old folders of a server with `|` between levels, once they are there; and what failed."""
        folders = [one if isinstance(one, Folder) else Folder(b"|".join(names.encode(part) for part in one.split("|")), b"|") for one in old]
        with self.place() as place:
            made = FolderMap.between(
                folders, place.folders(), old_prefix=b"", new_prefix=b"", new_separator=place.separator, named=named, earlier=earlier
            )
            failed = place.prepare(made.folders(), made)
        for row in made.rows:
            assert not row.stood or row.rule == "earlier" or row.new in self.fake.boxes
        return {row.old: row for row in made.rows}, failed

    def creates(self) -> list[bytes]:
        return [command for command in self.fake.commands if command.startswith(b"CREATE")]


def no(pattern: bytes, said: bytes = b"NO [CANNOT] no such name") -> Refusal:
    return lambda name: said if re.search(pattern, name) else b""


def shown(rows: dict[bytes, Mapped]) -> list[str]:
    return [names.display(row.new) for row in rows.values()]


def test_a_name_that_is_taken_as_it_is_stays_as_it_is() -> None:
    rows, failed = Picky().bring(" a ", "~", "50%", "*", "v1.2|x", "a&b")
    assert (shown(rows), failed) == ([" a ", "~", "50%", "*", "v1.2/x", "a&b"], [])
    assert {row.why for row in rows.values()} == {""}


@pytest.mark.parametrize("said", [b"NO [OVERQUOTA] too many folders", b"NO [THROTTLED] wait", b"NO Mailbox exists"])
def test_a_refused_name_that_the_server_may_take_for_another_old_folders_is_never_kept(said: bytes) -> None:
    server = Picky(boxes=(b"INBOX", b"Kunde"), refuses=no(b"(?i)^kunde", said))
    rows, failed = server.bring("Kunde", "kunde")
    assert rows[b"Kunde"].new == b"Kunde"
    assert not failed or failed[0].name == rows[b"kunde"].new  # its mail is sent nowhere else, and what stands there is nobody's
    assert rows[b"kunde"].new.lower() != b"kunde"


@pytest.mark.parametrize(
    ("pattern", "old", "new"),
    [
        (rb"\.", "Kunden.2024", "Kunden．2024"),
        (rb"[%*~]", "~50%*", "～50％＊"),
        (rb"(^|/) | (/|$)", " Kunden |alt ", "_Kunden_/alt_"),
        (rb"[^/]{101}", "長" * 60, r"長+-[0-9a-f]{8}"),
        (rb"/.*/", "a|b|c", r"a-b-c-[0-9a-f]{8}"),
        (rb"^Notes$", "Notes", r"Notes \(2\)"),
        (rb"[^ -~]|&", "送信😀", r"folder-[0-9a-f]{12}"),
    ],
    ids=["separator-within", "wildcards", "spaces-at-the-ends", "long", "deep", "reserved", "ascii-only"],
)
def test_a_name_that_is_refused_is_replaced_by_one_that_is_taken(pattern: bytes, old: str, new: str) -> None:
    rows, failed = Picky(no(pattern)).bring(old)
    (row,) = rows.values()
    assert failed == []
    assert re.fullmatch(new, names.display(row.new))
    assert row.stood
    assert row.why == f"the new server refused {old.replace('|', '/')!r}: no such name"


@pytest.mark.parametrize("said", [b"NO refused", b"BAD syntax", b"NO [NOPERM] no"])
def test_whatever_word_it_is_refused_with(said: bytes) -> None:
    rows, failed = Picky(no(rb"\.", said)).bring("a.b")
    assert (shown(rows), failed) == (["a．b"], [])


def test_what_is_below_a_refused_name_goes_below_the_one_it_got() -> None:
    server = Picky(no(rb"(^|/)Notes$"))
    rows, failed = server.bring("Notes", "Notes|2024", "Notes|2024|alt", "other|Notes|x")
    assert failed == []
    parent, child, deep, other = rows.values()
    assert child.new == parent.new + b"/2024"
    assert deep.new == child.new + b"/alt"
    assert other.new == b"other/Notes/x"
    assert {b"Notes/2024", b"Notes/2024/alt"}.isdisjoint(server.fake.boxes)


def test_a_refused_level_that_is_no_folder_is_replaced_too() -> None:
    rows, failed = Picky(no(rb"\.")).bring("v1.2|x", "v1.2|y.z")
    assert (shown(rows), failed) == (["v1．2/x", "v1．2/y．z"], [])
    rows, failed = Picky(no(rb"%")).bring("a!b|x%", "a!b|y", "a!b|c|z%")
    assert (shown(rows), failed) == (["a!b/x％", "a!b/y", "a!b/c/z％"], []), "nothing is wrong with what stands"


def test_another_name_is_not_tried_for_what_is_no_fault_of_the_name() -> None:
    server = Picky(lambda name: b"NO [UNAVAILABLE] try later")
    rows, failed = server.bring("a", "b")
    assert shown(rows) == ["a", "b"]
    assert [(failure.name, failure.code) for failure in failed] == [(b"a", "folder"), (b"b", "folder")]
    assert "try later" in failed[0].reason
    assert len(server.creates()) == 2


def test_a_server_that_makes_no_folder_at_all_costs_a_few_tries_and_is_told_once_a_folder() -> None:
    server = Picky(lambda name: b"NO not here")
    rows, failed = server.bring("a", "a|b", "INBOX")
    assert len(failed) == 2
    assert len({row.new for row in rows.values()}) == 3
    assert len(server.creates()) < 10
    assert not any(row.stood for row in rows.values() if row.old != b"INBOX")


def lower(name: bytes) -> bytes:
    return name.lower() if name != b"INBOX" else name


def test_two_names_that_differ_in_case_alone_stay_two_folders() -> None:
    server = Picky(spelled=lower)
    rows, failed = server.bring("Kunden", "KUNDEN", "KUNDEN|a", "Kunden|a")
    assert failed == []
    assert shown(rows) == ["kunden", "kunden (2)", "kunden (2)/a", "kunden/a"]
    assert set(server.fake.boxes) == {b"INBOX", b"kunden", b"kunden (2)", b"kunden/a", b"kunden (2)/a"}
    assert "another folder's" in rows[b"KUNDEN"].why
    again, failed = server.bring("Kunden", "KUNDEN", "KUNDEN|a", "Kunden|a", "kunden", earlier=rows.values())
    assert failed == []
    assert shown(again) == [*shown(rows), "kunden (3)"]


def test_a_folder_that_stands_there_in_another_spelling_is_taken_as_it_is_spelled() -> None:
    server = Picky(boxes=(b"INBOX", b"kunden"), spelled=lower)
    rows, failed = server.bring("Kunden", "Angebote")
    assert (shown(rows), failed) == (["kunden", "angebote"], [])
    assert rows[b"Kunden"].why == "the new server spells 'Kunden' so"


def test_a_server_that_says_yes_and_has_another_folder_of_that_name_is_not_believed() -> None:
    """CREATE is answered OK for what is there already; only LIST tells that both are one."""
    server = Picky(spelled=lower)
    answer = server.fake.hook

    def yes(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "CREATE" and lower(rest.strip(b'"')) in server.fake.boxes:
            talk.send(tag + b" OK it is there\r\n")
            return True
        return answer(talk, tag, verb, rest)

    server.fake.hook = yes
    rows, failed = server.bring("Kunden", "KUNDEN")
    assert (sorted(shown(rows)), failed) == (["kunden", "kunden (2)"], [])


def test_a_name_that_holds_no_mail_is_made_a_folder() -> None:
    server = Picky(hollow=Counter({b"a": 1}))
    rows, failed = server.bring("a", "a|b")
    assert (shown(rows), failed) == (["a", "a/b"], [])
    assert rows[b"a"].stood


@pytest.mark.parametrize("said", [b"", b"NO [CANNOT] it is a directory"])
def test_a_name_that_never_holds_mail_is_left_for_another(said: bytes) -> None:
    server = Picky(no(rb"^a$", said), hollow=Counter({b"a": 99}))
    rows, failed = server.bring("a", "b")
    assert (shown(rows), failed) == (["a (2)", "b"], [])
    assert rows[b"a"].why == "'a' can hold no mail there"


def test_what_the_profile_names_is_never_replaced() -> None:
    server = Picky(no(rb"\."), boxes=(b"INBOX", b"sent"), spelled=lower)
    rows, failed = server.bring("x", "y", "z", named={"x": "a.b", "y": "Sent", "z": "Sent"})
    assert shown(rows) == ["a.b", "sent", "sent"]
    assert [(failure.name, failure.code) for failure in failed] == [(b"a.b", "folder")]


def test_names_go_in_modified_utf7_to_a_server_that_could_take_utf8_too() -> None:
    """RFC 6855 §3, RFC 9051 §5.1: UTF-8 is for those who enabled it. What the old server sent as raw UTF-8 or broken is made sound."""
    server = Picky(capabilities=b"IMAP4rev1 IMAP4rev2 ENABLE UTF8=ACCEPT LITERAL+")
    rows, failed = server.bring("送信", Folder("受信".encode(), b"|"), Folder(b"&broken.\xff", b"|"))
    assert failed == []
    assert [row.new for row in rows.values()] == [names.encode("送信"), names.encode("受信"), b"&-broken.\\xff"]
    assert not [command for command in server.fake.commands if command.startswith(b"ENABLE")]


USED = b"IMAP4rev1 LITERAL+ CREATE-SPECIAL-USE SPECIAL-USE LIST-EXTENDED"


def sent(name: bytes, told: bool = True) -> Folder:
    return Folder(name, b"|", special_use="\\Sent" if told else "")


def test_a_use_that_nobody_has_there_is_created_once() -> None:
    server = Picky(capabilities=USED)
    rows, failed = server.bring(sent(b"Gesendet"), sent(b"Sent Items", told=False), sent(b"a|Sent"))
    assert (shown(rows), failed) == (["Gesendet", "Sent Items", "a/Sent"], [])
    assert server.uses == {b"Gesendet": b"\\Sent"}
    assert sorted(server.creates()) == [b'CREATE "Gesendet" (USE (\\Sent))', b'CREATE "Sent Items"', b'CREATE "a/Sent"']
    again, _ = server.bring(sent(b"Gesendet"), sent(b"Sent Items"), sent(b"New", told=True), earlier=rows.values())
    assert shown(again) == ["Gesendet", "Sent Items", "New"]
    assert server.uses == {b"Gesendet": b"\\Sent"}


@pytest.mark.parametrize("capabilities", [USED, b"IMAP4rev1 LITERAL+"])
def test_a_use_that_is_refused_or_unknown_leaves_a_plain_folder(capabilities: bytes) -> None:
    server = Picky(no(rb"\\Sent", b"NO [USEATTR] not this one"), capabilities=capabilities)
    rows, failed = server.bring(sent(b"Gesendet"))
    assert (shown(rows), failed, server.uses) == (["Gesendet"], [], {})


def test_a_folder_that_the_server_keeps_to_itself_is_there_all_the_same() -> None:
    server = Picky(hidden=b"Public")
    rows, failed = server.bring("Public")
    assert (shown(rows), failed) == (["Public"], [])
    server = Picky(hidden=b"Public", boxes=(b"INBOX", b"Public"))
    rows, failed = server.bring("Public", "x", named={"x": "Public"})
    assert (shown(rows), failed) == (["Public (2)", "Public"], [])


def test_a_folder_that_its_owner_took_away_is_not_made_again() -> None:
    server = Picky()
    rows, _ = server.bring("a", Folder(b"b", b"|", subscribed=True))
    del server.fake.boxes[b"a"], server.fake.boxes[b"b"]
    server.fake.commands.clear()
    again, failed = server.bring("a", Folder(b"b", b"|", subscribed=True), earlier=rows.values())
    assert (shown(again), failed) == (["a", "b"], [])
    assert not [command for command in server.fake.commands if command.startswith((b"CREATE", b"SUBSCRIBE"))]
    unknown = [Mapped(row.old, row.new, "path") for row in rows.values()]  # as an earlier version wrote it
    server.bring("a", "b", earlier=unknown)
    assert set(server.fake.boxes) == {b"INBOX", b"a", b"b"}


def test_a_name_of_an_earlier_run_that_was_refused_is_replaced() -> None:
    server = Picky(no(rb"\."))
    rows, failed = server.bring("a.b", earlier=[Mapped(b"a.b", b"a.b", "path")])
    assert (shown(rows), failed) == (["a．b"], [])
    assert rows[b"a.b"].rule == "path"


def test_a_line_that_is_cut_meanwhile_is_opened_again_and_it_goes_on() -> None:
    server = Picky(no(rb"\."))
    answer, cuts = server.fake.hook, [3]

    def cut(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "CREATE":
            cuts[0] -= 1
            if not cuts[0]:
                raise Hangup
        return answer(talk, tag, verb, rest)

    server.fake.hook = cut
    rows, failed = server.bring("a.b", "c", "d|e.f")
    assert (shown(rows), failed) == (["a．b", "c", "d/e．f"], [])


def test_hundreds_of_folders_cost_a_few_round_trips() -> None:
    server = Picky()
    rows, failed = server.bring(*(f"Kunde {number}" for number in range(300)), *(f"Kunde {number}|alt" for number in range(300)))
    assert failed == []
    assert all(row.stood for row in rows.values())
    listings = [command for command in server.fake.commands if command.startswith(b"LIST")]
    assert len(listings) == 3, "what is there, before and after"
    assert len(server.creates()) == 600


@dataclass
class Simulated:
    """A session with a server of that mind, without a line: what it has under a name decides, not what is asked for."""

    canonical: Callable[[bytes], bytes]
    refuses: Callable[[bytes], bool]
    hollow: set[bytes]
    code: str
    boxes: dict[bytes, int] = field(default_factory=lambda: {b"INBOX": 0})
    answers: dict[bytes, Tagged] = field(default_factory=dict)

    def list_folders(self) -> tuple[list[Listed], list[Listed]]:
        hollow = [Listed(name, b"/", ("\\Noselect",)) for name in self.hollow if name not in self.boxes]
        return [Listed(name, b"/", ()) for name in self.boxes] + hollow, []

    def offers(self, capability: str) -> bool:
        return True

    def status(self, name: bytes) -> object:
        return self.canonical(name) in self.boxes or None

    @property
    def channel(self) -> Simulated:
        return self

    def at_once(self, *arguments: object) -> bool:
        return True

    def start(self, verb: bytes, name: bytes, *more: bytes) -> bytes:
        assert verb == b"CREATE"
        asked = name.strip(b'"').replace(b'\\"', b'"').replace(b"\\\\", b"\\")
        tag, stands = b"%d" % len(self.answers), self.canonical(asked)
        refused = self.refuses(asked) or stands in self.hollow
        if stands in self.boxes:
            answer = Answer("NO", "ALREADYEXISTS") if self.code != "OK" else Answer("OK")
        else:
            answer = Answer("NO", self.code if self.code != "OK" else "", text=b"no") if refused else Answer("OK")
            if not refused:
                self.boxes[stands] = 0
        self.answers[tag] = Tagged(tag, answer)
        return tag

    def finish(self, tag: bytes) -> Tagged:
        return self.answers[tag]


_PART = st.sampled_from(["a", "A", "b", " a", "a.b", "a．b", "a%", "a (2)", "Sent", "SENT", "長" * 60, ""])
_PATHS = st.lists(st.lists(_PART, min_size=1, max_size=3).map("|".join), min_size=1, max_size=10, unique=True)
_CANONICAL: list[Callable[[bytes], bytes]] = [
    bytes,
    lower,
    lambda name: b"/".join(part.strip() or b"_" for part in name.split(b"/")),
    lambda name: names.encode("/".join(" ".join(part.split()) for part in names.decode(name).upper().split("/"))) if name != b"INBOX" else name,
]


_PATTERNS = [rb"\.", rb"%|\.", rb"[^ -~]|&", rb"[^/]{80}|(/.*){2}", rb"\)", rb"^a"]


@given(_PATHS, st.sampled_from(_CANONICAL), st.sampled_from(_PATTERNS), st.data())
def test_on_whatever_server_no_two_folders_become_one(
    paths: list[str], canonical: Callable[[bytes], bytes], pattern: bytes, data: st.DataObject
) -> None:
    wire = {b"|".join(names.encode(part) for part in path.split("|")): "\\Sent" if "S" in path else "" for path in paths}
    folders = [Folder(name, b"|", special_use=use) for name, use in wire.items() if name]
    there = set(map(canonical, data.draw(st.sets(st.sampled_from([b"a", b"b", b"sent"])))))
    hollow = set(map(canonical, data.draw(st.sets(st.sampled_from([b"a", b"A", b"a/b"]))))) - there
    server = Simulated(canonical, lambda name: re.search(pattern, name) is not None, hollow, data.draw(st.sampled_from(["", "CANNOT", "OK"])))
    server.boxes |= dict.fromkeys(there, 0)

    def run(listed: Iterable[bytes], earlier: Iterable[Mapped] = ()) -> tuple[list[Mapped], list[Failure]]:
        new = [Folder(name, b"/") for name in listed]
        made = FolderMap.between(folders, new, old_prefix=b"", new_prefix=b"", new_separator=b"/", earlier=earlier)
        failed = Preparation(folders, made, lambda *facts: Failure("new", "", *facts)).run(server)  # type: ignore[arg-type]
        return made.rows, failed

    rows, failed = run(list(server.boxes))
    stood = [row for row in rows if row.stood]
    assert len(failed) + len(stood) == len(rows)
    assert len({canonical(row.new) for row in stood}) == len(stood)
    assert all(row.new in server.boxes for row in stood)
    asked = len(server.answers)
    again, _ = run([], [Mapped.from_record(row.as_record()) for row in rows])
    if not failed:
        assert {row.old: row.new for row in again} == {row.old: row.new for row in rows}
        assert len(server.answers) == asked, "nothing more is made"
