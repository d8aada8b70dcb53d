"""`hostbackup verify`: proof of the vault, and of every side that is asked for."""

from __future__ import annotations

from functools import partial

import click

from hostbackup.cli.run import Session
from hostbackup.cli.run import command as made
from hostbackup.report import terminal


@made("verify", "Prove the vault, and any other side that is asked for.", network=True)
@click.option("--against", type=click.Choice(["old", "new", "copy"]), multiple=True, help="Also prove this side; may be given several times.")
@click.option("--only", type=click.Choice(["web", "mail", "local"]), multiple=True, help="Of the live sides, only this kind of part.")
def command(session: Session, against: tuple[str, ...], only: tuple[str, ...]) -> None:
    """Re-read the vault and its view; with --against, prove the old server, the new one, the copies. Evidence is recorded."""
    from hostbackup.jobs.verify import Verify

    session.load(*against)
    with session.job("write") as job:
        result = Verify(job, against, only or ("web", "mail", "local")).run()
    session.end(result, partial(terminal.verify, everything=session.output.verbose))
