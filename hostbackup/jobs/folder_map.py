"""Which folder of the new server each old folder goes to, from one run to the next: decided once, made there, on record in `state/` from then on.

The record keeps every old folder that was ever decided for, so that the new server's names can be led back to the old ones, and no name is given
twice.
"""

from __future__ import annotations

from hostbackup.jobs.backup_mail import GONE
from hostbackup.jobs.context import Job
from hostbackup.jobs.result import Result
from hostbackup.places.mail import MailAccount
from hostbackup.places.mail_folders import FolderMap, Mapped
from hostbackup.vault.layout import mail_prefix
from hostbackup.vault.mailbox import MailRoot


def decided(job: Job, journal: str) -> dict[bytes, Mapped]:
    """By old folder what the pushes to that target decided; nothing where there was none."""
    document = job.vault.state.read(_document(journal)) or {"rows": []}
    rows = [Mapped.from_record(row) for row in document["rows"]]
    return {row.old: row for row in rows}


def settled_map(job: Job, journal: str, source: MailRoot, target: MailAccount, result: Result, *, dry_run: bool) -> FolderMap:
    """The map of this run. Unless it is a dry run, its folders are made, by other names where the new server does not take the first ones, and the
    map is on record before anything is appended. What cannot be made is told. Raises ConnectionFailed."""
    before = decided(job, journal)
    made = FolderMap.between(
        [folder for folder in source.folders() if GONE not in folder.attributes],
        target.folders(),
        old_prefix=mail_prefix(source.meta),
        new_prefix=target.namespace_prefix,
        new_separator=target.separator,
        named=job.profile.mail.folders,
        earlier=before.values(),
    )
    if not dry_run:
        for failure in target.prepare(made.folders(), made):
            result.fail(failure)
        after = before | {row.old: row for row in made.rows}
        job.vault.state.write(_document(journal), {"rows": [row.as_record() for row in after.values()]})
    return made


def _document(journal: str) -> str:
    return f"folders-{journal}"
