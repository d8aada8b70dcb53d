"""What did not do as asked, as people read it: the worst first, and of many that are alike a few."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from hostbackup.errors import Exit
from hostbackup.model import Failure
from hostbackup.protocols.imap.names import display
from hostbackup.report.words import number, one_line, part_name

_SHOWN = 20  # lines, before "and so many more"
_ALIKE = 3  # failures of one part and for one reason, if there are more than one more
_WORST = ("damaged", "different", "missing")

_CLOSING = {
    Exit.OK: "{command}: all as asked",
    Exit.FAILED: "{command}: failed (exit 1)",
    Exit.USAGE: "{command}: wrong usage (exit 2)",
    Exit.INCOMPLETE: "{command}: incomplete; what is listed above failed or is unproven, everything else is safe (exit 3)",
    Exit.DAMAGE: "{command}: damage or a difference was found; it is listed above (exit 4)",
    Exit.LOCKED: "{command}: another run holds the lock (exit 7)",
    Exit.INTERRUPTED: "{command}: interrupted (exit 130)",
}


def closing(command: str, code: Exit) -> str:
    return _CLOSING[code].format(command=command)


def shown_name(part: str, name: bytes) -> str:
    """A name for people: that of a mail folder is not shown in the modified UTF-7 of the wire."""
    return one_line(display(name) if part.startswith("mail/") else name)


def name_of(row: Mapping[str, Any], key: str = "name") -> str:
    """A name out of a row of JSON."""
    raw = base64.b64decode(row[f"{key}_b64"]) if f"{key}_b64" in row else str(row.get(key, "")).encode("utf-8", "surrogateescape")
    return shown_name(str(row.get("part", "")), raw)


def failure_line(failure: Failure) -> str:
    where = part_name(failure.part)
    if failure.name:
        name = shown_name(failure.part, failure.name)
        where = f"{where}/{name}" if where else name
    head = ": ".join(text for text in (failure.side, where) if text)
    told = f"{one_line(failure.reason).removesuffix('.')} ({one_line(failure.hint)})" if failure.hint else one_line(failure.reason)
    return f"{head}: {told}" if head else told


def failure_lines(failures: Sequence[Failure], *, everything: bool) -> list[str]:
    """One a failure with `everything`; else no more than a screen holds."""
    if everything:
        return [f"  ! {failure_line(failure)}" for failure in failures]
    groups: dict[tuple[str, str, str, str], list[Failure]] = {}
    for failure in failures:
        groups.setdefault(_kind(failure), []).append(failure)
    lines: list[str] = []
    told = 0
    for (side, part, what, _), alike in sorted(groups.items(), key=lambda group: group[1][0].code not in _WORST):
        some = alike if len(alike) <= _ALIKE + 1 else alike[:_ALIKE]
        if len(lines) + len(some) + (len(some) < len(alike)) > _SHOWN:
            some = alike[: max(0, _SHOWN - len(lines))]
            lines += [f"  ! {failure_line(failure)}" for failure in some]
            told += len(some)
            break
        lines += [f"  ! {failure_line(failure)}" for failure in some]
        told += len(alike)
        if len(some) < len(alike):
            head = ": ".join(text for text in (side, part_name(part)) if text)
            lines.append(f"  ! {head}{': ' if head else ''}and {number(len(alike) - len(some))} more alike: {one_line(what)}")
    if told < len(failures):
        lines.append(f"  ! … and {number(len(failures) - told)} more: see --verbose, --json or the snapshot")
    return lines


def _kind(failure: Failure) -> tuple[str, str, str, str]:
    """What those have in common that one line may stand for: all but the message's own subject and file."""
    return failure.side, failure.part if failure.name else "", failure.reason.partition("; subject: ")[0], failure.code
