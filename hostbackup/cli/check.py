"""`hostbackup check`: preflight."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import click

from hostbackup.cli.run import Session
from hostbackup.cli.run import command as made
from hostbackup.report import terminal


@made("check", "Reach every server; show what is there. Changes nothing.", network=True)
@click.option("--trust", is_flag=True, help="Record the key of a host that is not known yet, after showing it.")
@click.option("--accept-identity", is_flag=True, help="A server that looks like the new one is the old one all the same; goes on record.")
@click.option("--probe", is_flag=True, help="Also try out each copy with small objects, which are taken away again; what is found is kept.")
def command(session: Session, trust: bool, accept_identity: bool, probe: bool) -> None:
    """Reach every server and show host keys, capabilities, what is there, sizes, free disk and an estimate. Changes nothing."""
    from hostbackup.jobs.check import Check
    from hostbackup.jobs.connect import Connections
    from hostbackup.jobs.identity import Identity
    from hostbackup.jobs.result import Result
    from hostbackup.vault.vault import Mode, Vault

    profile = session.load("old", "new", "copy")
    there = (profile.vault / "format.json").exists()
    mode: Mode = "write" if accept_identity or (probe and profile.copies) else "read"
    # What is accepted has to be kept somewhere: the vault is made for it.
    with Vault.open(profile.vault, mode, create=accept_identity, command="check") if there or accept_identity else nullcontext() as vault:
        identity = Identity(vault.state if vault and accept_identity else None, accept=accept_identity)
        if vault and not accept_identity:
            identity = Identity.reading(vault.state)
        connections = Connections(
            profile, identity, session.observer, session.ask if session.can_ask else None, session.secrets.append, session.limits
        )
        result = Check(profile, connections, Result(session.observer), vault, trust, probe).run()
        if vault and identity.accepted:
            vault.evidence.write("check", identity.accepted)
            result.details["accepted"] = identity.accepted
    session.end(result, partial(terminal.check, everything=session.output.verbose))
