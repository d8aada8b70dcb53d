"""One part's failure, whatever it is, is told as its own; what ends a run ends it."""

from __future__ import annotations

import pytest

from hostbackup.errors import Damaged, DiskFull, Exit, LoginRefused, NotOffered
from hostbackup.jobs.part_work import PartWork
from hostbackup.jobs.result import Result
from hostbackup.model import Part


def ran(error: BaseException | None, *, optional: bool = False) -> PartWork:
    def work() -> None:
        if error is not None:
            raise error

    made = PartWork(Part("sieve", "taro"), "old", Result(), work, optional)
    made.result.done += 1  # another part, which went well
    made.run()
    return made


@pytest.mark.parametrize(
    ("error", "code", "ends"),
    [
        (LoginRefused("no"), "login-refused", Exit.INCOMPLETE),
        (NotOffered("none"), "not-offered", Exit.INCOMPLETE),
        (Damaged("torn"), "damaged", Exit.DAMAGE),
        (ValueError("a mistake of ours"), "unexpected", Exit.INCOMPLETE),
        (OSError("a disk of its own"), "unexpected", Exit.INCOMPLETE),
    ],
)
def test_what_goes_wrong_is_the_parts_own_failure(error: Exception, code: str, ends: Exit) -> None:
    work = ran(error)
    [failure] = work.result.failures
    assert (failure.part, failure.code, work.result.exit, work.result.undone) == ("sieve/taro", code, ends, 1)
    assert work.error is not None and str(error) in work.error.reason


def test_what_a_server_need_not_offer_is_no_failure() -> None:
    work = ran(NotOffered("no such port"), optional=True)
    assert (work.result.exit, work.result.details["not_covered"][0]["reason"]) == (Exit.OK, "no such port")
    assert isinstance(work.error, NotOffered)
    assert (ran(None).error, ran(None).result.done) == (None, 2)


@pytest.mark.parametrize("error", [DiskFull("full"), KeyboardInterrupt()])
def test_what_ends_the_run_is_raised(error: BaseException) -> None:
    with pytest.raises(type(error)):
        ran(error)
