"""The contract of trees over the system's ssh."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from hostbackup.model import Method, Part
from hostbackup.places.sftp import SftpTree
from hostbackup.protocols import openssh
from tests.contract import TreeContract
from tests.support.sshd import Sshd, sshd
from tests.support.worlds import DiskWorld


@pytest.fixture(scope="module")
def with_shell() -> Iterator[Sshd]:
    with sshd() as server:
        yield server


@contextmanager
def over_openssh(server: Sshd, root: Path, method: Method, shell: str) -> Iterator[DiskWorld]:
    places: list[SftpTree] = []

    def make(root: Path, exclude: Sequence[str]) -> SftpTree:
        target = server.target(shell=shell)
        places.append(SftpTree(lambda: openssh.connect(target), str(root), side="old", part=Part("web", "site"), exclude=exclude))
        return places[-1]

    try:
        yield DiskWorld(root, make, method)
    finally:
        for place in places:
            place.close()


class TestOpenSshWithAShell(TreeContract):
    @pytest.fixture
    def world(self, with_shell: Sshd, tmp_path: Path) -> Iterator[DiskWorld]:
        with over_openssh(with_shell, tmp_path / "tree", Method.SERVER_SHA256, "auto") as world:
            yield world


class TestOpenSshAlone(TreeContract):
    @pytest.fixture
    def world(self, with_shell: Sshd, tmp_path: Path) -> Iterator[DiskWorld]:
        with over_openssh(with_shell, tmp_path / "tree", Method.SFTP_SECOND_READ, "never") as world:
            yield world
