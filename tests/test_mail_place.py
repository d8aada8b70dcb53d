"""A mail account as a place, against real Dovecots of both layouts."""

from __future__ import annotations

import functools
import hashlib
import io
from collections import Counter
from collections.abc import Generator, Iterator

import pytest

from hostbackup.model import Claim, Folder, Message, Method, Observer, Part, Status, Write
from hostbackup.places.mail import HashingSink, MailAccount
from hostbackup.places.mail_folders import FolderMap
from hostbackup.places.mail_scan import RANGE
from hostbackup.protocols.imap import names
from hostbackup.protocols.imap.dates import instant
from hostbackup.protocols.imap.sets import compress
from tests.support.dovecot import INBOX_DOT, PLAIN_SLASH, Dovecot, dovecot

PART = Part("mail", "taro@example.test")
DATE = " 1-Jul-2026 02:44:25 +0900"


@pytest.fixture(params=[INBOX_DOT, PLAIN_SLASH], ids=["INBOX-dot", "plain-slash"])
def server(request: pytest.FixtureRequest) -> Iterator[Dovecot]:
    with dovecot(request.param) as running:
        yield running


class Notes(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def account(server: Dovecot, observer: Observer | None = None) -> MailAccount:
    return MailAccount(server.session, side="old", part=PART, observer=observer, pause=lambda seconds: None)


def mail(number: int, body: bytes = b"text\r\n") -> bytes:
    return b"From: taro@example.test\r\nSubject: mail %d\r\nMessage-ID: <%d@example.test>\r\n\r\n" % (number, number) + body


def write_of(folder: bytes, data: bytes, flags: tuple[str, ...] = (), date: str = DATE) -> Write[Message]:
    item = Message(folder, 0, 0, len(data), date, flags)
    return Write(item, hashlib.sha256(data).hexdigest(), len(data), functools.partial(io.BytesIO, data))


def append(server: Dovecot, folder: bytes, *messages: bytes, flags: tuple[str, ...] = (), date: str = DATE) -> list[Message]:
    place = account(server)
    outcomes = list(place.write(write_of(folder, data, flags, date) for data in messages))
    place.close()
    assert [outcome.failure for outcome in outcomes] == [None] * len(messages)
    return [outcome.item for outcome in outcomes]


def everything(place: MailAccount) -> dict[bytes, list[Message]]:
    found: dict[bytes, list[Message]] = {}
    for listing in place.scan():
        assert listing.failure is None
        found.setdefault(listing.container, []).extend(listing.items)
    return found


def digests(place: MailAccount, items: list[Message]) -> dict[int, str]:
    read = list(place.read(items, HashingSink()))
    assert [outcome.failure for outcome in read] == [None] * len(items)
    assert len(read) == len(items)
    return {outcome.item.uid: outcome.digest for outcome in read}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


ODD = [
    mail(1),
    mail(1),  # the same once more: both stay
    mail(2, "日本語の本文\r\n".encode("iso2022_jp")),
    "Subject: 生の件名\r\n\r\n生の本文\r\n".encode("cp932"),
    b"no header at all",
    b"\r\n\r\n",
    mail(3, b"x" * 20_000),
    mail(4, bytes(byte for byte in range(1, 256) if byte != 10) * 400),
    mail(5, b") UID 1 FLAGS ()\r\nh1 OK done\r\n* BYE\r\n{5}\r\n"),
]


def test_odd_messages_come_and_go_byte_for_byte(server: Dovecot) -> None:
    sent = append(server, b"INBOX", *ODD)
    place = account(server)
    items = everything(place)[b"INBOX"]
    assert [item.uid for item in items] == [item.uid for item in sent]
    assert digests(place, items) == {item.uid: sha(data) for item, data in zip(sent, ODD, strict=True)}
    place.close()


def test_line_endings_that_a_server_rewrites_are_seen_by_the_proof(server: Dovecot) -> None:
    """Dovecot hands out CRLF whatever it was given; what arrived is then not what was sent, and that must be told."""
    bare = b"Subject: bare\n\nline\nfeeds\n"
    (item,) = append(server, b"INBOX", bare)
    place = account(server)
    assert digests(place, [item]) == {item.uid: sha(bare.replace(b"\n", b"\r\n"))}
    (proof,) = place.prove([Claim(item, sha(bare), len(bare))])
    assert proof.status is Status.DIFFERENT
    place.close()


def test_folders_flags_keywords_and_dates_are_kept_as_told(server: Dovecot) -> None:
    name = server.name(names.encode("営業"), names.encode("2026年"))
    append(server, name, mail(1), flags=("$Forwarded", "Label_1", "\\Answered", "\\Seen"))
    append(server, name, mail(2), date="17-Dec-1999 23:59:60 -0800")
    place = account(server)
    folders = {folder.name: folder for folder in place.folders()}
    assert folders[name].separator == server.layout.separator.encode()
    assert place.namespace_prefix == server.layout.prefix.encode()
    assert place.separator == server.layout.separator.encode()
    first, second = everything(place)[name]
    assert first.flags == ("$Forwarded", "Label_1", "\\Answered", "\\Seen")
    assert second.flags == ()
    told = _verbatim_dates(server, name)
    assert [first.internaldate, second.internaldate] == told
    assert instant(first.internaldate) == instant(DATE)
    place.close()


def _verbatim_dates(server: Dovecot, name: bytes) -> list[str]:
    """INTERNALDATEs by another client's own reading of the raw lines."""
    import imaplib

    client = imaplib.IMAP4("127.0.0.1", server.ports["plain"])
    client.login("taro@example.test", "secret")
    client.select(f'"{name.decode()}"', readonly=True)
    lines = client.fetch("1:*", "(INTERNALDATE)")[1]
    client.logout()
    return [line.split(b'"')[1].decode() for line in lines if isinstance(line, bytes)]


def test_reading_marks_nothing_seen(server: Dovecot) -> None:
    append(server, b"INBOX", mail(1), mail(2))
    place = account(server)
    for _ in range(2):
        items = everything(place)[b"INBOX"]
        assert [item.flags for item in items] == [(), ()]
        digests(place, items)
        assert {proof.status for proof in place.prove([Claim(items[0], sha(mail(1)), len(mail(1)))])} == {Status.VERIFIED}
    place.close()
    assert not list(server.maildir().glob("cur/*S*"))


def test_special_use_and_subscriptions_are_listed(server: Dovecot) -> None:
    notes = Notes()
    place = account(server, notes)
    sent, japanese = server.name(b"Sent"), server.name(names.encode("下書き"))
    assert list(place.prepare([Folder(sent, subscribed=True), Folder(japanese), Folder(b"INBOX", subscribed=True)])) == []
    gone = names.quote(server.name(b"gone")) or b""
    session = server.session()
    assert [session.channel.run(verb, gone).ok for verb in (b"CREATE", b"SUBSCRIBE", b"DELETE")] == [True] * 3
    session.close()
    folders = {folder.name: folder for folder in place.folders()}
    assert list(folders) == [b"INBOX", *sorted([sent, japanese])]
    assert folders[sent].special_use == "\\Sent"
    assert folders[sent].subscribed
    assert folders[b"INBOX"].subscribed
    assert not folders[japanese].subscribed
    assert any("gone" in note for note in notes.notes)
    assert list(place.prepare([Folder(sent, subscribed=True), Folder(japanese, subscribed=True)])) == [], "twice does no harm"
    place.close()


def test_a_folder_that_only_holds_others_is_not_taken(server: Dovecot) -> None:
    if server.layout.separator == "/":
        (server.maildir() / ".parent.child" / "cur").mkdir(parents=True)
    else:
        (server.maildir() / ".parent.child" / "cur").mkdir(parents=True)
    place = account(server)
    found = [folder.name for folder in place.folders()]
    assert server.name(b"parent", b"child") in found
    assert server.name(b"parent") not in found
    place.close()


def test_an_empty_folder_is_one_empty_listing(server: Dovecot) -> None:
    place = account(server)
    (listing,) = place.scan()
    assert (listing.container, list(listing.items), listing.last, listing.failure) == (b"INBOX", [], True, None)
    assert listing.folder is not None
    assert listing.folder.uidvalidity > 0
    assert listing.folder.uidnext == 1
    place.close()


def test_uids_only_grow_and_new_mail_is_found_by_them(server: Dovecot) -> None:
    first = append(server, b"INBOX", mail(1), mail(2), mail(3))
    place = account(server)
    before = everything(place)[b"INBOX"]
    _expunge(server, b"INBOX", before[1].uid)
    (new,) = append(server, b"INBOX", mail(4))
    after = everything(place)[b"INBOX"]
    assert [item.uid for item in after] == [before[0].uid, before[2].uid, new.uid]
    assert new.uid > first[-1].uid
    assert {item.uidvalidity for item in after} == {before[0].uidvalidity}
    (vanished,) = place.read([before[1]], HashingSink())
    assert vanished.failure is not None
    assert vanished.failure.code == "vanished"
    place.close()


def _expunge(server: Dovecot, folder: bytes, *uids: int) -> None:
    session = server.session()
    session.open_mailbox(folder, writable=True)
    assert session.channel.run(b"UID STORE", compress(uids), b"+FLAGS.SILENT (\\Deleted)").ok
    assert session.channel.run(b"EXPUNGE").ok
    session.close()


def test_messages_that_left_do_not_cost_their_batch(server: Dovecot) -> None:
    append(server, b"INBOX", *[mail(number) for number in range(20)])
    place = account(server)
    items = everything(place)[b"INBOX"]
    _expunge(server, b"INBOX", items[0].uid, items[7].uid, items[19].uid)
    outcomes = {outcome.item.uid: outcome for outcome in place.read(items, HashingSink())}
    assert len(outcomes) == 20
    failed = {uid for uid, outcome in outcomes.items() if outcome.failure is not None}
    assert failed == {items[0].uid, items[7].uid, items[19].uid}
    place.close()


def test_a_folder_made_anew_is_told_by_its_uidvalidity(server: Dovecot) -> None:
    name = server.name(b"project")
    append(server, name, mail(1))
    place = account(server)
    (old,) = everything(place)[name]
    (read,) = place.read([Message(name, old.uidvalidity + 1, old.uid, old.size)], HashingSink())
    assert read.failure is not None
    assert read.failure.code == "uidvalidity"
    claims = [Claim(Message(name, old.uidvalidity + 1, old.uid), sha(mail(1)), len(mail(1))), Claim(old, sha(mail(1)), len(mail(1)))]
    assert [proof.status for proof in place.prove(claims)] == [Status.CHANGED, Status.VERIFIED]
    place.close()


def test_folders_that_are_not_there_fail_their_messages_only(server: Dovecot) -> None:
    (good,) = append(server, b"INBOX", mail(1))
    place = account(server)
    gone = Message(server.name(b"gone"), 1, 1)
    outcomes = list(place.read([gone, good, gone], HashingSink()))
    assert Counter(outcome.failure.code if outcome.failure else "" for outcome in outcomes) == {"": 1, "folder-missing": 2}
    place.close()


def test_proof_tells_right_from_wrong_missing_and_nameless(server: Dovecot) -> None:
    first, second = append(server, b"INBOX", mail(1), mail(2))
    place = account(server)
    claims = [
        Claim(first, sha(mail(1)), len(mail(1))),
        Claim(second, sha(mail(1)), len(mail(2))),
        Claim(Message(b"INBOX", first.uidvalidity, 999), sha(mail(1)), 1),
        Claim(Message(b"INBOX", 0, 0), sha(mail(1)), 1),
        Claim(Message(server.name(b"gone"), 1, 1), sha(mail(1)), 1),
        Claim(first, sha(mail(1)), len(mail(1))),
    ]
    proofs = list(place.prove(claims))
    assert len(proofs) == len(claims)
    told = {id(proof.claim): proof for proof in proofs}
    wanted = [Status.VERIFIED, Status.DIFFERENT, Status.MISSING, Status.UNVERIFIED, Status.MISSING, Status.VERIFIED]
    assert [told[id(claim)].status for claim in claims] == wanted
    assert {proof.method for proof in proofs if proof.status is Status.VERIFIED} == {Method.IMAP_FETCH}
    assert all((proof.failure is None) == (proof.status is Status.VERIFIED) for proof in proofs)
    place.close()


def test_what_stands_in_a_folder_is_found_by_its_bytes(server: Dovecot) -> None:
    sent = append(server, b"INBOX", mail(1), mail(2, b"longer than the others\r\n"), mail(3))
    place = account(server)
    assert [(item.uid, digest) for item, digest in place.find(b"INBOX")] == [
        (item.uid, sha(data)) for item, data in zip(sent, (mail(1), mail(2, b"longer than the others\r\n"), mail(3)), strict=True)
    ]
    assert [item.uid for item, _ in place.find(b"INBOX", sent[1].uid)] == [sent[1].uid, sent[2].uid]
    assert [item.uid for item, _ in place.find(b"INBOX", 1, lambda message: message.size == len(mail(1)))] == [sent[0].uid, sent[2].uid]
    assert list(place.find(b"INBOX", sent[2].uid + 1)) == []
    assert list(place.find(server.name(b"gone"))) == []
    status = place.status(b"INBOX")
    assert status is not None
    assert (status.uidvalidity, status.uidnext, status.exists) == (sent[0].uidvalidity, sent[2].uid + 1, 3)
    assert place.status(server.name(b"gone")) is None
    place.close()


def test_flags_that_cannot_be_kept_and_impossible_dates_are_told_not_fatal(server: Dovecot) -> None:
    place = account(server)
    writes = [
        write_of(b"INBOX", mail(1), ("\\Recent", "\\Seen", "bad flag", "$ok", "日本")),
        write_of(b"INBOX", mail(2), date="31-Feb-2026 99:00:00 +0900"),
        write_of(b"INBOX", mail(3), date="yesterday\r\nh1 LOGOUT"),
    ]
    outcomes = {id(outcome.asked): outcome for outcome in place.write(writes)}
    items = [outcomes[id(write)].item for write in writes]
    assert [outcomes[id(write)].failure for write in writes] == [None] * 3
    assert items[0].flags == ("\\Seen", "$ok")
    assert items[2].internaldate == ""
    assert {flag for _, flag in place.losses} >= {"\\Recent", "bad flag", "日本", "INTERNALDATE"}
    standing = {item.uid: item for item in everything(place)[b"INBOX"]}
    assert standing[items[0].uid].flags == ("$ok", "\\Seen")
    assert sorted(digests(place, list(standing.values())).values()) == sorted(sha(mail(number)) for number in (1, 2, 3))
    place.close()


def test_bytes_that_are_not_what_was_recorded_are_never_sent(server: Dovecot) -> None:
    def unreadable() -> io.BytesIO:
        raise PermissionError(13, "Permission denied")

    item = Message(b"INBOX", 0, 0, 4, DATE)
    large = mail(9, b"z" * 2_000_000)
    writes = [
        Write(item, sha(b"good"), 4, functools.partial(io.BytesIO, b"evil")),
        Write(item, sha(b"good"), 5, functools.partial(io.BytesIO, b"good")),
        Write(item, sha(b"good"), 3, functools.partial(io.BytesIO, b"good")),
        Write(item, sha(b"good"), 4, unreadable),
        Write(item, sha(large), len(large), functools.partial(io.BytesIO, large[:-1] + b"!")),
        write_of(b"INBOX", mail(1)),
        write_of(b"INBOX", large),
    ]
    place = account(server)
    outcomes = {id(outcome.asked): outcome for outcome in place.write(writes)}
    codes = [failure.code if (failure := outcomes[id(write)].failure) else "" for write in writes]
    assert codes == ["damaged"] * 5 + ["", ""]
    assert sorted(digests(place, everything(place)[b"INBOX"]).values()) == sorted([sha(mail(1)), sha(large)])
    place.close()


def test_a_store_that_fails_in_mid_message_leaves_no_half_message(server: Dovecot) -> None:
    large = mail(9, b"z" * 3_000_000)
    opened: list[int] = []

    def shrinking() -> io.BytesIO:
        opened.append(1)
        return io.BytesIO(large if len(opened) == 1 else large[:1_500_000])

    writes = [write_of(b"INBOX", mail(1)), Write(Message(b"INBOX", 0, 0, len(large)), sha(large), len(large), shrinking), write_of(b"INBOX", mail(2))]
    place = account(server)
    outcomes = {id(outcome.asked): outcome for outcome in place.write(writes)}
    assert [outcomes[id(write)].failure is None for write in writes] == [True, False, True]
    assert sorted(digests(place, everything(place)[b"INBOX"]).values()) == sorted([sha(mail(1)), sha(mail(2))])
    place.close()


def test_three_thousand_messages_come_in_batches_and_in_order(server: Dovecot) -> None:
    _deliver(server, 3000)
    place = account(server)
    items = everything(place)[b"INBOX"]
    assert len(items) == 3000
    assert [item.uid for item in items] == sorted(item.uid for item in items)
    found = digests(place, items)
    assert sorted(found.values()) == sorted(sha(mail(number)) for number in range(3000))
    place.close()


def _deliver(server: Dovecot, count: int) -> None:
    """Straight into the Maildir: much faster than APPEND."""
    import os

    append(server, b"INBOX", mail(0))
    cur = server.maildir() / "cur"
    owner = server.maildir().stat()
    for number in range(1, count):
        path = cur / f"1700000000.M{number}P1.test,S={len(mail(number))}:2,"
        path.write_bytes(mail(number))
        os.chown(path, owner.st_uid, owner.st_gid)


def test_listings_hold_one_range_of_uids_each() -> None:
    with dovecot(PLAIN_SLASH) as server:
        _deliver(server, RANGE + 10)
        place = account(server)
        listings = list(place.scan())
        assert [(len(listing.items), listing.last) for listing in listings] == [(RANGE - 1, False), (11, True)]
        assert [{item.uid // RANGE for item in listing.items} for listing in listings] == [{0}, {1}]
        place.close()


def test_a_mailbox_moves_from_one_layout_to_the_other_whole() -> None:
    with dovecot(INBOX_DOT) as old, dovecot(PLAIN_SLASH) as new:
        japanese, deep = old.name(names.encode("送信済みアイテム")), old.name(names.encode("案件"), b"2026", b"a&-b")
        contents = {b"INBOX": [mail(1), mail(1)], japanese: [mail(2)], deep: [mail(3), *ODD]}
        for name, messages in contents.items():
            append(old, name, *messages, flags=("\\Flagged", "$Work"))
        source, target = account(old), account(new)
        assert list(target.prepare([Folder(b"Sent", subscribed=True)])) == []
        there = target.folders()
        mapping = FolderMap.between(
            source.folders(), there, old_prefix=source.namespace_prefix, new_prefix=target.namespace_prefix, new_separator=target.separator
        )
        writes = [
            write_of(mapping.target(Folder(name, b".")), data, ("\\Flagged", "$Work")) for name, messages in contents.items() for data in messages
        ]
        outcomes = list(target.write(writes))
        assert all(outcome.failure is None and outcome.item.uid and outcome.item.uidvalidity for outcome in outcomes)
        proofs = list(target.prove(Claim(outcome.item, outcome.asked.digest, outcome.asked.size) for outcome in outcomes))
        assert {proof.status for proof in proofs} == {Status.VERIFIED}
        standing = everything(target)
        assert {name: len(items) for name, items in standing.items()} == {
            b"INBOX": 2,
            b"Sent": 1,
            names.encode("案件") + b"/2026/a&-b": len(ODD) + 1,
        }
        assert {item.flags for items in standing.values() for item in items} == {("$Work", "\\Flagged")}
        source.close()
        target.close()


def test_ending_early_frees_the_line_and_the_account_goes_on(server: Dovecot) -> None:
    append(server, b"INBOX", *[mail(number, b"y" * 50_000) for number in range(40)])
    place = account(server)
    items = everything(place)[b"INBOX"]
    for begun in (place.read(items, HashingSink()), place.scan()):
        next(begun)
        assert isinstance(begun, Generator)
        begun.close()
    assert len(digests(place, items)) == 40
    place.close()
    place.close()
