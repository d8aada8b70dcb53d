"""The contract on every place there is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hostbackup.model import Part
from hostbackup.places.local import LocalTree
from tests.contract import TreeContract
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
