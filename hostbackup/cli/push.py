"""`hostbackup push`: a snapshot to the new host."""

from __future__ import annotations

import datetime
from functools import partial

import click

from hostbackup.cli.run import Session
from hostbackup.cli.run import command as made
from hostbackup.report import terminal


@made("push", "A snapshot to the new host.", network=True)
@click.option("--dry-run", is_flag=True, help="Show what would be written; write nothing.")
@click.option("--only", type=click.Choice(["web", "mail"]), multiple=True, help="Only web trees, or only mailboxes.")
@click.option("--account", metavar="USER", multiple=True, help="Only this mailbox (its name on the old server); may be given several times.")
@click.option(
    "--since",
    type=click.DateTime(["%Y-%m-%d"]),
    help="Only messages that arrived on this day (in the time zone that the old server tells it in) or later, and those whose date it does not tell.",
)
@click.option("--snapshot", metavar="ID", default="", help="Push this snapshot instead of the newest.")
@click.option("--overwrite", metavar="PATTERN", multiple=True, help="Replace conflicting files that match; their bytes are kept in the vault first.")
def command(
    session: Session,
    *,
    dry_run: bool,
    only: tuple[str, ...],
    account: tuple[str, ...],
    since: datetime.datetime | None,
    snapshot: str,
    overwrite: tuple[str, ...],
) -> None:
    """Push a snapshot to the new host. Nothing there is deleted; what somebody else changed there is left alone and listed."""
    from hostbackup.jobs.push import Push

    session.load("new", "old.imap.account", "old.pop3.account")
    with session.preview() if dry_run else session.job("write") as job:
        day = since.date() if since else None
        result = Push(job, only or ("web", "mail"), account, day, snapshot, overwrite, dry_run).run()
    session.end(result, partial(terminal.push, everything=session.output.verbose))
