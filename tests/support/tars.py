"""Servers whose `tar` is what a test puts there. A pytest plugin for tests of streams."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.sshd import Sshd, sshd

BSD = "/usr/bin/bsdtar"
# What begins a script that takes itself for GNU tar when asked.
POSING = '#!/bin/sh\ncase "$1" in --version) echo "tar (GNU tar) 1.34"; exit 0;; esac\n'


class Toolbox:
    """The first folder of the server's PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, script: str, name: str = "tar") -> None:
        """A program of that name from now on."""
        path = self.folder / name
        path.unlink(missing_ok=True)
        path.write_text(script)
        path.chmod(0o755)

    def pose(self, script: str) -> None:
        """A tar that says it is GNU's, and then does as told: a line for `sh`."""
        self.put(POSING + script + "\n")

    def real(self, program: str) -> None:
        """That program under the name of tar."""
        (self.folder / "tar").unlink(missing_ok=True)
        (self.folder / "tar").symlink_to(program)

    def clear(self) -> None:
        for path in self.folder.iterdir():
            path.unlink()


@contextmanager
def sshd_with_tools(folder: Path, user: str = "root", options: tuple[str, ...] = ()) -> Iterator[Sshd]:
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    with sshd(user=user, options=(f"SetEnv PATH={folder}:/usr/bin:/bin", *options)) as server:
        yield server


@pytest.fixture(scope="module")
def tooled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Sshd, Toolbox]]:
    folder = tmp_path_factory.mktemp("tools")
    with sshd_with_tools(folder) as server:
        yield server, Toolbox(folder)


@pytest.fixture
def tools(tooled: tuple[Sshd, Toolbox]) -> Iterator[Toolbox]:
    yield tooled[1]
    tooled[1].clear()


@pytest.fixture
def tar_server(tooled: tuple[Sshd, Toolbox]) -> Sshd:
    return tooled[0]
