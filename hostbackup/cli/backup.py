"""`hostbackup backup`: the old server into a new snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from hostbackup.cli.run import Session
from hostbackup.cli.run import command as made
from hostbackup.jobs.result import Result


@made("backup", "Old server and local folders into a new snapshot.", network=True)
@click.option("--only", type=click.Choice(["web", "mail", "local"]), multiple=True, help="Only this kind of part; may be given twice.")
@click.option("--checksum", is_flag=True, help="Also find changes that nothing tells of, by comparing all contents: of mail, by reading it again.")
@click.option("--dry-run", is_flag=True, help="Show what would come; write nothing.")
@click.option("--accept-shrink", metavar="PART", multiple=True, help="This part did shrink: it was looked at and is right.")
def command(session: Session, only: tuple[str, ...], checksum: bool, dry_run: bool, accept_shrink: tuple[str, ...]) -> None:
    """Back up the old server (web trees, mailboxes) and local folders: a new snapshot in the vault.

    What was brought before is not fetched again, also after an interrupted run.
    """
    from hostbackup.jobs.backup import Backup

    session.load("old")
    with session.preview() if dry_run else session.job("write", create=True) as job:
        accepted = [job.find_part(text).id for text in accept_shrink]
        result = Backup(job, only or ("web", "mail", "local"), checksum=checksum, dry_run=dry_run, accept_shrink=accepted).run()

    def show(details: Mapping[str, Any], result: Result) -> list[str]:
        from hostbackup.report import terminal

        return terminal.backup(details, result, everything=session.output.verbose)

    session.end(result, show)
