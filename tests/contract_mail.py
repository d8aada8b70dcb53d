"""What every place that holds a mailbox promises. Subclass `MailContract` with a fixture `world`: an account of its own with an empty INBOX."""

from __future__ import annotations

import datetime
import io
from dataclasses import replace
from typing import Any

import pytest

from hostbackup.errors import DiskFull
from hostbackup.model import Claim, Folder, Listing, Message, Method, Proof, Read, Status, Write, Written
from hostbackup.places.base import Place
from tests.support.mail_worlds import MailPlace, MailWorld, mail
from tests.support.memory import DATE, digest_of
from tests.support.sink import HashSink, MemorySink
from tests.support.worlds import Breaking, FullSink, Meter, close

ODD_FOLDERS = (b"&kAFP4W4IMH8w4TD8MOs-", b"with space", b"R&-D", b"a'b", b"100%", b"50* off", b"-x", b"UPPER", b"upper", b'quo"te')


def listings(place: Place[Message]) -> dict[bytes, list[Listing[Message]]]:
    found: dict[bytes, list[Listing[Message]]] = {}
    order = []
    for listing in place.scan():
        assert listing.failure is None
        found.setdefault(listing.container, []).append(listing)
        order.append(listing.container)
    for name, rows in found.items():
        assert [row.last for row in rows] == [False] * (len(rows) - 1) + [True]
        assert all(row.folder is not None and row.folder.name == name for row in rows)
        assert [name] * len(rows) == order[order.index(name) : order.index(name) + len(rows)], "a folder's listings come one after the other"
    return found


def scanned(place: Place[Message]) -> list[Message]:
    return [item for rows in listings(place).values() for row in rows for item in row.items]


def read(place: Place[Message], asked: list[Message], sink: HashSink) -> dict[Message, Read[Message]]:
    outcomes = list(place.read(iter(asked), sink))
    assert sorted(map(_key, (outcome.asked for outcome in outcomes))) == sorted(map(_key, asked)), "one outcome a message"
    assert sink.open_now == 0, "every receiver was ended"
    return {outcome.asked: outcome for outcome in outcomes}


def _key(message: Message) -> tuple[bytes, int, int]:
    return message.folder, message.uidvalidity, message.uid


def upload(folder: bytes, data: bytes, *, flags: tuple[str, ...] = (), internaldate: str = DATE) -> Write[Message]:
    return Write(Message(folder, 0, 0, len(data), internaldate, flags), digest_of(data), len(data), lambda: io.BytesIO(data))


def write(place: Place[Message], *items: Write[Message]) -> list[Written[Message]]:
    """Outcomes in the order of the items."""
    outcomes = {id(outcome.asked): outcome for outcome in place.write(iter(items))}
    assert outcomes.keys() == {id(item) for item in items}, "one outcome an item"
    return [outcomes[id(item)] for item in items]


def prove(place: Place[Message], *claims: Claim[Message], method: Method = Method.IMAP_FETCH) -> list[Proof[Message]]:
    proofs = {id(proof.claim): proof for proof in place.prove(iter(claims))}
    assert proofs.keys() == {id(claim) for claim in claims}, "one proof a claim"
    for proof in proofs.values():
        assert (proof.failure is None) == (proof.status is Status.VERIFIED)
        assert proof.method is method
    return [proofs[id(claim)] for claim in claims]


def claim(message: Message, data: bytes) -> Claim[Message]:
    return Claim(message, digest_of(data), len(data))


def instant(internaldate: str) -> datetime.datetime:
    return datetime.datetime.strptime(internaldate.strip(), "%d-%b-%Y %H:%M:%S %z")


class InboxScanContract:
    def test_uids_ascend_through_a_long_folder(self, world: MailWorld) -> None:
        seeded = world.fill([mail(n) for n in range(3000)])
        found = listings(world.place)[b"INBOX"]
        assert [item for row in found for item in row.items] == seeded
        assert [item.uid for item in seeded] == sorted({item.uid for item in seeded})


