"""A mail account whose server misbehaves: each fault costs what it must, is told, and nothing else."""

from __future__ import annotations

import functools
import hashlib
import io
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hostbackup.errors import ConnectionFailed, LineCut, LoginRefused
from hostbackup.model import Folder, Message, Observer, Part, Read, Write, Written
from hostbackup.places.mail import HashingSink, MailAccount
from hostbackup.places.mail_line import Line
from hostbackup.places.mail_scan import Scanner
from hostbackup.protocols.imap.session import ImapSession
from tests.support.imap_script import FakeBox, FakeImap, Hangup, Talk

PART = Part("mail", "user")
BODIES = {uid: b"Subject: %d\r\n\r\n" % uid + b"x" * (uid * 10) for uid in range(1, 8)}


def _box() -> FakeBox:
    return FakeBox(dict(BODIES))


def _account(fake: FakeImap, factory: Callable[[], ImapSession] | None = None) -> MailAccount:
    return MailAccount(factory or fake.factory, side="old", part=PART, pause=lambda seconds: None)


def _items(*uids: int, folder: bytes = b"INBOX") -> list[Message]:
    return [Message(folder, 7, uid, len(BODIES[uid])) for uid in uids or BODIES]


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read(fake: FakeImap, items: list[Message] | None = None) -> dict[int, Read[Message]]:
    with fake.running():
        place = _account(fake)
        wanted = _items() if items is None else items
        outcomes = list(place.read(wanted, HashingSink()))
        place.close()
    assert sorted(outcome.item.uid for outcome in outcomes) == sorted(item.uid for item in wanted), "exactly one outcome an item"
    for outcome in outcomes:
        assert bool(outcome.digest) != bool(outcome.failure)
        assert not outcome.digest or outcome.digest == _sha(BODIES[outcome.item.uid])
    return {outcome.item.uid: outcome for outcome in outcomes}


def _codes(outcomes: dict[int, Read[Message]]) -> dict[int, str]:
    return {uid: outcome.failure.code for uid, outcome in outcomes.items() if outcome.failure is not None}


def _fake(fetched: Callable[[Talk, int, bytes], bytes] | None = None, **more: Any) -> FakeImap:
    fake = FakeImap({b"INBOX": _box()}, fetched=fetched)
    for name, value in more.items():
        setattr(fake, name, value)
    return fake


def test_unsolicited_and_foreign_answers_are_not_taken_for_what_was_asked() -> None:
    def fetched(talk: Talk, uid: int, made: bytes) -> bytes:
        noise = b"* 3 FETCH (FLAGS (\\Seen))\r\n* 3 FETCH (UID 3 FLAGS (\\Seen))\r\n"
        noise += b"* 9 FETCH (UID 999 BODY[] {4}\r\nevil)\r\n* 1 FETCH (BODY[] {4}\r\nevil)\r\n"
        return noise + made + noise + b"* 8 EXISTS\r\n* 1 EXPUNGE\r\n* %d FETCH (UID %d BODY[] {4}\r\nevil)\r\n" % (uid, uid)

    assert _codes(_read(_fake(fetched))) == {}


def test_a_uid_that_follows_the_body_is_understood() -> None:
    def fetched(talk: Talk, uid: int, made: bytes) -> bytes:
        return b"* %d FETCH (FLAGS () BODY[] {%d}\r\n%s UID %d)\r\n" % (uid, len(BODIES[uid]), BODIES[uid], uid)

    assert _codes(_read(_fake(fetched))) == {}


def test_a_message_that_the_server_never_hands_out_fails_alone() -> None:
    assert _codes(_read(_fake(lambda talk, uid, made: b"" if uid == 4 else made))) == {4: "fetch-no"}


def test_a_message_that_is_gone_is_told_as_vanished() -> None:
    fake = _fake()
    del fake.boxes[b"INBOX"].messages[2], fake.boxes[b"INBOX"].messages[6]
    assert _codes(_read(fake)) == {2: "vanished", 6: "vanished"}
    assert sum(command.startswith(b"UID FETCH") for command in fake.commands) == 2, "one look settles all that is gone"


@pytest.mark.parametrize(("answer", "code"), [(b"BODY[] {0}\r\n", "empty"), (b'BODY[] ""', "empty"), (b"BODY[] NIL", "no-body")])
def test_an_empty_answer_is_never_taken_for_an_empty_message(answer: bytes, code: str) -> None:
    def fetched(talk: Talk, uid: int, made: bytes) -> bytes:
        return b"* 5 FETCH (UID 5 %s)\r\n" % answer if uid == 5 else made

    assert _codes(_read(_fake(fetched))) == {5: code}


