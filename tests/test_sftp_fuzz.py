"""Servers that send nonsense, on purpose or not: every verb ends with outcomes or an error of ours, in time, within bounded memory."""

from __future__ import annotations

import random
import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from hostbackup.errors import DiskFull, HostbackupError, LineCut, LoginRefused, ProtocolBroken
from hostbackup.model import Claim, Entry, Kind, Write
from hostbackup.places import sftp_scan
from hostbackup.places.sftp import SftpTree
from hostbackup.protocols.limits import Limits
from hostbackup.protocols.sftp.client import SocketChannel
from hostbackup.protocols.sftp.packets import Attrs, Code, Type, attrs_bytes, text
from tests.support import sftp_server as fake
from tests.support.faulty_login import PART, Faulty, FaultyLogin, faulty_tree
from tests.support.faulty_sftp import garbled
from tests.support.moves import PAST, fill, state
from tests.support.sftp_server import Answer, Scripted
from tests.support.sink import HashSink, Receiving
from tests.support.worlds import close, folder_at, link_to, upload

STALL = 0.15  # seconds: an answer that garbling made wait for bytes which never come
DEADLINE = 30.0
SEEDS = 40


def within(work: Callable[[], None], seconds: float = DEADLINE) -> None:
    """Does the work in a thread of its own, and fails where it does not end."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it hangs"
    if raised:
        raise raised[0]


# -- every answer may be garbled

FILES = {b"small": b"x" * 10, b"none": b"", b"d/large": bytes(range(256)) * 500, "d/名前".encode("cp932"): b"odd", b"e/f/g": b"deep"}
VERBS = ("scan", "read", "write", "prove")
WISHES = [folder_at(b"d"), upload(b"d/new", b"n" * 70_000), upload(b"small", b"other", replace=True), link_to(b"l", b"small"), upload(b"x", b"1")]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    root = tmp_path / "below" / "site"
    fill(root, FILES)
    (root / "link").symlink_to("small")
    return root


def carry_out(tree: SftpTree, verb: str) -> None:
    wanted = [Entry(path, Kind.FILE, len(data), PAST * 10**9, 0o644) for path, data in FILES.items()]
    if verb == "scan":
        assert len(list(tree.scan())) < 1000
    elif verb == "read":
        sink = HashSink()
        try:
            assert len(list(tree.read(wanted, sink))) == len(wanted)
        finally:
            assert sink.open_now == 0
    elif verb == "write":
        assert len(list(tree.write(iter(WISHES)))) == len(WISHES)
    else:
        claims = [Claim(entry, "0" * 64, entry.size) for entry in wanted]
        claims += [Claim(Entry(b"d", Kind.DIR), "", 0), Claim(Entry(b"link", Kind.LINK, target=b"small"), "", 0)]
        assert len(list(tree.prove(claims))) == len(claims)


@pytest.mark.parametrize("share", [0.03, 0.2])
@pytest.mark.parametrize("verb", VERBS)
def test_garbled_answers_end_in_outcomes_or_in_an_error_of_ours(site: Path, verb: str, share: float) -> None:
    ended: list[str] = []

    def all_seeds() -> None:
        for seed in range(SEEDS):
            with faulty_tree(site, f"mutate={share}", f"seed={seed}", stall=STALL) as tree:
                try:
                    carry_out(tree, verb)
                    ended.append("outcomes")
                except HostbackupError as error:
                    ended.append(error.code)

    outside = state(site.parent.parent, times=False)
    within(all_seeds)
    assert len(ended) == SEEDS
    assert len(set(ended)) > 1, "some were understood, some were not"
    after = state(site.parent.parent, times=False)
    own = b"below/site/"
    assert {path for path in after if not path.startswith(own)} == {path for path in outside if not path.startswith(own)}


def always(answers: list[bytes], *_: object) -> list[bytes]:
    return answers


def test_a_garbled_greeting_is_an_error_of_ours() -> None:
    rng = random.Random(1)
    greeting = fake.frame(Type.VERSION, struct.pack(">I", 3) + text(b"limits@openssh.com") + text(b"1"))
    limits = fake.frame(Type.EXTENDED_REPLY, struct.pack(">IQQQQ", 1, 262144, 261120, 261120, 100))
    refused = 0

    def start() -> None:
        nonlocal refused
        for place in range(100):
            said, answers = (garbled(rng, greeting), [limits]) if place % 2 else (greeting, [garbled(rng, limits)])
            with Scripted(partial(always, answers), said) as server:
                try:
                    assert server.connect(STALL).limits.read <= 255 * 1024
                except (LineCut, ProtocolBroken):
                    refused += 1

    within(start)
    assert refused > 20


# -- servers that follow a script


class ScriptedLogin(FaultyLogin):
    """Every channel leads to a new server that answers in the same way."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(Faulty())
        self._answer = answer
        self._servers: list[Scripted] = []

    def open_sftp_channel(self) -> SocketChannel:
        self._servers.append(Scripted(self._answer))
        return SocketChannel(self._servers[-1]._near)

    def close(self) -> None:
        self.alive = False
        for server in self._servers:
            server.__exit__()