class MailScanContract(InboxScanContract):
    def test_a_scan_tells_each_message_once_with_its_true_metadata(self, world: MailWorld) -> None:
        sub = world.name(b"Sub")
        world.make(sub)
        seeded = [
            world.deliver(b"INBOX", mail(1), flags=("\\Seen", "\\Flagged")),
            world.deliver(b"INBOX", mail(2, 5000), internaldate="31-Dec-1999 23:59:59 -0500"),
            world.deliver(sub, mail(3), flags=("$Forwarded",)),
        ]
        assert sorted(scanned(world.place), key=_key) == sorted(seeded, key=_key)

    def test_folders_are_told_with_their_counters_empty_ones_too(self, world: MailWorld) -> None:
        empty = world.name(b"Empty")
        world.make(empty)
        first = world.deliver(b"INBOX", mail(1))
        last = world.deliver(b"INBOX", mail(2))
        world.expunge(first)
        found = listings(world.place)
        assert [list(row.items) for row in found[empty]] == [[]]
        inbox = found[b"INBOX"][-1].folder
        assert inbox is not None
        assert (inbox.exists, inbox.uidvalidity) == (1, last.uidvalidity)
        assert inbox.uidnext > last.uid
        assert [item.uid for row in found[b"INBOX"] for item in row.items] == [last.uid]

    def test_folder_names_come_through_as_they_are_on_the_wire(self, world: MailWorld) -> None:
        names = [world.name(name) for name in ODD_FOLDERS if name not in world.refused] + [world.name(b"up", b"down", b"&U,BTFw-")]
        for name in names:
            world.make(name)
            world.deliver(name, mail(len(name), body=b"in " + name + b"\r\n"))
        found = listings(world.place)
        assert set(names) <= set(found)
        sink = MemorySink()
        asked = [row.items[0] for name in names for row in found[name]]
        for message, outcome in read(world.place, asked, sink).items():
            assert outcome.failure is None
            assert sink.contents[outcome.digest].endswith(b"in " + message.folder + b"\r\n")


Known = dict[bytes, tuple[Folder, dict[int, Message]]]


def since(place: MailPlace, before: Known) -> tuple[Known, set[bytes]]:
    """What is there now, worked out from what was there before and the changes; and which folders told no more than changes."""
    now: Known = {}
    brief = set()
    for listing in place.scan({name: folder for name, (folder, _) in before.items()}):
        assert listing.failure is None
        assert listing.folder is not None
        _, messages = now.get(listing.container, (listing.folder, {}))
        if listing.changes is not None:
            assert not messages, "changes come in one listing"
            brief.add(listing.container)
            messages = dict(before[listing.container][1])
            for low, high in listing.changes.gone:
                messages = {uid: item for uid, item in messages.items() if not low <= uid <= high}
            flags = listing.changes.flags
            messages = {uid: replace(item, flags=flags.get(uid, item.flags)) for uid, item in messages.items()}
            assert not messages.keys() & {item.uid for item in listing.items}, "what was known does not come again"
        messages |= {item.uid: item for item in listing.items}
        now[listing.container] = listing.folder, messages
    for folder, messages in now.values():
        assert folder.exists == len(messages), "the counters fit what was told"
        assert folder.uidnext > max(messages, default=0)
    return now, brief