def test_an_empty_answer_that_is_right_the_second_time_is_kept() -> None:
    asked: list[int] = []

    def fetched(talk: Talk, uid: int, made: bytes) -> bytes:
        asked.append(uid)
        return b"* 5 FETCH (UID 5 BODY[] {0}\r\n)\r\n" if uid == 5 and asked.count(5) == 1 else made

    assert _codes(_read(_fake(fetched))) == {}
    assert asked.count(5) == 2


def test_sizes_that_lie_are_only_hints() -> None:
    items = [Message(b"INBOX", 7, uid, size) for uid, size in ((1, 0), (2, 1), (3, 10**9), (4, 5))]
    assert _codes(_read(_fake(), items)) == {}


def test_a_cut_in_mid_literal_repeats_only_what_is_missing() -> None:
    asked: list[int] = []

    def fetched(talk: Talk, uid: int, made: bytes) -> bytes:
        asked.append(uid)
        if uid == 4 and talk.number == 1:
            talk.send(made[:-12])
            raise Hangup
        return made

    fake = _fake(fetched)
    assert _codes(_read(fake)) == {}
    assert fake.connections == 2
    assert sorted(asked) == [1, 2, 3, 4, 4, 5, 6, 7]


@pytest.mark.parametrize("last_words", [b"", b"* BYE internal error\r\n", b"\x00\xff garbage\r\n", b"* 4 FETCH (UID\r\n"])
def test_a_message_that_kills_the_session_each_time_fails_alone(last_words: bytes) -> None:
    def fetched(talk: Talk, uid: int, made: bytes) -> bytes:
        if uid == 3:
            talk.send(last_words)
            raise Hangup
        return made

    assert _codes(_read(_fake(fetched))) == {3: "line-cut"}


def test_a_server_that_never_comes_back_ends_the_read_within_its_budget() -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "EXAMINE":
            raise Hangup
        return False

    fake = _fake(hook=hook)
    fake.boxes[b"Other"] = _box()
    with fake.running():
        place = _account(fake)
        outcomes = list(place.read(_items(1, 2) + _items(1, folder=b"Other"), HashingSink()))
        assert {outcome.failure.code for outcome in outcomes if outcome.failure} == {"line-cut"}
        assert len(outcomes) == 3
    assert fake.connections < 8


def test_a_line_is_opened_again_within_a_budget_and_what_opening_it_raises_is_raised_at_once() -> None:
    fake = _fake(lambda talk, uid, made: made[:20])
    pauses: list[float] = []
    with fake.running():
        line = Line(fake.factory, pauses.append)
        for _ in range(3):
            line.session()
            line.cut(LineCut("cut"))
        line.session()
        with pytest.raises(LineCut, match="once too often"):
            line.cut(LineCut("once too often"))
    assert pauses == [1.0, 2.0, 4.0]

    calls: list[int] = []

    def refusing() -> ImapSession:
        calls.append(1)
        raise LoginRefused("no")

    with pytest.raises(LoginRefused):
        Line(refusing, pauses.append).session()
    assert calls == [1]


def test_a_folder_made_anew_between_scan_and_read_is_noticed() -> None:
    fake = _fake()
    fake.boxes[b"INBOX"].uidvalidity = 8
    assert set(_codes(_read(fake)).values()) == {"uidvalidity"}


def test_what_the_sink_cannot_take_ends_the_read_and_frees_the_line() -> None:
    class Full:
        aborted = 0

        def open(self, size_hint: int = 0) -> Full:
            return self

        def write(self, data: bytes | bytearray | memoryview, /) -> None:
            raise OSError(28, "No space left on device")

        def commit(self) -> tuple[str, int]:
            raise AssertionError("never whole")

        def abort(self) -> None:
            self.aborted += 1

    fake, full = _fake(), Full()
    with fake.running():
        place = _account(fake)
        with pytest.raises(OSError, match="No space left"):
            list(place.read(_items(), full))
        assert full.aborted == 1
        assert len(list(place.read(_items(), HashingSink()))) == len(BODIES), "and the account can be used again"
        place.close()


