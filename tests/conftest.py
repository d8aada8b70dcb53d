"""What all tests share: asserts in helpers explain themselves as those in tests do."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.contract", "tests.contract_mail", "tests.contract_stores", "tests.support")


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user can reach; what pytest makes is root's alone."""
    folder = Path(tempfile.mkdtemp(prefix="hostbackup-public-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)