class MailChangesContract:
    """A scan that is told what an earlier one found: its result is that of a full one, whatever happened meanwhile."""

    def test_what_nobody_touched_is_not_told_again(self, world: MailWorld) -> None:
        sub = world.name(b"Sub")
        world.make(sub)
        for number in range(5):
            world.deliver(sub if number % 2 else b"INBOX", mail(number))
        full, _ = since(world.place, {})
        again, brief = since(world.place, full)
        assert again == full
        assert brief == {name for name, (folder, _) in full.items() if folder.highestmodseq}

    def test_what_came_went_and_was_marked_is_told(self, world: MailWorld) -> None:
        busy, quiet = world.name(b"Busy"), world.name(b"Quiet")
        for name in (busy, quiet):
            world.make(name)
        seeded = [world.deliver(busy, mail(number)) for number in range(8)]
        world.deliver(quiet, mail(100))
        known, _ = since(world.place, {})
        world.flag(seeded[1], "\\Seen", "$Forwarded")
        world.expunge(seeded[3])
        world.expunge(seeded[7])
        world.deliver(busy, mail(8), flags=("\\Flagged",))
        shortlived = world.deliver(busy, mail(9))
        world.expunge(shortlived)
        for more in ((), ("\\Seen",), ("\\Answered", "\\Seen")):
            changed, brief = since(world.place, known)
            assert brief == {name for name, (folder, _) in known.items() if folder.highestmodseq}
            full, _ = since(world.another(), {})
            assert {name: messages for name, (_, messages) in changed.items()} == {name: messages for name, (_, messages) in full.items()}
            assert changed[busy][0].uidnext == full[busy][0].uidnext
            known = changed
            world.flag(seeded[0], *more)
            world.deliver(b"INBOX", mail(20 + len(more)))

    def test_a_folder_that_was_emptied_or_filled_is_told(self, world: MailWorld) -> None:
        full, empty = world.name(b"Full"), world.name(b"Empty")
        for name in (full, empty):
            world.make(name)
        seeded = [world.deliver(full, mail(number)) for number in range(3)]
        known, _ = since(world.place, {})
        for message in seeded:
            world.expunge(message)
        new = world.deliver(empty, mail(9))
        now, _ = since(world.place, known)
        assert now[full][1] == {}
        assert now[empty][1] == {new.uid: new}

    def test_a_folder_made_anew_or_gone_is_listed_for_what_it_is(self, world: MailWorld) -> None:
        again, gone = world.name(b"Again"), world.name(b"Gone")
        for name in (again, gone):
            world.make(name)
            world.deliver(name, mail(1))
        known, _ = since(world.place, {})
        for name in (again, gone):
            world.drop(name)
        world.make(again)
        new = world.deliver(again, mail(2))
        now, brief = since(world.place, known)
        assert now[again][1] == {new.uid: new}
        assert again not in brief
        assert gone not in now

    @pytest.mark.parametrize(
        ("counter", "value"),
        [("exists", 3), ("exists", 9), ("highestmodseq", 1 << 40), ("highestmodseq", 0), ("uidnext", 999), ("uidnext", 2), ("uidvalidity", 1)],
    )
    def test_counters_that_do_not_add_up_are_not_relied_on(self, world: MailWorld, counter: str, value: int) -> None:
        for number in range(4):
            world.deliver(b"INBOX", mail(number))
        known, _ = since(world.place, {})
        folder, messages = known[b"INBOX"]
        wrong: dict[str, Any] = {counter: value}
        now, brief = since(world.place, {**known, b"INBOX": (replace(folder, **wrong), {})})
        assert b"INBOX" not in brief
        assert now[b"INBOX"] == (folder, messages)


class InboxReadContract:
    def test_contents_arrive_byte_for_byte(self, world: MailWorld) -> None:
        bodies = {
            "tiny": b"x\r\n",
            "raw 8 bit": "件名なしの本文".encode("cp932") + b"\r\n" + bytes(range(128, 256)) + b"\r\n",
            "long line": b"y" * 20_000 + b"\r\n",
            "no final newline": b"end",
            "like an answer": b"{5}\r\n)\r\n* 1 FETCH (UID 1)\r\nA1 OK\r\n.\r\n..\r\n.x\r\n+OK\r\n",
            "dots alone": b".\r\n" * 40_000,
            "large": b"0123456789abcdef\r\n" * 200_000,
        }
        contents = [mail(n, body=body) for n, body in enumerate(bodies.values())] + [b"Subject: head only\r\n\r\n"]
        seeded = [world.deliver(b"INBOX", data) for data in contents]
        sink = MemorySink()
        outcomes = read(world.place, seeded, sink)
        for message, data in zip(seeded, map(world.handed_out, contents), strict=True):
            outcome = outcomes[message]
            assert outcome.failure is None
            assert (outcome.digest, outcome.size) == (digest_of(data), len(data))
            assert sink.contents[outcome.digest] == data

    def test_thousands_can_be_asked_for_in_one_call_in_any_order(self, world: MailWorld) -> None:
        contents = [mail(n) for n in range(3000)]
        seeded = world.fill(contents)
        digests = [digest_of(data) for data in contents]
        asked = Meter(sorted(seeded, key=lambda message: digest_of(b"%d" % message.uid)))
        sink = HashSink()
        outcomes = world.place.read(asked, sink)
        got = [next(outcomes)]
        assert asked.taken < 2000, "the input is not drained before the first outcome"
        got += outcomes
        assert len(got) == 3000
        assert {outcome.asked: outcome.digest for outcome in got} == dict(zip(seeded, digests, strict=True))

    def test_what_is_missing_is_told_and_the_rest_arrives(self, world: MailWorld) -> None:
        seeded = [world.deliver(b"INBOX", mail(n)) for n in range(6)]
        world.expunge(seeded[2])
        never = Message(b"INBOX", seeded[0].uidvalidity, 9999, 10)
        outcomes = read(world.place, [*seeded, never], HashSink())
        for message in (seeded[2], never):
            failure = outcomes.pop(message).failure
            assert failure is not None
            assert (failure.code, failure.name, bool(failure.reason), bool(failure.part)) == ("vanished", message.label, True, True)
        assert all(outcome.failure is None and outcome.digest for outcome in outcomes.values())

    def test_the_sinks_trouble_ends_the_read_and_leaves_nothing_open(self, world: MailWorld) -> None:
        seeded = [world.deliver(b"INBOX", mail(n)) for n in range(10)]
        sink = FullSink()
        with pytest.raises(DiskFull):
            list(world.place.read(seeded, sink))
        assert sink.open_now == 0
        assert len(read(world.place, seeded, HashSink())) == 10

    def test_closing_early_frees_what_was_held(self, world: MailWorld) -> None:
        seeded = [world.deliver(b"INBOX", mail(n, 2000)) for n in range(10)]
        sink = HashSink()
        outcomes = world.place.read(seeded, sink)
        next(outcomes)
        close(outcomes)
        assert sink.open_now == 0
        listing = world.place.scan()
        next(listing)
        close(listing)
        assert len(read(world.place, seeded, HashSink())) == 10

    def test_nothing_is_changed_by_looking(self, world: MailWorld) -> None:
        seeded = [world.deliver(b"INBOX", mail(1)), world.deliver(b"INBOX", mail(2), flags=("\\Flagged",))]
        before = world.state()
        assert scanned(world.place) == seeded
        read(world.place, seeded, HashSink())
        prove(world.place, claim(seeded[0], mail(1)), claim(seeded[1], b"other"), method=world.method)
        assert world.state() == before