# -- scanning -----------------------------------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_opened_does_not_stop_the_others() -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "EXAMINE" and b"locked" in rest:
            talk.box = None
            talk.send(tag + b" NO permission denied\r\n")
            return True
        if verb == "UID FETCH" and talk.box is None:
            talk.send(b"* 1 FETCH (UID 1 FLAGS () RFC822.SIZE 5)\r\n" + tag + b" BAD nothing selected\r\n")
            return True
        return False

    fake = _fake(hook=hook)
    fake.boxes = {b"INBOX": _box(), b"locked": _box(), b"other": _box()}
    with fake.running():
        listings = {listing.container: listing for listing in _account(fake).scan()}
    assert {name: len(listing.items) for name, listing in listings.items()} == {b"INBOX": 7, b"locked": 0, b"other": 7}
    assert {name: listing.failure.code for name, listing in listings.items() if listing.failure} == {b"locked": "folder"}
    assert {name for name, listing in listings.items() if listing.folder is None} == {b"locked"}, "counters that nobody knows are not told"


def test_a_session_that_ended_while_idle_is_replaced() -> None:
    fake = _fake()
    with fake.running():
        sessions: list[ImapSession] = []

        def factory() -> ImapSession:
            sessions.append(fake.factory())
            return sessions[-1]

        place = _account(fake, factory)
        for work in (place.folders, lambda: place.status(b"INBOX"), lambda: place.prepare([]), lambda: list(place.scan())):
            work()
            line = sessions[-1].channel.wire.sock
            assert isinstance(line, socket.socket)
            line.shutdown(socket.SHUT_RDWR)
            assert work() == work()
        place.close()
    assert len(sessions) == 5


def test_each_range_of_a_folder_in_flux_says_so() -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb != "UID FETCH":
            return False
        talk.send(b"".join(b"* 1 FETCH (UID %d FLAGS () RFC822.SIZE 5)\r\n" % uid for uid in (1, 5000, 9000)) + tag + b" NO some failed\r\n")
        return True

    with (fake := _fake(hook=hook)).running():
        listings = list(_account(fake).scan())
    assert [(len(listing.items), listing.failure is not None, listing.last) for listing in listings] == [
        (1, True, False),
        (1, True, False),
        (1, True, True),
    ]


def test_many_folders_cost_few_round_trips() -> None:
    fake = _fake()
    fake.boxes = {b"folder %d" % number: _box() for number in range(40)}
    with fake.running():
        assert sum(len(listing.items) for listing in _account(fake).scan()) == 40 * 7
    assert fake.connections == 1
    assert b"SELECT" not in b"".join(command.split(b" ")[0] for command in fake.commands)


def test_messages_told_out_of_order_come_in_order_and_later_flags_win() -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb != "UID FETCH":
            return False
        for uid in (5000, 3, 9000, 1, 2):
            talk.send(b'* 1 FETCH (RFC822.SIZE 5 UID %d INTERNALDATE " 1-Jul-2026 02:44:25 +0900" FLAGS (b \\Recent a))\r\n' % uid)
        talk.send(b"* 2 FETCH (UID 3 FLAGS (\\Flagged))\r\n* 9 FETCH (UID 77 FLAGS ())\r\n" + tag + b" OK done\r\n")
        return True

    fake = _fake(hook=hook)
    fake.boxes[b"INBOX"].messages = dict.fromkeys((1, 2, 3, 5000, 9000), b"x")
    with fake.running():
        listings = list(_account(fake).scan())
    assert [[item.uid for item in listing.items] for listing in listings] == [[1, 2, 3], [5000], [9000]]
    assert [listing.last for listing in listings] == [False, False, True]
    assert listings[0].items[0].flags == ("a", "b")
    assert listings[0].items[2].flags == ("\\Flagged",)


def test_a_folder_described_short_is_listed_again_and_then_told() -> None:
    asked: list[int] = []

    def lying(times: int) -> FakeImap:
        def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
            if verb == "UID FETCH":
                asked.append(1)
                if len(asked) <= times:
                    talk.send(b"* 1 FETCH (UID 1 FLAGS () RFC822.SIZE 5)\r\n" + tag + b" OK done\r\n")
                    return True
            return False

        return _fake(hook=hook)

    fake = lying(1)
    with fake.running():
        (listing,) = _account(fake).scan()
    assert listing.failure is None
    assert len(listing.items) == 7
    asked.clear()
    fake = lying(100)
    with fake.running():
        (listing,) = _account(fake).scan()
    assert listing.failure is not None
    assert listing.failure.code == "changing"
    assert [item.uid for item in listing.items] == [1]


