"""One part's share of a job: what it does, what it has to tell, and whose trouble it is where it fails."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hostbackup.errors import HostbackupError, NotOffered, VaultError
from hostbackup.jobs.result import Result
from hostbackup.model import Part


class Unexpected(HostbackupError):
    """What nobody thought of."""

    code = "unexpected"


@dataclass(slots=True, eq=False)
class PartWork:
    """`work` puts what it has to tell into `result`, and raises where the part cannot be worked on.

    `optional`: a server need not offer it. Where it does not, the part is listed as not covered, which is no failure.
    """

    part: Part
    side: str
    result: Result
    work: Callable[[], None] = lambda: None
    optional: bool = False
    error: HostbackupError | None = None  # why it could not be worked on
    evidence: list[dict[str, Any]] = field(default_factory=list)

    def run(self) -> None:
        """Raises VaultError, which ends all, and what interrupts; everything else is this part's own failure."""
        try:
            self.work()
        except VaultError:
            raise
        except NotOffered as error:
            if self.optional:
                self.error = error
                self.result.not_covered(error, side=self.side, part=self.part.id)
            else:
                self._failed(error)
        except HostbackupError as error:
            self._failed(error)
        except Exception as error:  # one part's trouble is never another's, not even where it is this program's fault
            self.result.observer.note(f"{self.part}: {traceback.format_exc()}")
            hint = "please report it; --verbose or --log-file tell where it happened"
            self._failed(Unexpected(f"something unexpected happened: {type(error).__name__}: {error}", hint=hint))
        else:
            self.result.done += 1

    def _failed(self, error: HostbackupError) -> None:
        self.error = error
        self.result.fail_part(error, side=self.side, part=self.part.id)
