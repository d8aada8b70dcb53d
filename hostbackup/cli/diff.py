"""`hostbackup diff`: what changed between two snapshots."""

from __future__ import annotations

import click

from hostbackup.cli.run import Session
from hostbackup.cli.run import command as made
from hostbackup.report import terminal


@made("diff", "What changed between two snapshots.")
@click.argument("before", metavar="[BEFORE]", required=False)
@click.argument("after", metavar="[AFTER]", required=False)
def command(session: Session, before: str | None, after: str | None) -> None:
    """Show what came (+), changed (~) and went (-) between two snapshots; without them, between the newest two."""
    from hostbackup.errors import UsageError
    from hostbackup.jobs.look import differences
    from hostbackup.jobs.result import Result

    result = Result(session.observer)
    with session.job("read") as job:
        snapshots = job.vault.snapshots
        if before is None:
            known = snapshots.list()
            if len(known) < 2:
                raise UsageError("there are not yet two snapshots to compare", hint="run `backup` again, or name them")
            before = known[-2]
        old, new = snapshots.get(before), snapshots.get(after or "latest")
        result.details.update(before=old.id, after=new.id)
        session.stream(result, "differences", differences(job.vault, old, new), terminal.diff_line)