def test_mail_that_arrives_or_leaves_during_the_listing_is_no_fault() -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "UID FETCH" and talk.box is not None:
            for uid in (1, 2, 3, 4, 5):
                talk.send(b"* 1 FETCH (UID %d FLAGS () RFC822.SIZE 5)\r\n" % uid)
            talk.send(b"* 6 EXPUNGE\r\n* 6 EXPUNGE\r\n* 6 EXISTS\r\n" + tag + b" OK [EXPUNGEISSUED] some left\r\n")
            return True
        return False

    with (fake := _fake(hook=hook)).running():
        (listing,) = _account(fake).scan()
    assert listing.failure is None
    assert len(listing.items) == 5
    assert sum(command.startswith(b"UID FETCH") for command in fake.commands) == 1


def test_a_cut_during_the_scan_goes_on_where_it_was_also_in_a_large_folder() -> None:
    count = 20_000

    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb != "UID FETCH":
            return False
        first = int(rest.split(b":")[0])
        lines = [b"* 1 FETCH (UID %d FLAGS () RFC822.SIZE 5)\r\n" % uid for uid in range(first, count + 1)]
        if talk.number == 2:
            talk.send(b"".join(lines[:13_000]))
            raise Hangup
        talk.send(b"".join(lines) + tag + b" OK done\r\n")
        return True

    fake = _fake(hook=hook)
    fake.boxes[b"INBOX"].messages = dict.fromkeys(range(1, count + 1), b"")
    with fake.running():
        line = Line(fake.factory, lambda seconds: None)
        listings = list(Scanner(line, "old", PART.id, hold=5000).run(_account(fake).folders()))
        line.close()
    assert [item.uid for listing in listings for item in listing.items] == list(range(1, count + 1))
    assert [listing.last for listing in listings] == [False] * (len(listings) - 1) + [True]
    assert all(listing.failure is None for listing in listings)
    assert fake.connections == 3, "the first lists the folders, the second is cut"
    assert any(command.startswith(b"UID FETCH 8192:*") for command in fake.commands)


def test_a_folder_that_kills_the_session_each_time_fails_alone() -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "EXAMINE" and b"poison" in rest:
            raise Hangup
        return False

    fake = _fake(hook=hook)
    fake.boxes = {b"INBOX": _box(), b"poison": _box(), b"zebra": _box()}
    with fake.running():
        listings = {listing.container: listing for listing in _account(fake).scan()}
    assert {name: listing.failure.code for name, listing in listings.items() if listing.failure} == {b"poison": "line-cut"}
    assert len(listings[b"zebra"].items) == 7


# -- writing ------------------------------------------------------------------------------------------------------------------------------


def _writes(*bodies: bytes, folder: bytes = b"INBOX", date: str = "") -> list[Write[Message]]:
    return [Write(Message(folder, 0, 0, len(body), date), _sha(body), len(body), functools.partial(io.BytesIO, body)) for body in bodies]


def _written(fake: FakeImap, writes: list[Write[Message]]) -> list[Written[Message]]:
    with fake.running():
        place = _account(fake)
        outcomes = {id(outcome.asked): outcome for outcome in place.write(writes)}
        place.close()
    assert len(outcomes) == len(writes)
    return [outcomes[id(write)] for write in writes]


def _write_codes(outcomes: list[Written[Message]]) -> list[str]:
    return [outcome.failure.code if outcome.failure else "" for outcome in outcomes]


@pytest.mark.parametrize("capabilities", [b"IMAP4rev1", b"IMAP4rev1 LITERAL-", b"IMAP4rev1 LITERAL+ UNSELECT"])
def test_appends_work_with_and_without_literal_plus(capabilities: bytes) -> None:
    fake = FakeImap(capabilities=capabilities)
    bodies = [b"small", b"x" * 5000, b"y" * 1_500_000, b"small", b"z"]
    outcomes = _written(fake, _writes(*bodies) + _writes(b"elsewhere", folder=b"new folder"))
    assert _write_codes(outcomes) == [""] * 6
    assert list(fake.boxes[b"INBOX"].messages.values()) == bodies
    assert list(fake.boxes[b"new folder"].messages.values()) == [b"elsewhere"]
    assert [outcome.item.uid for outcome in outcomes] == [1, 2, 3, 4, 5, 1]
    assert not any(command.startswith((b"CLOSE", b"EXPUNGE", b"DELETE", b"UID STORE")) for command in fake.commands)


