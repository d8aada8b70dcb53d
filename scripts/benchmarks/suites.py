"""What can be benched: cases that happen in one world, and the programs that take part in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from scripts.benchmarks import facts
from scripts.benchmarks.cases import CASES
from scripts.benchmarks.copy_cases import COPY_CASES
from scripts.benchmarks.copy_world import CopyWorld, copy_world
from scripts.benchmarks.ground import Ground
from scripts.benchmarks.mail_cases import MAIL_CASES
from scripts.benchmarks.mail_world import MailWorld, mail_world
from scripts.benchmarks.results import Case
from scripts.benchmarks.trial import Amounts, Plan
from scripts.benchmarks.world import World, world

W = TypeVar("W", bound=Ground)
Runner = Callable[[str, Callable[[], Plan], Ground], Case]


@dataclass(frozen=True)
class Suite(Generic[W]):
    """`open` starts the servers, in a folder to keep or in one that goes, so many milliseconds away; `delay_ms` of them if nothing is asked for."""

    open: Callable[[Path | None, float], AbstractContextManager[W]]
    cases: Mapping[str, Callable[[W, Amounts], Plan]]
    programs: Callable[[], dict[str, str]]
    delay_ms: float = 20.0

    def run(self, names: Sequence[str], keep: Path | None, delay_ms: float, amounts: Amounts, run: Runner) -> tuple[dict[str, Any], list[Case]]:
        """The cases of this suite among `names`, and the facts of the machine they ran on."""
        with self.open(keep, delay_ms) as here:
            machine = facts.machine(here.folder) | self.programs()
            return machine, [run(name, partial(self.cases[name], here, amounts), here) for name in names if name in self.cases]


SUITES: dict[str, Suite[Any]] = {
    "sftp": Suite[World](world, CASES, facts.sftp_programs),
    "mail": Suite[MailWorld](mail_world, MAIL_CASES, facts.mail_programs),
    "copies": Suite[CopyWorld](copy_world, COPY_CASES, facts.copy_programs, delay_ms=0),
}
EVERY = [name for suite in SUITES.values() for name in suite.cases]
