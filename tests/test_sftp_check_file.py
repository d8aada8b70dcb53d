"""Digests over SFTP: the extension's answers, servers that make something else of it, and what a proof makes of that."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostbackup.errors import LineCut
from hostbackup.model import Claim, Entry, Kind, Method, Status
from hostbackup.places.digests import Told
from hostbackup.places.sftp_check_file import BLOCK, CheckFile
from hostbackup.places.sftp_prove import Means, Prover
from hostbackup.places.sftp_tree import Lines, Tree
from hostbackup.places.shell import Shell
from hostbackup.protocols import ssh
from hostbackup.protocols.limits import Limits
from hostbackup.protocols.sftp.check_file import SIZES, WHOLE_LIMIT, check_file, parse
from hostbackup.protocols.sftp.client import SocketChannel
from hostbackup.protocols.sftp.packets import Type, text
from tests.support.proftpd import proftpd
from tests.support.sftp_server import Scripted, frame, status
from tests.support.sites import PART, Opener, claims, entries, proofs, put
from tests.support.sshd import Sshd, sshd

pytest_plugins = ["tests.support.sites"]
ALL = tuple(SIZES)
DIGEST = bytes(range(32))


@pytest.fixture(scope="module")
def hashing() -> Iterator[Sshd]:
    with proftpd() as server:
        yield server


@pytest.fixture(scope="module")
def plain() -> Iterator[Sshd]:
    with sshd(shell=False) as server:
        yield server


# -- the packets


def answer(algorithm: bytes, *digests: bytes, named: bool = False, lengths: bool = False) -> bytes:
    found = b"".join(text(digest) if lengths else digest for digest in digests)
    return (text(b"check-file") if named else b"") + text(algorithm) + found


def test_a_whole_file_is_asked_for_by_name_with_the_strongest_algorithm_first() -> None:
    asked = check_file(b"/srv/f", ALL)
    body = text(b"check-file-name") + text(b"/srv/f") + text(b"sha256,sha1,md5,crc32") + struct.pack(">QQI", 0, 0, 0)
    assert (asked.type, asked.body) == (Type.EXTENDED, body)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("lengths", [True, False])
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("algorithm", ALL)
def test_every_form_of_an_answer_is_understood(named: bool, lengths: bool, blocks: int, algorithm: bytes) -> None:
    digests = [bytes([n]) * SIZES[algorithm] for n in range(blocks)]
    found = parse(memoryview(answer(algorithm, *digests, named=named, lengths=lengths)), ALL, blocks=blocks)
    assert found is not None
    assert (found.algorithm, found.digests) == (algorithm.decode(), tuple(digest.hex() for digest in digests))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0\0\0",
        b"\xff\xff\xff\xffsha256",
        answer(b"sha256"),
        answer(b"sha256", DIGEST[:-1]),
        answer(b"sha256", DIGEST, b"\0"),
        answer(b"sha256", DIGEST, DIGEST),
        answer(b"sha512", DIGEST * 2),
        answer(b"md5", DIGEST[:16]),
        answer(b"SHA256", DIGEST),
        text(b"sha256") + struct.pack(">I", 31) + DIGEST,
        text(b"check-file") * 2 + text(b"sha256") + DIGEST,
        text(b"check-file"),
    ],
)
def test_what_was_not_asked_for_is_no_answer(body: bytes) -> None:
    assert parse(memoryview(body), (b"sha256",)) is None


@given(st.binary(max_size=100), st.integers(1, 3))
def test_garbage_is_no_answer_and_no_error(body: bytes, blocks: int) -> None:
    found = parse(memoryview(body), ALL, blocks=blocks)
    assert found is None or len(found.digests) == blocks


# -- a server that follows a script


class Servers:
    """Logs in to a scripted server, a new one each time; `seen` are the paths asked for and what algorithms were offered."""

    alive = True
    port, address, host_key_fingerprint, host_key_type = 0, "", "", ""

    def __init__(self, respond: Callable[[bytes, int], list[bytes] | None], version: str = "SSH-2.0-mod_sftp") -> None:
        self.server_version = version
        self.seen: list[tuple[bytes, bytes]] = []
        self.logins = 0
        self._respond = respond
        self._open: list[Scripted] = []

    def __call__(self) -> Servers:
        self.logins += 1
        return self

    def open_sftp_channel(self) -> SocketChannel:
        self._open.append(Scripted(self._answer))
        return SocketChannel(self._open[-1]._near)

    def _answer(self, kind: int, number: int, body: bytes) -> list[bytes]:
        assert kind == Type.EXTENDED
        strings, at = [], 0
        for _ in range(3):
            (length,) = struct.unpack_from(">I", body, at)
            strings.append(body[at + 4 : at + 4 + length])
            at += 4 + length
        assert strings[0] == b"check-file-name"
        self.seen.append((strings[1], strings[2]))
        told = self._respond(strings[1], number)
        if told is None:
            raise EOFError
        return told

    def close(self) -> None: ...


def claim(name: bytes, size: int = 5) -> Claim[Entry]:
    return Claim(Entry(name, Kind.FILE, size, 1), hashlib.sha256(name).hexdigest(), size)


def told_by(servers: Servers, asked: Sequence[Claim[Entry]], *, weak: bool = False, blocks: bool = False, stall: float = 5.0) -> list[Told]:
    lines = Lines(servers, 4, Limits(stall=stall), pause=lambda _: None)  # type: ignore[arg-type]
    tree = Tree(b"/srv", "old", PART, b"/srv")
    found = list(CheckFile(lines, tree, weak=weak, blocks=blocks).digests(asked))
    lines.close()
    assert sorted(told.claim.item.path for told in found) == sorted(one.item.path for one in asked), "one answer a claim"
    return found


def reply(number: int, body: bytes) -> list[bytes]:
    return [frame(Type.EXTENDED_REPLY, struct.pack(">I", number) + body)]


def test_digests_come_for_many_files_and_only_sha256_is_asked_for() -> None:
    servers = Servers(lambda path, number: reply(number, answer(b"sha256", hashlib.sha256(path[5:]).digest())))
    found = told_by(servers, [claim(b"f%d" % n) for n in range(300)])
    assert all(told.digests == (told.claim.digest,) and told.algorithm == "sha256" for told in found)
    assert {algorithms for _, algorithms in servers.seen} == {b"sha256"}


def test_weak_algorithms_are_offered_only_where_they_count() -> None:
    servers = Servers(lambda _, number: reply(number, answer(b"md5", DIGEST[:16])))
    assert {told.digests for told in told_by(servers, [claim(b"f")])} == {()}
    assert {told.algorithm for told in told_by(servers, [claim(b"f")], weak=True)} == {"md5"}
    assert servers.seen == [(b"/srv/f", b"sha256"), (b"/srv/f", b"sha256,sha1,md5,crc32")]


@pytest.mark.parametrize("code", [3, 4, 8])
def test_a_server_that_refuses_the_first_files_is_asked_no_more(code: int) -> None:
    servers = Servers(lambda _, number: [status(number, code)])
    assert {told.digests for told in told_by(servers, [claim(b"f%d" % n) for n in range(100)])} == {()}
    assert len(servers.seen) == 8


def test_openssh_is_not_asked_at_all() -> None:
    servers = Servers(lambda _, number: [status(number, 8)], "SSH-2.0-OpenSSH_9.2p1")
    assert {told.digests for told in told_by(servers, [claim(b"f")])} == {()}
    assert servers.seen == []


def test_one_file_that_is_refused_or_answered_with_garbage_says_nothing_of_the_others() -> None:
    def respond(path: bytes, number: int) -> list[bytes]:
        n = int(path[6:])
        if n % 10 == 7:
            return [status(number, 2)]
        return reply(number, b"garbage" if n % 10 == 8 else answer(b"sha256", DIGEST))

    found = told_by(Servers(respond), [claim(b"f%d" % n) for n in range(100)])
    assert sorted(int(told.claim.item.path[1:]) % 10 for told in found if not told.digests) == [7] * 10 + [8] * 10


def test_an_answer_of_another_kind_ends_the_asking_and_every_claim_is_still_answered() -> None:
    def respond(path: bytes, number: int) -> list[bytes]:
        if path == b"/srv/f50":
            return [frame(Type.HANDLE, struct.pack(">I", number) + text(b"h"))]
        return reply(number, answer(b"sha256", DIGEST))

    servers = Servers(respond)
    found = told_by(servers, [claim(b"f%d" % n) for n in range(2000)])
    assert 0 < sum(1 for told in found if told.digests) < 2000
    assert len(servers.seen) < 1000


def test_a_file_that_cuts_the_line_is_asked_for_twice_and_then_left() -> None:
    def respond(path: bytes, number: int) -> list[bytes] | None:
        return None if path == b"/srv/f50" else reply(number, answer(b"sha256", DIGEST))

    servers = Servers(respond)
    found = told_by(servers, [claim(b"f%02d" % n) for n in range(60)])
    # What was under way with it each time is left to other means too.
    left = [told.claim.item.path for told in found if not told.digests]
    assert min(left) == b"f50"
    assert [path for path, _ in servers.seen].count(b"/srv/f50") == 2


def test_empty_files_and_those_too_large_are_not_asked_for() -> None:
    servers = Servers(lambda _, number: reply(number, answer(b"sha256", DIGEST)))
    found = told_by(servers, [claim(b"empty", 0), claim(b"huge", WHOLE_LIMIT + 1), claim(b"large", WHOLE_LIMIT)])
    assert {told.claim.item.path for told in found if told.digests} == {b"large"}
    assert [path for path, _ in servers.seen] == [b"/srv/large"]


def test_a_huge_file_is_asked_for_in_blocks_where_they_can_be_compared() -> None:
    servers = Servers(lambda _, number: reply(number, answer(b"sha256", DIGEST, DIGEST[::-1], DIGEST)))
    (told,) = told_by(servers, [claim(b"huge", 2 * BLOCK + 1)], blocks=True)
    assert (told.block, told.digests) == (BLOCK, (DIGEST.hex(), DIGEST[::-1].hex(), DIGEST.hex()))


def test_a_large_file_has_time_for_its_bytes_and_a_small_one_has_not() -> None:
    waits: list[float | None] = []

    class Watched(Lines):
        def carry_out(self, source, channels=None, *, stall=None):  # type: ignore[no-untyped-def]
            waits.append(stall)
            return super().carry_out(source, channels, stall=stall)

    servers = Servers(lambda _, number: reply(number, answer(b"sha256", DIGEST)))
    lines = Watched(servers, 4, Limits(stall=60.0), pause=lambda _: None)  # type: ignore[arg-type]
    asked = [claim(b"small", 1000), claim(b"large", 1_000_000_000)]
    assert len(list(CheckFile(lines, Tree(b"/", "old", PART, b"/srv"), weak=False, blocks=False).digests(asked))) == 2
    lines.close()
    assert waits == [60.0, 60.0 + 250.0]


# -- what proofs make of it


def test_proftpd_proves_by_its_own_digests(hashing: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    put(tmp_path, b"f", b"1")
    put(tmp_path, b"flipped", b"12345")
    put(tmp_path, b"empty", b"")
    put(tmp_path, b"odd\n\\ \xff", b"12345")
    tree = open_tree(hashing, tmp_path)
    claimed = claims(tree)
    put(tmp_path, b"flipped", b"12344")
    found = proofs(tree, claimed)
    assert {path: (proof.status, proof.method) for path, proof in found.items()} == {
        b"f": (Status.VERIFIED, Method.SERVER_SHA256),
        b"odd\n\\ \xff": (Status.VERIFIED, Method.SERVER_SHA256),
        b"empty": (Status.VERIFIED, Method.SFTP_SECOND_READ),
        b"flipped": (Status.DIFFERENT, Method.SFTP_SECOND_READ),
    }


class Answers(CheckFile):
    """Tells what a test gives it."""

    def __init__(self, found: Callable[[Claim[Entry]], Told]) -> None:
        self._found = found
        self.known = True

    def digests(self, claims):  # type: ignore[no-untyped-def]
        return map(self._found, claims)


def prove_with(
    server: Sshd, root: Path, claimed: dict[bytes, Claim[Entry]], told: Callable[[Claim[Entry]], Told], **options: object
) -> dict[bytes, tuple[Status, Method]]:
    lines = Lines(lambda: ssh.connect(server.target(shell="never")), pause=lambda _: None)
    means = Means(Shell(lines.session), Answers(told), **options)  # type: ignore[arg-type]
    proven = list(Prover(lines, lines.another(), Tree(str(root).encode(), "old", PART), means).prove(claimed.values()))
    lines.close()
    return {proof.claim.item.path: (proof.status, proof.method) for proof in proven}


def test_a_digest_that_lies_is_no_damage_and_one_that_is_right_is(plain: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    for name in (b"fine", b"flipped", b"moved on", b"gone"):
        put(tmp_path, name, b"12345")
    claimed = claims(open_tree(plain, tmp_path))
    put(tmp_path, b"flipped", b"12344")

    def lie(one: Claim[Entry]) -> Told:
        if one.item.path == b"moved on":
            put(tmp_path, b"moved on", b"longer than it was")
        if one.item.path == b"gone":
            (tmp_path / "gone").unlink(missing_ok=True)
        return Told(one, "sha256", ("f" * 64,))

    assert prove_with(plain, tmp_path, claimed, lie) == {
        b"fine": (Status.VERIFIED, Method.SFTP_SECOND_READ),
        b"flipped": (Status.DIFFERENT, Method.SFTP_SECOND_READ),
        b"moved on": (Status.CHANGED, Method.SFTP_SECOND_READ),
        b"gone": (Status.MISSING, Method.SFTP_SECOND_READ),
    }


def test_weak_digests_count_only_where_they_are_allowed_and_agree_with_the_vaults_bytes(plain: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    for name in (b"fine", b"flipped", b"not held", b"damaged here"):
        put(tmp_path, name, name + b".")
    claimed = claims(open_tree(plain, tmp_path))
    kept = {one.digest: one.item.path + b"." for one in claimed.values()}
    kept[claimed[b"damaged here"].digest] = b"something else"
    del kept[claimed[b"not held"].digest]
    put(tmp_path, b"flipped", b"flipped!")

    def reader(digest: str) -> io.BytesIO:
        if digest not in kept:
            raise LineCut("not held")
        return io.BytesIO(kept[digest])

    def by_md5(one: Claim[Entry]) -> Told:
        return Told(one, "md5", (hashlib.md5((tmp_path / one.item.path.decode()).read_bytes()).hexdigest(),))

    assert prove_with(plain, tmp_path, claimed, by_md5, reader=reader, weak=True) == {
        b"fine": (Status.VERIFIED, Method.SERVER_WEAK),
        b"flipped": (Status.DIFFERENT, Method.SERVER_WEAK),
        b"not held": (Status.VERIFIED, Method.SFTP_SECOND_READ),
        b"damaged here": (Status.VERIFIED, Method.SFTP_SECOND_READ),
    }


def test_blocks_are_compared_with_the_vaults_own_and_prove_the_whole(plain: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    data = bytes(range(250))
    for name in (b"fine", b"one block off"):
        put(tmp_path, name, data)
    claimed = claims(open_tree(plain, tmp_path))

    def in_blocks(one: Claim[Entry]) -> Told:
        found = [hashlib.sha256(data[at : at + 100]).hexdigest() for at in range(0, 250, 100)]
        if one.item.path != b"fine":
            found[1] = "0" * 64
        return Told(one, "sha256", tuple(found), 100)

    assert prove_with(plain, tmp_path, claimed, in_blocks, reader=lambda _: io.BytesIO(data)) == {
        b"fine": (Status.VERIFIED, Method.SERVER_SHA256),
        b"one block off": (Status.VERIFIED, Method.SFTP_SECOND_READ),
    }
    assert prove_with(plain, tmp_path, claimed, in_blocks)[b"fine"] == (Status.VERIFIED, Method.SFTP_SECOND_READ)


def test_a_claim_about_another_size_is_never_verified_by_a_digest(plain: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    put(tmp_path, b"f", b"12345")
    one = claims(open_tree(plain, tmp_path))[b"f"]
    wrong = Claim(one.item, one.digest, 7)
    assert prove_with(plain, tmp_path, {b"f": wrong}, lambda said: Told(said, "sha256", (said.digest,)))[b"f"][0] is Status.DIFFERENT


def test_links_that_the_server_tells_in_other_words_are_proven_and_other_links_are_not(hashing: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    (tmp_path / "folder").mkdir()
    put(tmp_path, b"folder/f", b"1")
    targets = {"same": "folder/f", "away": "/etc/hostname", "gone": "nowhere"}
    for name, target in targets.items():
        (tmp_path / name).symlink_to(target)
    tree = open_tree(hashing, tmp_path)
    found = entries(tree)
    assert {name: found[name.encode()].target.decode() for name in targets} == targets
    claimed = claims(tree)
    assert {proofs(tree, claimed)[name.encode()].status for name in targets} == {Status.VERIFIED}
    (tmp_path / "same").unlink()
    (tmp_path / "same").symlink_to("folder")
    assert proofs(tree, claimed)[b"same"].status is Status.CHANGED


def test_a_link_whose_words_the_server_does_not_tell_is_listed_with_a_failure(hashing: Sshd, tmp_path: Path, open_tree: Opener) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/odd").symlink_to("../folder/./../folder")
    tree = open_tree(hashing, tmp_path)
    listings = {listing.container: listing for listing in tree.scan()}
    assert listings[b""].failure is None
    failure = listings[b"folder"].failure
    assert failure is not None
    assert (failure.code, failure.name) == ("unclear-link", b"folder/odd")
    assert [entry.path for entry in listings[b"folder"].items] == [b"folder/odd"]
