"""`hostbackup snapshots`: what the vault has kept."""

from __future__ import annotations

from hostbackup.cli.run import Session
from hostbackup.cli.run import command as made
from hostbackup.report import terminal


@made("snapshots", "List the snapshots.")
def command(session: Session) -> None:
    """List the snapshots, oldest first."""
    from hostbackup.errors import Exit
    from hostbackup.jobs.look import summaries
    from hostbackup.jobs.result import Result
    from hostbackup.model import Failure

    result = Result(session.observer)
    with session.job("read") as job:
        result.details["snapshots"] = list(summaries(job.vault.snapshots))
    for row in result.details["snapshots"]:
        if "reason" in row:
            hint = "an older or newer one may be whole; `copy --repair` may bring it back"
            result.fail(Failure("vault", "", f"snapshots/{row['id']}".encode(), "damaged", row["reason"], hint), Exit.DAMAGE)
    result.counts["snapshots"] = len(result.details["snapshots"])
    session.end(result, terminal.snapshots)
