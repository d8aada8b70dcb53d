"""Messages that `verify --against old` found other at the old server than in the vault: the next backup fetches them again.

A message never changes under its UID, so a backup does not ask for it twice; this is how it learns that these are to be asked for.
"""

from __future__ import annotations

from collections.abc import Collection

from hostbackup.jobs.keys import key_name, name_key
from hostbackup.jobs.scratch import MessageKey
from hostbackup.model import Part
from hostbackup.vault.state import StateFolder


def _name(part: Part) -> str:
    return "doubts-" + part.id.replace("/", "-")


def known(state: StateFolder, part: Part) -> set[MessageKey]:
    """Those of one mailbox: folder, UIDVALIDITY, UID."""
    rows = (state.read(_name(part)) or {}).get("messages", [])
    return {(key_name(folder), uidvalidity, uid) for folder, uidvalidity, uid in rows}


def keep(state: StateFolder, part: Part, messages: Collection[MessageKey]) -> None:
    """Puts these in the place of all others."""
    if messages:
        state.write(_name(part), {"messages": [[name_key(folder), uidvalidity, uid] for folder, uidvalidity, uid in sorted(messages)]})
    elif state.read(_name(part)) is not None:
        state.remove(_name(part))
