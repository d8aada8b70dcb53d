"""`hostbackup prune`: which snapshots and objects are no longer needed."""

from __future__ import annotations

import datetime

import click

from hostbackup.cli.run import Session
from hostbackup.cli.run import command as made
from hostbackup.report import terminal


@made("prune", "Show what is no longer needed; --apply frees it.")
@click.option("--keep-last", type=click.IntRange(min=1), default=10, show_default=True, help="Keep so many of the newest snapshots.")
@click.option("--keep-daily", type=click.IntRange(min=0), default=7, show_default=True, help="Keep the last one of so many days.")
@click.option("--keep-weekly", type=click.IntRange(min=0), default=4, show_default=True, help="… of so many weeks.")
@click.option("--keep-monthly", type=click.IntRange(min=0), default=12, show_default=True, help="… of so many months.")
@click.option("--vanished-before", type=click.DateTime(["%Y-%m-%d"]), help="Also forget what vanished from the old server before this day.")
@click.option("--copies", is_flag=True, help="In the copies too.")
@click.option("--apply", "apply_", is_flag=True, help="Do it; without this nothing is changed.")
def command(
    session: Session,
    *,
    keep_last: int,
    keep_daily: int,
    keep_weekly: int,
    keep_monthly: int,
    vanished_before: datetime.datetime | None,
    copies: bool,
    apply_: bool,
) -> None:
    """Show what could go from the vault; with --apply, let it go.

    Never freed: the newest complete state of any part, mail and the last version of vanished files (unless --vanished-before),
    and what evidence or the last push cites.
    """
    from hostbackup.jobs.prune import Policy, prune

    session.load(*(["copy"] if copies else []))
    with session.job("prune" if apply_ else "read") as job:
        day = vanished_before.date() if vanished_before else None
        policy = Policy(keep_last, keep_daily, keep_weekly, keep_monthly, day)
        result = prune(job, policy, apply=apply_, copies=copies)
    session.end(result, terminal.prune)
