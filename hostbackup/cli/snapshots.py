"""`hostbackup snapshots`: what the vault has kept."""

from __future__ import annotations

from hostbackup.cli.run import Session
from hostbackup.cli.run import command as made
from hostbackup.report import terminal


@made("snapshots", "List the snapshots.")
def command(session: Session) -> None:
    """List the snapshots, oldest first."""
    from hostbackup.jobs.look import summaries
    from hostbackup.jobs.result import Result

    result = Result(session.observer)
    with session.job("read") as job:
        result.details["snapshots"] = list(summaries(job.vault.snapshots))
    result.counts["snapshots"] = len(result.details["snapshots"])
    session.end(result, terminal.snapshots)
