"""One tree into the vault, from a place in memory: what is asked of the place, and what is noted of what came."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from hostbackup.errors import LineCut
from hostbackup.jobs.backup_tree import TreeBackup
from hostbackup.jobs.ledger import Ledger
from hostbackup.jobs.result import Result
from hostbackup.jobs.scratch import Scratch
from hostbackup.model import Entry, Part, Read, Sink
from hostbackup.vault.records import PartTotals
from hostbackup.vault.tree import TreeRoot
from hostbackup.vault.vault import Vault
from tests.support.memory import MemoryTree

PART = Part("web", "site")
FILES = 200


class Watched(MemoryTree):
    """Counts the readings asked for, and ends one with an error after so many entries."""

    def __init__(self) -> None:
        super().__init__(part=PART)
        self.readings = 0
        self.fail_after: int | None = None
        self.error: BaseException = KeyboardInterrupt()

    def read(self, wanted: Iterable[Entry], sink: Sink) -> Iterator[Read[Entry]]:
        self.readings += 1
        for number, read in enumerate(super().read(wanted, sink)):
            if number == self.fail_after:
                raise self.error
            yield read


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with Vault.open(tmp_path / "v", "write", create=True, command="test") as opened:
        yield opened


@pytest.fixture
def place() -> Watched:
    made = Watched()
    made.folder(b"")
    for number in range(FILES):
        made.file(b"%04d" % number, b"%d" % number)
    return made


def back_up(vault: Vault, place: Watched, previous: PartTotals | None = None, **meta: object) -> tuple[PartTotals, Result]:
    result = Result()
    root = TreeRoot.open(vault.manifests, previous.root) if previous else None
    with Scratch(vault.incoming) as scratch, Ledger(vault.state.journal("resume"), vault.incoming) as resume:
        work = TreeBackup(PART, place, vault, scratch, result, "20261125T031500Z", root, resume)
        result.counts.update(work.plan())
        work.fetch()
        totals = work.finish(meta)
    vault.flush()
    return totals, result


def test_where_nothing_is_wanted_no_reading_is_begun(vault: Vault, place: Watched) -> None:
    first, _ = back_up(vault, place)
    assert place.readings == 1
    again, result = back_up(vault, place, first)
    assert place.readings == 1
    assert (again, result.counts["unchanged"]) == (first, FILES)


def test_a_tree_as_it_was_keeps_its_manifest_and_none_is_written(vault: Vault, place: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    place.folder(b"empty")
    first, _ = back_up(vault, place)
    told_anew, _ = back_up(vault, place, first, path="elsewhere")
    assert told_anew.root != first.root
    monkeypatch.setattr(vault.manifests, "put_bytes", lambda data: pytest.fail("a manifest was written"))
    assert back_up(vault, place, first)[0] == first
    assert back_up(vault, place, told_anew, path="elsewhere")[0] == told_anew


def test_whatever_is_not_as_it_was_makes_another_manifest(vault: Vault, place: Watched) -> None:
    place.folder(b"empty")
    first, _ = back_up(vault, place)
    place.folder(b"new")
    with_new, result = back_up(vault, place, first)
    assert (with_new.root != first.root, result.counts["new"]) == (True, 1)
    del place.nodes[b"new"], place.nodes[b"empty"]
    without, result = back_up(vault, place, with_new)
    assert (without.vanished, result.counts["vanished"]) == (2, 2)
    assert without.root not in (first.root, with_new.root)


@pytest.mark.parametrize("come", [0, 1, 63, 64, 65, 199])
def test_all_that_had_come_is_noted_for_the_next_run_wherever_this_one_ends(vault: Vault, place: Watched, come: int) -> None:
    place.fail_after = come
    with pytest.raises(KeyboardInterrupt):
        back_up(vault, place)
    place.fail_after = None
    totals, result = back_up(vault, place)
    assert (result.counts["resumed"], result.counts["read"]) == (come, FILES - come)
    assert (totals.entries, totals.failed) == (FILES, 0)


@pytest.mark.parametrize("come", [0, 1, 63, 64, 65, 199])
def test_what_came_before_a_line_stayed_cut_is_whole_and_the_rest_is_told(vault: Vault, place: Watched, come: int) -> None:
    place.fail_after, place.error = come, LineCut("the line was cut")
    totals, result = back_up(vault, place)
    assert (totals.entries, totals.failed, len(result.failures)) == (come, FILES - come, FILES - come)
    place.fail_after = None
    totals, result = back_up(vault, place, totals)
    assert (result.counts["read"], totals.entries, totals.failed) == (FILES - come, FILES, 0)