def test_a_cut_during_appends_leaves_them_in_doubt_and_repeats_none() -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "APPEND" and b"message 3" in rest and talk.number == 1:
            raise Hangup
        return False

    fake = FakeImap(hook=hook)
    bodies = [b"message %d" % number for number in range(200)]
    outcomes = _written(fake, _writes(*bodies))
    codes = _write_codes(outcomes)
    assert codes[:3] == ["", "", ""]
    assert "in-doubt" in codes
    assert set(codes) == {"", "in-doubt"}
    assert codes.count("in-doubt") <= 64
    standing = list(fake.boxes[b"INBOX"].messages.values())
    assert len(standing) == len(set(standing)), "nothing twice"
    assert {body for body, code in zip(bodies, codes, strict=True) if not code} <= set(standing)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"NO [TOOBIG] too big", "too-big"),
        (b"NO [OVERQUOTA] full", "over-quota"),
        (b"NO [TRYCREATE] gone", "folder-missing"),
        (b"NO because", "refused"),
    ],
)
def test_refusals_are_told_by_their_reason(said: bytes, code: str) -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "APPEND" and b"bad one" in rest:
            talk.send(tag + b" " + said + b"\r\n")
            return True
        return False

    fake = FakeImap(hook=hook)
    outcomes = _written(fake, _writes(b"one", b"bad one", b"two", date=" 1-Jul-2026 02:44:25 +0900"))
    assert _write_codes(outcomes) == ["", code, ""]
    assert sum(b"bad one" in command for command in fake.commands) == (2 if code == "refused" else 1)


def test_a_refused_date_is_left_out_and_told() -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "APPEND" and b'"' in rest.replace(b'"INBOX"', b""):
            talk.send(tag + b" BAD invalid date\r\n")
            return True
        return False

    fake = FakeImap(hook=hook)
    (outcome,) = _written(fake, _writes(b"old", date=" 1-Jan-1904 00:00:00 +0000"))
    assert outcome.failure is None
    assert outcome.item.internaldate == ""
    assert outcome.item.uid == 1


def test_flags_are_those_that_the_folder_keeps() -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "SELECT":
            talk.send(b"* OK [PERMANENTFLAGS (\\Seen \\Answered $Known)] limited\r\n")
        return False

    fake = FakeImap(hook=hook)
    item = Message(b"INBOX", 0, 0, 1, "", ("$Known", "$Other", "\\Flagged", "\\Seen"))
    with fake.running():
        place = _account(fake)
        (outcome,) = place.write([Write(item, "", 1, functools.partial(io.BytesIO, b"x"))])
        place.close()
    assert outcome.item.flags == ("$Known", "\\Seen")
    assert place.losses == {(b"INBOX", "$Other"): 1, (b"INBOX", "\\Flagged"): 1}


def test_items_are_pulled_only_a_little_ahead() -> None:
    pulled: list[Write[Message]] = []

    def source() -> Iterator[Write[Message]]:
        for write in _writes(*[b"message %d" % number for number in range(300)]):
            pulled.append(write)
            yield write

    fake = FakeImap()
    with fake.running():
        place = _account(fake)
        for done, _ in enumerate(place.write(source()), 1):
            assert len(pulled) - done <= 65
        place.close()
    assert len(pulled) == 300


def test_a_folder_that_cannot_be_made_fails_its_messages_only() -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "CREATE":
            talk.send(tag + b" NO permission denied\r\n")
            return True
        return False

    fake = FakeImap(hook=hook)
    outcomes = _written(fake, [*_writes(b"a", folder=b"refused"), *_writes(b"b"), *_writes(b"c", folder=b"refused")])
    assert _write_codes(outcomes) == ["folder", "", "folder"]


def test_a_target_that_is_lost_for_good_tells_what_was_under_way_first() -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "APPEND":
            raise Hangup
        return False

    fake = FakeImap(hook=hook)
    outcomes: list[Written[Message]] = []
    with fake.running(), pytest.raises(ConnectionFailed):
        for outcome in _account(fake).write(_writes(*[b"message %d" % number for number in range(1000)])):
            outcomes.append(outcome)
    assert set(_write_codes(outcomes)) == {"in-doubt"}
    assert fake.connections == 4


# -- waits, shared folders, odd servers ----------------------------------------------------------------------------------------------------

_BUSY = b"NO [UNAVAILABLE] Request is throttled. Suggested Backoff Time: 92415 milliseconds\r\n"


