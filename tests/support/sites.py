"""Trees on a real sshd, with a shell and without, and what tests of them share. A pytest plugin for those tests."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hostbackup.model import Claim, Entry, Kind, Part, Proof, Write, Written
from hostbackup.places.sftp import SftpTree
from hostbackup.protocols import ssh
from tests.support.sink import HashSink
from tests.support.sshd import Sshd, sshd

PART = Part("web", "site")
ODD_NAMES = [
    b"\xff\xfe not utf-8",
    b"line\nfeed",
    b"carriage\rreturn",
    b"quote'\"`$(touch x)`;&|",
    b"-rf",
    b"--",
    b"back\\slash",
    b"\\n",
    b" leading and trailing ",
    "日本語のファイル.txt".encode(),
    "日本語.txt".encode("cp932"),
    b"*?[a]",
    b"a" * 255,
    b".hidden",
    b"\x01\x1b[31m",
]


@pytest.fixture(scope="module")
def with_shell() -> Iterator[Sshd]:
    with sshd() as running:
        yield running


@pytest.fixture(scope="module")
def sftp_only() -> Iterator[Sshd]:
    with sshd(shell=False) as running:
        yield running


@pytest.fixture(params=["shell", "sftp only"])
def server(request: pytest.FixtureRequest, with_shell: Sshd, sftp_only: Sshd) -> Sshd:
    return with_shell if request.param == "shell" else sftp_only


Opener = Callable[..., SftpTree]


@pytest.fixture
def open_tree() -> Iterator[Opener]:
    trees: list[SftpTree] = []

    def make(server: Sshd, root: Path | str | bytes, *, target: dict[str, object] | None = None, **options: object) -> SftpTree:
        told = str(root) if isinstance(root, Path) else root
        facts = server.target(**(target or {}))
        tree = SftpTree(lambda: ssh.connect(facts), told, side="old", part=PART, pause=lambda _: None, **options)  # type: ignore[arg-type]
        trees.append(tree)
        return tree

    yield make
    for tree in trees:
        tree.close()
        tree.close()


def entries(tree: SftpTree) -> dict[bytes, Entry]:
    listings = list(tree.scan())
    assert all(listing.failure is None for listing in listings), [listing.failure for listing in listings]
    assert listings[0].container == b""
    assert len({listing.container for listing in listings}) == len(listings)
    seen: dict[bytes, Entry] = {}
    for listing in listings:
        assert listing.container == b"" or seen[listing.container].kind is Kind.DIR
        assert [item.path for item in listing.items] == sorted(item.path for item in listing.items)
        seen.update((item.path, item) for item in listing.items)
    return seen


def files(tree: SftpTree) -> list[Entry]:
    return [entry for entry in entries(tree).values() if entry.kind is Kind.FILE]


def path_of(root: Path, name: bytes) -> Path:
    return root / os.fsdecode(name)


def put(root: Path, name: bytes, data: bytes, mtime: int = 1_700_000_000) -> None:
    path = path_of(root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (mtime, mtime))


def file(path: bytes, data: bytes, *, replace: bool = False, mode: int = 0o644, mtime: int = 1_600_000_000) -> Write[Entry]:
    item = Entry(path, Kind.FILE, len(data), mtime * 1_000_000_000, mode)
    return Write(item, hashlib.sha256(data).hexdigest(), len(data), lambda: io.BytesIO(data), replace)


def folder(path: bytes, mode: int = 0o755, mtime: int = 1_600_000_000) -> Write[Entry]:
    return Write(Entry(path, Kind.DIR, 0, mtime * 1_000_000_000, mode))


def link(path: bytes, target: bytes, *, replace: bool = False) -> Write[Entry]:
    return Write(Entry(path, Kind.LINK, mode=0o777, target=target), replace=replace)


def by_path(outcomes: list[Written[Entry]]) -> dict[bytes, Written[Entry]]:
    found = {outcome.asked.item.path: outcome for outcome in outcomes}
    assert len(found) == len(outcomes)
    return found


def claims(tree: SftpTree) -> dict[bytes, Claim[Entry]]:
    seen = entries(tree)
    reads = tree.read([entry for entry in seen.values() if entry.kind is Kind.FILE], HashSink())
    found = {read.item.path: Claim(read.item, read.digest, read.size) for read in reads}
    others = {path: Claim(entry, "", 0) for path, entry in seen.items() if entry.kind in (Kind.DIR, Kind.LINK)}
    return found | others


def proofs(tree: SftpTree, claimed: dict[bytes, Claim[Entry]]) -> dict[bytes, Proof[Entry]]:
    found = list(tree.prove(claimed.values()))
    assert len(found) == len(claimed)
    return {proof.claim.item.path: proof for proof in found}