class MailReadContract(InboxReadContract):
    def test_folders_may_be_asked_for_in_turns(self, world: MailWorld) -> None:
        other = world.name(b"Other")
        world.make(other)
        seeded = [world.deliver(folder, mail(n)) for n, folder in enumerate([b"INBOX", other] * 5)]
        outcomes = read(world.place, seeded, HashSink())
        assert [outcomes[message].digest for message in seeded] == [digest_of(mail(n)) for n in range(10)]

    def test_a_folder_made_anew_does_not_pass_for_the_old_one(self, world: MailWorld) -> None:
        name = world.name(b"Again")
        world.make(name)
        old = world.deliver(name, mail(1))
        elsewhere = world.deliver(b"INBOX", mail(3))
        world.drop(name)
        world.make(name)
        new = world.deliver(name, mail(2))
        assert old.uidvalidity != new.uidvalidity
        outcomes = read(world.place, [old, new, elsewhere], HashSink())
        assert outcomes[old].digest == ""
        failure = outcomes[old].failure
        assert failure is not None
        assert failure.code == "uidvalidity"
        assert (outcomes[new].digest, outcomes[elsewhere].digest) == (digest_of(mail(2)), digest_of(mail(3)))

    def test_a_folder_that_is_gone_is_told(self, world: MailWorld) -> None:
        name = world.name(b"Gone")
        world.make(name)
        old, here = world.deliver(name, mail(1)), world.deliver(b"INBOX", mail(2))
        world.drop(name)
        outcomes = read(world.place, [old, here], HashSink())
        assert outcomes[old].failure is not None
        assert outcomes[here].digest == digest_of(mail(2))


