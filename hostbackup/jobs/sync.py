"""The profile's steps in order, under one lock. A step whose section is absent is skipped; one that fails does not keep the next from its work."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from hostbackup.errors import Exit, HostbackupError, ProfileError
from hostbackup.jobs.backup import Backup
from hostbackup.jobs.check import Check
from hostbackup.jobs.context import Job
from hostbackup.jobs.copies import copy_all
from hostbackup.jobs.push import Push
from hostbackup.jobs.result import Result
from hostbackup.jobs.verify import Verify


def sync(job: Job, *, accept_shrink: Collection[str] = ()) -> Result:
    """One result for all steps; `details["steps"]` tells each. Raises ProfileError for a step that there is not."""
    steps: dict[str, Callable[[], Result]] = {
        "check": lambda: Check(job.profile, job.connections, Result(job.observer), job.vault).run(),
        "backup": lambda: Backup(job, accept_shrink=accept_shrink, command="sync").run(),
        "verify": lambda: Verify(job).run(),
        "push": lambda: Push(job).run(),
        "copy": lambda: copy_all(job),
    }
    profile = job.profile
    for name in profile.sync.steps:
        if name not in steps:  # skipping it would let a cron job believe that it ran
            raise ProfileError(f"the step {name!r} is not available yet", where=f"{profile.file}: sync.steps", hint=f"there are: {', '.join(steps)}")
    absent = {
        "push": not (profile.new.ssh and profile.new.web) and not profile.new.imap,
        "copy": not profile.copies,
    }
    result = Result(job.observer)
    rows: list[dict[str, Any]] = []
    result.details["steps"] = rows
    for name in profile.sync.steps:
        if absent.get(name):
            rows.append({"step": name, "skipped": "its section is not in the profile"})
            continue
        try:
            done = steps[name]()
        except HostbackupError as error:
            result.fail_part(error, side="", part=name)
            rows.append({"step": name, "exit": int(error.exit)})
        else:
            _add(result, name, done)
            rows.append({"step": name, "exit": int(done.exit), "counts": dict(done.counts), **done.details})
        if name == "backup" and rows[-1]["exit"] in (Exit.FAILED, Exit.USAGE):
            result.codes.add(Exit(rows[-1]["exit"]))
            break  # without a fresh backup the other steps would vouch for old data
    return result


def _add(result: Result, name: str, done: Result) -> None:
    """One step's outcome into the whole. A step that could do nothing leaves a run incomplete in which others did their work."""
    if done.exit in (Exit.FAILED, Exit.USAGE):
        result.undone += 1
        result.codes.add(Exit.INCOMPLETE)
    else:
        result.done += 1
        result.codes |= {done.exit} if done.exit else set()
    told = {(failure.part, failure.name) for failure in result.failures}
    again = ("not-covered", "not-stored")  # what the backup could not get is missed by each step after it: once is enough
    result.failures += [failure for failure in done.failures if failure.code not in again or (failure.part, failure.name) not in told]
    result.counts.update({f"{name}_{key}": value for key, value in done.counts.items()})
