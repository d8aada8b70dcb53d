"""The profile's steps in order, under one lock. A step whose section is absent is skipped; one that fails does not keep the next from its work."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from hostbackup.errors import HostbackupError
from hostbackup.jobs.backup import Backup
from hostbackup.jobs.context import Job
from hostbackup.jobs.copies import copy_all
from hostbackup.jobs.push import Push
from hostbackup.jobs.result import Result
from hostbackup.jobs.verify import Verify


def sync(job: Job, *, accept_shrink: Collection[str] = ()) -> Result:
    """One result for all steps; `details["steps"]` tells each."""
    steps: dict[str, Callable[[], Result]] = {
        "backup": lambda: Backup(job, accept_shrink=accept_shrink, command="sync").run(),
        "verify": lambda: Verify(job).run(),
        "push": lambda: Push(job).run(),
        "copy": lambda: copy_all(job),
    }
    profile = job.profile
    absent = {
        "push": not (profile.new.ssh and profile.new.web) and not profile.new.imap,
        "copy": not profile.copies,
    }
    result = Result(job.observer)
    rows: list[dict[str, Any]] = []
    result.details["steps"] = rows
    for name in profile.sync.steps:
        if name not in steps or absent.get(name):
            rows.append({"step": name, "skipped": "its section is not in the profile" if name in steps else "this version does not have it"})
            continue
        try:
            done = steps[name]()
        except HostbackupError as error:
            result.fail_part(error, side="", part=name)
            rows.append({"step": name, "exit": int(error.exit)})
            if name == "backup":
                break  # without a fresh backup the other steps would vouch for old data
            continue
        rows.append({"step": name, "exit": int(done.exit), "counts": dict(done.counts), **done.details})
        result.done += 1
        result.codes |= {done.exit} if done.exit else set()
        result.failures += done.failures
        result.counts.update({f"{name}_{key}": value for key, value in done.counts.items()})
    return result
