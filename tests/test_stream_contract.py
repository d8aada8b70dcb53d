"""The contract on trees that are read and written through tar streams, however little there is, and on those whose profile forbids commands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from hostbackup.model import Method, Part
from hostbackup.places.sftp import SftpTree
from hostbackup.places.stream import Streams
from hostbackup.protocols.ssh import connect
from tests.contract import TreeContract
from tests.support.sshd import Sshd
from tests.support.tars import BSD, Toolbox
from tests.support.worlds import DiskWorld

pytest_plugins = ("tests.support.tars",)


@contextmanager
def world_on(server: Sshd, root: Path, method: Method, shell: str, least: int) -> Iterator[DiskWorld]:
    places: list[SftpTree] = []

    def make(root: Path, exclude: Sequence[str]) -> SftpTree:
        target = server.target(shell=shell)
        part, streams = Part("web", "site"), Streams(least=least)
        places.append(SftpTree(lambda: connect(target), str(root), side="old", part=part, exclude=exclude, streams=streams))
        return places[-1]

    try:
        yield DiskWorld(root, make, method)
    finally:
        for place in places:
            place.close()


class TestStreamsOfGnuTar(TreeContract):
    @pytest.fixture
    def world(self, tar_server: Sshd, tmp_path: Path) -> Iterator[DiskWorld]:
        with world_on(tar_server, tmp_path / "tree", Method.SERVER_SHA256, "auto", 1) as world:
            yield world


class TestStreamsOfBsdtar(TreeContract):
    @pytest.fixture
    def world(self, tar_server: Sshd, tools: Toolbox, tmp_path: Path) -> Iterator[DiskWorld]:
        tools.real(BSD)
        with world_on(tar_server, tmp_path / "tree", Method.SERVER_SHA256, "auto", 1) as world:
            yield world


class TestCommandsForbidden(TreeContract):
    @pytest.fixture
    def world(self, tar_server: Sshd, tmp_path: Path) -> Iterator[DiskWorld]:
        with world_on(tar_server, tmp_path / "tree", Method.SFTP_SECOND_READ, "never", 1) as world:
            yield world