@contextmanager
def scripted_tree(answer: Answer) -> Iterator[SftpTree]:
    tree = SftpTree(lambda: ScriptedLogin(answer), "/r", side="old", part=PART, channels=1, limits=Limits(stall=5.0), pause=lambda _: None)
    try:
        yield tree
    finally:
        tree.close()


def server(**answers: Callable[[int, bytes], list[bytes]]) -> Answer:
    """A tree whose root is /r; what is not told otherwise is OK. `answers` by the names of requests, from number and body."""

    def answer(kind: int, number: int, body: bytes) -> list[bytes]:
        told = answers.get(Type(kind).name.lower())
        if told is not None:
            return told(number, body)
        if kind == Type.REALPATH:
            return [fake.names(number, (b"/r", attrs_bytes(Attrs())))]
        if kind == Type.STAT:
            return [fake.attrs(number, 0, 0o40755)]
        if kind in (Type.OPEN, Type.OPENDIR):
            return [fake.handle(number)]
        return [fake.status(number, Code.OK)]

    return answer


FILE = attrs_bytes(Attrs(5, 0, 0, 0o100644, 1, 1))
ENTRY = Entry(b"f", Kind.FILE, 5, 1_700_000_000 * 10**9, 0o644)


def test_a_list_that_gives_the_same_names_for_ever_ends() -> None:
    def scan() -> None:
        with scripted_tree(server(readdir=lambda number, _: [fake.names(number, (b"a", FILE), (b"b", FILE))])) as tree:
            (listing,) = tree.scan()
        assert [item.path for item in listing.items] == [b"a", b"b"]
        assert listing.failure is not None
        assert listing.failure.code == "endless"

    within(scan)


def test_a_list_that_gives_new_names_for_ever_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sftp_scan, "_MOST", 3000)

    def scan() -> None:
        with scripted_tree(server(readdir=lambda number, _: [fake.names(number, *((b"%d-%d" % (number, n), FILE) for n in range(100)))])) as tree:
            (listing,) = tree.scan()
        assert 3000 <= len(listing.items) < 5000
        assert listing.failure is not None
        assert listing.failure.code == "endless"

    within(scan)


def test_folders_in_folders_for_ever_can_be_left() -> None:
    folder = attrs_bytes(Attrs(0, 0, 0, 0o40755, 1, 1))
    told: set[bytes] = set()

    def readdir(number: int, body: bytes) -> list[bytes]:
        handle = body[4:]
        if handle in told:
            return [fake.status(number, Code.EOF)]
        told.add(handle)
        return [fake.names(number, (b"d", folder))]

    def scan() -> None:
        opened = server(
            readdir=readdir, opendir=lambda number, _: [fake.handle(number, b"%d" % number)], lstat=lambda number, _: [fake.attrs(number, 0, 0o40755)]
        )
        with scripted_tree(opened) as tree:
            listings = tree.scan()
            for _ in range(200):
                assert next(listings).failure is None
            close(listings)

    within(scan)