class MailWriteContract:
    def test_messages_are_brought_there_whole_with_flags_and_dates(self, world: MailWorld) -> None:
        sub = world.name(b"Sub")
        assert list(world.place.prepare([Folder(sub, subscribed=True)])) == []
        items = [
            upload(b"INBOX", mail(1), flags=("$Forwarded", "\\Seen"), internaldate="17-Jul-1996 02:44:25 -0700"),
            upload(sub, mail(2, 3_000_000), flags=("\\Answered", "\\Draft", "\\Flagged")),
            upload(b"INBOX", mail(3, body="本文".encode("cp932") + b"\r\n")),
        ]
        outcomes = write(world.place, *items)
        found = {_key(message): message for message in scanned(world.place)}
        assert len(found) == 3
        sink = HashSink()
        for item, outcome in zip(items, outcomes, strict=True):
            assert outcome.failure is None
            message = found[_key(outcome.item)]
            assert message.flags == item.item.flags
            assert instant(message.internaldate) == instant(item.item.internaldate)
            assert read(world.place, [message], sink)[message].digest == item.digest

    def test_equal_messages_stay_as_many_as_they_are(self, world: MailWorld) -> None:
        outcomes = write(world.place, *(upload(b"INBOX", mail(1)) for _ in range(3)))
        assert len({outcome.item.uid for outcome in outcomes}) == 3
        assert len(scanned(world.place)) == 3

    def test_thousands_can_be_written_in_one_call(self, world: MailWorld) -> None:
        asked = Meter(upload(b"INBOX", mail(n)) for n in range(1500))
        outcomes = world.place.write(asked)
        first = next(outcomes)
        assert asked.taken < 1000, "no more is taken than is under way"
        told = [first, *outcomes]
        assert len(told) == 1500
        assert all(outcome.failure is None for outcome in told)
        proofs = prove(world.place, *(Claim(outcome.item, outcome.asked.digest, outcome.asked.size) for outcome in told))
        assert {proof.status for proof in proofs} == {Status.VERIFIED}

    def test_a_folder_that_is_not_there_is_made(self, world: MailWorld) -> None:
        name = world.name(b"Not", b"there yet")
        outcomes = write(world.place, upload(name, mail(1)), upload(b"INBOX", mail(2)))
        assert [outcome.failure for outcome in outcomes] == [None, None]
        assert sorted(message.folder for message in scanned(world.place)) == sorted([b"INBOX", name])

    def test_a_folder_may_be_prepared_twice(self, world: MailWorld) -> None:
        folder = Folder(world.name(b"&kAFP4W4IMH8w4TD8MOs-"), subscribed=True)
        assert [*world.place.prepare([folder]), *world.place.prepare([folder])] == []
        assert write(world.place, upload(folder.name, mail(1)))[0].failure is None

    def test_contents_that_fail_leave_nothing_and_stop_nobody(self, world: MailWorld) -> None:
        broken = Write(Message(b"INBOX", 0, 0, 6, DATE), digest_of(b"abcdef"), 6, lambda: Breaking(b"abcdef"))
        wrong = Write(Message(b"INBOX", 0, 0, 200, DATE), digest_of(b"promised"), len(mail(9)), lambda: io.BytesIO(mail(9)))
        outcomes = write(world.place, upload(b"INBOX", mail(1)), broken, wrong, upload(b"INBOX", mail(2)))
        assert [outcome.failure.code if outcome.failure else "" for outcome in outcomes] == ["", "damaged", "damaged", ""]
        assert len(scanned(world.place)) == 2

    def test_closing_early_leaves_whole_messages_only(self, world: MailWorld) -> None:
        outcomes = world.place.write(upload(b"INBOX", mail(n, 3000)) for n in range(200))
        next(outcomes)
        close(outcomes)
        found = scanned(world.place)
        expected = {digest_of(mail(n, 3000)) for n in range(200)}
        assert {outcome.digest for outcome in read(world.place, found, HashSink()).values()} <= expected


class MailProveContract:
    def test_right_wrong_and_missing_are_told_apart(self, world: MailWorld) -> None:
        right, wrong, gone = (world.deliver(b"INBOX", mail(n)) for n in range(3))
        world.expunge(gone)
        proofs = prove(world.place, claim(gone, mail(2)), claim(wrong, mail(1)[:-3] + b"X\r\n"), claim(right, mail(0)), method=world.method)
        assert [proof.status for proof in proofs] == [Status.MISSING, Status.DIFFERENT, Status.VERIFIED]

    def test_one_message_may_be_claimed_twice(self, world: MailWorld) -> None:
        message = world.deliver(b"INBOX", mail(1))
        proofs = prove(world.place, claim(message, mail(1)), claim(message, mail(2)), method=world.method)
        assert [proof.status for proof in proofs] == [Status.VERIFIED, Status.DIFFERENT]

    def test_flags_that_changed_do_not_change_the_bytes(self, world: MailWorld) -> None:
        message = world.deliver(b"INBOX", mail(1), flags=("\\Seen",))
        before = Message(message.folder, message.uidvalidity, message.uid, message.size, message.internaldate, ())
        assert prove(world.place, claim(before, mail(1)), method=world.method)[0].status is Status.VERIFIED


class CloseContract:
    def test_closing_twice_is_fine(self, world: MailWorld) -> None:
        world.deliver(b"INBOX", mail(1))
        assert len(scanned(world.place)) == 1
        world.place.close()
        world.place.close()

    def test_closing_without_having_begun_is_fine(self, world: MailWorld) -> None:
        world.another().close()


class InboxContract(InboxScanContract, InboxReadContract, MailProveContract, CloseContract):
    """What a place promises that has nothing but an INBOX, to be read."""


class MailContract(MailScanContract, MailChangesContract, MailReadContract, MailWriteContract, MailProveContract, CloseContract):
    pass
