"""`hostbackup ls`: what a snapshot holds."""

from __future__ import annotations

import click

from hostbackup.cli.run import Session
from hostbackup.cli.run import command as made
from hostbackup.report import terminal


@made("ls", "List what a snapshot holds.")
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@click.option("--snapshot", metavar="ID", default="latest", show_default=True, help="Which snapshot.")
@click.option("--vanished", is_flag=True, help="Also what is no longer on the old server.")
def command(session: Session, paths: tuple[str, ...], snapshot: str, vanished: bool) -> None:
    """List what a snapshot holds: its parts, or what is below PATH (`web/public_html/img`, `mail/taro@example.jp/INBOX`)."""
    from hostbackup.jobs.look import listing
    from hostbackup.jobs.result import Result

    result = Result(session.observer)
    with session.job("read") as job:
        found = job.vault.snapshots.get(snapshot)
        result.details["snapshot"] = found.id
        rows = listing(job.vault, found, paths, vanished=vanished)
        session.stream(result, "entries", rows, terminal.ls_line)
