"""One piece of work that a program does again and again: what is run, what must be there afterwards, and what a case is made of."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from scripts.benchmarks.ground import Ground, program
from scripts.benchmarks.results import Target
from scripts.benchmarks.traffic import Traffic

MIB = 1 << 20


@dataclass(frozen=True)
class Amounts:
    """How much of everything.

    Files in a site and in a push, bytes of the one file, two numbers of files and the bytes of a sparse one for growth; messages in a mailbox, and
    how many of them a slow program pushes, small messages in one folder, bytes of the one message; files of a copy to a bucket, and bytes of one in
    large files.
    """

    files: int = 29_249
    push: int = 5_000
    large: int = 1 << 30
    fewer: int = 10_000
    more: int = 100_000
    sparse: int = 2 << 30
    messages: int = 10_000
    some: int = 500
    many: int = 200_000
    message: int = 150_000_000
    copied: int = 5_000
    bulk: int = 2 << 30


FULL = Amounts()
QUICK = Amounts(
    files=600,
    push=150,
    large=32 * MIB,
    fewer=200,
    more=2_000,
    sparse=256 * MIB,
    messages=300,
    some=60,
    many=3_000,
    message=20_000_000,
    copied=300,
    bulk=64 * MIB,
)


class Wanted(Protocol):
    """What a run has to bring."""

    @property
    def files(self) -> int:
        """How many there are."""

    def complaint(self, result: Path) -> str:
        """What is wrong with what is at `result`; "" if nothing."""


@dataclass(frozen=True)
class Trial:
    """One timed run. `sync` is what to sync inside the time; `result` is what must be there afterwards."""

    command: Sequence[str]
    result: Path
    wanted: Wanted
    sync: Path | None = None
    through: str = ""  # a program that must be seen at work
    messages: int = 0  # that are moved, where the rate counts
    times: float = 1  # the run does this part of the work: its times are multiplied
    turns: Callable[[], int] | None = None  # tells the turns on the line so far, where they count
    traffic: Callable[[], Traffic] | None = None  # tells what has passed on the line so far, where requests count
    clear: Callable[[], None] = field(default=lambda: None)  # does away with what a run leaves outside of its folder

    def complaint(self) -> str:
        """What is wrong with the result; "" if nothing. Not part of the time."""
        return self.wanted.complaint(self.result)


@dataclass(frozen=True)
class Contender:
    """`trial` is given an empty folder that is removed afterwards; `prepare` is called once, before all trials, and is not timed."""

    name: str
    needs: Sequence[str]
    trial: Callable[[Path], Trial]
    prepare: Callable[[], None] = field(default=lambda: None)
    note: str = ""  # what a reader of its figures has to know

    @property
    def own(self) -> bool:
        return "hostbackup" in self.needs


@dataclass(frozen=True)
class Plan:
    """One case, ready to run. `warm` is read once, so that the old server has it in memory."""

    title: str
    work: str
    contenders: Sequence[Contender]
    targets: Sequence[Target]
    warm: Sequence[Path]
    full: bool


class PreparationFailed(Exception):
    """Something that has to be there before the first trial could not be made."""


def hostbackup(command: str, profile: Path) -> list[str]:
    return [program("hostbackup"), command, str(profile), "--quiet"]


def run_first(world: Ground, command: Sequence[str]) -> None:
    """Runs what has to be done before the first trial."""
    done = subprocess.run(command, env=world.environment, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        words = " ".join(Path(word).name for word in command[:2])
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise PreparationFailed(f"{words} ended with {done.returncode}: {(lines[-1] if lines else 'it said nothing')[:500]}")