@pytest.mark.parametrize("size", [2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("verb", ["read", "prove", "scan"])
def test_an_impossible_size_is_only_a_number(size: int, verb: str) -> None:
    def attrs(number: int, _: bytes) -> list[bytes]:
        return [fake.attrs(number, size)]

    listed = attrs_bytes(Attrs(size, 0, 0, 0o100644, 2**32 - 1, 2**32 - 1))
    pages = [[(b"f", listed)]]
    answer = server(
        lstat=attrs,
        fstat=attrs,
        read=lambda number, body: [fake.data(number, b"tiny")] if fake.read_body(body)[0] == 0 else [fake.status(number, Code.EOF)],
        readdir=lambda number, _: [fake.names(number, *pages.pop()) if pages else fake.status(number, Code.EOF)],
    )
    item = Entry(b"f", Kind.FILE, size, 1_700_000_000 * 10**9, 0o644)

    def run() -> None:
        with scripted_tree(answer) as tree:
            if verb == "scan":
                (listing,) = tree.scan()
                assert listing.items[0].size == size
            elif verb == "read":
                (outcome,) = tree.read([item], HashSink())
                assert outcome.failure is not None
                assert outcome.size == 4
            else:
                (proof,) = tree.prove([Claim(item, "0" * 64, size)])
                assert proof.failure is not None

    within(run)


def endless(number: int, body: bytes) -> list[bytes]:
    return [fake.data(number, bytes(fake.read_body(body)[1]))]


def huge(number: int, _: bytes) -> list[bytes]:
    return [fake.attrs(number, 2**63)]


class SmallDisk(HashSink):
    """Takes so many bytes."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def open(self, size_hint: int = 0) -> Receiving:
        super().open(size_hint)
        return _SmallFile(self, size_hint)


class _SmallFile(Receiving):
    def write(self, data: bytes | bytearray | memoryview, /) -> object:
        assert isinstance(self._sink, SmallDisk)
        self._sink.room -= len(data)
        if self._sink.room < 0:
            raise DiskFull("the disk is full", where="test")
        return super().write(data)


def test_contents_without_end_end_with_the_disk() -> None:
    sink = SmallDisk(64 << 20)

    def run() -> None:
        with scripted_tree(server(lstat=huge, fstat=huge, read=endless)) as tree, pytest.raises(DiskFull):
            list(tree.read([Entry(b"f%d" % n, Kind.FILE, 2**63) for n in range(3)], sink))

    within(run)
    assert sink.open_now == 0


EVERY = {
    "a million names": lambda number: fake.frame(Type.NAME, struct.pack(">II", number, 10**6) + b"x" * 100),
    "more bytes than asked": lambda number: fake.data(number, bytes(600_000)),
    "a packet of 4 GiB": lambda number: struct.pack(">IBI", 2**32 - 1, Type.DATA, number) + bytes(100),
    "an answer twice": lambda number: 2 * fake.status(number, Code.FAILURE),
    "an answer to nothing": lambda number: fake.status(number ^ 0x8000, Code.OK),
    "a string of 4 GiB": lambda number: fake.frame(Type.DATA, struct.pack(">II", number, 2**32 - 1)),
    "an unknown type": lambda number: fake.frame(150, struct.pack(">I", number)),
    "an empty packet": lambda number: struct.pack(">I", 0),
    "no number": lambda number: struct.pack(">I", 1) + b"\x65",
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("what", EVERY)
def test_nonsense_is_an_error_at_once(what: str, verb: str) -> None:
    def nonsense(number: int, _: bytes) -> list[bytes]:
        return [EVERY[what](number)]

    kinds = {"scan": ["readdir"], "read": ["read"], "write": ["write"], "prove": ["lstat", "open"]}[verb]
    others = {"lstat": lambda number, _: [fake.attrs(number, 5)]} if verb == "read" else {}

    def run() -> None:
        with scripted_tree(server(**others, **dict.fromkeys(kinds, nonsense))) as tree, pytest.raises(ProtocolBroken):
            if verb == "scan":
                list(tree.scan())
            elif verb == "read":
                list(tree.read([ENTRY], HashSink()))
            elif verb == "write":
                list(tree.write([Write(folder_at(b"").item), upload(b"f", b"data")]))
            else:
                list(tree.prove([Claim(ENTRY, "0" * 64, 5)]))

    within(run)


def test_memory_stays_flat_where_a_server_holds_back_what_comes_first() -> None:
    """All READs but the first are answered in full, for each of many large files."""

    def reading(number: int, body: bytes) -> list[bytes]:
        return [] if fake.read_body(body)[0] == 0 else endless(number, body)

    logins = iter(range(3))

    def login() -> ScriptedLogin:
        if next(logins, None) is None:
            raise LoginRefused("no more")
        return ScriptedLogin(server(lstat=huge, fstat=huge, read=reading))

    def run() -> None:
        tree = SftpTree(login, "/r", side="old", part=PART, channels=1, limits=Limits(stall=STALL), pause=lambda _: None)
        with pytest.raises(LoginRefused):
            list(tree.read([Entry(b"f%d" % n, Kind.FILE, 2**40) for n in range(500)], HashSink()))
        tree.close()

    tracemalloc.start()
    try:
        within(run)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 100 << 20
