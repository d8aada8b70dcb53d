"""`hostbackup sync`: the profile's steps, for a cron job."""

from __future__ import annotations

from functools import partial

import click

from hostbackup.cli.run import Session
from hostbackup.cli.run import command as made
from hostbackup.report import terminal


@made("sync", "The steps of [sync] in order, for a cron job.", network=True)
@click.option("--accept-shrink", metavar="PART", multiple=True, help="This part did shrink: it was looked at and is right.")
def command(session: Session, accept_shrink: tuple[str, ...]) -> None:
    """Do the steps of [sync] in order under one lock (backup, verify, copy unless the profile says otherwise)."""
    from hostbackup.jobs.sync import sync

    session.load("old", "new", "copy")
    with session.job("write", create=True) as job:
        accepted = [job.find_part(text).id for text in accept_shrink]
        result = sync(job, accept_shrink=accepted)
    session.end(result, partial(terminal.sync, everything=session.output.verbose))
