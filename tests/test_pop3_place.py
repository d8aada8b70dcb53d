"""A POP3 account as a place: who is who from session to session, what fails and how, and when a message came."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import BinaryIO

import pytest

from hostbackup.errors import ConnectionFailed, Damaged, LineCut, LoginRefused, Unreachable
from hostbackup.model import Claim, Folder, Message, Method, Observer, Part, Read, Status, Stored, Write
from hostbackup.places import pop3_check, pop3_fetch
from hostbackup.places.pop3 import Pop3Account
from hostbackup.places.pop3_check import Again
from hostbackup.places.pop3_date import arrival
from hostbackup.places.pop3_numbers import INBOX
from hostbackup.protocols.pop3.channel import Reply
from hostbackup.protocols.pop3.session import Pop3Session, connect
from tests.support.pop3_script import FakeMessage, FakePop3, Hangup, Hook, Talk, stuff
from tests.support.sink import HashSink


class Heard(Observer):
    def __init__(self) -> None:
        self.warned: list[str] = []

    def warn(self, text: str) -> None:
        self.warned.append(text)


class Box:
    """A place on a scripted server, with what a manifest would remember from run to run."""

    def __init__(self, server: FakePop3) -> None:
        self.server = server
        self.heard = Heard()
        self.known: dict[int, Stored[Message]] = {}
        self.stored: dict[str, bytes] = {}  # by digest
        self.place = self.new()

    def new(self, factory: Callable[[], Pop3Session] | None = None, again: Again | None = None, **more: bool) -> Pop3Account:
        self.place = Pop3Account(
            factory or self.server.factory,
            side="old",
            part=Part("mail", "taro"),
            observer=self.heard,
            reader=self.read_stored,
            pause=lambda seconds: None,
            **more,
        )
        self.place.recall(self.known.values, max(self.known, default=0) + 1, again)
        return self.place

    def store(self, *contents: bytes) -> None:
        self.stored |= {sha(data): data for data in contents}

    def read_stored(self, digest: str) -> BinaryIO:
        if digest not in self.stored:
            raise Damaged("the vault has lost this object")
        return io.BytesIO(self.stored[digest])

    def scan(self) -> list[Message]:
        found: list[Message] = []
        for listing in self.place.scan():
            assert listing.failure is None
            found += listing.items
        return found

    def read(self, *wanted: Message) -> dict[int, Read[Message]]:
        sink = HashSink()
        outcomes = list(self.place.read(iter(wanted), sink))
        assert sink.open_now == 0
        assert sorted(outcome.asked.uid for outcome in outcomes) == sorted(message.uid for message in wanted)
        return {outcome.asked.uid: outcome for outcome in outcomes}

    def back_up(self, again: Again | None = None) -> dict[int, str]:
        """One run: what is there, its digest by number; only what has none yet is read."""
        self.new(again=again)
        there = self.scan()
        for uid, outcome in self.read(*(message for message in there if message.uid not in self.known)).items():
            assert outcome.failure is None
            self.known[uid] = Stored(outcome.item, outcome.digest, outcome.size)
        for uid, record in self.known.items():
            self.known[uid] = replace(record, vanished="" if uid in {message.uid for message in there} else "20261125T031500Z")
        self.place.close()
        return {message.uid: self.known[message.uid].digest for message in there}


@pytest.fixture
def box() -> Iterator[Box]:
    with FakePop3().running() as server:
        box = Box(server)
        yield box
        box.place.close()


def letter(number: int, size: int = 100) -> bytes:
    head = b"Received: from a by b; Wed, 01 Jul 2026 02:44:%02d +0900\r\nSubject: %d\r\n\r\n" % (number % 60, number)
    return head + b"." * size + b"\r\n"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# -- who is who -----------------------------------------------------------------------------------------------------------------------------


def test_a_message_keeps_its_number_while_others_come_and_go(box: Box) -> None:
    box.server.put(letter(1), letter(2), letter(3))
    assert box.back_up() == {1: sha(letter(1)), 2: sha(letter(2)), 3: sha(letter(3))}
    del box.server.messages[1]
    box.server.messages.append(FakeMessage(letter(4), "U0004"))
    assert box.back_up() == {1: sha(letter(1)), 3: sha(letter(3)), 4: sha(letter(4))}
    assert box.server.count(b"RETR") == 4, "what is known is not fetched again"
    box.server.messages.insert(0, FakeMessage(letter(2), "U0002"))
    assert box.back_up() == {1: sha(letter(1)), 2: sha(letter(2)), 3: sha(letter(3)), 4: sha(letter(4))}


def test_numbers_are_never_given_twice_even_if_the_history_was_pruned(box: Box) -> None:
    box.place.recall(lambda: (), 17)
    box.server.put(letter(1))
    assert [message.uid for message in box.scan()] == [17]


def test_an_old_uidl_with_other_contents_is_another_message(box: Box) -> None:
    box.server.put(letter(1))
    box.back_up()
    box.server.messages[0] = FakeMessage(letter(9, 200), "U0001")
    assert box.back_up() == {2: sha(letter(9, 200))}


def test_messages_that_share_a_uidl_are_told_apart_by_their_bytes(box: Box) -> None:
    same = [FakeMessage(letter(1), "same"), FakeMessage(letter(2), "same"), FakeMessage(letter(1), "same")]
    box.server.messages[:] = [*same, FakeMessage(letter(3), "other")]
    first = box.back_up()
    assert sorted(first.values()) == sorted(sha(one.data) for one in box.server.messages)
    assert [text for text in box.heard.warned if "3 messages have no name of their own" in text]
    assert box.back_up() == first
    box.server.messages[:] = [same[1], FakeMessage(letter(4), "same"), same[0]]
    second = box.back_up()
    assert sorted(second.values()) == sorted(map(sha, (letter(1), letter(2), letter(4))))
    assert {uid: digest for uid, digest in second.items() if digest != sha(letter(4))}.items() <= first.items()


def test_a_server_without_uidl_is_read_whole_and_matched_by_bytes(box: Box) -> None:
    def old(talk: Talk, verb: bytes, rest: bytes) -> bool:
        if verb in (b"UIDL", b"CAPA"):
            talk.send(b"-ERR unknown\r\n")
        return verb in (b"UIDL", b"CAPA")

    box.server.hook = old
    box.server.put(letter(1), letter(2), letter(2))
    assert box.back_up() == {1: sha(letter(1)), 2: sha(letter(2)), 3: sha(letter(2))}
    del box.server.messages[1]
    box.server.put(letter(4))
    assert box.back_up() == {1: sha(letter(1)), 2: sha(letter(2)), 4: sha(letter(4))}


def test_a_server_that_renames_everything_brings_nothing_but_new_numbers(box: Box) -> None:
    box.server.put(letter(1), letter(2))
    box.back_up()
    box.server.messages[:] = [replace(one, uidl="N" + one.uidl) for one in box.server.messages]
    assert box.back_up() == {3: sha(letter(1)), 4: sha(letter(2))}


def test_many_come_in_ranges_and_a_count_that_does_not_fit_is_told(box: Box) -> None:
    box.server.put(*(b"%d\r\n" % n for n in range(5000)))
    listings = list(box.place.scan())
    assert [(listing.items[0].uid, listing.items[-1].uid, listing.last) for listing in listings] == [(1, 4095, False), (4096, 5000, True)]
    assert listings[0].folder == Folder(INBOX, uidvalidity=1, uidnext=5001, exists=5000)

    def more(talk: Talk, verb: bytes, rest: bytes) -> bool:
        if verb == b"STAT":
            talk.send(b"+OK 5001 1\r\n")
        return verb == b"STAT"

    box.server.hook = more
    box.new()
    assert {listing.failure.code for listing in box.place.scan() if listing.failure} == {"changing"}


def test_an_empty_box(box: Box) -> None:
    assert [(listing.items, listing.last, listing.failure) for listing in box.place.scan()] == [([], True, None)]
    assert box.place.totals() == (0, 0)
    assert [folder.name for folder in box.place.folders()] == [INBOX]
    assert box.place.status(b"Sent") is None


# -- reading --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capabilities", [b"UIDL PIPELINING", b"UIDL"])
def test_commands_wait_for_answers_only_where_they_must(box: Box, capabilities: bytes) -> None:
    box.server.capabilities = capabilities
    box.server.put(*(letter(n) for n in range(600)))
    waiting, most = 0, 0

    class Counted(Pop3Session):
        def ask(self, number: int) -> None:
            nonlocal waiting, most
            waiting += 1
            most = max(most, waiting)
            super().ask(number)

        def take(self, write: Callable[[memoryview | bytes], object], limit: int) -> Reply:
            nonlocal waiting
            waiting -= 1
            return super().take(write, limit)

    box.new(lambda: Counted(box.server.factory().channel))
    assert len(box.read(*box.scan())) == 600
    assert most == (pop3_fetch.IN_FLIGHT if b"PIPELINING" in capabilities else 1)


@pytest.mark.parametrize("capabilities", [b"UIDL PIPELINING", b"UIDL"])
@pytest.mark.parametrize("at", [0, 1, 5, 700, 1500])
def test_a_line_cut_anywhere_is_gone_on_with(box: Box, capabilities: bytes, at: int) -> None:
    box.server.capabilities = capabilities
    contents = [letter(n, 200 + n) for n in range(8)]
    box.server.put(*contents)
    stream = b"".join(b"+OK\r\n" + stuff(data) for data in contents)

    def cut(talk: Talk, verb: bytes, rest: bytes) -> bool:
        if verb != b"RETR" or talk.number != 1:
            return False
        number = int(rest)
        begin = sum(5 + len(stuff(data)) for data in contents[: number - 1])
        whole = b"+OK\r\n" + stuff(contents[number - 1])
        if begin <= at < begin + len(whole):
            talk.send(whole[: at - begin])
            raise Hangup
        return False

    assert at < len(stream)
    box.server.hook = cut
    outcomes = box.read(*box.scan())
    assert [outcomes[n].digest for n in range(1, 9)] == [sha(data) for data in contents]
    assert box.server.connections == 2


def test_a_message_that_always_cuts_the_line_is_told_and_the_rest_comes(box: Box) -> None:
    box.server.put(*(letter(n) for n in range(6)))

    def poison(talk: Talk, verb: bytes, rest: bytes) -> bool:
        if (verb, rest) == (b"RETR", b"3"):
            talk.send(b"+OK\r\nhalf a")
            raise Hangup
        return False

    box.server.hook = poison
    outcomes = box.read(*box.scan())
    failure = outcomes.pop(3).failure
    assert failure is not None
    assert failure.code == "line-cut"
    assert all(outcome.failure is None and outcome.digest for outcome in outcomes.values())


def test_garbage_in_mid_stream_is_not_taken_for_mail(box: Box) -> None:
    box.server.put(*(letter(n) for n in range(6)))

    def garbage(talk: Talk, verb: bytes, rest: bytes) -> bool:
        if (verb, rest, talk.number) == (b"RETR", b"3", 1):
            talk.send(b"+OK\r\n.\r\nand the rest of it\r\n.\r\n")  # ends too early, then goes on
            return True
        return False

    box.server.hook = garbage
    outcomes = box.read(*box.scan())
    assert [outcomes[n].digest for n in range(1, 7)] == [sha(letter(n)) for n in range(6)]


def test_a_line_that_stays_cut_ends_the_read(box: Box) -> None:
    box.server.put(letter(1))
    wanted = box.scan()

    def gone(talk: Talk, verb: bytes, rest: bytes) -> bool:
        if talk.number > 1 or verb == b"RETR":
            raise Hangup
        return False

    box.server.hook = gone
    with pytest.raises(LineCut):
        box.read(*wanted)


def test_a_server_that_never_answers_is_asked_once(box: Box) -> None:
    box.server.greeting = b""
    tried = 0

    def factory() -> Pop3Session:
        nonlocal tried
        tried += 1
        return connect(box.server.target(timeout=0.05))

    box.new(factory)
    with pytest.raises(LineCut, match="nothing moved"):
        box.scan()
    assert tried == 1


def test_gone_and_unreadable_are_told_apart(box: Box) -> None:
    box.server.put(*(letter(n) for n in range(4)))
    box.server.messages[3] = replace(box.server.messages[3], data=b"", told=100)
    wanted = box.scan()
    gone = box.server.messages[1]

    def refuse(talk: Talk, verb: bytes, rest: bytes) -> bool:
        if verb != b"RETR":
            return False
        message = talk.messages[int(rest) - 1]
        if message is gone:
            box.server.messages[:] = [one for one in box.server.messages if one is not gone]
        if message is gone or message.uidl == "U0003":
            talk.send(b"-ERR [SYS/TEMP] cannot\r\n")
            return True
        return False

    box.server.hook = refuse
    outcomes = box.read(*wanted)
    codes = {uid: outcome.failure.code if outcome.failure else "" for uid, outcome in outcomes.items()}
    assert codes == {1: "", 2: "vanished", 3: "refused", 4: "refused"}
    told = outcomes[4].failure
    assert told is not None
    assert "empty message where it told of 100 bytes" in told.reason
    assert box.server.count(b"DELE") == box.server.count(b"QUIT") == 0


def test_what_a_new_session_lists_otherwise_is_not_taken_for_gone(box: Box) -> None:
    box.server.put(*(letter(n) for n in range(3)))
    wanted = box.scan()

    def other_size(talk: Talk, verb: bytes, rest: bytes) -> bool:
        if talk.number == 1 and verb == b"RETR":
            box.server.messages[1] = replace(box.server.messages[1], told=5)
            raise Hangup
        return False

    box.server.hook = other_size
    codes = {uid: outcome.failure.code if outcome.failure else "" for uid, outcome in box.read(*wanted).items()}
    assert codes == {1: "", 2: "changing", 3: ""}


def test_what_has_no_name_and_cannot_be_looked_at_after_a_cut_is_not_taken_for_gone(box: Box) -> None:
    box.server.messages[:] = [FakeMessage(letter(n), "") for n in range(3)]
    wanted = box.scan()

    def refused(talk: Talk, verb: bytes, rest: bytes) -> bool:
        if talk.number == 1 and verb == b"RETR":
            raise Hangup
        return talk.number == 2 and verb == b"RETR" and rest == b"2" and refuses(talk)

    box.server.hook = refused
    codes = {uid: outcome.failure.code if outcome.failure else "" for uid, outcome in box.read(*wanted).items()}
    assert codes == {1: "", 2: "changing", 3: ""}


def test_a_refused_login_is_raised_at_once(box: Box) -> None:
    for refusal, error in ((b"-ERR [AUTH] no\r\n", LoginRefused), (b"-ERR [IN-USE] no\r\n", Unreachable)):
        before, box.server.refusal = box.server.connections, refusal
        with pytest.raises(error):
            list(box.new(lambda: _log_in_wrong(box.server)).scan())
        assert box.server.connections == before + 1


def _log_in_wrong(server: FakePop3) -> Pop3Session:
    return connect(server.target(password="wrong"))


def test_a_server_that_deletes_what_was_read_is_not_read(box: Box) -> None:
    box.server.put(letter(1))
    box.server.capabilities = b"UIDL EXPIRE_0"
    for verb in (lambda: list(box.place.scan()), box.place.folders, box.place.totals):
        with pytest.raises(ConnectionFailed, match=r"EXPIRE 0.*allow_expire_0"):
            verb()
    with pytest.raises(ConnectionFailed, match="EXPIRE 0"):
        list(box.place.read([Message(INBOX, 1, 1, 100)], HashSink()))
    assert box.server.count(b"RETR") == 0
    box.new(allow_expire_0=True)
    assert box.read(*box.scan())[1].digest == sha(letter(1))


@pytest.mark.parametrize(("capability", "warned"), [(b"EXPIRE_NEVER", False), (b"EXPIRE_30", True), (b"UIDL", False)])
def test_a_server_that_deletes_in_time_is_told(box: Box, capability: bytes, warned: bool) -> None:
    box.server.capabilities = capability
    box.scan()
    assert [text for text in box.heard.warned if "after 30 days" in text] == ["mail/taro: the server deletes mail after 30 days (EXPIRE)"] * warned


def test_proofs(box: Box) -> None:
    box.server.put(letter(1), letter(2))
    box.store(b"x")
    first, second = box.scan()
    claims = [Claim(first, sha(letter(1)), len(letter(1))), Claim(second, sha(b"x"), 1), Claim(Message(INBOX, 1, 9), sha(b""), 0)]
    claims.append(Claim(replace(first, uidvalidity=2), sha(letter(1)), len(letter(1))))
    proofs = {id(proof.claim): proof for proof in box.place.prove(claims)}
    assert [proofs[id(claim)].status for claim in claims] == [Status.VERIFIED, Status.DIFFERENT, Status.MISSING, Status.MISSING]
    assert {proof.method for proof in proofs.values()} == {Method.POP3_RETR}


def test_a_proof_believes_no_short_message_and_asks_for_no_known_one_twice(box: Box) -> None:
    contents = [letter(1), letter(2)]
    box.server.put(*contents)
    box.server.messages[1] = replace(box.server.messages[1], told=1000)
    wanted = box.scan()
    box.server.hook = first_session_gives(b"1", letter(1)[:90])
    proofs = list(box.place.prove(Claim(item, sha(data), len(data)) for item, data in zip(wanted, contents, strict=True)))
    assert {proof.status for proof in proofs} == {Status.VERIFIED}
    assert box.server.count(b"RETR") == 3


def test_headers_that_the_server_adds_are_no_damage(box: Box) -> None:
    box.server.put(b"Status: O\r\n" + letter(1))
    box.store(letter(1))
    [item] = box.scan()
    [proof] = box.place.prove([Claim(item, sha(letter(1)), len(letter(1)))])
    assert (proof.status, proof.tier, proof.method) == (Status.VERIFIED, "added-headers", Method.POP3_RETR)


# -- shorter than told ----------------------------------------------------------------------------------------------------------------------


def first_session_gives(number: bytes, data: bytes) -> Hook:
    """Instead of one message, in the first session alone."""

    def hook(talk: Talk, verb: bytes, rest: bytes) -> bool:
        if (verb, rest, talk.number) == (b"RETR", number, 1):
            talk.send(b"+OK\r\n" + stuff(data))
            return True
        return False

    return hook


@pytest.mark.parametrize("capabilities", [b"UIDL PIPELINING", b"UIDL"])
def test_a_message_that_came_short_is_asked_for_again_in_a_new_session(box: Box, capabilities: bytes) -> None:
    box.server.capabilities = capabilities
    box.server.put(*(letter(n) for n in range(4)))
    box.server.hook = first_session_gives(b"2", letter(1)[:80])
    outcomes = box.read(*box.scan())
    assert [outcomes[n].digest for n in range(1, 5)] == [sha(letter(n)) for n in range(4)]
    assert (box.server.connections, box.server.count(b"RETR"), box.server.count(b"LIST")) == (2, 5, 2)
    assert box.heard.warned == []


def test_a_size_that_is_told_too_large_is_told_of_and_no_failure(box: Box) -> None:
    box.server.put(letter(1), letter(2), letter(3))
    box.server.messages[1:] = [replace(one, told=len(one.data) + 20) for one in box.server.messages[1:]]
    outcomes = box.read(*box.scan())
    assert [(outcomes[n].digest, outcomes[n].failure) for n in (1, 2, 3)] == [(sha(letter(n)), None) for n in (1, 2, 3)]
    assert (box.server.connections, box.server.count(b"RETR")) == (2, 5)
    assert [text for text in box.heard.warned if "2 messages are shorter than the server says" in text]


def test_a_message_that_is_short_and_otherwise_each_time_has_failed(box: Box) -> None:
    box.server.put(letter(1), letter(2))

    def odd(talk: Talk, verb: bytes, rest: bytes) -> bool:
        if (verb, rest) == (b"RETR", b"1"):
            talk.send(b"+OK\r\n" + stuff(letter(1)[: 80 + talk.number]))
            return True
        return False

    box.server.hook = odd
    outcomes = box.read(*box.scan())
    failure = outcomes[1].failure
    assert failure is not None
    assert (failure.code, outcomes[2].digest) == ("short", sha(letter(2)))
    assert "83, 84, 85 bytes" in failure.reason
    assert box.server.connections == 3


def test_the_same_short_bytes_in_two_sessions_are_the_message(box: Box) -> None:
    box.server.put(letter(1))

    def odd(talk: Talk, verb: bytes, rest: bytes) -> bool:
        if verb == b"RETR":
            talk.send(b"+OK\r\n" + stuff(letter(1)[: 80 + talk.number % 2]))
        return verb == b"RETR"

    box.server.hook = odd
    outcome = box.read(*box.scan())[1]
    assert (outcome.failure, outcome.size) == (None, 83)
    assert box.server.connections == 3


def test_a_message_that_came_short_and_then_was_gone_is_told(box: Box) -> None:
    box.server.put(letter(1), letter(2))
    wanted = box.scan()
    box.server.hook = first_session_gives(b"1", letter(1)[:80])
    del box.server.messages[0]
    failure = box.read(*wanted)[1].failure
    assert failure is not None
    assert (failure.code, "it was gone" in failure.reason) == ("short", True)


def test_many_short_messages_are_asked_for_again_some_at_a_time(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pop3_fetch, "_LATER", 4)
    box.server.put(*(letter(n) for n in range(10)))
    box.server.messages[:] = [replace(one, told=len(one.data) + 1) for one in box.server.messages]
    outcomes = box.read(*box.scan())
    assert [outcomes[n].digest for n in range(1, 11)] == [sha(letter(n - 1)) for n in range(1, 11)]
    assert box.server.count(b"RETR") == 20


# -- known messages that are looked at again ------------------------------------------------------------------------------------------------


def again(box: Box, *, every: bool = False, doubted: tuple[int, ...] = ()) -> Again:
    return Again(box.read_stored, every, lambda message: message.uid in doubted)


def backed_up(box: Box, *contents: bytes) -> None:
    box.server.put(*contents)
    box.store(*contents)
    box.back_up()
    box.server.commands.clear()


@pytest.mark.parametrize("capabilities", [b"TOP UIDL PIPELINING", b"TOP UIDL"])
def test_a_uidl_that_is_given_again_is_found_out_by_the_header(box: Box, capabilities: bytes) -> None:
    box.server.capabilities = capabilities
    backed_up(box, letter(1), letter(2), letter(3))
    box.server.messages[1] = replace(box.server.messages[1], data=letter(9))
    assert box.back_up(again(box)) == {1: sha(letter(1)), 3: sha(letter(3)), 4: sha(letter(9))}
    assert (box.server.count(b"TOP"), box.server.count(b"RETR")) == (3, 3), "twice to be sure, and once to have it"
    box.store(letter(9))
    assert box.back_up(again(box)) == {1: sha(letter(1)), 3: sha(letter(3)), 4: sha(letter(9))}
    assert box.server.count(b"RETR") == 3
    assert box.known[2].vanished


def test_only_some_headers_are_looked_at_and_all_where_one_was_another(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pop3_check, "SOME", 5)
    backed_up(box, *(letter(n) for n in range(10, 50)))
    box.back_up(again(box))
    assert box.server.count(b"TOP") == 5
    box.server.messages[:] = [replace(one, data=letter(59 - n)) for n, one in enumerate(box.server.messages)]
    assert len(box.back_up(again(box)).keys() & range(1, 41)) == 0
    assert box.server.count(b"TOP") == 45


def test_of_a_server_that_names_by_place_all_headers_are_looked_at(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pop3_check, "SOME", 2)
    contents = [letter(n) for n in range(6)]
    box.server.messages[:] = [FakeMessage(data, str(n)) for n, data in enumerate(contents, 1)]
    box.store(*contents)
    box.back_up()
    del contents[2]
    box.server.messages[:] = [FakeMessage(data, str(n)) for n, data in enumerate(contents, 1)]
    assert sorted(box.back_up(again(box)).values()) == sorted(map(sha, contents))


def test_what_is_doubted_is_read_whole_and_so_is_everything_if_asked(box: Box) -> None:
    contents = [letter(n) for n in range(1, 5)]
    backed_up(box, *contents)
    changed = [data[:-7] + b"xxxxx\r\n" for data in contents]
    box.server.messages[:] = [replace(one, data=data) for one, data in zip(box.server.messages, changed, strict=True)]
    assert sorted(box.back_up(again(box))) == [1, 2, 3, 4], "headers do not tell"
    assert box.server.count(b"RETR") == 0
    assert sorted(box.back_up(again(box, doubted=(2,)))) == [1, 3, 4, 5]
    assert box.server.count(b"RETR") == 2
    box.store(changed[1])
    assert sorted(box.back_up(again(box, every=True)).values()) == sorted(map(sha, changed))


def test_a_server_that_writes_into_headers_makes_no_new_messages(box: Box) -> None:
    backed_up(box, letter(1), letter(2))
    box.server.messages[0] = replace(box.server.messages[0], data=b"Status: O\r\n" + letter(1), told=len(letter(1)))
    assert sorted(box.back_up(again(box))) == [1, 2]
    assert sorted(box.back_up(again(box, every=True))) == [1, 2]
    backed_up(box, b"Status: O\r\n" + letter(3))
    box.server.messages[2] = replace(box.server.messages[2], data=b"Status: R\r\n" + letter(3))
    assert sorted(box.back_up(again(box))) == [1, 2, 3]
    assert box.server.count(b"RETR") == 3, "two whose headers are others now, one of them to see who it is"


def test_a_header_that_cuts_the_line_each_time_keeps_nothing_else_from_coming(box: Box) -> None:
    backed_up(box, letter(1), letter(2))
    box.server.put(letter(3))

    def cuts(talk: Talk, verb: bytes, rest: bytes) -> bool:
        if verb == b"TOP" and rest == b"2 0":
            raise Hangup
        return False

    box.server.hook = cuts
    assert box.back_up(again(box)) == {number: sha(letter(number)) for number in (1, 2, 3)}


def test_what_cannot_be_read_again_is_told(box: Box) -> None:
    backed_up(box, letter(1), letter(2))
    box.server.hook = lambda talk, verb, rest: verb == b"RETR" and rest == b"1" and refuses(talk)
    box.new(again=again(box, every=True))
    [listing] = box.place.scan()
    assert listing.failure is not None
    assert (listing.failure.code, box.place.unchecked) == ("unread", 1)
    assert [item.uid for item in listing.items] == [1, 2]


def refuses(talk: Talk) -> bool:
    talk.send(b"-ERR no\r\n")
    return True


def test_nothing_can_be_written(box: Box) -> None:
    [outcome] = box.place.write([Write(Message(INBOX, 0, 0))])
    assert outcome.failure is not None
    assert outcome.failure.code == "read-only"
    assert box.server.connections == 0


# -- dates ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (b"Received: by b; Wed, 1 Jul 2026 02:44:25 +0900\r\nReceived: by a; Tue, 30 Jun 2026 01:00:00 +0900\r\n", "01-Jul-2026 02:44:25 +0900"),
        (b"Return-Path: <>\r\nReceived: from x\r\n\tby b\r\n\t; Wed, 1 Jul 2026\r\n 02:44:25 -0930 (JST)\r\n", "01-Jul-2026 02:44:25 -0930"),
        (b"DATE: Wed, 01 Jul 98 02:44 GMT\r\nReceived: by b; no date\r\n", "01-Jul-1998 02:44:00 +0000"),
        (b"Received: by b; Thu, 30 Feb 2026 02:44:25 +0900\r\nDate: 1 Jul 2026 02:44:60 +0000\r\n", "01-Jul-2026 02:44:59 +0000"),
        (b"Subject: Date: 1 Jul 2026 02:44:25 +0000\r\n\r\nDate: 1 Jul 2026 02:44:25 +0000\r\n", ""),
        (b"\r\nDate: 1 Jul 2026 02:44:25 +0000\r\n", ""),
        (b"Date: \x93\xfa\x95t\r\n", ""),
        (b"Date: 1 Jul 2026 02:44:25 +9999\r\n", ""),
        (b"Date: 1 Jul 2026 99999999999999999999:44:25\r\n", ""),
        (b"Date: 1 Jul 2026 02:44:25 +0900\nSubject: bare LF\n\nbody", "01-Jul-2026 02:44:25 +0900"),
        (b"", ""),
    ],
)
def test_when_a_message_came(header: bytes, told: str) -> None:
    assert arrival(header) == told


def test_the_date_is_found_however_the_message_is_cut_into_pieces(box: Box) -> None:
    data = b"X-Long: " + b"y" * 30_000 + b"\r\nReceived: by b; Wed, 1 Jul 2026 02:44:25 +0900\r\n\r\n" + b"z" * 200_000 + b"\r\n"
    box.server.put(data)

    def slowly(talk: Talk, verb: bytes, rest: bytes) -> bool:
        if verb == b"RETR":
            whole = b"+OK\r\n" + stuff(data)
            for at in range(0, len(whole), 997):
                talk.send(whole[at : at + 997])
        return verb == b"RETR"

    box.server.hook = slowly
    assert box.read(*box.scan())[1].item.internaldate == "01-Jul-2026 02:44:25 +0900"
