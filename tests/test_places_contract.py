"""The contract on every place there is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hostbackup.model import Part
from hostbackup.places.local import LocalTree
from tests.contract import TreeContract
from tests.contract_mail import MailContract
from tests.support.dovecot import INBOX_DOT, PLAIN_SLASH, Dovecot, dovecot
from tests.support.mail_worlds import DovecotWorld, MemoryMailWorld
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


class TestMemoryMail(MailContract):
    @pytest.fixture
    def world(self) -> MemoryMailWorld:
        return MemoryMailWorld()


_ACCOUNTS = {f"user{n}@example.test": "secret" for n in range(100)}  # one a test
_users = itertools.cycle(_ACCOUNTS)


@pytest.fixture(scope="module")
def dots() -> Iterator[Dovecot]:
    with dovecot(INBOX_DOT, users=_ACCOUNTS) as server:
        yield server


@pytest.fixture(scope="module")
def slashes() -> Iterator[Dovecot]:
    with dovecot(PLAIN_SLASH, users=_ACCOUNTS) as server:
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