class _Listening(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def _scan_all(place: MailAccount) -> list[bool]:
    """Of each message, whether all went well."""
    return [listing.failure is None for listing in place.scan() for _ in listing.items]


def _read_all(place: MailAccount) -> list[bool]:
    return [outcome.failure is None for outcome in place.read(_items(), HashingSink())]


@pytest.mark.parametrize("work", [_scan_all, _read_all])
@pytest.mark.parametrize("refused", ["EXAMINE", "UID FETCH"])
def test_a_wait_that_the_server_prints_is_kept_and_told(refused: str, work: Callable[[MailAccount], list[bool]]) -> None:
    left = {refused: 1}

    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if left.pop(verb, 0):
            talk.send(tag + b" " + _BUSY)
            return True
        if verb == "UID FETCH" and talk.box is None:
            talk.send(tag + b" BAD nothing selected\r\n")
            return True
        return False

    pauses: list[float] = []
    observer = _Listening()
    with (fake := _fake(hook=hook)).running():
        place = MailAccount(fake.factory, side="old", part=PART, observer=observer, pause=pauses.append)
        assert work(place) == [True] * 7
        place.close()
    assert pauses == [92.415]
    assert any("Suggested Backoff Time" in note for note in observer.notes)


def test_a_server_that_is_never_ready_is_left_alone_in_the_end() -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "UID FETCH":
            talk.send(tag + b" NO [LIMIT] too fast, retry after 7200 seconds\r\n")
            return True
        return False

    pauses: list[float] = []
    with (fake := _fake(hook=hook)).running():
        place = MailAccount(fake.factory, side="old", part=PART, pause=pauses.append)
        (listing,) = place.scan()
        place.close()
    assert listing.failure is not None
    assert pauses == [900.0] * 3, "a quarter of an hour at most, three times"


def test_a_goodbye_that_names_a_wait_is_waited_for_before_connecting_again() -> None:
    def fetched(talk: Talk, uid: int, made: bytes) -> bytes:
        if uid == 4 and talk.number == 1:
            talk.send(b"* BYE [THROTTLED] Too much; try again in 2 minutes\r\n")
            raise Hangup
        return made

    pauses: list[float] = []
    with (fake := _fake(fetched)).running():
        place = MailAccount(fake.factory, side="old", part=PART, pause=pauses.append)
        outcomes = list(place.read(_items(), HashingSink()))
        place.close()
    assert all(outcome.digest for outcome in outcomes)
    assert pauses == [120.0]


@pytest.mark.parametrize("shared", [False, True])
def test_folders_that_others_share_are_listed_and_taken_when_asked(shared: bool) -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "NAMESPACE":
            talk.send(b'* NAMESPACE (("" "/")) (("user/" "/")) (("shared/" "/"))\r\n' + tag + b" OK done\r\n")
            return True
        return False

    fake = _fake(hook=hook, capabilities=b"IMAP4rev1 LITERAL+ NAMESPACE")
    fake.boxes |= {b"shared/office": _box(), b"user/hanako": _box()}
    observer = _Listening()
    with fake.running():
        place = MailAccount(fake.factory, side="old", part=PART, observer=observer, shared=shared)
        found = [folder.name for folder in place.folders()]
        place.close()
    assert found == ([b"INBOX", b"shared/office", b"user/hanako"] if shared else [b"INBOX"])
    assert place.foreign == [b"shared/office", b"user/hanako"]
    assert sum("belongs to somebody else" in note for note in observer.notes) == (0 if shared else 2)


def test_a_uidvalidity_that_every_look_changes_is_told() -> None:
    """Courier's EXAMINE of a folder that nobody ever opened for writing gives it a new one each time."""
    given: list[int] = []

    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb in ("EXAMINE", "STATUS"):
            given.append(1)
            fake.boxes[b"INBOX"].uidvalidity = 1000 + len(given)
        return False

    with (fake := _fake(hook=hook)).running():
        (listing,) = _account(fake).scan()
    assert listing.failure is not None
    assert (listing.failure.code, listing.failure.reason) == ("changing", "its UIDVALIDITY changed while it was listed")
    assert listing.folder is not None
    assert listing.folder.highestmodseq == 0


def test_a_folder_listed_from_a_uid_on_is_so_after_a_cut_too() -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "UID FETCH" and talk.number == 1:
            raise Hangup
        return False

    with FakeImap({b"INBOX": FakeBox(dict.fromkeys(range(1, 7), b"message"))}, hook=hook).running() as fake:
        line = Line(fake.factory, lambda seconds: None)
        listings = list(Scanner(line, "old", PART.id).run([Folder(b"INBOX")], 5))
        line.close()
    assert fake.connections == 2
    assert [item.uid for listing in listings for item in listing.items] == [5, 6]
