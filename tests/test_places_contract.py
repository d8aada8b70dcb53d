"""The contract on every place there is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from hostbackup.model import Method, Part
from hostbackup.places.local import LocalTree
from hostbackup.places.sftp import SftpTree
from hostbackup.protocols.ssh import connect
from tests.contract import TreeContract
from tests.contract_mail import InboxContract, MailContract
from tests.support.cyrus import Cyrus, cyrus
from tests.support.dovecot import INBOX_DOT, PLAIN_SLASH, Dovecot, dovecot
from tests.support.faulty_login import faulty_world
from tests.support.mail_worlds import CyrusWorld, DovecotWorld, MemoryMailWorld, Pop3World
from tests.support.proftpd import proftpd
from tests.support.sshd import Sshd, sshd
from tests.support.worlds import DiskWorld, MemoryTreeWorld


class TestMemoryTree(TreeContract):
    @pytest.fixture
    def world(self) -> MemoryTreeWorld:
        return MemoryTreeWorld()


class TestLocalTree(TreeContract):
    @pytest.fixture
    def world(self, tmp_path: Path) -> Iterator[DiskWorld]:
        def make(root: Path, exclude: Sequence[str]) -> LocalTree:
            return LocalTree(root, side="old", part=Part("local", "by-hand"), exclude=exclude)

        yield DiskWorld(tmp_path / "tree", make)


@pytest.fixture(scope="module")
def with_shell() -> Iterator[Sshd]:
    with sshd(shell=True) as server:
        yield server


@pytest.fixture(scope="module")
def without_shell() -> Iterator[Sshd]:
    with sshd(shell=False) as server:
        yield server


@pytest.fixture(scope="module")
def with_check_file() -> Iterator[Sshd]:
    with proftpd() as server:
        yield server


@contextmanager
def over_sftp(server: Sshd, root: Path, method: Method) -> Iterator[DiskWorld]:
    places: list[SftpTree] = []

    def make(root: Path, exclude: Sequence[str]) -> SftpTree:
        places.append(SftpTree(lambda: connect(server.target()), str(root), side="old", part=Part("web", "site"), exclude=exclude))
        return places[-1]

    try:
        yield DiskWorld(root, make, method)
    finally:
        for place in places:
            place.close()


class TestSftpWithAShell(TreeContract):
    @pytest.fixture
    def world(self, with_shell: Sshd, tmp_path: Path) -> Iterator[DiskWorld]:
        with over_sftp(with_shell, tmp_path / "tree", Method.SERVER_SHA256) as world:
            yield world


class TestSftpAlone(TreeContract):
    @pytest.fixture
    def world(self, without_shell: Sshd, tmp_path: Path) -> Iterator[DiskWorld]:
        with over_sftp(without_shell, tmp_path / "tree", Method.SFTP_SECOND_READ) as world:
            yield world


class TestProftpd(TreeContract):
    @pytest.fixture
    def world(self, with_check_file: Sshd, tmp_path: Path) -> Iterator[DiskWorld]:
        with over_sftp(with_check_file, tmp_path / "tree", Method.SERVER_SHA256) as world:
            yield world


class TestOddSftpAnswers(TreeContract):
    """Answers that are short, late, in pieces and in any order."""

    @pytest.fixture
    def world(self, tmp_path: Path) -> Iterator[DiskWorld]:
        with faulty_world(tmp_path / "tree", "short-reads", "reorder", "overtake", "trickle") as world:
            yield world


class TestOneOpenFile(TreeContract):
    """A server of version 3 and nothing beyond it, that opens one file at a time."""

    @pytest.fixture
    def world(self, tmp_path: Path) -> Iterator[DiskWorld]:
        with faulty_world(tmp_path / "tree", "handles=1", "no-extensions") as world:
            yield world


class TestLargeReadsRefused(TreeContract):
    """A server that refuses READs of lengths which it says it can answer."""

    @pytest.fixture
    def world(self, tmp_path: Path) -> Iterator[DiskWorld]:
        with faulty_world(tmp_path / "tree", "refuse-reads=32768", "handles=3", "reorder") as world:
            yield world


class TestMemoryMail(MailContract):
    @pytest.fixture
    def world(self) -> MemoryMailWorld:
        return MemoryMailWorld()


_ACCOUNTS = {f"user{n}@example.test": "secret" for n in range(400)}  # one a test
_users = itertools.cycle(_ACCOUNTS)


@pytest.fixture(scope="module")
def dots() -> Iterator[Dovecot]:
    with dovecot(INBOX_DOT, users=_ACCOUNTS) as server:
        yield server


@pytest.fixture(scope="module")
def slashes() -> Iterator[Dovecot]:
    with dovecot(PLAIN_SLASH, users=_ACCOUNTS, extra="pop3_uidl_format = %08Xu%08Xv", pop3=True) as server:
        yield server


class TestDovecotWithAPrefixAndDots(MailContract):
    @pytest.fixture
    def world(self, dots: Dovecot) -> Iterator[DovecotWorld]:
        world = DovecotWorld(dots, next(_users))
        yield world
        world.place.close()


class TestDovecotWithoutAPrefixAndSlashes(MailContract):
    @pytest.fixture
    def world(self, slashes: Dovecot) -> Iterator[DovecotWorld]:
        world = DovecotWorld(slashes, next(_users))
        yield world
        world.place.close()


class TestDovecotOverPop3(InboxContract):
    @pytest.fixture
    def world(self, slashes: Dovecot) -> Iterator[Pop3World]:
        world = Pop3World(slashes, next(_users))
        yield world
        world.place.close()


@pytest.fixture(scope="module")
def cyrus_dots() -> Iterator[Cyrus]:
    with cyrus(INBOX_DOT, users=_ACCOUNTS) as server:
        yield server


class TestCyrus(MailContract):
    """A server of another make, with folders below INBOX."""

    @pytest.fixture
    def world(self, cyrus_dots: Cyrus) -> Iterator[CyrusWorld]:
        world = CyrusWorld(cyrus_dots, next(_users))
        yield world
        world.place.close()
