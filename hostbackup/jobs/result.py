"""What a job has to tell at its end: sums, failures, and the exit code that follows from them."""

from __future__ import annotations

import urllib.parse
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hostbackup.errors import Exit, HostbackupError, WrongMachine, worst
from hostbackup.model import Failure, Observer


@dataclass(slots=True)
class Result:
    """Gathers what happened. `details` are ready for JSON: a command's own keys in `--json`, and what `report/` shows."""

    observer: Observer = field(default_factory=Observer)
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    codes: set[Exit] = field(default_factory=set)
    done: int = 0  # parts or steps that could be worked on
    undone: int = 0  # those that could not be touched at all
    _alone: set[Exit] = field(default_factory=set)  # how the command would end for those alone

    def fail(self, failure: Failure, exit_code: Exit = Exit.INCOMPLETE) -> None:
        """One entry, account or server failed; everything else goes on."""
        self.failures.append(failure)
        self.codes.add(exit_code)
        self.observer.failure(failure)

    def fail_part(self, error: HostbackupError, *, side: str, part: str) -> None:
        """A whole part could not be worked on.

        Where that is all of them the command fails (1, or 2 where it could be known beforehand); among others that were worked on it leaves the
        command incomplete (3). A machine that is not the one meant always fails it.
        """
        known = error.where.partition(" ")[2] == urllib.parse.unquote(part.partition("/")[2])  # `old.imap USER` says no more than the part
        reason = f"{error.where}: {error.reason}" if error.where and not known else error.reason
        self.fail(Failure(side, part, b"", error.code, reason, error.hint))
        if isinstance(error, WrongMachine) or error.exit not in (Exit.FAILED, Exit.USAGE):
            self.codes.add(error.exit)
        self.undone += 1
        self._alone.add(error.exit)

    def not_covered(self, error: HostbackupError, *, side: str, part: str) -> None:
        """Something that would belong to the move and that a server does not offer: listed, and no failure."""
        self.details.setdefault("not_covered", []).append({"side": side, "part": part, "reason": error.reason})

    def add(self, other: Result) -> None:
        """What another has gathered, which its observer was told of: sums are added up, lists joined, what is listed by name joined too."""
        self.counts.update(other.counts)
        self.failures += other.failures
        self.codes |= other.codes
        self.done += other.done
        self.undone += other.undone
        self._alone |= other._alone
        for key, value in other.details.items():
            mine = self.details.get(key)
            if isinstance(mine, list) and isinstance(value, list):
                mine += value
            elif isinstance(mine, dict) and isinstance(value, dict):
                mine |= value
            else:
                self.details[key] = value

    @property
    def exit(self) -> Exit:
        if self.undone and not self.done:
            return worst({*self.codes, *(self._alone or {Exit.FAILED})})
        return worst(self.codes)
