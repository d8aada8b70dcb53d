"""`hostbackup verify`: proof of the vault, and of every side that is asked for."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from hostbackup.cli.run import Session
from hostbackup.cli.run import command as made
from hostbackup.errors import UsageError
from hostbackup.report import terminal


@made("verify", "Prove the vault, and any other side that is asked for.", network=True)
@click.option("--against", type=click.Choice(["old", "new", "copy"]), multiple=True, help="Also prove this side; may be given several times.")
@click.option("--only", type=click.Choice(["web", "mail", "local"]), multiple=True, help="Of the live sides, only this kind of part.")
@click.option(
    "--read-data",
    metavar="PERCENT",
    type=click.FloatRange(0, 100),
    is_flag=False,
    flag_value=100,
    help="Of copies: read back this share, chosen at random (all without a number), though the store offers checksums.",
)
@click.option("--drill", is_flag=True, help="Of copies: restore a file and a mailbox from each as a trial, and compare them.")
@click.option("--identity", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False), help="The secret key of encrypted copies (age).")
def command(
    session: Session, *, against: tuple[str, ...], only: tuple[str, ...], read_data: float | None, drill: bool, identity: Path | None
) -> None:
    """Re-read the vault and its view; with --against, prove the old server, the new one, the copies. Evidence is recorded."""
    from hostbackup.jobs.verify import Verify

    if "copy" not in against and (read_data is not None or drill):
        raise UsageError("--read-data and --drill are about copies", hint="say --against copy too")
    session.load(*against)
    with session.job("write") as job:
        job.key_file = identity
        share = None if read_data is None else read_data / 100
        result = Verify(job, against, only or ("web", "mail", "local"), read_data=share, drill=drill).run()
    session.end(result, partial(terminal.verify, everything=session.output.verbose))
