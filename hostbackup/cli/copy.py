"""`hostbackup copy`: the vault to buckets and other disks."""

from __future__ import annotations

from pathlib import Path

import click

from hostbackup.cli.run import Session
from hostbackup.cli.run import command as made
from hostbackup.report import terminal


@made("copy", "The vault to every [[copy]].")
@click.option("--name", metavar="COPY", multiple=True, help="Only this copy; may be given several times.")
@click.option("--repair", is_flag=True, help="Replace what is damaged there, and bring back from there what the vault lost.")
@click.option("--delete-vanished", is_flag=True, help="In mirrors, delete what this program put there and the old server has no longer.")
@click.option("--identity", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False), help="The secret key of encrypted copies (age).")
def command(session: Session, *, name: tuple[str, ...], repair: bool, delete_vanished: bool, identity: Path | None) -> None:
    """Copy the vault to every [[copy]]: a bucket, or another disk. Nothing there is deleted, unless --delete-vanished asks for it."""
    from hostbackup.jobs.copies import copy_all

    session.load("copy")
    with session.job("write") as job:
        job.key_file = identity
        result = copy_all(job, name, repair=repair, delete_vanished=delete_vanished)
    session.end(result, terminal.copy)
