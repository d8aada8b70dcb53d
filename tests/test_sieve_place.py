"""Filters as a place: files and a link, nothing overwritten that somebody else changed, cut lines, refusals."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hostbackup.errors import Damaged, LineCut, ProtocolBroken
from hostbackup.jobs.keys import name_key
from hostbackup.jobs.ledger import Ledger
from hostbackup.jobs.push_plan import Action, Comparer, journal_record
from hostbackup.model import Claim, Entry, Kind, Listing, Part, Read, Status, Stored, Write, Written
from hostbackup.places.exclude import Excludes
from hostbackup.places.sieve import ACTIVE, SieveTree, by_contents, file_name, script_name
from hostbackup.protocols.sieve import Refused, Script, SieveSession
from tests.support.sink import MemorySink

PART = Part("sieve", "taro@example.test")
AWAY, SORT = b"vacation 'gone';", "# 振り分け\r\nkeep;".encode()


class Server:
    """What stands on a server, and how it answers."""

    def __init__(self, scripts: Mapping[bytes, bytes] | None = None, active: bytes = b"") -> None:
        self.scripts = dict(scripts or {})
        self.active = active
        self.logins = 0
        self.listed: list[Script] = []  # what is listed instead
        self.before: Callable[[str, bytes], None] = lambda verb, name: None  # may raise, or change something
        self.stored: Callable[[bytes], bytes] = lambda data: data  # what becomes of a script that is put there

    def place(self, **more: object) -> SieveTree:
        return SieveTree(self._login, side="new", part=PART, **more)  # type: ignore[arg-type]

    def _login(self) -> SieveSession:
        self.logins += 1
        return _Session(self)


class _Session(SieveSession):
    def __init__(self, server: Server) -> None:
        self._server = server

    def scripts(self) -> list[Script]:
        self._server.before("scripts", b"")
        return self._server.listed or [Script(name, name == self._server.active) for name in self._server.scripts]

    def get(self, name: bytes) -> bytes | None:
        self._server.before("get", name)
        return self._server.scripts.get(name)

    def get_all(self, names: Sequence[bytes]) -> Iterator[bytes | Refused | None]:
        self._server.before("get_all", b"")
        for name in names:
            try:
                yield self.get(name)
            except Refused as refused:
                yield refused

    def put(self, name: bytes, script: bytes) -> None:
        self._server.before("put", name)
        self._server.scripts[name] = self._server.stored(script)

    def activate(self, name: bytes) -> None:
        self._server.before("activate", name)
        self._server.active = name

    def close(self) -> None:
        pass

    def drop(self) -> None:
        pass


def once(verb: str, act: Callable[[], None]) -> Callable[[str, bytes], None]:
    left = [verb]

    def before(asked: str, name: bytes) -> None:
        if asked in left:
            left.remove(asked)
            act()

    return before


def cut() -> None:
    raise LineCut("the line was cut")


def always(verb: str, name: bytes, error: Exception) -> Callable[[str, bytes], None]:
    def before(asked: str, of: bytes) -> None:
        if (asked, of) == (verb, name):
            raise error

    return before


def script(name: bytes, data: bytes, *, expected: bytes | None = None) -> Write[Entry]:
    path, digest = file_name(name), hashlib.sha256(data).hexdigest()
    before = None
    if expected is not None:
        before = Entry(path, Kind.FILE, len(expected), by_contents(path, hashlib.sha256(expected).hexdigest()), 0o600)
    return Write(Entry(path, Kind.FILE, len(data), 1, 0o600), digest, len(data), partial(io.BytesIO, data), before is not None, before)


def active(name: bytes, *, expected: bytes | None = None) -> Write[Entry]:
    before = Entry(ACTIVE, Kind.LINK, target=file_name(expected)) if expected is not None else None
    return Write(Entry(ACTIVE, Kind.LINK, target=file_name(name)), replace=before is not None, expected=before)


def write(place: SieveTree, *items: Write[Entry]) -> dict[bytes, str]:
    done: list[Written[Entry]] = list(place.write(items))
    assert len(done) == len(items)
    return {one.asked.item.path: one.failure.code if one.failure else "" for one in done}


def scan(place: SieveTree) -> Listing[Entry]:
    [listing] = place.scan()
    return listing


@given(st.binary(max_size=400))
@example(b"")
@example(b"%")
@example(b"..")
@example(b"%2E%")
@example(b"a/../b\0")
@example(b"\x80" * 400)
@example("振り分け".encode() * 100)
def test_a_scripts_file_is_one_harmless_component_and_tells_its_name(name: bytes) -> None:
    server = Server({name: SORT}, active=b"another")
    place = server.place()
    [entry] = scan(place).items
    path = entry.path
    assert (path, script_name(path, place.names), len(place.names)) == (file_name(name), name, b"%~" in path)
    assert b"/" not in path and not path.startswith(b".") and min(path) >= 0x20
    assert (path != ACTIVE, len(path) <= 255) == (True, True)


def test_long_names_that_begin_alike_are_two_files() -> None:
    one, other = (b"x" * 1000 + end for end in (b"1", b"2"))
    assert file_name(one) != file_name(other)
    with pytest.raises(ValueError, match="not the file of a Sieve script"):
        script_name(file_name(one))


def test_a_script_that_is_listed_twice_and_a_second_active_one_are_no_second_file() -> None:
    server = Server({b"away": AWAY, b"sort": SORT})
    place = server.place()
    listed = [Script(b"away", True), Script(b"away"), Script(b"sort", True)]
    server.listed = listed
    assert [(entry.path, entry.target) for entry in scan(place).items] == [(b"active", b"away.sieve"), (b"away.sieve", b""), (b"sort.sieve", b"")]


@pytest.mark.parametrize("path", [b"active", b".sieve", b"x", b"%41.sieve", b"a/b.sieve", b"%2e.sieve", b".x.sieve"])
def test_other_files_are_no_scripts(path: bytes) -> None:
    with pytest.raises(ValueError, match="not the file of a Sieve script"):
        script_name(path)


def test_scripts_are_files_and_a_link_leads_to_the_active_one() -> None:
    server = Server({b"away": AWAY, "振り分け/1".encode(): SORT}, active=b"away")
    place = server.place(dated=lambda path, digest: len(path))
    listing = scan(place)
    sort = "振り分け%2F1.sieve".encode()
    assert [(entry.path, entry.kind, entry.size, entry.target) for entry in listing.items] == [
        (b"active", Kind.LINK, 0, b"away.sieve"),
        (b"away.sieve", Kind.FILE, len(AWAY), b""),
        (sort, Kind.FILE, len(SORT), b""),
    ]
    sink = MemorySink()
    reads: list[Read[Entry]] = list(place.read(listing.items[1:], sink))
    assert [(read.digest, read.item.mtime_ns, read.failure) for read in reads] == [
        (hashlib.sha256(AWAY).hexdigest(), 10, None),
        (hashlib.sha256(SORT).hexdigest(), len(sort), None),
    ]
    assert server.logins == 1


def test_a_name_that_was_cut_goes_to_the_new_server_whole() -> None:
    name = b"x" * 1000
    server = Server()
    place = server.place(names={file_name(name): name})
    assert write(place, script(name, SORT), active(name)) == {file_name(name): "", b"active": ""}
    assert (server.scripts, server.active) == ({name: SORT}, name)
    assert write(server.place(), script(b"y" * 1000, SORT)) == {file_name(b"y" * 1000): "name-refused"}


def test_a_script_that_is_not_given_is_told_when_it_is_read() -> None:
    server = Server({b"a": AWAY, b"b": SORT})
    server.before = always("get", b"a", Refused("", "corrupted"))
    place = server.place()
    entries = scan(place).items
    told = {read.asked.path: read.failure and (read.failure.code, read.failure.reason) for read in place.read(entries, MemorySink())}
    assert told == {b"a.sieve": ("refused", "the server refused it: corrupted"), b"b.sieve": None}
    server.before = always("scripts", b"", Refused("", "no"))
    failure = scan(place).failure
    assert failure is not None and failure.code == "refused"


def test_scripts_come_before_the_link_that_needs_them() -> None:
    server = Server()
    assert write(server.place(), active(b"sort"), script(b"away", AWAY), script(b"sort", SORT)) == {
        b"away.sieve": "",
        b"sort.sieve": "",
        b"active": "",
    }
    assert (server.scripts, server.active) == ({b"away": AWAY, b"sort": SORT}, b"sort")


def test_what_somebody_else_wrote_stays() -> None:
    server = Server({b"away": b"theirs"}, active=b"away")
    place = server.place()
    assert write(place, script(b"away", AWAY)) == {b"away.sieve": "exists"}
    assert write(place, script(b"away", AWAY, expected=SORT)) == {b"away.sieve": "changed-since"}
    assert write(place, script(b"sort", SORT), active(b"sort")) == {b"sort.sieve": "", b"active": "exists"}
    assert write(place, active(b"sort", expected=b"other")) == {b"active": "exists"}
    assert (server.scripts, server.active) == ({b"away": b"theirs", b"sort": SORT}, b"away")
    assert write(place, script(b"away", AWAY, expected=b"theirs"), active(b"sort", expected=b"away")) == {b"away.sieve": "", b"active": ""}
    assert (server.scripts, server.active) == ({b"away": AWAY, b"sort": SORT}, b"sort")


def test_only_the_script_that_was_meant_is_made_active() -> None:
    server = Server({b"away": b"theirs"})
    place = server.place(good={file_name(b"away"): hashlib.sha256(AWAY).hexdigest()})
    assert write(place, active(b"away")) == {b"active": "conflict"}
    assert write(place, active(b"gone")) == {b"active": "refused"}
    server.scripts[b"away"] = AWAY
    assert write(place, active(b"away")) == {b"active": ""}
    assert server.active == b"away"


@pytest.mark.parametrize(("code", "expected"), [("QUOTA/MAXSIZE", "over-quota"), ("", "refused")])
def test_a_refusal_is_told_and_the_rest_is_written(code: str, expected: str) -> None:
    server = Server()
    server.before = always("put", b"away", Refused(code, "not this one"))
    assert write(server.place(), script(b"away", AWAY), script(b"sort", SORT)) == {b"away.sieve": expected, b"sort.sieve": ""}


def test_a_server_that_keeps_other_bytes_is_found_out() -> None:
    server = Server()
    server.stored = lambda data: data.replace(b"\r\n", b"\n")
    [one] = server.place().write([script(b"sort", SORT)])
    assert one.failure is not None
    assert (one.failure.code, "only its line ends differ" in one.failure.reason) == ("altered", True)


@pytest.mark.parametrize(("sent", "words"), [(True, "the new server keeps it otherwise"), (False, "was on the new server before")])
def test_what_the_server_keeps_otherwise_is_no_older_script_to_the_next_push(sent: bool, words: str) -> None:
    place = Server({b"sort": SORT.replace(b"\r\n", b"\n")}).place()
    source = Stored(script(b"sort", SORT).item, hashlib.sha256(SORT).hexdigest(), len(SORT))
    journal = {name_key(source.item.path): journal_record(source, source.item, "intent")} if sent else {}
    [step] = Comparer(place, cast("Ledger", journal), Excludes(), Excludes()).steps([(source, scan(place).items[0])])
    assert (step.action, words in step.reason) == (Action.CONFLICT, True)


def test_what_is_no_script_is_refused_here() -> None:
    item = Entry(b"sub", Kind.DIR)
    assert write(Server().place(), Write(item)) == {b"sub": "name-refused"}


@pytest.mark.parametrize("verb", ["scripts", "get", "get_all", "put", "activate"])
def test_a_cut_line_is_made_anew_once(verb: str) -> None:
    server = Server({b"away": AWAY})
    server.before = once(verb, cut)
    place = server.place()
    scan(place)
    assert write(place, script(b"sort", SORT), active(b"sort")) == {b"sort.sieve": "", b"active": ""}
    assert (server.scripts, server.active, server.logins) == ({b"away": AWAY, b"sort": SORT}, b"sort", 2)


@pytest.mark.parametrize("error", [LineCut("the line was cut"), ProtocolBroken("no answer")])
def test_a_script_that_cuts_the_line_each_time_is_told_and_the_others_come(error: Exception) -> None:
    server = Server({b"away": AWAY, b"bad": SORT, b"sort": SORT}, active=b"sort")
    server.before = always("get", b"bad", error)
    place = server.place()
    entries = [entry for entry in scan(place).items if entry.kind is Kind.FILE]
    told = {read.asked.path: read.failure.code if read.failure else read.size for read in place.read(entries, MemorySink())}
    assert told == {b"away.sieve": len(AWAY), b"bad.sieve": "line-cut", b"sort.sieve": len(SORT)}
    assert server.logins == 4  # with several at once, and alone, and once more, and for the next one


def test_a_line_that_stays_cut_ends_the_place() -> None:
    server = Server({b"%d" % number: AWAY for number in range(9)})
    server.before = lambda verb, name: cut() if verb == "get" else None
    with pytest.raises(LineCut):
        scan(server.place())


def test_a_script_that_is_damaged_here_is_told_and_the_others_are_written() -> None:
    def damaged() -> io.BytesIO:
        raise Damaged("its bytes are not those its name stands for")

    server = Server()
    broken = replace(script(b"away", AWAY), open=damaged)
    assert write(server.place(), broken, script(b"sort", SORT), active(b"sort")) == {b"away.sieve": "damaged", b"sort.sieve": "", b"active": ""}
    assert (server.scripts, server.active) == ({b"sort": SORT}, b"sort")


def test_a_server_that_does_not_bear_to_be_asked_for_several_is_asked_one_by_one() -> None:
    server = Server({b"away": AWAY, b"sort": SORT})
    server.before = always("get_all", b"", LineCut("the line was cut"))
    assert [entry.size for entry in scan(server.place()).items] == [len(AWAY), len(SORT)]
    assert server.logins == 2


def test_each_proof_is_a_fresh_fetch() -> None:
    server = Server({b"away": AWAY, b"sort": SORT, b"gone": b"x"}, active=b"away")
    place = server.place()
    claims = [
        Claim(entry, "", 0) if entry.kind is Kind.LINK else Claim(entry, hashlib.sha256(data).hexdigest(), len(data))
        for entry, data in (
            (entry, server.scripts.get(script_name(entry.path), b"") if entry.kind is Kind.FILE else b"") for entry in scan(place).items
        )
    ]
    assert {proof.status for proof in place.prove(claims)} == {Status.VERIFIED}
    server.scripts[b"sort"] = b"# " + SORT[2:-1] + b" "  # as long as before
    del server.scripts[b"gone"]
    server.active = b"sort"
    assert {proof.claim.item.path: proof.status for proof in place.prove(claims)} == {
        b"active": Status.CHANGED,
        b"away.sieve": Status.VERIFIED,
        b"gone.sieve": Status.MISSING,
        b"sort.sieve": Status.CHANGED,
    }
