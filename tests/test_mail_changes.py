"""What changed since an earlier listing, from servers that tell it well, badly, or by other means than Dovecot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from hostbackup.model import Changes, Folder, Listing, Message, Part
from hostbackup.places.mail import MailAccount
from tests.support.dovecot import dovecot
from tests.support.imap_script import FakeBox, FakeImap, Hangup, Hook, Talk
from tests.support.mail_move import Hands, letter

PLAIN = b"IMAP4rev1 LITERAL+ CONDSTORE"
QUICK = b"IMAP4rev1 LITERAL+ ENABLE CONDSTORE QRESYNC LIST-EXTENDED LIST-STATUS"


@pytest.fixture(params=[PLAIN, QUICK], ids=["condstore", "qresync"])
def fake(request: pytest.FixtureRequest) -> Iterator[FakeImap]:
    """Two folders of six messages; the server knows what changed, and not what vanished."""
    boxes = {name: FakeBox({uid: b"message %d" % uid for uid in range(1, 7)}) for name in (b"INBOX", b"Other")}
    with (fake := FakeImap(boxes, request.param)).running():
        yield fake


def look(fake: FakeImap, since: dict[bytes, Folder] | None = None) -> dict[bytes, Listing[Message]]:
    """One listing a folder: none of these is long."""
    place = MailAccount(fake.factory, side="old", part=Part("mail", "user"), pause=lambda seconds: None)
    fake.commands.clear()
    found = list(place.scan(since))
    place.close()
    assert [listing.last for listing in found] == [True] * len(found)
    assert all(listing.failure is None for listing in found)
    return {listing.container: listing for listing in found}


def known(listings: dict[bytes, Listing[Message]]) -> dict[bytes, Folder]:
    return {name: listing.folder for name, listing in listings.items() if listing.folder is not None}


def test_an_unchanged_folder_is_not_even_opened(fake: FakeImap) -> None:
    before = known(look(fake))
    assert before[b"INBOX"].highestmodseq == 1
    again = look(fake, before)
    assert {name: (listing.changes, list(listing.items), listing.folder) for name, listing in again.items()} == {
        name: (Changes(), [], before[name]) for name in before
    }
    assert not any(command.startswith((b"EXAMINE", b"SELECT", b"UID")) for command in fake.commands)


def test_flags_arrivals_and_deletions_come_without_the_rest(fake: FakeImap) -> None:
    before = known(look(fake))
    box = fake.boxes[b"INBOX"]
    box.mark(2, b"\\Flagged \\Recent $Label1")
    box.expunge(5)
    box.add(b"new")
    again = look(fake, before)
    inbox = again[b"INBOX"]
    assert inbox.changes is not None
    assert inbox.changes.flags == {2: ("$Label1", "\\Flagged")}
    assert [uid for low, high in inbox.changes.gone for uid in range(low, high + 1)] == [5]
    assert [item.uid for item in inbox.items] == [7]
    assert inbox.folder == replace(before[b"INBOX"], uidnext=8, exists=6, highestmodseq=4)
    assert again[b"Other"].changes == Changes()
    assert look(fake, known(again))[b"INBOX"].changes == Changes()


def _ignoring_changedsince(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
    if b"CHANGEDSINCE" in rest:
        talk.send(tag + b" BAD unknown modifier\r\n")
        return True
    return False


def _without_modseq(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
    if verb == "EXAMINE" and talk.box is None and b"INBOX" in rest:
        told = b"* 7 EXISTS\r\n* OK [UIDVALIDITY 7] valid\r\n* OK [UIDNEXT 8] next\r\n* OK [NOMODSEQ] not here\r\n"
        talk.send(told + tag + b" OK [READ-ONLY] done\r\n")
        talk.box = FakeBox(dict.fromkeys(range(1, 8), b""))
        return True
    return False


def _hiding_a_message(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
    if verb == "UID FETCH" and rest.startswith(b"7:*"):
        talk.send(tag + b" OK nothing new\r\n")
        return True
    return False


def _telling_of_the_wrong_ones(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
    if "CHANGEDSINCE" in rest.decode():
        talk.send(b"* VANISHED (EARLIER) 1:4,99\r\n" + tag + b" OK done\r\n")
        return True
    if verb == "UID FETCH" and rest.endswith(b"(UID)"):
        talk.send(b"* 1 FETCH (UID 1)\r\n" + tag + b" OK done\r\n")
        return True
    return False


@pytest.mark.parametrize("hook", [_ignoring_changedsince, _without_modseq, _hiding_a_message, _telling_of_the_wrong_ones])
def test_an_answer_that_does_not_add_up_leads_to_the_full_listing(fake: FakeImap, hook: Hook) -> None:
    before = known(look(fake))
    box = fake.boxes[b"INBOX"]
    if hook is _telling_of_the_wrong_ones:
        box.expunge(3)
    box.add(b"new")
    fake.hook = hook
    inbox = look(fake, before)[b"INBOX"]
    assert inbox.changes is None
    assert [item.uid for item in inbox.items] == sorted(box.messages) if hook is not _without_modseq else list(range(1, 8))
    assert inbox.folder is not None
    assert inbox.folder.exists == len(inbox.items)


def test_a_difference_that_cuts_the_line_is_not_asked_for_again(fake: FakeImap) -> None:
    before = known(look(fake))
    fake.boxes[b"INBOX"].mark(2, b"\\Flagged")

    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if b"CHANGEDSINCE" in rest:
            talk.send(b"* VANISHED (EARLIER) " + b"1,3," * 300_000 + b"5\r\n")
            raise Hangup
        return False

    fake.hook = hook
    inbox = look(fake, before)[b"INBOX"]
    assert inbox.changes is None
    assert {item.uid: item.flags for item in inbox.items}[2] == ("\\Flagged",)
    assert inbox.folder is not None
    assert inbox.folder.highestmodseq == 2


def test_mail_that_comes_while_the_folder_is_listed_is_found_the_next_time(fake: FakeImap) -> None:
    box = fake.boxes[b"INBOX"]

    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "STATUS" and len(box.messages) == 6 and b"INBOX" in rest:
            box.add(b"late")
        return False

    fake.hook = hook
    first = look(fake)[b"INBOX"]
    assert [item.uid for item in first.items] == [1, 2, 3, 4, 5, 6]
    assert first.folder is not None
    assert (first.folder.uidnext, first.folder.exists, first.folder.highestmodseq) == (7, 6, 1)
    then = look(fake, {b"INBOX": first.folder})[b"INBOX"]
    assert [item.uid for item in then.items] == [7]
    assert then.changes == Changes()


def test_a_listing_with_a_fault_in_it_is_nothing_to_compare_with(fake: FakeImap) -> None:
    def hook(talk: Talk, tag: bytes, verb: str, rest: bytes) -> bool:
        if verb == "UID FETCH":
            talk.send(b"* 1 FETCH (UID 1 FLAGS () RFC822.SIZE 5)\r\n" + tag + b" NO some are missing\r\n")
            return True
        return False

    fake.hook = hook
    place = MailAccount(fake.factory, side="old", part=Part("mail", "user"), pause=lambda seconds: None)
    listings = list(place.scan())
    place.close()
    assert [listing.failure.code for listing in listings if listing.failure] == ["changing", "changing"]
    assert [listing.folder.highestmodseq for listing in listings if listing.folder] == [0, 0]


def test_new_mail_that_the_server_tells_of_out_of_turn_is_seen() -> None:
    """Dovecot runs FETCHes that were sent together as one, and answers the later ones before the first is done."""
    user = "taro@example.test"
    with dovecot() as server:
        hands = Hands(server, user)
        hands.deliver((), *(letter(number) for number in range(5)))

        def scanned(since: dict[bytes, Folder] | None = None) -> Listing[Message]:
            place = MailAccount(lambda: server.session(user), side="old", part=Part("mail", user))
            [listing] = place.scan(since)
            place.close()
            return listing

        first = scanned()
        hands.deliver((), letter(10), letter(11))
        hands.delete((), letter(11))
        hands.delete((), letter(2))  # as many as before
        then = scanned(known({b"INBOX": first}))
        assert then.changes is not None
        assert [message.uid for message in then.items] == [6]
        assert then.changes.gone == ((3, 3),)
