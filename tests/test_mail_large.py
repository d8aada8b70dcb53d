"""Very large messages come in pieces: whole in the end whatever the server makes of that, and gone on with after a cut."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hostbackup.jobs.arrivals import MailArrivals
from hostbackup.model import Message, Sink
from hostbackup.places.mail import HashingSink
from hostbackup.places.mail_fetch import Fetcher, Got, batches
from hostbackup.places.mail_line import Line
from hostbackup.vault.vault import Vault
from tests.support.imap_script import FakeBox, FakeImap, Hangup, Talk
from tests.support.sink import MemorySink

BODY = b"".join(b"line %d of a very large message\r\n" % number for number in range(300))
SMALL = b"a small one\r\n"
Spoil = Callable[[bytes], bytes]


def fake(fetched: Callable[[Talk, int, bytes], bytes] | None = None) -> FakeImap:
    return FakeImap({b"INBOX": FakeBox({1: SMALL, 2: BODY, 3: SMALL})}, fetched=fetched)


def fetch(server: FakeImap, sink: Sink, size: int = len(BODY), pause: Callable[[float], None] = lambda seconds: None) -> dict[int, Got]:
    line = Line(server.factory, pause)
    wanted = [Message(b"INBOX", 7, uid, size if uid == 2 else len(SMALL)) for uid in (1, 2, 3)]
    try:
        return {got.item.uid: got for got in Fetcher(line, batches(wanted), sink, large=2000, piece=1000).run()}
    finally:
        line.close()


def offsets(server: FakeImap) -> list[int]:
    return [int(found[1]) for command in server.commands if (found := re.search(rb"<(\d+)\.", command))]


def whole(got: dict[int, Got]) -> bool:
    expected = {1: SMALL, 2: BODY, 3: SMALL}
    return all((got[uid].digest, got[uid].size, got[uid].code) == (hashlib.sha256(data).hexdigest(), len(data), "") for uid, data in expected.items())


def test_a_large_message_comes_in_pieces_after_the_others() -> None:
    with (server := fake()).running():
        sink = MemorySink()
        got = fetch(server, sink)
    assert list(got) == [1, 3, 2]
    assert whole(got)
    assert sink.contents[got[2].digest] == BODY
    assert offsets(server) == list(range(0, len(BODY), 1000))
    assert not any(command.endswith(b"2 (UID BODY.PEEK[])") for command in server.commands)


@pytest.mark.parametrize("size", [len(BODY) - 1, len(BODY) + 1, len(BODY) - len(BODY) % 1000, 5 * len(BODY)])
def test_a_size_that_lies_does_not_cut_the_message_short(size: int) -> None:
    with (server := fake()).running():
        assert whole(fetch(server, HashingSink(), size))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda made: made.replace(b"BODY[]<3000>", b"BODY[]<2000>"),
        lambda made: made.replace(b"BODY[]<3000>", b"BODY[]"),
        lambda made: b"* 2 FETCH (UID 2 BODY[]<3000> NIL)\r\n" if b"<3000>" in made else made,
        lambda made: b'* 2 FETCH (UID 2 BODY[]<3000> "")\r\n' if b"<3000>" in made else made,
        lambda made: b"* 2 FETCH (UID 2 BODY[]<3000> {5}\r\nshort)\r\n" if b"<3000>" in made else made,
        lambda made: b"" if b"<3000>" in made else made,
        lambda made: made + made if b"<3000>" in made else made,
        lambda made: made.replace(b"UID 2 ", b"UID 3 ") if b"<3000>" in made else made,
    ],
    ids=["offset", "no offset", "nil", "empty", "short", "nothing", "twice", "another's"],
)
def test_a_server_that_mishandles_pieces_is_asked_for_the_whole(spoil: Spoil) -> None:
    with (server := fake(lambda talk, uid, made: spoil(made) if uid == 2 else made)).running():
        assert whole(fetch(server, HashingSink()))
    assert server.connections == 1
    assert any(command.endswith(b"2 (UID BODY.PEEK[])") for command in server.commands)


def _cut_at_3000(talk: Talk, uid: int, made: bytes) -> bytes:
    if b"<3000>" in made and talk.number == 1:
        talk.send(made[:-400])
        raise Hangup
    return made


def test_a_cut_line_goes_on_where_it_was() -> None:
    with (server := fake(_cut_at_3000)).running():
        assert whole(fetch(server, HashingSink()))
    assert server.connections == 2
    again = [offset for offset in offsets(server) if offset % 1000]
    assert min(again) > 3000
    assert offsets(server).count(0) == 1


def test_a_message_that_cuts_the_line_each_time_fails_alone() -> None:
    def fetched(talk: Talk, uid: int, made: bytes) -> bytes:
        if b"<3000>" in made:
            raise Hangup
        return made

    with (server := fake(fetched)).running():
        got = fetch(server, HashingSink())
    assert {uid: one.code for uid, one in got.items()} == {1: "", 3: "", 2: "line-cut"}


@pytest.mark.parametrize("checksum", [False, True])
def test_a_later_run_goes_on_where_the_last_one_ended(tmp_path: Path, checksum: bool) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    def dying(talk: Talk, uid: int, made: bytes) -> bytes:
        if b"<3000>" in made:
            raise Hangup
        return made

    with (
        Vault.open(tmp_path / "v", "write", create=True) as vault,
        (server := fake(dying)).running(),
        pytest.raises(KeyboardInterrupt),
    ):
        fetch(server, MailArrivals(vault.objects, "mail/a", checksum=checksum), pause=interrupted)
    with Vault.open(tmp_path / "v", "write") as vault, (server := fake()).running():
        assert whole(fetch(server, MailArrivals(vault.objects, "mail/a", checksum=checksum)))
        vault.flush()
        assert vault.objects.path(hashlib.sha256(BODY).hexdigest()).read_bytes() == BODY
    assert min(offsets(server)) == (0 if checksum else 3000)
    assert not list((tmp_path / "v" / "incoming").glob("*.partial*"))


def test_bytes_that_belong_elsewhere_are_not_gone_on_with_after_a_cut() -> None:
    def fetched(talk: Talk, uid: int, made: bytes) -> bytes:
        if b"<3000>" in made and talk.number == 1:
            talk.send(b"* 2 FETCH (UID 2 BODY[]<2000> {1000}\r\n%s)\r\n" % BODY[2000:3000])
            raise Hangup
        if b"<3000>" in made and talk.number == 2:  # as much of the whole as came before the line was cut
            talk.send(b"* 2 FETCH (UID 2 BODY[]<3000> {%d}\r\n%s" % (len(BODY), BODY[:700]))
            raise Hangup
        return made

    with (server := fake(fetched)).running():
        assert whole(fetch(server, HashingSink()))
