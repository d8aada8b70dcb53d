"""Mailboxes as they were proven: a table of folders on both sides, what users changed, what a server rewrote."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from hostbackup.model import Failure
from hostbackup.protocols.imap.names import display
from hostbackup.report.words import number, one_line, part_name, plural, table

_SHOWN = 30  # rows of one table; of more, only those with something to look at
_SUMS = {"there": "there now", "pushed": "pushed", "proven": "proven"}
_TROUBLES = {
    "missing": "missing",
    "different": "different",
    "unproven": "unproven",
    "not_pushed": "not pushed",
    "fresh": "new",
    "unseen": "maybe unseen",
}
_SOUND = ("line-endings", "added-headers")  # tiers that count as verified
Row = Mapping[str, Any]


def folders(accounts: Sequence[Row], everything: bool = False, failures: Iterable[Failure] = ()) -> list[str]:
    """The tables of `mail` in the document of `verify` or `push`; nothing where there is none."""
    lines: list[str] = []
    failed = {(failure.part, failure.name.rpartition(b" UID ")[0] or failure.name) for failure in failures}
    for side, title in (("old", "at the old server"), ("new", "at the new server")):
        rows = [(account, row) for account in accounts if account["side"] == side for row in account["folders"]]
        if rows:
            lines += ["", f"mail {title}, by folder:", *_table(side, rows, everything, failed)]
        lines += [line for account in accounts if account["side"] == side for line in _altered(account)]
    return lines


def renamed(maps: Mapping[str, Sequence[Row]]) -> list[str]:
    """Folders that this run had to call otherwise at the new server, and those of which several became one without the profile's saying so of each.
    `maps`: `folders` in the document of `push`."""
    lines = []
    for part, rows in maps.items():
        real = any(row.get("stood") for row in rows)  # else nothing was made: a dry run
        sharing = Counter(_wire(row, "new") for row in rows)
        together = {_wire(row, "new") for row in rows if row["rule"] != "profile" and sharing[_wire(row, "new")] > 1}
        for row in rows:
            old, new = _folder(row, "old"), _folder(row, "new")
            if row.get("why") and row["rule"] != "earlier" and bool(row.get("stood")) is real:
                lines.append(f"  ~ {part_name(part)}: folder {old} {'is' if real else 'will be'} called {new} there: {one_line(row['why'])}")
            elif _wire(row, "new") in together:
                lines.append(f"  ~ {part_name(part)}: folder {old} goes to {new} there, together with others")
    return lines


def _table(side: str, rows: list[tuple[Row, Row]], everything: bool, failed: Collection[tuple[str, bytes]]) -> list[str]:
    troubled = [(account, row) for account, row in rows if _troubled(row) or (account["part"], _wire(row, "old")) in failed]
    # After a push, what earlier ones brought is neither pushed nor proven again: zeros would read as if it were not there.
    loud = {id(row) for _, row in troubled}
    idle = {id(row) for _, row in rows if side == "new" and row["messages"] and not row.get("pushed") and id(row) not in loud}
    notes = [f"{plural(len(idle), 'folder')} had nothing new to push"] if idle else []
    rows = [(account, row) for account, row in rows if id(row) not in idle]
    shown = rows if everything or len(rows) <= _SHOWN else troubled[:_SHOWN]
    left = len(rows) - len(shown)
    if left:
        quiet = len(rows) - len(troubled)
        mailboxes = plural(len({account["part"] for account, _ in rows}), "mailbox", "mailboxes")
        notes.append(f"{plural(quiet, 'folder')} of {mailboxes} have no exception; every one of {number(len(rows))} is in --json and in evidence/")
    if not shown:
        return notes
    columns = ["there", *(["pushed"] if side == "new" else []), "proven"]
    columns += [key for key in _TROUBLES if any(row.get(key) for _, row in shown)]
    told_changes = any(row.get("changed") for _, row in shown)
    header = ["mailbox", "folder", *(["new folder"] if side == "new" else []), "snapshot", *(({**_SUMS, **_TROUBLES})[key] for key in columns)]
    header += ["since then"] if told_changes else []
    body = []
    for account, row in shown:
        cells = [part_name(account["part"]).partition("/")[2], _folder(row, "old")]
        cells += [_folder(row, "new")] if side == "new" else []
        cells += [number(row["messages"]), *(_figure(row, key) for key in columns)]
        body.append(cells + ([_changed(row)] if told_changes else []))
    return [*table(body, header), *notes]


def _troubled(row: Row) -> bool:
    return any(row.get(key) for key in _TROUBLES)


def _figure(row: Row, key: str) -> str:
    if key == "there":
        return "-" if row["there"] is None else number(row["there"])
    if key == "proven":
        return number(sum(row.get("proven", {}).values()))
    return number(row.get(key, 0))


def _changed(row: Row) -> str:
    return ", ".join(f"{number(count)} {kind}" for kind, count in row.get("changed", {}).items()) or "-"


def _folder(row: Row, key: str) -> str:
    return one_line(display(_wire(row, key)))


def _wire(row: Row, key: str) -> bytes:
    return base64.b64decode(row[f"{key}_b64"]) if f"{key}_b64" in row else str(row.get(key, "-")).encode()


def _altered(account: Row) -> list[str]:
    """What the server made of messages that count as verified all the same."""
    rows = [row for row in account.get("altered", []) if row["tier"] in _SOUND]
    told = [f"  ~ {part_name(account['part'])}: {plural(row['messages'], 'message')}: {one_line(row['reason'])}" for row in rows[:5]]
    return [*told, *([f"  ~ … and {number(len(rows) - 5)} other ways: see --json"] if len(rows) > 5 else [])]
