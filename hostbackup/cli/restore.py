"""`hostbackup restore`: out of the vault or a copy, into a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from hostbackup.cli.run import Session
from hostbackup.cli.run import command as made
from hostbackup.errors import UsageError
from hostbackup.model import Part
from hostbackup.report import terminal

if TYPE_CHECKING:
    from hostbackup.jobs.copy_source import Source
    from hostbackup.jobs.restore import Format
    from hostbackup.jobs.result import Result


@made("restore", "Out of the vault or a copy, into a folder.", profile=False)
@click.argument("words", metavar="[PROFILE] [PATH]...", nargs=-1)
@click.option("--to", metavar="DIR", required=True, type=click.Path(path_type=Path, file_okay=False), help="Where to; made if absent.")
@click.option("--snapshot", metavar="ID", default="latest", show_default=True, help="Which snapshot.")
@click.option(
    "--from", "source", metavar="vault|copy|URL", default="vault", show_default=True, help="A copy's name, `copy` for the first, or s3://… or a path."
)
@click.option("--endpoint", metavar="URL", help="With --from s3://…: the store's address; keys come from boto3's own credential chain.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["tree", "mbox", "eml"]),
    default="tree",
    show_default=True,
    help="Mail as Maildir, as Thunderbird's local folders, or a file a message.",
)
@click.option("--vanished", is_flag=True, help="Also what was no longer on the old server.")
@click.option("--vault", "whole", is_flag=True, help="With --from a copy: the whole vault, with its history, to DIR; run again, it goes on.")
@click.option("--identity", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False), help="The secret key of an encrypted copy (age).")
def command(
    session: Session,
    *,
    words: tuple[str, ...],
    to: Path,
    snapshot: str,
    source: str,
    endpoint: str | None,
    form: Format,
    vanished: bool,
    whole: bool,
    identity: Path | None,
) -> None:
    """Restore everything, or what is below PATH, to a folder, laid out as latest/ is.

    With --from and a URL or path no PROFILE is needed: a copy holds all that it takes. Nothing that exists is overwritten.
    """
    from hostbackup.cli.sources import opened
    from hostbackup.jobs.restore import restore
    from hostbackup.jobs.result import Result

    result = Result(session.observer)
    with opened(session, words, source, endpoint, identity) as (found, paths):
        if whole:
            _vault(session, found, paths, result, to, alone=snapshot == "latest" and form == "tree" and not vanished)
        expected = _expected(session) if snapshot == "latest" else []
        done = restore(found, result, to=to, snapshot=snapshot, selection=paths, format=form, vanished=vanished, expected=expected)
    result.counts.update(files=done.files, bytes=done.bytes, folders=done.folders, links=done.links, existing=done.existing)
    result.details.update(to=str(to), snapshot=done.snapshot, format=form, renamed=done.mapped)
    session.end(result, terminal.restore)


def _vault(session: Session, found: Source, paths: Sequence[str], result: Result, to: Path, *, alone: bool) -> NoReturn:
    from hostbackup.jobs.copy_source import CopySource
    from hostbackup.jobs.restore_vault import rebuild

    if not isinstance(found, CopySource):
        raise UsageError("--vault brings a vault back from a copy", hint="name the copy: --from copy, s3://bucket/prefix, or a path")
    if paths or not alone:
        raise UsageError("--vault brings everything back", hint="leave out PATH, --snapshot, --format and --vanished")
    done = rebuild(found, to, result)
    result.counts.update(objects=done.objects, manifests=done.manifests, snapshots=done.snapshots, bytes=done.bytes, existing=done.existing)
    result.details.update(to=str(to), snapshot=done.newest, format="vault", renamed={})
    session.end(result, terminal.restore_vault)


def _expected(session: Session) -> list[Part]:
    """What the profile names, where there is one. Its list of accounts may be long gone when somebody restores."""
    from hostbackup.jobs.coverage import parts_of

    try:
        return parts_of(session.profile) if session.profile is not None else []
    except UsageError as error:
        session.observer.note(f"the profile's accounts are not known: {error}")
        return []
